"""Dropout."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxnet.layers.layer import Input, Layer, Params


def dropout(rate: float) -> Layer:
    """In training y = x ⊙ m / (1 − rate), m = 1 with probability 1 − rate, so that E[y] = x; else y = x.

    dx = dy ⊙ m / (1 − rate). The mask is drawn from `key`; without a key it is inference. No parameters.
    (Srivastava et al., 2014).

    Raises:
        ValueError: unless 0 ≤ rate < 1.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout needs 0 ≤ rate < 1; got {rate}")

    def init(key: Array, x: Input) -> Params:
        return ()

    def apply(params: Params, x: Array, *, key: Array | None = None) -> Array:
        return x if key is None or rate == 0 else _scaled(_mask(key, x), x)

    def vjp(params: Params, x: Array, *, key: Array | None = None) -> tuple[Array, Partial]:
        if key is None or rate == 0:
            return x, Partial(_identity)
        mask = _mask(key, x)
        return _scaled(mask, x), Partial(_pullback, mask)

    def _mask(key: Array, x: Array) -> Array:
        return jax.random.bernoulli(key, 1 - rate, x.shape)

    def _scaled(mask: Array, x: Array) -> Array:
        return jnp.where(mask, x / (1 - rate), jnp.zeros_like(x))

    def _pullback(mask: Array, dy: Array) -> tuple[Params, Array]:
        return (), _scaled(mask, dy)

    return Layer(init, apply, vjp)


def _identity(dy: Array) -> tuple[Params, Array]:
    return (), dy
