"""The one law: a layer is three pure functions, and its `vjp` agrees with autodiff of its `apply`."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

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


R = TypeVar("R", bound="Reader")


class Reader(Layer):
    """A layer of sequences that can also read them piece by piece, in inference.

    ==========  ==================================================  ===========================================
    `start`     `start(params, x, length) → state`                  `x` as in `init`; `length` of the longest
    `read`      `read(params, state, x, lengths=None) → (y, state)`   the piece x (B, T, I), after all before it
    `select`    `select(state, rows) → state`                       of these of the B examples, in this order
    ==========  ==================================================  ===========================================

    The y of the pieces, one after the other, are `apply`'s y of the whole. `lengths` (B,) tells how many places of
    the piece count in each example: the next piece goes on after those.
    """

    start: Callable[..., Any]
    read: Callable[..., tuple[Array, Any]]
    select: Callable[[Any, Array], Any]

    @classmethod
    def of(
        cls: type[R],
        layer: Layer,
        start: Callable[..., Any],
        read: Callable[..., tuple[Array, Any]],
        select: Callable[[Any, Array], Any] | None = None,
    ) -> R:
        """The layer with these beside; without a `select` all arrays of the state begin with the axis B."""
        self = cls(*layer)
        self.start, self.read = start, read
        self.select = select or (lambda state, rows: jax.tree.map(lambda a: a[rows], state))
        return self


def output(layer: Layer, params: Params, x: Inputs) -> Any:
    """Returns the shape and dtype of `layer.apply(params, x)`, or of each array of it, without computing it."""
    return jax.eval_shape(layer.apply, params, x)


def split(key: Array | None, n: int) -> list[Array | None]:
    """Returns `n` keys, or `n` times None: a network in inference has layers in inference."""
    return [None] * n if key is None else list(jax.random.split(key, n))
