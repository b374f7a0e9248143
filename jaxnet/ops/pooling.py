"""Max and average pooling over windows.

Axes: N batch · S… one to three spatial axes · C channels, last. Windows as in `jaxnet.ops.windows`: output o
of an axis sees the elements p = o·stride + j·dilation − before, j < k.

    max      y[o] = max_j x[p]       dx[p] = Σ_o [p is the first maximum of o] dy[o]
    average  y[o] = Σ_j x[p] / n_o   dx[p] = Σ_o [p in o] dy[o] / n_o

Neither gradient is a scatter. Write p + before = q·stride + r with r < stride: only the windows o = q − m with
m < M = ⌈extent / stride⌉ reach p, there at offset r + m·stride. So dx is a sum of M shifted copies of dy, each
spread over the `stride` values of r and masked; without overlap it is one copy. (XLA's gradient of a maximum is
a select-and-scatter, which its CPU runs element by element.)
"""

import math
from functools import partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.tree_util import Partial
from jaxtyping import Float, Integer

from jaxnet.activations import accumulation_dtype
from jaxnet.ops import dispatch
from jaxnet.ops.windows import Padding, PerAxis, Windows, cut, padded, windows_of

# ------------------------------------------------------------------------------------------------ maximum


class MaxResiduals(NamedTuple):
    """Which element of its window each output is: its offset, counted row by row in a block of M·stride."""

    place: Integer[Array, "N *O C"]


def max_pool(
    x: Float[Array, "N *S C"],
    window: PerAxis,
    *,
    stride: PerAxis | None = None,
    padding: Padding = "VALID",
    dilation: PerAxis = 1,
    implementation: str | None = None,
) -> Float[Array, "N *O C"]:
    """The maximum of each window; of equal ones the first, row by row, gets the gradient. NaN is the largest.

    Reverse mode only (`jax.custom_vjp`); the backward pass can itself be differentiated. The program grows with
    the number of elements in a window: for the whole image there is `global_max_pool`.

    Args:
        x: (N, S…, C), one to three spatial axes.
        window: its elements along each spatial axis, or one number for all.
        stride: from one window to the next; None is the window's size.
        padding: "VALID" is none, "SAME" gives ⌈n / stride⌉ windows; or how much, for all axes, for each, or a
            pair (before, after) for each.
            It counts as −∞, and comes first where a window has nothing above −∞.
        dilation: from one element of a window to the next.
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for an x, sizes or padding that don't fit (`ops.windows`), an unknown implementation.

    Example:
        >>> ops.max_pool(jnp.ones((2, 32, 32, 3)), 3, stride=2, padding="SAME").shape
        (2, 16, 16, 3)
    """
    windows = windows_of("max_pool", x, window, stride, padding, dilation)
    return dispatch.choose("max_pool", implementation, partial(_max_pool, windows), {})(x)


def max_pool_vjp(
    x: Float[Array, "N *S C"],
    window: PerAxis,
    *,
    stride: PerAxis | None = None,
    padding: Padding = "VALID",
    dilation: PerAxis = 1,
    implementation: str | None = None,
) -> tuple[Float[Array, "N *O C"], Partial]:
    """Returns y and its pullback dy ↦ dx; arguments as in `max_pool`."""
    windows = windows_of("max_pool", x, window, stride, padding, dilation)
    y, residuals = dispatch.choose("max_pool", implementation, partial(max_forward, windows), {})(x)
    return y, Partial(partial(max_backward, windows), residuals)


def max_reference(windows: Windows, x: Float[Array, "N *S C"]) -> Float[Array, "N *O C"]:
    """The specification, for autodiff: every window written out, and its first largest element taken."""
    x, axes = padded(x, windows.padding, -jnp.inf), len(windows.spatial)
    sizes = zip(windows.outputs, windows.size, windows.stride, windows.dilation, strict=True)
    for axis, (o, k, s, d) in enumerate(sizes):
        x = jnp.take(x, np.arange(o)[:, None] * s + np.arange(k) * d, 2 * axis + 1)
    x = jnp.moveaxis(x, range(2, 2 * axes + 1, 2), range(axes + 1, 2 * axes + 1))  # (N, O…, k…, C)
    x = x.reshape(x.shape[0], *windows.outputs, math.prod(windows.size), x.shape[-1])
    return jnp.take_along_axis(x, x.argmax(-2, keepdims=True), -2)[..., 0, :]


def max_forward(windows: Windows, x: Float[Array, "N *S C"]) -> tuple[Float[Array, "N *O C"], MaxResiduals]:
    """y = max_j x_j, and the first j that has it."""
    x, codes = padded(x, windows.padding, -jnp.inf), _codes(windows)
    offsets = list(product(*map(range, windows.size)))
    starts = [tuple(j * d for j, d in zip(offset, windows.dilation, strict=True)) for offset in offsets]
    taps = [cut(x, start, windows.outputs, windows.stride) for start in starts]
    # Compared with each other, never with y: a compiler may calculate x anew for the index, rounded otherwise.
    y, index = taps[0], jnp.full(taps[0].shape, codes[starts[0]], codes.dtype)
    for start, tap in zip(starts[1:], taps[1:], strict=True):
        larger = (tap > y) | (jnp.isnan(tap) & ~jnp.isnan(y))
        y, index = jnp.where(larger, tap, y), jnp.where(larger, codes[start], index)
    return y, MaxResiduals(index)


def max_backward(
    windows: Windows, residuals: MaxResiduals, dy: Float[Array, "N *O C"]
) -> tuple[Float[Array, "N *S C"]]:
    """dx[q·stride + r] = Σ_m [index[q − m] = r + m·stride] dy[q − m]."""
    wide = dy.astype(accumulation_dtype(dy.dtype))
    shifts, rows, edges = _reach(windows), _rows(windows), _edges(windows)
    wide, index, codes = padded(wide, edges), padded(residuals.place, edges), _codes(windows)
    behind = tuple(range(2, 2 * len(rows) + 1, 2))  # a new axis for r after each spatial one
    total = jnp.zeros((), wide.dtype)
    for m in product(*map(range, shifts)):
        start = [last - 1 - shift for last, shift in zip(shifts, m, strict=True)]
        here = [slice(a * s, (a + 1) * s) for a, s in zip(m, windows.stride, strict=True)]
        code = codes[tuple(here)].reshape(1, *((1, s)[i] for s in windows.stride for i in (0, 1)), 1)
        values, found = (jnp.expand_dims(cut(a, start, rows), behind) for a in (wide, index))
        total = total + jnp.where(found == code, values, jnp.zeros((), wide.dtype))
    for axis, (q, s) in enumerate(zip(rows, windows.stride, strict=True), 1):
        total = total.reshape(*total.shape[:axis], q * s, *total.shape[axis + 2 :])
    return (cut(total, [before for before, _ in windows.padding], windows.spatial).astype(dy.dtype),)


def _reach(windows: Windows) -> tuple[int, ...]:
    """M: how many windows can reach one element."""
    return tuple(-(-e // s) for e, s in zip(windows.extent, windows.stride, strict=True))


def _rows(windows: Windows) -> tuple[int, ...]:
    """Q: how many q there are, so that q·stride + r reaches the last element of x."""
    sizes = zip(windows.spatial, windows.padding, windows.stride, strict=True)
    rows = tuple(-(-(n + before) // s) for n, (before, _), s in sizes)
    if rows == windows.outputs and max(_reach(windows)) > 1:
        # One row too many: a shifted copy that is the whole index would be calculated anew for each shift.
        return (rows[0] + 1, *rows[1:])
    return rows


def _edges(windows: Windows) -> list[tuple[int, int]]:
    """The padding of dy that its shifted copies reach into."""
    sizes = zip(_reach(windows), _rows(windows), windows.outputs, strict=True)
    return [(shifts - 1, rows - o) for shifts, rows, o in sizes]


def _codes(windows: Windows) -> np.ndarray:
    """The number of each offset in a block of M·stride, in the narrowest dtype."""
    block = [m * s for m, s in zip(_reach(windows), windows.stride, strict=True)]
    dtype = np.uint8 if math.prod(block) <= 256 else np.int32
    return np.arange(math.prod(block), dtype=dtype).reshape(block)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _max_pool(windows: Windows, x: Array) -> Array:
    return max_forward(windows, x)[0]


_max_pool.defvjp(max_forward, max_backward)

# ------------------------------------------------------------------------------------------------ average


class _Average(NamedTuple):
    windows: Windows
    count_include_pad: bool


def avg_pool(
    x: Float[Array, "N *S C"],
    window: PerAxis,
    *,
    stride: PerAxis | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
    implementation: str | None = None,
) -> Float[Array, "N *O C"]:
    """The mean of each window, summed in at least float32 and rounded once.

    Reverse mode only (`jax.custom_vjp`); the backward pass can itself be differentiated.

    Args:
        x: (N, S…, C), one to three spatial axes.
        window: its elements along each spatial axis, or one number for all.
        stride: from one window to the next; None is the window's size.
        padding: "VALID" is none, "SAME" gives ⌈n / stride⌉ windows; or how much, for all axes, for each, or a
            pair (before, after) for each.
        count_include_pad: whether n_o counts the padding, which is 0, or only elements of x.
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for an x, sizes or padding that don't fit (`ops.windows`), an unknown implementation.

    Example:
        >>> ops.avg_pool(jnp.ones((2, 32, 32, 3)), 2).shape
        (2, 16, 16, 3)
    """
    average = _Average(windows_of("avg_pool", x, window, stride, padding), count_include_pad)
    return dispatch.choose("avg_pool", implementation, partial(_avg_pool, average), {})(x)


def avg_pool_vjp(
    x: Float[Array, "N *S C"],
    window: PerAxis,
    *,
    stride: PerAxis | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
    implementation: str | None = None,
) -> tuple[Float[Array, "N *O C"], Partial]:
    """Returns y and its pullback dy ↦ dx; arguments as in `avg_pool`."""
    average = _Average(windows_of("avg_pool", x, window, stride, padding), count_include_pad)
    y, _ = dispatch.choose("avg_pool", implementation, partial(avg_forward, average), {})(x)
    return y, Partial(partial(avg_backward, average), None)


def avg_reference(average: _Average, x: Float[Array, "N *S C"]) -> Float[Array, "N *O C"]:
    """The specification, for autodiff."""
    windows = average.windows

    def sums(x: Array) -> Array:
        padding = ((0, 0), *windows.padding, (0, 0))
        zero = np.zeros((), x.dtype)  # known while tracing: JAX then sees a sum, which it can differentiate
        return lax.reduce_window(x, zero, lax.add, (1, *windows.size, 1), (1, *windows.stride, 1), padding)

    return sums(x) / (math.prod(windows.size) if average.count_include_pad else sums(jnp.ones_like(x)))


def avg_forward(average: _Average, x: Float[Array, "N *S C"]) -> tuple[Float[Array, "N *O C"], None]:
    """y = Σ_j x_j / n, the sum one axis after the other."""
    windows = average.windows
    y = padded(x, windows.padding).astype(accumulation_dtype(x.dtype))
    for axis in reversed(range(len(windows.spatial))):
        y = _sum(y, axis + 1, windows.size[axis], windows.stride[axis])
    return (y / _counted(average, y.dtype)).astype(x.dtype), None


def avg_backward(average: _Average, residuals: None, dy: Float[Array, "N *O C"]) -> tuple[Float[Array, "N *S C"]]:
    """dx = Σ_o [p in o] dy[o] / n_o, the sum one axis after the other."""
    windows, dtype = average.windows, accumulation_dtype(dy.dtype)
    # All padding at once: between two sums it would stand in the way of vector instructions.
    dx = padded(dy.astype(dtype) / _counted(average, dtype), _edges(windows))
    for axis, rows in enumerate(_rows(windows)):
        dx = _spread(dx, axis + 1, rows, windows.size[axis], windows.stride[axis])
    return (cut(dx, [before for before, _ in windows.padding], windows.spatial).astype(dy.dtype),)


def _sum(x: Array, axis: int, size: int, stride: int) -> Array:
    """y[o] = Σ_{j<k} x[o·stride + j]."""
    last = (x.shape[axis] - size) // stride * stride
    taps = [lax.slice_in_dim(x, j, j + last + 1, stride, axis) for j in range(size)]
    return sum(taps[1:], taps[0])


def _spread(dy: Array, axis: int, rows: int, size: int, stride: int) -> Array:
    """dx[q·stride + r] = Σ_m [r + m·stride < k] dy[q − m], dy beginning at q = 1 − M."""
    shifts = -(-size // stride)
    inside = np.arange(shifts * stride).reshape(shifts, stride) < size
    total = jnp.zeros((), dy.dtype)
    for m in range(shifts):
        copy = jnp.expand_dims(lax.slice_in_dim(dy, shifts - 1 - m, shifts - 1 - m + rows, axis=axis), axis + 1)
        mask = inside[m].reshape(*(1,) * (axis + 1), stride, *(1,) * (dy.ndim - axis - 1))
        total = total + jnp.where(mask, copy, jnp.zeros((), dy.dtype))
    return total.reshape(*dy.shape[:axis], rows * stride, *dy.shape[axis + 1 :])


def _counted(average: _Average, dtype: np.dtype) -> np.ndarray:
    """n_o, (1, O…, 1) or () if it is the same everywhere."""
    windows, counts = average.windows, np.ones((), dtype)
    if average.count_include_pad or not any(map(any, windows.padding)):
        return np.asarray(math.prod(windows.size), dtype)
    for n, k, s, (before, _), o in zip(
        windows.spatial, windows.size, windows.stride, windows.padding, windows.outputs, strict=True
    ):
        first = np.arange(o) * s - before
        counts = np.multiply.outer(counts, np.minimum(first + k, n) - np.maximum(first, 0)).astype(dtype)
    return counts[None, ..., None]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _avg_pool(average: _Average, x: Array) -> Array:
    return avg_forward(average, x)[0]


_avg_pool.defvjp(avg_forward, avg_backward)
