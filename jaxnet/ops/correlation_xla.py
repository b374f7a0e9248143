"""The three maps of `correlation` as one XLA convolution each; and, if the window has one tap, as one product."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import NamedSharding

from jaxnet.activations import accumulation_dtype

Ints = tuple[int, ...]


class Geometry(NamedTuple):
    """Sizes along each axis of places, and how they meet: image[s p + d k − before] with window[k] to output[p].

    `before` may be negative, and the image longer than its last place needs: parts of it that count nowhere.
    """

    image: Ints
    output: Ints
    window: Ints
    before: Ints
    stride: Ints
    dilation: Ints
    groups: int

    @property
    def extent(self) -> Ints:
        """The number of places from the first tap of the first output to the last tap of the last."""
        axes = zip(self.output, self.stride, self.window, self.dilation, strict=True)
        return tuple((p - 1) * s + (k - 1) * d + 1 for p, s, k, d in axes)

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """What makes an image as long as the extent; cut off where it is negative."""
        axes = zip(self.image, self.extent, self.before, strict=True)
        return tuple((before, extent - before - image) for image, extent, before in axes)

    @property
    def is_product(self) -> bool:
        """Whether there is nothing to slide: a matrix product at each place."""
        return self.groups == 1 and math.prod(self.window) == 1


def padded(geometry: Geometry, x: Array) -> Array:
    """The image as long as the extent."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*ends, 0) for ends in geometry.padding), (0, 0, 0)])


def transposed(weight: Array, groups: int) -> Array:
    """(K…, C, G·O) → (K…, O, G·C) with its taps in reverse: the window that leads from output to image."""
    *window, c, outputs = weight.shape
    weight = jnp.flip(weight, tuple(range(len(window)))).reshape(*window, c, groups, outputs // groups)
    return jnp.swapaxes(weight, -3, -1).reshape(*window, outputs // groups, groups * c)


def correlate(geometry: Geometry, x: Array, weight: Array) -> Array:
    """∂T/∂y."""
    if geometry.is_product:
        return _product(_seen(geometry, x), weight.reshape(weight.shape[-2:]))
    return _convolution(geometry, x, weight, geometry.stride, (1,) * len(geometry.stride), geometry.padding)


def input_gradient(geometry: Geometry, y: Array, weight: Array) -> Array:
    """∂T/∂x: y, with s − 1 zeros after each place, correlated with the transposed window."""
    one = (1,) * len(geometry.stride)
    if geometry.is_product and geometry.stride == one:
        x = _product(y, weight.reshape(weight.shape[-2:]).T)
        ends = [(-lo, -hi, 0) for lo, hi in geometry.padding]
        return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
    reach = [d * (k - 1) for k, d in zip(geometry.window, geometry.dilation, strict=True)]
    padding = tuple((r - lo, r - hi) for r, (lo, hi) in zip(reach, geometry.padding, strict=True))
    return _convolution(geometry, y, transposed(weight, geometry.groups), one, geometry.stride, padding)


def weight_gradient(geometry: Geometry, x: Array, y: Array, sharding: NamedSharding | None = None) -> Array:
    """∂T/∂w: x correlated with y as the window, whose taps lie s apart and which moves by d; the sum is over N."""
    dtype, last = accumulation_dtype(x.dtype), x.ndim - 1
    if geometry.is_product:
        leading = tuple(range(last))
        sums = (leading, leading), ((), ())
        if sharding is not None:
            sharding = sharding.update(spec=sharding.spec[-2:])
        weight = lax.dot_general(_seen(geometry, x), y, sums, preferred_element_type=dtype, out_sharding=sharding)
        return weight.reshape(*geometry.window, *weight.shape)
    places = range(1, last)
    axes = (last, 0, *places)  # the channels take the place of the batch, the batch that of the channels
    return lax.conv_general_dilated(
        x,
        y,
        window_strides=geometry.dilation,
        padding=geometry.padding,
        rhs_dilation=geometry.stride,
        dimension_numbers=lax.ConvDimensionNumbers(axes, axes, (last - 1, last, *range(last - 1))),
        batch_group_count=geometry.groups,
        preferred_element_type=dtype,
        out_sharding=sharding,
    )


def _seen(geometry: Geometry, x: Array) -> Array:
    """The places that a window of one tap sees."""
    return padded(geometry, x)[(slice(None), *(slice(None, None, s) for s in geometry.stride))]


def _product(x: Array, weight: Array) -> Array:
    return jnp.matmul(x, weight, preferred_element_type=accumulation_dtype(x.dtype))


def _convolution(
    geometry: Geometry, x: Array, weight: Array, stride: Ints, spread: Ints, padding: tuple[tuple[int, int], ...]
) -> Array:
    last = x.ndim - 1
    image: Any = (0, last, *range(1, last))
    return lax.conv_general_dilated(
        x,
        weight,
        window_strides=stride,
        padding=padding,
        lhs_dilation=spread,
        rhs_dilation=geometry.dilation,
        dimension_numbers=lax.ConvDimensionNumbers(image, (last, last - 1, *range(last - 1)), image),
        feature_group_count=geometry.groups,
        preferred_element_type=accumulation_dtype(x.dtype),
    )
