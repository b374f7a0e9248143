"""The matrix products on the CPU. The formulas are in `jaxnet/ops/linear.py`."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.custom_batching import custom_vmap

from .. import ffi

IDENTITY = "identity"
# As in kernels/native/activation.h. The slopes of the first two are of y = f(z), those of the others of z.
ACTIVATIONS = (IDENTITY, "relu", "tanh", "sigmoid", "silu", "gelu", "gelu exact")

_SMALL = 1 << 12  # multiply-adds; below, XLA's inlined loops are faster than a call
_FEW = 8  # rows; below, B is used too seldom to be packed, and in a loop XLA's own code needs no call
_SHORT, _LARGE = 8, 1 << 19  # a depth, and elements of C: with less to sum and more to write memory is what counts


def slow(rows: int, depth: int, columns: int) -> str | None:
    """Why XLA is faster for a product of these sizes; None if it isn't."""
    size = rows * depth * columns
    if size < _SMALL:
        return f"a product of {size} multiply-adds is too small"
    if depth < _SHORT and rows * columns > _LARGE:
        return f"sums of {depth} products are too short for so large a result"
    return f"{rows} rows are too few" if rows < _FEW else None


def product(
    a: jax.Array,
    b: jax.Array,
    saved: jax.Array | None,
    bias: jax.Array | None,
    *,
    transpose_b: bool = False,
    activation: str = IDENTITY,
    slope: str = IDENTITY,
    keep: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """Returns f(z) and, to `keep` it, z = a′ op(b) + bias, op the identity or the transpose.

    Args:
        a: (…, K).
        b: (K, N), with `transpose_b` (N, K).
        saved: (…, K), if a′ = g′(saved) ⊙ a with a `slope` g; None if a′ = a.
        bias: (N,) or None.
        transpose_b: op.
        activation: f, of `ACTIVATIONS`.
        slope: g, of `ACTIVATIONS`.
        keep: whether z is a result; if not, it is None.
    """
    _check(activation, slope)
    which = _Which(transpose_b, activation, slope, keep)

    def run(a: jax.Array, b: jax.Array, *present: jax.Array) -> list[jax.Array]:
        others = iter(present)
        y = None if saved is None else _rows(next(others))
        return [c.reshape(*a.shape[:-1], c.shape[-1]) for c in _product(which)(_rows(a), b, y, next(others, None))]

    rows = _leading(a)
    axes = f"{rows} k, " + ("n k" if transpose_b else "k n")
    axes += (
        f", {rows} k" * (saved is not None) + ", n" * (bias is not None) + f" -> {rows} n" + f", {rows} n" * keep
    )
    c, *z = ffi.spread(run, axes)(*ffi.present(a, b, saved, bias))
    return c, z[0] if z else None


def gradients(
    x: jax.Array, dy: jax.Array, saved: jax.Array | None, *, slope: str = IDENTITY
) -> tuple[jax.Array, jax.Array]:
    """Returns xᵀ dz and Σ dz, summed over all leading axes, dz = dy or, with a `slope` g, g′(saved) ⊙ dy.

    Args:
        x: (…, I).
        dy: (…, O).
        saved: (…, O), or None.
        slope: g, of `ACTIVATIONS`.
    """
    _check(slope)
    results = [jax.ShapeDtypeStruct(shape, x.dtype) for shape in ((x.shape[-1], dy.shape[-1]), dy.shape[-1:])]

    def run(*args: jax.Array) -> list[jax.Array]:
        return ffi.call("jaxnet_linear_gradients", results, *map(_rows, args), batched=True, slope=slope)

    rows = _leading(x)
    axes = f"{rows} i, {rows} o" + f", {rows} o" * (saved is not None) + " -> i o, o"
    dweight, dbias = ffi.spread(run, axes)(*ffi.present(x, dy, saved))
    return dweight, dbias


def _check(*names: str) -> None:
    """The kernels look for a name until they find it."""
    for name in names:
        if name not in ACTIVATIONS:
            raise ValueError(f"the kernels compute {', '.join(map(repr, ACTIVATIONS))}; got {name!r}")


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _leading(x: jax.Array) -> str:
    """Names of the leading axes, all of rows."""
    return " ".join(f"R{i}" for i in range(x.ndim - 1))


class _Which(NamedTuple):
    transpose_b: bool
    activation: str
    slope: str
    keep: bool


def _product(which: _Which) -> Callable[..., list[jax.Array]]:
    """The product of matrices; under `jax.vmap` over the rows of `a` alone one product of all of them."""

    def call(a: jax.Array, b: jax.Array, saved: jax.Array | None, bias: jax.Array | None) -> list[jax.Array]:
        result = jax.ShapeDtypeStruct((a.shape[0], b.shape[0 if which.transpose_b else 1]), a.dtype)
        options: dict[str, Any] = which._asdict()
        results = [result] * (1 + options.pop("keep"))
        return ffi.call("jaxnet_product", results, *ffi.present(a, b, saved, bias), batched=True, **options)

    product = custom_vmap(call)

    @product.def_vmap
    def batched(
        size: int,
        is_batched: list[Any],
        a: jax.Array,
        b: jax.Array,
        saved: jax.Array | None,
        bias: jax.Array | None,
    ) -> tuple[list[jax.Array], list[bool]]:
        a_is, b_is, saved_is, bias_is = is_batched
        batched = [True] * (1 + which.keep)
        if not (b_is or bias_is) and (saved is None or a_is == saved_is):
            left, other = (None if x is None else x.reshape(size * x.shape[1], x.shape[2]) for x in (a, saved))
            found = product(left, b, other, bias)
            return [c.reshape(size, a.shape[1], c.shape[1]) for c in found], batched
        axes = [0 if x else None for x in is_batched]
        return jax.vmap(call, axes, axis_size=size)(a, b, saved, bias), batched

    return product
