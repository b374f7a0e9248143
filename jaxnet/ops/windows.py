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

Sizes = int | Sequence[int]
Padding = str | Sequence[tuple[int, int]]


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
    op: str, x: Array, window: Sizes, stride: Sizes | None, padding: Padding, dilation: Sizes = 1
) -> Windows:
    """Returns the windows of `op` over x.

    Raises:
        ValueError: for an x that isn't (N, S…, C) of floats, sizes that aren't whole numbers ≥ 1, padding that
            isn't "SAME", "VALID" or a pair for each axis, windows larger than x or in the padding alone.
    """
    spatial = spatial_of(op, x)
    size = sizes(op, "window", window, len(spatial))
    stride = size if stride is None else sizes(op, "stride", stride, len(spatial))
    free = Windows(spatial, size, stride, sizes(op, "dilation", dilation, len(spatial)), ((0, 0),) * len(spatial))
    windows = free._replace(padding=_padding(op, free, padding))
    for n, e, pads in zip(spatial, windows.extent, windows.padding, strict=True):
        if max(pads) >= e:
            raise ValueError(
                f"{op} needs padding narrower than its windows' extent {windows.extent}; got {padding}"
            )
        if n + sum(pads) < e:
            raise ValueError(f"{op}'s windows of extent {windows.extent} don't fit x {x.shape}, padding {padding}")
    return windows


def spatial_of(op: str, x: Array) -> tuple[int, ...]:
    """Returns the sizes of the spatial axes of x.

    Raises:
        ValueError: for an x that isn't (N, S…, C) of floats, with one to three spatial axes.
    """
    if not 3 <= x.ndim <= 5 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{op} needs a floating-point x (N, one to three spatial axes, C); got {x.dtype} {x.shape}"
        )
    return x.shape[1:-1]


def sizes(op: str, name: str, value: Sizes, axes: int) -> tuple[int, ...]:
    """Returns a whole number ≥ 1 for each spatial axis.

    Raises:
        ValueError: for anything else.
    """
    found = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(found) != axes or any(not isinstance(n, int) or n < 1 for n in found):
        raise ValueError(f"{op} needs a {name} of one whole number ≥ 1, or {axes} of them; got {value!r}")
    return found


def _padding(op: str, windows: Windows, padding: Padding) -> tuple[tuple[int, int], ...]:
    if padding == "VALID":
        return windows.padding
    if padding == "SAME":  # ⌈n / stride⌉ windows
        needed = [
            max((math.ceil(n / s) - 1) * s + e - n, 0)
            for n, e, s in zip(windows.spatial, windows.extent, windows.stride, strict=True)
        ]
        return tuple((n // 2, n - n // 2) for n in needed)
    pairs = () if isinstance(padding, str) else tuple(tuple(pair) for pair in padding)
    if len(pairs) != len(windows.spatial) or any(len(p) != 2 or min(p) < 0 for p in pairs):
        pair = ", ".join(["(before, after)"] * len(windows.spatial))
        raise ValueError(f"{op} needs padding 'SAME', 'VALID' or [{pair}], all ≥ 0; got {padding!r}")
    return pairs  # type: ignore[return-value]


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
