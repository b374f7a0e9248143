"""Convolution in 1, 2 or 3 dimensions, as networks have it: y = x ⋆ W + b.

Axes: N batch · P places in the output · Q places in the image · K taps, each 1, 2 or 3 axes · G groups ·
C channels in, O out, in one group. s stride, d dilation, a padding before.

    y[n, p, g o]  = Σ_kc  x[n, s p + d k − a, g c] W[k, c, g o]  +  b[g o]

    dx[n, q, g c] = Σ_ko  W[k, c, g o] dy[n, p, g o]   over the (k, p) with s p + d k − a = q
    dW[k, c, g o] = Σ_np  x[n, s p + d k − a, g c] dy[n, p, g o]
    db[g o]       = Σ_np  dy[n, p, g o]

x is 0 outside of the image. (A correlation in mathematics: no tap is reversed. `correlation` has the maps.)
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import Partial
from jaxtyping import Float

from jaxnet.activations import accumulation_dtype
from jaxnet.ops import correlation, dispatch
from jaxnet.ops.arrays import check_arrays
from jaxnet.ops.correlation_xla import Geometry, Ints
from jaxnet.ops.gradients import like
from jaxnet.ops.windows import Ends, Padding, PerAxis, explicit_padding, per_axis, same_padding


class Residuals(NamedTuple):
    """What the backward pass needs; of the bias, whether there is one, and its dtype."""

    x: Float[Array, "N *Q C"]
    weight: Float[Array, "*K I O"]
    bias: Float[Array, " O"] | None


def conv(
    x: Float[Array, "N *Q C"],
    weight: Float[Array, "*K I O"],
    bias: Float[Array, " O"] | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = "SAME",
    dilation: PerAxis = 1,
    groups: int = 1,
    implementation: str | None = None,
) -> Float[Array, "N *P O"]:
    """y = x ⋆ W + b, summed in at least float32 and rounded once to the dtype of `x`.

    Reverse mode only (`jax.custom_vjp`), of any order: the gradient of a gradient takes the same roads.

    Args:
        x: (N, Q…, C), channels last, with 1, 2 or 3 axes of places.
        weight: W, (K…, C/groups, O), as in Flax.
        bias: b, (O,), or None.
        stride: s, one for all axes or one for each.
        padding: `"SAME"`: ⌈Q/s⌉ places, what must be added in halves, the larger after; `"VALID"`: none;
            `"CAUSAL"`: d(K − 1) before, for one axis; or how much, for all axes, for each, or for each a pair
            (before, after).
        dilation: d, one for all axes or one for each.
        groups: channels in and out are divided into so many groups that don't see each other; as many as
            there are channels in is a depthwise convolution, with a multiplier if there are more out.
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for shapes, dtypes or options that don't fit.

    Example:
        >>> ops.conv(jnp.ones((2, 28, 28, 1)), jnp.ones((3, 3, 1, 8)), stride=2).shape
        (2, 14, 14, 8)
    """
    geometry = _geometry(x, weight, bias, stride, padding, dilation, groups)
    return dispatch.choose("conv", implementation, partial(_conv, geometry), {})(x, weight, bias)


def conv_vjp(
    x: Float[Array, "N *Q C"],
    weight: Float[Array, "*K I O"],
    bias: Float[Array, " O"] | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = "SAME",
    dilation: PerAxis = 1,
    groups: int = 1,
    implementation: str | None = None,
) -> tuple[Float[Array, "N *P O"], Partial]:
    """Returns y and its pullback dy ↦ (dx, dW, db), the formulas above; arguments as in `conv`."""
    geometry = _geometry(x, weight, bias, stride, padding, dilation, groups)
    y, residuals = dispatch.choose("conv", implementation, partial(forward, geometry), {})(x, weight, bias)
    return y, Partial(partial(backward, geometry), residuals)


def reference(geometry: Geometry, x: Array, weight: Array, bias: Array | None) -> Array:
    """The specification, for autodiff."""
    spatial = "DHW"[-len(geometry.window) :]
    y = lax.conv_general_dilated(
        x,
        weight,
        geometry.stride,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=geometry.groups,
    )
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def forward(geometry: Geometry, x: Array, weight: Array, bias: Array | None) -> tuple[Array, Residuals]:
    """y = x ⋆ W + b."""
    y = correlation.correlate(geometry, x, weight)
    y = y if bias is None else y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)
    return y.astype(x.dtype), Residuals(x, weight, bias)


def backward(geometry: Geometry, residuals: Residuals, dy: Array) -> tuple[Array, Array, Array | None]:
    """dx = Σ_ko W dy,  dW = Σ_np x dy,  db = Σ_np dy, each as in the formulas above."""
    x, weight, bias = residuals
    dx = correlation.input_gradient(geometry, dy, weight)
    dweight = correlation.weight_gradient(geometry, x, dy, jax.typeof(weight).sharding)
    dbias = None if bias is None else like(summed(dy), bias)
    return like(dx, x), like(dweight, weight), dbias


def summed(dy: Array) -> Array:
    """Σ_np dy: for each channel over all images and places, in at least float32."""
    return jnp.sum(dy.astype(accumulation_dtype(dy.dtype)), tuple(range(dy.ndim - 1)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(geometry: Geometry, x: Array, weight: Array, bias: Array | None) -> Array:
    return forward(geometry, x, weight, bias)[0]


_conv.defvjp(forward, backward)


def _geometry(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: PerAxis,
    padding: Padding,
    dilation: PerAxis,
    groups: int,
) -> Geometry:
    checked("conv", x, weight, bias)
    channels, outputs = x.shape[-1], weight.shape[-1]
    if not isinstance(groups, int) or groups < 1 or channels != groups * weight.shape[-2] or outputs % groups:
        raise ValueError(
            f"conv needs a weight (…, C/groups, O) with O a multiple of groups; got {weight.shape} "
            f"for groups {groups} and x of C = {channels}"
        )
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"conv needs a bias {(outputs,)} for a weight {weight.shape}; got {bias.shape}")
    image, window = x.shape[1:-1], weight.shape[:-2]
    strides = per_axis("conv", "stride", stride, len(image))
    dilations = per_axis("conv", "dilation", dilation, len(image))
    ends = _ends(padding, image, window, strides, dilations)
    spans = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
    for q, (before, after), span in zip(image, ends, spans, strict=True):
        if q + before + after < span:
            raise ValueError(
                f"conv's window of {tuple(spans)} places doesn't fit into an image of {image} with "
                f"padding {ends}: pad more, or take a smaller window"
            )
    axes = zip(image, ends, spans, strides, strict=True)
    output = tuple((q + before + after - span) // s + 1 for q, (before, after), span, s in axes)
    return Geometry(image, output, window, tuple(before for before, _ in ends), strides, dilations, groups)


def _ends(padding: Padding, image: Ints, window: Ints, stride: Ints, dilation: Ints) -> Ends:
    """How much is added before and after, along each axis."""
    spans = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    if padding == "SAME":
        return same_padding(image, stride, spans)
    if padding == "VALID":
        return ((0, 0),) * len(image)
    if padding == "CAUSAL" and len(image) == 1:
        return ((spans[0] - 1, 0),)
    return explicit_padding("conv", padding, len(image), '"SAME", "VALID", "CAUSAL" (for one axis)')


def checked(op: str, x: Array, weight: Array, bias: Array | None) -> None:
    """Raises a ValueError unless the ranks fit, no axis of places is empty, and there is one dtype."""
    check_arrays(op, {"x": x, "weight": weight}, bias=bias)
    if not 3 <= x.ndim <= 5:
        raise ValueError(f"{op} needs x (N, places…, C) with 1, 2 or 3 axes of places; got shape {x.shape}")
    if weight.ndim != x.ndim:
        raise ValueError(f"{op} needs a weight of {x.ndim} axes for an x of {x.ndim}; got shape {weight.shape}")
    if 0 in x.shape[1:] or 0 in weight.shape:
        raise ValueError(f"{op} needs places, taps and channels; got x {x.shape} and a weight {weight.shape}")
    arrays = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype != x.dtype:
            raise ValueError(
                f"{op} needs x, weight and bias of one floating-point dtype; got {name} of {array.dtype}"
                + ("" if name == "x" else f" beside x of {x.dtype}")
            )
