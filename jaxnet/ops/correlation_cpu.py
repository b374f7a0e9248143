"""The three maps of `correlation` where XLA's own convolutions are slow on a CPU.

Axes as there. What is slow, and what is done instead (measured by experiments/benchmarks/convolution.py):

* an input dilated by zeros: sub-pixel phases, s of them along each axis, each at stride 1;
* a result of few channels: all taps' products in one product of matrices, which are then shifted and added;
* an image of few channels: what all taps see side by side, and one product of matrices;
* groups of few channels, such as depthwise: sums over taps of shifted products, which XLA fuses to one loop;
* other groups: one convolution for each.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax, typeof

from jaxnet.activations import accumulation_dtype
from jaxnet.ops import correlation_xla
from jaxnet.ops.correlation_xla import Geometry, Ints, padded, transposed

Map = Callable[[Geometry, Array, Array], Array]

_FEW = 4  # channels of an image or a result that are few
_SMALL_GROUP = 64  # C · O: above it products of matrices are faster
_MOST_TERMS = 512  # of one sum, each of which is code
_TERMS_A_LOOP = 32  # the compiler's time grows faster than the number of terms in a loop
_MOST_GROUPS = 128  # each a convolution of its own
_CACHE = 2**20  # bytes that stay beside a core


def correlate(geometry: Geometry, x: Array, weight: Array) -> Array:
    """y = Σ_kc x(k, c) w[k, c], x(k, c) being what tap k sees of channel c of each group."""
    if few(geometry, weight.shape[-1], weight.shape[-2]) and set(geometry.stride) == {1}:
        return _multiplied_first(_turned(geometry), x, transposed(weight, 1))
    if few(geometry, weight.shape[-2], weight.shape[-1]):
        y = _product(_patches(geometry, x).T, weight.reshape(-1, weight.shape[-1]))
        return y.reshape(x.shape[0], *geometry.output, weight.shape[-1])
    if not _small(geometry, weight.shape[-2], weight.shape[-1] // geometry.groups):
        return _by_group(correlation_xla.correlate, geometry, x, weight)
    # A padded batch would be as large as x, and the system's new memory costs more than the sums.
    image = math.prod(geometry.extent) * x.shape[-1] * accumulation_dtype(x.dtype).itemsize
    at_once = max(_CACHE // image, 1)
    if at_once >= x.shape[0] or typeof(x).sharding.spec[0] is not None:
        return _shifted(geometry, x, weight)
    batch_size = at_once if at_once > 1 else None
    return lax.map(lambda image: _shifted(geometry, image[None], weight)[0], x, batch_size=batch_size)


def _shifted(geometry: Geometry, x: Array, weight: Array) -> Array:
    dtype = accumulation_dtype(x.dtype)
    x, weight = padded(geometry, x.astype(dtype)), weight.astype(dtype)
    x = lax.optimization_barrier(x)  # else each term would pad for itself
    y = jnp.zeros((), dtype)
    for i, (k, c, seen) in enumerate(_seen(geometry, x)):
        factor = weight[(*k, c)].reshape(*[1] * (x.ndim - 1), geometry.groups, -1)
        y = seen[..., None] * factor + (y if i else 0)
        if i % _TERMS_A_LOOP == _TERMS_A_LOOP - 1:
            y = lax.optimization_barrier(y)
    return y.reshape(*y.shape[:-2], weight.shape[-1])


def input_gradient(geometry: Geometry, y: Array, weight: Array) -> Array:
    """Phase r, the places q ≡ r (mod s), is a correlation of y with every (s / gcd(s, d))-th tap, reversed.

    q = s j + r is reached from p = j + (r + a − d k) / s by the taps with d k ≡ r + a (mod s).
    """
    if few(geometry, weight.shape[-2], weight.shape[-1]):
        return _multiplied_first(geometry, y, weight)
    window = transposed(weight, geometry.groups)
    rows = _rows(geometry)
    phases = []
    for remainders in product(*map(range, geometry.stride)):
        axes = [_phase(geometry, axis, r) for axis, r in enumerate(remainders)]
        taps = window[tuple(axis.taps for axis in axes)]
        sub = Geometry(
            image=geometry.output,
            output=rows,
            window=taps.shape[:-2],
            before=tuple(axis.before for axis in axes),
            stride=(1,) * len(rows),
            dilation=tuple(axis.dilation for axis in axes),
            groups=geometry.groups,
        )
        phases.append(_at_stride_one(sub, y, taps))
    return _interleaved(geometry, phases)


def few(geometry: Geometry, channels: int, others: int) -> bool:
    """Whether an image or a result has so few channels that one product of all its K C taps by O channels pays."""
    taps = math.prod((k - 1) * d + 1 for k, d in zip(geometry.window, geometry.dilation, strict=True))
    return geometry.groups == 1 and channels <= _FEW and 1 < taps * channels <= 2 * others


def _multiplied_first(geometry: Geometry, y: Array, weight: Array) -> Array:
    """z[p, k] = y[p] w[k]ᵀ in one product; along each axis place q = s u + r − a is Σ_m z[u − m, s m + r].

    The taps k = s m + r are those of the window with zeros between them where it is dilated.
    """
    stride, n = geometry.stride, len(geometry.stride)
    extents = [(k - 1) * d + 1 for k, d in zip(geometry.window, geometry.dilation, strict=True)]
    blocks = [-(-extent // s) for extent, s in zip(extents, stride, strict=True)]
    sizes = zip(extents, blocks, stride, geometry.dilation, strict=True)
    whole = [(0, m * s - extent, d - 1) for extent, m, s, d in sizes]
    products = _pad(weight, 0, whole).reshape(-1, weight.shape[-1])  # (K C, O)
    z = _product(y, products.T)
    taps = [size for axis in zip(blocks, stride, strict=True) for size in axis]
    z = lax.optimization_barrier(
        z.reshape(*y.shape[:-1], *taps, weight.shape[-2])
    )  # (N, P…, m₁, s₁, m₂, s₂, …, C)

    places = [p + m - 1 for p, m in zip(geometry.output, blocks, strict=True)]
    total = jnp.zeros((y.shape[0], *places, *stride, z.shape[-1]), z.dtype)
    for m in product(*map(range, blocks)):
        part = z[(..., *(index for i in m for index in (i, slice(None))), slice(None))]
        total += _pad(part, 1, [(i, last - 1 - i, 0) for i, last in zip(m, blocks, strict=True)])
    total = total.transpose(0, *(axis for i in range(1, n + 1) for axis in (i, n + i)), 2 * n + 1)
    for axis in range(1, n + 1):  # one after the other: an explicit sharding can be followed through each
        total = lax.collapse(total, axis, axis + 2)
    axes = zip(geometry.before, geometry.image, total.shape[1:-1], strict=True)
    return _pad(total, 1, [(-a, image + a - length, 0) for a, image, length in axes])


def _pad(a: Array, first: int, ends: Sequence[tuple[int, int, int]]) -> Array:
    """The axes from `first` on with zeros before, after and between."""
    none = [(0, 0, 0)]
    return lax.pad(a, jnp.zeros((), a.dtype), [*none * first, *ends, *none * (a.ndim - first - len(ends))])


def _patches(geometry: Geometry, x: Array) -> Array:
    """(K C, N P): what each tap sees of each channel."""
    seen = [part.reshape(-1) for *_, part in _seen(geometry, lax.optimization_barrier(padded(geometry, x)))]
    return lax.optimization_barrier(jnp.stack(seen))


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=accumulation_dtype(a.dtype))


def _turned(geometry: Geometry) -> Geometry:
    """A correlation at stride 1 as the input gradient of another, whose window is the transposed one."""
    axes = zip(geometry.window, geometry.dilation, geometry.before, strict=True)
    before = tuple((k - 1) * d - a for k, d, a in axes)
    return geometry._replace(image=geometry.output, output=geometry.image, before=before)


def _rows(geometry: Geometry) -> Ints:
    """The places of the image in one phase."""
    return tuple(-(-q // s) for q, s in zip(geometry.image, geometry.stride, strict=True))


class _Phase(NamedTuple):
    taps: slice  # of the reversed window
    before: int
    dilation: int


def _phase(geometry: Geometry, axis: int, remainder: int) -> _Phase:
    """k = k₀ + m s/g, g = gcd(s, d): p = j + (r + a − d k₀) / s − m d/g, m from the last to 0 in reverse order."""
    stride, dilation, window = (sizes[axis] for sizes in (geometry.stride, geometry.dilation, geometry.window))
    place = remainder + geometry.before[axis]
    first = next((k for k in range(window) if (place - dilation * k) % stride == 0), window)
    step, dilation_there = (n // math.gcd(stride, dilation) for n in (stride, dilation))
    last = first + (window - 1 - first) // step * step
    offset = (place - dilation * last) // stride
    return _Phase(slice(window - 1 - last, max(window - first, 0), step), -offset, dilation_there)


def _at_stride_one(geometry: Geometry, y: Array, taps: Array) -> Array:
    if 0 in taps.shape:
        return jnp.zeros((y.shape[0], *geometry.output, taps.shape[-1]), accumulation_dtype(y.dtype))
    return (correlate if geometry.groups > 1 else correlation_xla.correlate)(geometry, y, taps)


def _interleaved(geometry: Geometry, phases: list[Array]) -> Array:
    """Place j of phase r becomes place s j + r of the image; one axis after the other, the last first."""
    for axis, stride in reversed([*enumerate(geometry.stride, 1)]):
        if stride > 1:
            stacks = [jnp.stack(phases[i : i + stride], axis + 1) for i in range(0, len(phases), stride)]
            phases = [x.reshape(*x.shape[:axis], x.shape[axis] * stride, *x.shape[axis + 2 :]) for x in stacks]
    return phases[0][(slice(None), *map(slice, geometry.image))]


def weight_gradient(geometry: Geometry, x: Array, y: Array) -> Array:
    """w[k, c] = Σ_np x(k, c) y, in blocks of rows whose accumulators, one for each k and c, stay in the cache."""
    c, outputs = x.shape[-1] // geometry.groups, y.shape[-1]
    if few(geometry, c, outputs):
        return _product(_patches(geometry, x), y.reshape(-1, outputs)).reshape(*geometry.window, c, outputs)
    if not _small(geometry, c, outputs // geometry.groups):
        return _by_group(correlation_xla.weight_gradient, geometry, x, y)
    dtype = accumulation_dtype(x.dtype)
    terms = math.prod(geometry.window) * c
    row = terms * math.prod(geometry.output[1:]) * outputs * dtype.itemsize
    height = geometry.output[0]
    rows = min(max(_CACHE // row, 1), height)
    parts = [_Rows(rows, 0, height // rows)]
    parts += [_Rows(height % rows, height - height % rows, 1)] if height % rows else []
    inner = (*geometry.output[1:], geometry.groups, outputs // geometry.groups)
    # Inside `shard_map` a sum differs between devices, as what is added to it does.
    varying = tuple(typeof(x).manual_axis_type.varying | typeof(y).manual_axis_type.varying)
    zeros = [[_varying(jnp.zeros((1, part.rows, *inner), dtype), varying)] * terms for part in parts]

    def add_image(sums: list[list[Array]], pair: tuple[Array, Array]) -> tuple[list[list[Array]], None]:
        image, out = (a[None].astype(dtype) for a in pair)
        image, out = lax.optimization_barrier(padded(geometry, image)), _in_groups(geometry, out)
        return [_add_rows(geometry, image, out, part, s) for part, s in zip(parts, sums, strict=True)], None

    sums, _ = lax.scan(add_image, zeros, (x, y))
    weight = sum(jnp.stack([total.sum(tuple(range(total.ndim - 2))) for total in part]) for part in sums)
    return jnp.reshape(weight, (*geometry.window, c, outputs))


class _Rows(NamedTuple):
    """Blocks of `rows` rows of the output, the first at `start`."""

    rows: int
    start: int
    blocks: int


def _add_rows(geometry: Geometry, image: Array, y: Array, part: _Rows, sums: list[Array]) -> list[Array]:
    """Adds the products of an image's blocks to the sums, one for each tap and channel."""
    block = geometry._replace(output=(part.rows, *geometry.output[1:]))

    def add(sums: list[Array], i: Array) -> tuple[list[Array], None]:
        first = part.start + i * part.rows
        cut = lax.dynamic_slice_in_dim(image, first * block.stride[0], block.extent[0], 1)
        out = lax.dynamic_slice_in_dim(y, first, part.rows, 1)
        return [
            total + seen[..., None] * out for total, (*_, seen) in zip(sums, _seen(block, cut), strict=True)
        ], None

    return lax.scan(add, sums, jnp.arange(part.blocks))[0]


def _varying(a: Array, axes: tuple[str, ...]) -> Array:
    return lax.pcast(a, axes, to="varying") if axes else a


def _seen(geometry: Geometry, x: Array) -> Iterator[tuple[Ints, int, Array]]:
    """For each tap k and channel c of a group, (N, P…, G) of the padded image: x[n, s p + d k, g c]."""
    x = _in_groups(geometry, x)
    for k in product(*map(range, geometry.window)):
        starts = [i * d for i, d in zip(k, geometry.dilation, strict=True)]
        places = zip(starts, geometry.output, geometry.stride, strict=True)
        cut = tuple(slice(start, start + (p - 1) * s + 1, s) for start, p, s in places)
        for c in range(x.shape[-1]):
            yield k, c, x[(slice(None), *cut, slice(None), c)]


def _in_groups(geometry: Geometry, a: Array) -> Array:
    return a.reshape(*a.shape[:-1], geometry.groups, a.shape[-1] // geometry.groups)


def _small(geometry: Geometry, c: int, outputs: int) -> bool:
    return c * outputs <= _SMALL_GROUP and math.prod(geometry.window) * c <= _MOST_TERMS


def _by_group(one: Map, geometry: Geometry, a: Array, b: Array) -> Array:
    """The map of each group: the channels are the last axis of every array, in order of the groups."""
    if geometry.groups > _MOST_GROUPS:
        return one(geometry, a, b)
    alone = geometry._replace(groups=1)
    pairs = zip(jnp.split(a, geometry.groups, -1), jnp.split(b, geometry.groups, -1), strict=True)
    return jnp.concatenate([one(alone, *pair) for pair in pairs], -1)
