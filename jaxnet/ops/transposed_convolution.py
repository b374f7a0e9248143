"""Transposed convolution in 1, 2 or 3 dimensions, in the two conventions there are.

Axes: N batch · P places of x · Q places of y · K taps, each 1, 2 or 3 axes · G groups · I channels in, O out,
in one group. s stride, d dilation, a padding before.

    "gradient"   y[n, q, g o] = Σ_ki  W[k, o, g i] x[n, p, g i]  +  b   over the (k, p) with s p + d k − a = q
    "dilated"    y[n, q, g o] = Σ_ki  W[k, i, g o] x[n, p, g i]  +  b   over the (k, p) with s p − d k + a = q

"gradient", that of PyTorch and Keras, is the gradient of `conv` in its image: `conv_transpose(dy, W)` with a
weight, stride, padding and dilation is the dx of the `conv` that has them. "dilated", that of JAX and Flax, is
`conv` itself on an x with s − 1 zeros put between its places. One is the other with `transposed` weights: taps
reversed, I and O exchanged. With W of "gradient":

    dx[n, p, g i] = Σ_ko  W[k, o, g i] dy[n, s p + d k − a, g o]
    dW[k, o, g i] = Σ_np  dy[n, s p + d k − a, g o] x[n, p, g i]
    db[g o]       = Σ_nq  dy[n, q, g o]
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import Partial
from jaxtyping import Float

from jaxnet.ops import correlation, dispatch
from jaxnet.ops.convolution import Residuals, checked, summed
from jaxnet.ops.correlation_xla import Geometry, Ints, transposed
from jaxnet.ops.gradients import like
from jaxnet.ops.windows import Padding, PerAxis, explicit_padding, per_axis

_CONVENTIONS = ("dilated", "gradient")


def conv_transpose(
    x: Float[Array, "N *P I"],
    weight: Float[Array, "*K A B"],
    bias: Float[Array, " O"] | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = "SAME",
    dilation: PerAxis = 1,
    output_padding: PerAxis = 0,
    groups: int = 1,
    convention: str = "dilated",
    implementation: str | None = None,
) -> Float[Array, "N *Q O"]:
    """y by the formula of the convention above, summed in at least float32 and rounded once to the dtype of `x`.

    ============  ==========================  ============================================================
    convention    weight                      given the same numbers, the same as
    ============  ==========================  ============================================================
    "dilated"     (K…, I/groups, O)           `lax.conv_transpose`, `flax.linen.ConvTranspose`
    "gradient"    (K…, O/groups, I)           `flax.linen.ConvTranspose(transpose_kernel=True)`,
                                              `keras.layers.Conv2DTranspose`, `torch.nn.ConvTranspose2d` with
                                              its weight (I, O/groups, K…) permuted
    ============  ==========================  ============================================================

    Reverse mode only (`jax.custom_vjp`), of any order.

    Args:
        x: (N, P…, I), channels last, with 1, 2 or 3 axes of places.
        weight: W, as in the table.
        bias: b, (O,), or None.
        stride: s, one for all axes or one for each.
        padding: `"SAME"`: s P places; `"VALID"`: s P + max(d(K − 1) + 1 − s, 0), all that a tap reaches; or how
            much, for all axes, for each, or for each a pair (before, after). By "dilated" that is added to the
            dilated x; by "gradient" it is what the `conv` has added to its image, and is cut off from y.
        dilation: d, one for all axes or one for each.
        output_padding: how many places y is longer after, in the "gradient" convention with explicit padding:
            less than s or d. A strided `conv` takes images of several sizes to one, this says which.
        groups: channels in and out are divided into so many groups that don't see each other.
        convention: "dilated" or "gradient".
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for shapes, dtypes or options that don't fit.

    Example:
        >>> ops.conv_transpose(jnp.ones((2, 7, 7, 8)), jnp.ones((4, 4, 8, 3)), stride=2).shape
        (2, 14, 14, 3)

    Reference:
        Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, arXiv:1603.07285.
    """
    geometry = _geometry(x, weight, bias, stride, padding, dilation, output_padding, groups, convention)
    call = partial(_conv_transpose, geometry, convention)
    return dispatch.choose("conv_transpose", implementation, call, {})(x, weight, bias)


def conv_transpose_vjp(
    x: Float[Array, "N *P I"],
    weight: Float[Array, "*K A B"],
    bias: Float[Array, " O"] | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = "SAME",
    dilation: PerAxis = 1,
    output_padding: PerAxis = 0,
    groups: int = 1,
    convention: str = "dilated",
    implementation: str | None = None,
) -> tuple[Float[Array, "N *Q O"], Partial]:
    """Returns y and its pullback dy ↦ (dx, dW, db), the formulas above; arguments as in `conv_transpose`."""
    geometry = _geometry(x, weight, bias, stride, padding, dilation, output_padding, groups, convention)
    call = partial(forward, geometry, convention)
    y, residuals = dispatch.choose("conv_transpose", implementation, call, {})(x, weight, bias)
    return y, Partial(partial(backward, geometry, convention), residuals)


def reference(geometry: Geometry, convention: str, x: Array, weight: Array, bias: Array | None) -> Array:
    """The specification, for autodiff: the convolution of a dilated x."""
    spatial = "DHW"[-len(geometry.window) :]
    reach = [d * (k - 1) for k, d in zip(geometry.window, geometry.dilation, strict=True)]
    y = lax.conv_general_dilated(
        x,
        weight if convention == "dilated" else transposed(weight, geometry.groups),
        [1] * len(reach),
        [(r - lo, r - hi) for r, (lo, hi) in zip(reach, geometry.padding, strict=True)],
        lhs_dilation=geometry.stride,
        rhs_dilation=geometry.dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=geometry.groups,
    )
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def forward(
    geometry: Geometry, convention: str, x: Array, weight: Array, bias: Array | None
) -> tuple[Array, Residuals]:
    """y = Σ_ki W x + b."""
    y = correlation.input_gradient(geometry, x, _of_gradient(geometry, convention, weight))
    y = y if bias is None else y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)
    return y.astype(x.dtype), Residuals(x, weight, bias)


def backward(
    geometry: Geometry, convention: str, residuals: Residuals, dy: Array
) -> tuple[Array, Array, Array | None]:
    """dx = Σ_ko W dy,  dW = Σ_np dy x,  db = Σ_nq dy, each as in the formulas above."""
    x, weight, bias = residuals
    dx = correlation.correlate(geometry, dy, _of_gradient(geometry, convention, weight))
    dweight = correlation.weight_gradient(geometry, dy, x, jax.typeof(weight).sharding)
    dweight = _of_gradient(geometry, convention, dweight)
    dbias = None if bias is None else like(summed(dy), bias)
    return like(dx, x), like(dweight, weight), dbias


def _of_gradient(geometry: Geometry, convention: str, weight: Array) -> Array:
    """The weight in the "gradient" convention, or back from there."""
    return transposed(weight, geometry.groups) if convention == "dilated" else weight


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv_transpose(geometry: Geometry, convention: str, x: Array, weight: Array, bias: Array | None) -> Array:
    return forward(geometry, convention, x, weight, bias)[0]


_conv_transpose.defvjp(forward, backward)


def _geometry(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: PerAxis,
    padding: Padding,
    dilation: PerAxis,
    output_padding: PerAxis,
    groups: int,
    convention: str,
) -> Geometry:
    """That of the convolution whose image is y and whose output is x."""
    if convention not in _CONVENTIONS:
        raise ValueError(f"conv_transpose needs a convention of {_CONVENTIONS}; got {convention!r}")
    checked("conv_transpose", x, weight, bias)
    _check_channels(x, weight, bias, groups, convention)
    places, window = x.shape[1:-1], weight.shape[:-2]
    strides = per_axis("conv_transpose", "stride", stride, len(places))
    dilations = per_axis("conv_transpose", "dilation", dilation, len(places))
    extra = per_axis("conv_transpose", "output_padding", output_padding, len(places), least=0)
    if any(extra) and (convention == "dilated" or isinstance(padding, str)):
        raise ValueError(
            'conv_transpose needs convention="gradient" and explicit padding for an output_padding; '
            f"got {convention!r} and padding {padding!r}. Pad more after instead"
        )
    if any(e >= max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        raise ValueError(
            "conv_transpose needs an output_padding less than the stride or the dilation; "
            f"got {extra} for stride {strides} and dilation {dilations}"
        )
    spans = tuple((k - 1) * d + 1 for k, d in zip(window, dilations, strict=True))
    ends = _ends(padding, places, spans, strides, extra, convention)
    axes = zip(places, spans, strides, ends, strict=True)
    image = tuple((p - 1) * s + span - before - after for p, span, s, (before, after) in axes)
    if min(image) < 1:
        raise ValueError(
            f"conv_transpose would leave {image} places of y for x {x.shape} and padding {padding!r}: cut off less"
        )
    return Geometry(image, places, window, tuple(before for before, _ in ends), strides, dilations, groups)


def _ends(
    padding: Padding, places: Ints, spans: Ints, strides: Ints, extra: Ints, convention: str
) -> list[tuple[int, int]]:
    """How much is cut off from all that the taps reach, before and after; negative where zeros are added."""
    if padding not in ("SAME", "VALID"):
        pairs = explicit_padding("conv_transpose", padding, len(places), '"SAME", "VALID"')
        if convention == "gradient":
            return [(before, after - e) for (before, after), e in zip(pairs, extra, strict=True)]
        return [(span - 1 - before, span - 1 - after) for (before, after), span in zip(pairs, spans, strict=True)]
    if padding == "VALID":
        return [(0, min(span - s, 0)) for span, s in zip(spans, strides, strict=True)]
    # Of (P − 1) s + span places P s are left, in both conventions.
    halves = [max(span - s, 0) // 2 for span, s in zip(spans, strides, strict=True)]
    return [(half, span - s - half) for half, span, s in zip(halves, spans, strides, strict=True)]


def _check_channels(x: Array, weight: Array, bias: Array | None, groups: int, convention: str) -> None:
    inputs, a, b = x.shape[-1], *weight.shape[-2:]
    layout = "(…, I/groups, O)" if convention == "dilated" else "(…, O/groups, I)"
    whole = isinstance(groups, int) and groups >= 1 and b % groups == 0
    if not whole or inputs != (a * groups if convention == "dilated" else b):
        raise ValueError(
            f"conv_transpose needs a weight {layout} whose channels are multiples of groups, by the convention "
            f"{convention!r}; got {weight.shape} for groups {groups} and x of I = {inputs}"
        )
    outputs = b if convention == "dilated" else a * groups
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"conv_transpose needs a bias {(outputs,)} for a weight {weight.shape}; got {bias.shape}")
