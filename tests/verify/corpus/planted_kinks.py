"""Mistakes at kinks, ties, bounds and knots, and kinks that are none."""

from typing import Any

import jax
import jax.numpy as jnp

from .registry import Setup, away_from_zero, normal, planted, positive, rule, setup


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
