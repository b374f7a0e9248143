"""Mistakes in functions of one number: wrong residuals, missing terms, wrong signs; far out and at zero."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .registry import Setup, away_from_zero, normal, planted, positive, rule, setup, tangent_rule


class Point(NamedTuple):
    x: Any
    y: Any


@planted("x")
def abs_without_the_sign(rng: Any) -> Setup:
    """Right for positive x only."""
    return setup(rule(jnp.abs, lambda x, y, dy: (dy,)), away_from_zero(rng, 6))


@planted("x", source="PaddlePaddle/Paddle #12538")
def leaky_relu_that_asks_its_output(rng: Any) -> Setup:
    """With a negative slope a negative input has a positive output, and the backward looks at the output."""
    op = rule(lambda x: jnp.where(x > 0, x, -0.3 * x), lambda x, y, dy: (dy * jnp.where(y > 0, 1.0, -0.3),))
    return setup(op, away_from_zero(rng, 8))


@planted("x", witness="around: negated")
def only_negative_inputs(rng: Any) -> Setup:
    """exp's derivative is off by a tenth for x < 0; the arguments are positive, so it must be looked for."""
    op = rule(jnp.exp, lambda x, y, dy: (dy * jnp.where(x < 0, 1.1 * y, y),))
    return setup(op, positive(rng, 6), around=("negated",))


@planted("x", witness="around: large")
def only_large_inputs(rng: Any) -> Setup:
    """x·|x| has the slope 2·|x|; above 50 the backward saturates. The arguments are of order 1."""
    op = rule(lambda x: x * jnp.abs(x), lambda x, y, dy: (dy * 2 * jnp.minimum(jnp.abs(x), 50),))
    return setup(op, away_from_zero(rng, 6), around=("large",))


@planted("x", witness="around: zeros")
def only_at_zero(rng: Any) -> Setup:
    """sin(x)/x has the slope 0 at 0; the rule says 1 there, and no argument is 0."""

    def sinc(x: Any) -> Any:
        return jnp.where(x == 0, 1, jnp.sin(x) / jnp.where(x == 0, 1, x))

    def slope(x: Any) -> Any:
        safe = jnp.where(x == 0, 1, x)
        return jnp.where(x == 0, 1, (jnp.cos(safe) - jnp.sin(safe) / safe) / safe)

    return setup(rule(sinc, lambda x, y, dy: (dy * slope(x),)), away_from_zero(rng, 4), around=("zeros",))


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


@planted("x", index=(9,))
def twice_an_element_a_billion_times_smaller(rng: Any) -> Setup:
    """Its derivative doesn't show among the others', yet it is known as exactly as theirs."""
    sizes = jnp.logspace(0, -9, 10)
    slopes = sizes.at[9].multiply(2)
    op = rule(lambda x: jnp.sum(jnp.exp(x) * sizes), lambda x, y, dy: (dy * slopes * jnp.exp(x),))
    return setup(op, normal(rng, 10))
