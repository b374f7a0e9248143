"""The fully connected layer."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxnet import activations, ops
from jaxnet.activations import Activation
from jaxnet.layers import initializers
from jaxnet.layers.initializers import Initializer
from jaxnet.layers.layer import Input, Layer, Params


def dense(
    features: int,
    *,
    activation: str | Activation | None = None,
    bias: bool = True,
    weight_init: str | Initializer | None = None,
    bias_init: str | Initializer = "zeros",
    implementation: str | None = None,
) -> Layer:
    """y = f(x W + b), x (…, I), W (I, features): `ops.linear` with parameters.

    Args:
        features: the number of outputs.
        activation: f; None is the identity.
        bias: whether there is a b.
        weight_init: None takes what suits the activation (`initializers.suited_to`).
        bias_init: a name or function of `layers.initializers`.
        implementation: see `jaxnet.ops.dispatch`.

    `params` is `{"weight": W, "bias": b}`, in the dtype of x.

    Raises:
        ValueError: for features < 1, or an unknown activation or initializer.
    """
    if not isinstance(features, int) or features < 1:
        raise ValueError(f"dense needs a whole number of features ≥ 1; got {features!r}")
    if activation is not None:
        activation = activations.get(activation)
    if weight_init is None:
        weight_init = initializers.suited_to(None if activation is None else activations.name(activation))
    weight_init, bias_init = initializers.get(weight_init), initializers.get(bias_init)
    options: dict[str, Any] = {"activation": activation, "implementation": implementation}

    def init(key: Array, x: Input) -> Params:
        if not x.shape or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"dense needs a floating-point x (…, features); got {x.dtype} {x.shape}")
        weight_key, bias_key = jax.random.split(key)
        params = {"weight": weight_init(weight_key, (x.shape[-1], features), x.dtype)}
        return params | ({"bias": bias_init(bias_key, (features,), x.dtype)} if bias else {})

    def apply(params: Params, x: Array, *, key: Array | None = None) -> Array:
        return ops.linear(x, params["weight"], params.get("bias"), **options)

    def vjp(params: Params, x: Array, *, key: Array | None = None) -> tuple[Array, Partial]:
        y, pullback = ops.linear_vjp(x, params["weight"], params.get("bias"), **options)
        return y, Partial(_pullback, pullback)

    return Layer(init, apply, vjp)


def _pullback(pullback: Partial, dy: Array) -> tuple[Params, Array]:
    dx, dweight, dbias = pullback(dy)
    return {"weight": dweight} | ({} if dbias is None else {"bias": dbias}), dx
