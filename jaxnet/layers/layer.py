"""The one law: a layer is three pure functions, and its `vjp` agrees with autodiff of its `apply`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

Params = Any  # a pytree of named arrays
Input = Array | np.ndarray | jax.ShapeDtypeStruct
Inputs = Any  # an input, or what else the first layer takes: a recurrent one a pair (x, lengths)


class Layer(NamedTuple):
    """A differentiable building block.

    ==========  ====================================  =====================================================
    `init`      `init(key, x) → params`               `x` is an array or a `jax.ShapeDtypeStruct`
    `apply`     `apply(params, x, *, key=None) → y`   a `key` means training, no key inference
    `vjp`       `vjp(params, x, *, key=None) → (y, pullback)`   `pullback(dy) → (dparams, dx)`
    ==========  ====================================  =====================================================

    The law: `layer.vjp` and `jax.vjp(layer.apply, …)` agree. `jaxnet.verify.check_layer` states it.

    A pullback is a `jax.tree_util.Partial` of a function and its residuals, so that it is a pytree and
    can leave `jit` and `scan`, as those that `jax.vjp` returns can.
    """

    init: Callable[..., Params]
    apply: Callable[..., Any]  # an array; a tuple of them at the end of some networks
    vjp: Callable[..., tuple[Any, Callable[[Any], tuple[Params, Array]]]]


def output(layer: Layer, params: Params, x: Inputs) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of `layer.apply(params, x)`, without computing it."""
    return jax.eval_shape(layer.apply, params, x)


def split(key: Array | None, n: int) -> list[Array | None]:
    """Returns `n` keys, or `n` times None: a network in inference has layers in inference."""
    return [None] * n if key is None else list(jax.random.split(key, n))
