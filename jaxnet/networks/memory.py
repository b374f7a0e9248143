"""What goes with a sequence through the layers of an encoder and a decoder: its lengths, and a memory.

Lengths have no gradient, so that layers are made for given ones. A memory m has: layers take and return (x, m).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxnet.layers import Layer, Reader
from jaxnet.layers.embedding import of_integers
from jaxnet.layers.layer import Inputs, Params


class Attending(Reader):
    """A body of (x, m).

    `alignments(params, (x, m)) → p` (layers, B, N, T, S): how much of each place of m each place of x sees.
    """

    alignments: Callable[[Params, Any], Array]


def of_lengths(layer_of: Callable[[Array | None], Layer]) -> Layer:
    """A layer of x or of (x, lengths), by one of x for each lengths; its `params` are the same without any."""

    def init(key: Array, x: Inputs) -> Params:
        return layer_of(None).init(key, x[0] if isinstance(x, tuple) else x)

    def apply(params: Params, x: Inputs, *, key: Array | None = None) -> Array:
        x, lengths = x if isinstance(x, tuple) else (x, None)
        return layer_of(lengths).apply(params, x, key=key)

    def vjp(params: Params, x: Inputs, *, key: Array | None = None) -> tuple[Array, Any]:
        if not isinstance(x, tuple):
            return layer_of(None).vjp(params, x, key=key)
        y, pullback = layer_of(x[1]).vjp(params, x[0], key=key)
        return y, Partial(_of_lengths_pullback, pullback, x[1])

    return Layer(init, apply, vjp)


def _of_lengths_pullback(pullback: Partial, lengths: Array, dy: Array) -> tuple[Params, Any]:
    dparams, dx = pullback(dy)
    return dparams, (dx, of_integers(lengths.shape))


def given(layer: Layer, lengths: Array | None) -> Layer:
    """The layer of x, or of (x, m), whose last input are these lengths, if there are any."""
    if lengths is None:
        return layer

    def whole(x: Inputs) -> Inputs:
        return *(x if isinstance(x, tuple) else (x,)), lengths

    def init(key: Array, x: Inputs) -> Params:
        return layer.init(key, whole(x))

    def apply(params: Params, x: Inputs, *, key: Array | None = None) -> Array:
        return layer.apply(params, whole(x), key=key)

    def vjp(params: Params, x: Inputs, *, key: Array | None = None) -> tuple[Array, Partial]:
        y, pullback = layer.vjp(params, whole(x), key=key)
        return y, Partial(_given_pullback, pullback)

    return Layer(init, apply, vjp)


def _given_pullback(pullback: Partial, dy: Array) -> tuple[Params, Any]:
    dparams, (*dx, _) = pullback(dy)
    return dparams, tuple(dx) if len(dx) > 1 else dx[0]


def without_memory() -> Layer:
    """x of (x, m):  dx = dy,  dm = 0."""

    def init(key: Array, x: Inputs) -> Params:
        return ()

    def apply(params: Params, x: Inputs, *, key: Array | None = None) -> Array:
        return x[0]

    def vjp(params: Params, x: Inputs, *, key: Array | None = None) -> tuple[Array, Partial]:
        return x[0], Partial(_without_memory_pullback, jax.tree.map(jnp.zeros_like, x[1]))

    return Layer(init, apply, vjp)


def _without_memory_pullback(zeros: Any, dy: Array) -> tuple[Params, Any]:
    return (), (dy, zeros)
