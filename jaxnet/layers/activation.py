"""An activation function as a layer."""

from functools import partial
from typing import Any

from jax import Array
from jax.tree_util import Partial

from jaxnet import activations
from jaxnet.activations import Activation
from jaxnet.layers.layer import Input, Layer, Params


def activation(function: str | Activation, **options: Any) -> Layer:
    """y = f(x),  dx = f′(x) ⊙ dy, such as `activation("leaky_relu", negative_slope=0.2)`. No parameters.

    Raises:
        ValueError: for an unknown activation; the message has the nearest name.
    """
    f = partial(activations.get(function), **options) if options else activations.get(function)

    def init(key: Array, x: Input) -> Params:
        return ()

    def apply(params: Params, x: Array, *, key: Array | None = None) -> Array:
        return f(x)

    def vjp(params: Params, x: Array, *, key: Array | None = None) -> tuple[Array, Partial]:
        return f(x), Partial(_pullback, x)

    def _pullback(x: Array, dy: Array) -> tuple[Params, Array]:
        return (), activations.pullback(f)(x, dy)

    return Layer(init, apply, vjp)
