"""Losses of numbers."""

import jax.numpy as jnp
from jax import Array

from jaxnet.losses.loss import rule, same_shape


@rule(same_shape, lambda p, t: 2 * (p - t), lambda p, t: -2 * (p - t))
def squared_error(prediction: Array, target: Array) -> Array:
    """L = (p − t)²,  ∂L/∂p = 2(p − t) = −∂L/∂t; elementwise."""
    return jnp.square(prediction - target)


def _positive_delta(name: str, p: Array, t: Array, delta: float) -> None:
    same_shape(name, p, t)
    if not delta > 0:
        raise ValueError(f"{name} needs delta > 0; got {delta}")


@rule(
    _positive_delta,
    lambda p, t, delta: jnp.clip(p - t, -delta, delta),
    lambda p, t, delta: -jnp.clip(p - t, -delta, delta),
)
def huber(prediction: Array, target: Array, delta: float = 1.0) -> Array:
    """L = e²/2 for |e| ≤ δ, δ(|e| − δ/2) beyond, e = p − t;  ∂L/∂p = clip(e, −δ, δ). (Huber, 1964)."""
    e = jnp.abs(prediction - target)
    inside = jnp.minimum(e, delta)
    return inside * (e - inside / 2)
