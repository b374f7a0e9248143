"""Mistakes in functions of one number: at kinks, at zero, far out, for negative arguments."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .registry import Setup, away_from_zero, normal, planted, positive, rule, setup, tangent_rule


class Point(NamedTuple):
    x: Any
    y: Any


@planted("x")
def relu_with_two_at_zero(rng: Any) -> Setup:
    """At 0 every slope from 0 to 1 would do; 2 is none of them."""
    slope = rule(
        lambda x: jnp.maximum(x, 0), lambda x, y, dy: (dy * jnp.where(x == 0, 2.0, jnp.where(x > 0, 1.0, 0.0)),)
    )
    return setup(slope, away_from_zero(rng, 6).at[3].set(0.0))


@planted("x", index=(2,))
def abs_with_three_at_zero(rng: Any) -> Setup:
    """The same for |x| with 3."""
    op = rule(jnp.abs, lambda x, y, dy: (dy * jnp.where(x == 0, 3.0, jnp.sign(x)),))
    return setup(op, away_from_zero(rng, 6).at[2].set(0.0))


@planted("x")
def abs_without_the_sign(rng: Any) -> Setup:
    """Right for positive x only."""
    return setup(rule(jnp.abs, lambda x, y, dy: (dy,)), away_from_zero(rng, 6))


@planted("x", source="Theano/Theano #4568")
def every_maximum_gets_all(rng: Any) -> Setup:
    """Two equal maxima get a gradient of 1 each: the sum of the slopes may only be 1."""
    op = rule(lambda x: x.max(axis=1), lambda x, y, dy: (jnp.where(x == y[:, None], dy[:, None], 0),))
    x = normal(rng, 3, 4)
    return setup(op, x.at[1, 2].set(x[1].max()).at[1, 0].set(x[1].max()))


@planted("x")
def minimum_gives_nothing_at_ties(rng: Any) -> Setup:
    """min(x, y) where the two are equal: neither gets a gradient."""

    def backward(x: Any, y: Any, z: Any, dz: Any) -> Any:
        return jnp.where(x < y, dz, 0), jnp.where(y < x, dz, 0)

    x = normal(rng, 5)
    op = rule(jnp.minimum, backward)
    return setup(lambda x: op(x, x) * jnp.arange(1, 6, dtype=x.dtype), x)


@planted("x", source="tenstorrent/tt-metal #48201")
def clip_with_the_comparisons_inverted(rng: Any) -> Setup:
    """low ≥ x and x ≥ high hold nowhere: the gradient is zero everywhere."""
    op = rule(lambda x: jnp.clip(x, -1, 1), lambda x, y, dy: (jnp.where((x <= -1) & (x >= 1), dy, 0),))
    return setup(op, normal(rng, 8))


@planted("x")
def clip_at_another_bound(rng: Any) -> Setup:
    """The forward clips at 1, the backward at 2: wrong between them."""
    op = rule(lambda x: jnp.clip(x, -1, 1), lambda x, y, dy: (jnp.where((x > -1) & (x < 2), dy, 0),))
    return setup(op, jnp.linspace(-1.7, 2.6, 9) + 0.05 * normal(rng, 9))


@planted("x")
def clip_with_minus_one_on_the_bound(rng: Any) -> Setup:
    """Exactly on the bound the masks are subtracted from each other: -1, and no slope nearby is negative."""
    inside = lambda x: jnp.where(jnp.abs(x) == 1, -1.0, jnp.where(jnp.abs(x) < 1, 1.0, 0.0))  # noqa: E731
    op = rule(lambda x: jnp.clip(x, -1, 1), lambda x, y, dy: (dy * inside(x),))
    return setup(op, 0.3 * normal(rng, 6).at[1].set(0.0) + jnp.array([0, 1, 0, 0, 0, 0.0]))


@planted("x", source="pytorch/pytorch #23925")
def interpolation_beyond_the_border(rng: Any) -> Setup:
    """Exactly on the last knot the slope is taken against a zero outside, as in grid_sample."""
    table = jnp.arange(2.0, 7.0)

    def sample(x: Any) -> Any:
        return jnp.interp(x, jnp.arange(5, dtype=x.dtype), table.astype(x.dtype))

    def backward(x: Any, y: Any, dy: Any) -> Any:
        padded = jnp.concatenate([table, jnp.zeros(1)]).astype(x.dtype)
        left = jnp.clip(jnp.floor(x), 0, 4).astype(int)
        return (dy * (padded[left + 1] - padded[left]),)

    return setup(rule(sample, backward), jnp.array([0.3, 1.6, 4.0, 2.2]) + 0 * normal(rng, 4))


@planted("x")
def interpolation_with_the_next_slope(rng: Any) -> Setup:
    """The interval is searched one place too far to the right."""
    table = jnp.array([0.0, 1.0, 3.0, 2.0, 5.0, 4.0])

    def backward(x: Any, y: Any, dy: Any) -> Any:
        slopes = jnp.diff(table).astype(x.dtype)
        return (dy * slopes[jnp.clip(jnp.floor(x).astype(int) + 1, 0, 4)],)

    op = rule(lambda x: jnp.interp(x, jnp.arange(6, dtype=x.dtype), table.astype(x.dtype)), backward)
    return setup(op, jnp.asarray(rng.uniform(0.2, 0.8, 4), jnp.float32) + jnp.arange(4.0))


@planted("x")
def huber_without_its_delta(rng: Any) -> Setup:
    """Beyond δ = 0.7 the slope is ±1 instead of ±δ."""

    def huber(x: Any) -> Any:
        return jnp.where(jnp.abs(x) < 0.7, x**2 / 2, 0.7 * (jnp.abs(x) - 0.35))

    op = rule(huber, lambda x, y, dy: (dy * jnp.where(jnp.abs(x) < 0.7, x, jnp.sign(x)),))
    return setup(op, away_from_zero(rng, 8))


@planted("x", source="PaddlePaddle/Paddle #12538")
def leaky_relu_that_asks_its_output(rng: Any) -> Setup:
    """With a negative slope a negative input has a positive output, and the backward looks at the output."""
    op = rule(lambda x: jnp.where(x > 0, x, -0.3 * x), lambda x, y, dy: (dy * jnp.where(y > 0, 1.0, -0.3),))
    return setup(op, away_from_zero(rng, 8))


@planted("x")
def only_negative_inputs(rng: Any) -> Setup:
    """exp's derivative is off by a tenth for x < 0; the arguments are positive, so it must be looked for."""
    op = rule(jnp.exp, lambda x, y, dy: (dy * jnp.where(x < 0, 1.1 * y, y),))
    return setup(op, positive(rng, 6), around=("negated",))


@planted("x")
def only_large_inputs(rng: Any) -> Setup:
    """x·|x| has the slope 2·|x|; above 50 the backward saturates. The arguments are of order 1."""
    op = rule(lambda x: x * jnp.abs(x), lambda x, y, dy: (dy * 2 * jnp.minimum(jnp.abs(x), 50),))
    return setup(op, away_from_zero(rng, 6), around=("large",))


@planted("x")
def only_at_zero(rng: Any) -> Setup:
    """sin(x)/x has the slope 0 at 0; the rule says 1 there, and no argument is 0."""

    def sinc(x: Any) -> Any:
        return jnp.where(x == 0, 1, jnp.sin(x) / jnp.where(x == 0, 1, x))

    def slope(x: Any) -> Any:
        safe = jnp.where(x == 0, 1, x)
        return jnp.where(x == 0, 1, (jnp.cos(safe) - jnp.sin(safe) / safe) / safe)

    return setup(rule(sinc, lambda x, y, dy: (dy * slope(x),)), away_from_zero(rng, 4), around=("zeros",))


@planted("x", index=(1,), source="jax-ml/jax #11479")
def bessel_function_at_zero(rng: Any) -> Setup:
    """I₀ is even and smooth, but written with e^|x|: autodiff gives 1 at 0, and 0 is right."""
    return setup(lambda x: jnp.exp(jnp.abs(x)) * jax.scipy.special.i0e(x), away_from_zero(rng, 4).at[1].set(0.0))


@planted("x", index=(2,), source="jax-ml/jax #2107")
def softplus_at_zero(rng: Any) -> Setup:
    """max(x, 0) + log(1 + e^-|x|): both kinks cancel, but their conventions at 0 don't: 0 for 1/2."""
    return setup(
        lambda x: jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))), away_from_zero(rng, 5).at[2].set(0.0)
    )


@planted("x", source="jax-ml/jax #4177")
def norm_squared_at_zero(rng: Any) -> Setup:
    """|x|² at 0 through the root: a removable singularity, NaN."""
    return setup(lambda x: jnp.linalg.norm(x) ** 2, 0 * normal(rng, 3))


@planted("x", index=(1,), source="jax-ml/jax #5798")
def where_does_not_guard_the_root(rng: Any) -> Setup:
    """The branch that isn't taken has an infinite slope, and 0·∞ is NaN."""
    return setup(lambda x: jnp.where(x < 0.1, x, jnp.sqrt(x)), positive(rng, 4).at[1].set(0.0))


@planted("x")
def sigmoid_of_the_input_for_the_output(rng: Any) -> Setup:
    """x·(1 - x) for y·(1 - y): the wrong residual."""
    return setup(rule(jax.nn.sigmoid, lambda x, y, dy: (dy * x * (1 - x),)), normal(rng, 6))


@planted("x")
def logarithm_of_the_output_for_the_input(rng: Any) -> Setup:
    """dy/log(x) for dy/x: the other wrong residual."""
    return setup(rule(jnp.log, lambda x, y, dy: (dy / y,)), positive(rng, 6) + 1)


@planted("x")
def residual_updated_in_place(rng: Any) -> Setup:
    """The buffer saved for the backward has been overwritten by the next step of the forward."""

    def forward(x: Any) -> Any:
        return jnp.tanh(x) ** 2, jnp.tanh(x) ** 2

    op = jax.custom_vjp(lambda x: jnp.tanh(x) ** 2)
    op.defvjp(forward, lambda t, dy: (2 * t * (1 - t**2) * dy,))
    return setup(op, normal(rng, 6))


@planted("x")
def swish_without_the_second_term(rng: Any) -> Setup:
    """(x·σ(x))′ = σ + x·σ′; the product rule's second term is missing."""
    return setup(rule(jax.nn.silu, lambda x, y, dy: (dy * jax.nn.sigmoid(x),)), normal(rng, 6))


@planted("x")
def gelu_with_the_other_one_s_derivative(rng: Any) -> Setup:
    """The exact gelu with the derivative of its tanh approximation: 1e-3 apart at most."""

    def backward(x: Any, y: Any, dy: Any) -> Any:
        return jax.vjp(lambda x: jax.nn.gelu(x, approximate=True), x)[1](dy)

    return setup(rule(lambda x: jax.nn.gelu(x, approximate=False), backward), normal(rng, 8))


@planted("x")
def tail_cut_off(rng: Any) -> Setup:
    """erf's derivative is taken for 0 beyond 2, where it is still 0.02."""
    op = rule(
        jax.scipy.special.erf,
        lambda x, y, dy: (dy * jnp.where(jnp.abs(x) > 2, 0, 2 / jnp.pi**0.5 * jnp.exp(-(x**2))),),
    )
    return setup(op, jnp.linspace(-2.4, 2.4, 8) + 0.03 * normal(rng, 8))


@planted("p")
def exponent_without_its_logarithm(rng: Any) -> Setup:
    """d xᵖ/dp = xᵖ·log x; the logarithm is missing."""
    op = rule(lambda x, p: x**p, lambda x, p, y, dy: (dy * p * x ** (p - 1), dy * y))
    return setup(op, positive(rng, 5) + 1, positive(rng, 5))


@planted("x")
def integer_exponent_halved(rng: Any) -> Setup:
    """n·xⁿ⁻¹ by repeated squaring with 2·(n // 2) for n: wrong for odd n."""

    def power(x: Any, n: Any) -> Any:
        return x ** n.astype(x.dtype)

    def backward(x: Any, n: Any, y: Any, dy: Any) -> Any:
        return dy * (2 * (n // 2)).astype(x.dtype) * x ** (n - 1).astype(x.dtype), None

    return setup(rule(power, backward), positive(rng, 4), jnp.array([2, 3, 4, 5]))


@planted("x")
def tangent_with_a_wrong_factor(rng: Any) -> Setup:
    """A custom_jvp: the derivative of x³ without its 3; forward and reverse mode agree with each other."""
    return setup(tangent_rule(lambda x: x**3, lambda x, dx: x**2 * dx), normal(rng, 5))


@planted("point.y")
def tangent_without_one_argument(rng: Any) -> Setup:
    """hypot's custom_jvp forgets its second argument, in a NamedTuple."""
    hypot = tangent_rule(lambda x, y: jnp.sqrt(x**2 + y**2), lambda x, y, dx, dy: x * dx / jnp.sqrt(x**2 + y**2))
    return setup(lambda point: hypot(point.x, point.y), Point(positive(rng, 4), positive(rng, 4)))
