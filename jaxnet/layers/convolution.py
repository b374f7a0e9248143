"""The convolutional layers."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxnet import activations, ops
from jaxnet.activations import Activation
from jaxnet.layers import initializers
from jaxnet.layers.initializers import Initializer
from jaxnet.layers.layer import Input, Layer, Params
from jaxnet.ops.correlation_xla import transposed
from jaxnet.ops.windows import Padding, PerAxis, per_axis


def conv(
    features: int,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    padding: Padding = "SAME",
    dilation: PerAxis = 1,
    groups: int = 1,
    activation: str | Activation | None = None,
    bias: bool = True,
    weight_init: str | Initializer | None = None,
    bias_init: str | Initializer = "zeros",
    implementation: str | None = None,
) -> Layer:
    """y = f(x ⋆ W + b), x (N, places…, C), W (window…, C/groups, features): `ops.conv` with parameters.

    Args:
        features: the number of channels out.
        kernel_size: the window; one number for all axes of places, whose number x then says, or one for each.
        stride: see `ops.conv`; so for `padding`, `dilation`, `groups` and `implementation`.
        padding: `"SAME"`, `"VALID"`, `"CAUSAL"`, or how much.
        dilation: how far apart the taps lie.
        groups: groups of channels that don't see each other; `groups=C` is a depthwise convolution.
        activation: f; None is the identity.
        bias: whether there is a b.
        weight_init: None takes what suits the activation (`initializers.suited_to`).
        bias_init: a name or function of `layers.initializers`.
        implementation: see `jaxnet.ops.dispatch`.

    `params` is `{"weight": W, "bias": b}`, in the dtype of x.

    Raises:
        ValueError: for options that don't fit, an unknown activation or initializer.

    Example:
        >>> layer = layers.conv(32, 3, stride=2, activation="relu")
        >>> layer.init(jax.random.key(0), jnp.ones((8, 28, 28, 1)))["weight"].shape
        (3, 3, 1, 32)
    """
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    options |= {"implementation": implementation}
    operation = _Operation("conv", ops.conv, ops.conv_vjp, options)
    return _layer(operation, features, kernel_size, activation, bias, weight_init, bias_init)


def conv_transpose(
    features: int,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    padding: Padding = "SAME",
    dilation: PerAxis = 1,
    output_padding: PerAxis = 0,
    groups: int = 1,
    convention: str = "dilated",
    activation: str | Activation | None = None,
    bias: bool = True,
    weight_init: str | Initializer | None = None,
    bias_init: str | Initializer = "zeros",
    implementation: str | None = None,
) -> Layer:
    """y = f(transposed convolution of x by W + b): `ops.conv_transpose` with parameters.

    Args:
        features: the number of channels out.
        kernel_size: the window; one number for all axes of places, or one for each.
        stride: how many times larger y is than x, along each axis.
        padding: see `ops.conv_transpose`; so for `dilation`, `output_padding`, `groups` and `convention`.
        dilation: how far apart the taps lie.
        output_padding: how much longer y is, in the "gradient" convention.
        groups: groups of channels that don't see each other.
        convention: "dilated", with W (window…, C/groups, features), that of JAX and Flax; or "gradient", with
            W (window…, features/groups, C), that of PyTorch and Keras.
        activation: f; None is the identity.
        bias: whether there is a b.
        weight_init: None takes what suits the activation; the fan-in is that of "dilated" in both conventions.
        bias_init: a name or function of `layers.initializers`.
        implementation: see `jaxnet.ops.dispatch`.

    `params` is `{"weight": W, "bias": b}`, in the dtype of x.

    Raises:
        ValueError: for options that don't fit, an unknown activation or initializer.
    """
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    options |= {"output_padding": output_padding, "convention": convention, "implementation": implementation}
    operation = _Operation("conv_transpose", ops.conv_transpose, ops.conv_transpose_vjp, options)
    return _layer(operation, features, kernel_size, activation, bias, weight_init, bias_init)


class _Operation(NamedTuple):
    name: str
    apply: Callable[..., Array]
    vjp: Callable[..., tuple[Array, Partial]]
    options: dict[str, Any]


def _layer(
    operation: _Operation,
    features: int,
    kernel_size: PerAxis,
    activation: str | Activation | None,
    bias: bool,
    weight_init: str | Initializer | None,
    bias_init: str | Initializer,
) -> Layer:
    name, groups = operation.name, operation.options["groups"]
    if not isinstance(features, int) or features < 1:
        raise ValueError(f"{name} needs a whole number of features ≥ 1; got {features!r}")
    f = None if activation is None else activations.get(activation)
    if weight_init is None:
        weight_init = initializers.suited_to(None if f is None else activations.name(f))
    draw_weight, draw_bias = initializers.get(weight_init), initializers.get(bias_init)

    def init(key: Array, x: Input) -> Params:
        if not 3 <= len(x.shape) <= 5 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"{name} needs a floating-point x (N, places…, C) with 1, 2 or 3 axes of places; "
                f"got {x.dtype} {x.shape}"
            )
        channels = x.shape[-1]
        if not isinstance(groups, int) or groups < 1 or channels % groups or features % groups:
            raise ValueError(
                f"{name} needs groups that divide the channels, {channels}, and the features, {features}; "
                f"got {groups!r}"
            )
        window = per_axis(name, "kernel_size", kernel_size, len(x.shape) - 2)
        weight_key, bias_key = jax.random.split(key)
        weight = draw_weight(weight_key, (*window, channels // groups, features), x.dtype)
        if operation.options.get("convention") == "gradient":
            weight = transposed(weight, groups)
        params = {"weight": weight} | ({"bias": draw_bias(bias_key, (features,), x.dtype)} if bias else {})
        jax.eval_shape(apply, params, jax.ShapeDtypeStruct(x.shape, x.dtype))  # checks the options against x
        return params

    def apply(params: Params, x: Array, *, key: Array | None = None) -> Array:
        z = operation.apply(x, params["weight"], params.get("bias"), **operation.options)
        return z if f is None else f(z)

    def vjp(params: Params, x: Array, *, key: Array | None = None) -> tuple[Array, Partial]:
        z, pullback = operation.vjp(x, params["weight"], params.get("bias"), **operation.options)
        if f is None:
            return z, Partial(_pullback, pullback)
        y = f(z)
        # relu has the same derivative at y as at z: only y, which the next layer keeps anyway, is stored.
        return y, Partial(partial(_pullback_through, f), pullback, y if f is activations.relu else z)

    return Layer(init, apply, vjp)


def _pullback(pullback: Partial, dy: Array) -> tuple[Params, Array]:
    dx, dweight, dbias = pullback(dy)
    return {"weight": dweight} | ({} if dbias is None else {"bias": dbias}), dx


def _pullback_through(f: Activation, pullback: Partial, z: Array, dy: Array) -> tuple[Params, Array]:
    """dz = f′(z) ⊙ dy, and from there as without an activation."""
    return _pullback(pullback, activations.pullback(f)(z, dy))
