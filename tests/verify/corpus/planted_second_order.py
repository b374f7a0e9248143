"""A right first derivative whose own derivative is wrong."""

from typing import Any

import jax
import jax.numpy as jnp

from .registry import Setup, away_from_zero, normal, planted, positive, rule, setup, tangent_rule


@planted("x", witness="order 2", order=2, source="pytorch/pytorch #76185")
def residual_taken_for_a_constant(rng: Any) -> Setup:
    """The backward multiplies by a saved value through which nothing flows."""
    op = rule(lambda x: jnp.sin(x), lambda x, y, dy: (dy * jax.lax.stop_gradient(jnp.cos(x)),))
    return setup(lambda x: op(x) ** 2, normal(rng, 5))


@planted("x", witness="order 2", order=2, source="pytorch/pytorch #58509")
def derivative_with_a_wrong_derivative(rng: Any) -> Setup:
    """d sin = cos and, in the rule of cos, d cos = +sin."""
    cosine = tangent_rule(lambda x: jnp.cos(x), lambda x, dx: jnp.sin(x) * dx)
    return setup(tangent_rule(lambda x: jnp.sin(x), lambda x, dx: cosine(x) * dx), normal(rng, 5))


@planted("x", index=(2,), witness="order 2", order=2, source="jax-ml/jax #5054")
def second_derivative_of_sinc_at_zero(rng: Any) -> Setup:
    """A guarded sin(x)/x: slope 0 at 0 is right, but so the curvature is 0 too, where it is -1/3."""

    def sinc(x: Any) -> Any:
        return jnp.where(x == 0, 1, jnp.sin(x) / jnp.where(x == 0, 1, x))

    return setup(lambda x: sinc(x).sum(), away_from_zero(rng, 4).at[2].set(0.0))


@planted("x", witness="order 2", order=2, source="pytorch/pytorch #18619")
def product_divided_by_a_constant(rng: Any) -> Setup:
    """The gradient of a product as y/x, with y from the forward pass as a constant."""
    op = rule(lambda x: jnp.prod(x), lambda x, y, dy: (dy * jax.lax.stop_gradient(y) / x,))
    return setup(op, positive(rng, 4))


@planted("x", "w", witness="order 2", order=2)
def backward_ignores_the_cotangent_s_gradient(rng: Any) -> Setup:
    """The backward's own rule loses the derivative by dy, which depends on both arguments."""
    transpose = rule(lambda x, dy: x.T @ dy, lambda x, dy, y, ct: (dy @ ct.T, 0 * (x @ ct)))
    op = rule(lambda x, w: x @ w, lambda x, w, y, dy: (dy @ w.T, transpose(x, dy)))
    return setup(lambda x, w: op(x, w) ** 3, normal(rng, 3, 4), normal(rng, 4, 2))
