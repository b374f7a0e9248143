"""The windows that slide over an image: their sizes and places, checked once.

Axes: N batch · S… one to three spatial axes · C channels, last. Along a spatial axis of n elements, with
`before` and `after` elements of padding, windows of k elements `dilation` apart begin every `stride` elements:

    extent  e = (k − 1)·dilation + 1        windows  o = ⌊(n + before + after − e) / stride⌋ + 1
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxnet.ops.arrays import check_arrays

PerAxis = int | Sequence[int]
Padding = str | int | Sequence[int | Sequence[int]]
Ends = tuple[tuple[int, int], ...]  # before and after, along each axis


class Windows(NamedTuple):
    """For each spatial axis: how many elements x has, and the windows over them."""

    spatial: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """How many elements a window reaches over."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.size, self.dilation, strict=True))

    @property
    def outputs(self) -> tuple[int, ...]:
        """How many windows there are."""
        sizes = zip(self.spatial, self.padding, self.extent, self.stride, strict=True)
        return tuple((n + sum(pads) - e) // s + 1 for n, pads, e, s in sizes)


def windows_of(
    op: str, x: Array, window: PerAxis, stride: PerAxis | None, padding: Padding, dilation: PerAxis = 1
) -> Windows:
    """Returns the windows of `op` over x.

    Raises:
        ValueError: for an x that isn't (N, S…, C) of floats, sizes that aren't whole numbers ≥ 1, padding that
            isn't "SAME", "VALID", whole numbers or pairs, windows larger than x or in the padding alone.
    """
    spatial = spatial_of(op, x)
    size = per_axis(op, "window", window, len(spatial))
    stride = size if stride is None else per_axis(op, "stride", stride, len(spatial))
    free = Windows(
        spatial, size, stride, per_axis(op, "dilation", dilation, len(spatial)), ((0, 0),) * len(spatial)
    )
    windows = free._replace(padding=_ends(op, free, padding))
    for n, e, pads in zip(spatial, windows.extent, windows.padding, strict=True):
        if max(pads) >= e:
            raise ValueError(
                f"{op} needs padding narrower than its windows' extent {windows.extent}; got {padding}"
            )
        if n + sum(pads) < e:
            raise ValueError(f"{op}'s windows of extent {windows.extent} don't fit x {x.shape}, padding {padding}")
    return windows


def _ends(op: str, windows: Windows, padding: Padding) -> Ends:
    if padding == "VALID":
        return windows.padding
    if padding == "SAME":
        return same_padding(windows.spatial, windows.stride, windows.extent)
    return explicit_padding(op, padding, len(windows.spatial), '"SAME", "VALID"')


def spatial_of(op: str, x: Array) -> tuple[int, ...]:
    """Returns the sizes of the spatial axes of x.

    Raises:
        ValueError: for an x that isn't (N, S…, C) of floats, with one to three spatial axes.
    """
    check_arrays(op, {"x": x})
    if not 3 <= x.ndim <= 5 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{op} needs a floating-point x (N, one to three spatial axes, C); got {x.dtype} {x.shape}"
        )
    return x.shape[1:-1]


def explicit_padding(op: str, padding: Padding, axes: int, names: str) -> Ends:
    """Pairs (before, after) of a number for all axes, one for each, or a pair for each."""
    given = [padding] * axes if isinstance(padding, int) else padding
    if not isinstance(given, str) and len(given) == axes:
        pairs = [(p, p) if isinstance(p, int) else tuple(p) for p in given]
        if all(len(pair) == 2 and all(isinstance(n, int) and n >= 0 for n in pair) for pair in pairs):
            return tuple((before, after) for before, after in pairs)
    raise ValueError(
        f"{op} needs a padding of {names}, or whole numbers ≥ 0: one, or {axes}, or {axes} pairs (before, after); "
        f"got {padding!r}"
    )


def per_axis(op: str, name: str, value: PerAxis, axes: int, least: int = 1) -> tuple[int, ...]:
    """One number for each axis, of one for all or one for each."""
    numbers = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(numbers) != axes or not all(isinstance(n, int) and n >= least for n in numbers):
        raise ValueError(f"{op} needs a {name} of whole numbers ≥ {least}, one or {axes}; got {value!r}")
    return numbers


def same_padding(image: Sequence[int], stride: Sequence[int], extent: Sequence[int]) -> Ends:
    """What gives ⌈n / stride⌉ windows, in halves, the larger after."""
    axes = zip(image, stride, extent, strict=True)
    totals = [max((math.ceil(n / s) - 1) * s + e - n, 0) for n, s, e in axes]
    return tuple((total // 2, total - total // 2) for total in totals)


def padded(x: Array, padding: Sequence[tuple[int, int]], value: float = 0.0) -> Array:
    """Returns x with its spatial axes padded by `value`."""
    if not any(map(any, padding)):
        return x
    edges = [(0, 0, 0), *((before, after, 0) for before, after in padding), (0, 0, 0)]
    return lax.pad(x, jnp.asarray(value, x.dtype), edges)


def cut(x: Array, start: Sequence[int], count: Sequence[int], stride: Sequence[int] | int = 1) -> Array:
    """Returns `count` elements of each spatial axis, from `start`, every `stride`."""
    stride = (stride,) * len(start) if isinstance(stride, int) else tuple(stride)
    stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, count, stride, strict=True)]
    return lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *stride, 1))
