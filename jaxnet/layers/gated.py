"""Gated linear units."""

from typing import Any

import jax
from jax import Array
from jax.tree_util import Partial

from jaxnet.activations import Activation
from jaxnet.layers.dense import dense
from jaxnet.layers.initializers import Initializer
from jaxnet.layers.layer import Input, Layer, Params


def gated(
    features: int,
    *,
    activation: str | Activation = "silu",
    bias: bool = False,
    weight_init: str | Initializer | None = None,
    implementation: str | None = None,
) -> Layer:
    """y = f(x W_g + b_g) ⊙ (x W + b),  dg = dy ⊙ v,  dv = dy ⊙ g for the two factors g and v.

    With f = silu it is the first half of SwiGLU, with gelu of GEGLU. (Dauphin et al., 2016; Shazeer, 2020).

    Args:
        features: the number of outputs.
        activation: f.
        bias: whether there are b_g and b.
        weight_init: of both maps, as in `dense`.
        implementation: see `jaxnet.ops.dispatch`.

    `params` is `{"gate": …, "value": …}`, each as of `dense`.

    Raises:
        ValueError: for features < 1, or an unknown activation or initializer.
    """
    options: dict[str, Any] = {"bias": bias, "weight_init": weight_init, "implementation": implementation}
    gate, value = dense(features, activation=activation, **options), dense(features, **options)

    def init(key: Array, x: Input) -> Params:
        first, second = jax.random.split(key)
        return {"gate": gate.init(first, x), "value": value.init(second, x)}

    def apply(params: Params, x: Array, *, key: Array | None = None) -> Array:
        return gate.apply(params["gate"], x) * value.apply(params["value"], x)

    def vjp(params: Params, x: Array, *, key: Array | None = None) -> tuple[Array, Partial]:
        g, gate_pullback = gate.vjp(params["gate"], x)
        v, value_pullback = value.vjp(params["value"], x)
        return g * v, Partial(_pullback, gate_pullback, value_pullback, g, v)

    return Layer(init, apply, vjp)


def _pullback(gate: Partial, value: Partial, g: Array, v: Array, dy: Array) -> tuple[Params, Array]:
    dgate, dx_gate = gate(dy * v)
    dvalue, dx_value = value(dy * g)
    return {"gate": dgate, "value": dvalue}, dx_gate + dx_value
