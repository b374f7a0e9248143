"""The matrix products on the CPU. The formulas are in `jaxnet/ops/linear.py`."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.custom_batching import custom_vmap

from .. import ffi

_SMALL = 1 << 12  # multiply-adds; below, XLA's inlined loops are faster than a call
_FEW = 24  # rows; below, B is used too seldom to be packed


def slow(rows: int, depth: int, columns: int) -> str | None:
    """Why XLA is faster for a product of these sizes; None if it isn't."""
    size = rows * depth * columns
    if size < _SMALL:
        return f"a product of {size} multiply-adds is too small"
    return f"{rows} rows are too few" if rows < _FEW else None


def product(
    a: jax.Array, b: jax.Array, y: jax.Array | None, bias: jax.Array | None, *, transpose_b: bool, relu: bool
) -> jax.Array:
    """Returns f(a′ op(b) + bias), op the identity or the transpose, f the identity or relu.

    Args:
        a: (…, K).
        b: (K, N), with `transpose_b` (N, K).
        y: (…, K), relu's, or None: a′ = [y > 0] ⊙ a or a.
        bias: (N,) or None.
        transpose_b: op.
        relu: f.
    """
    c = _product(transpose_b, relu)(_rows(a), b, None if y is None else _rows(y), bias)
    return c.reshape(*a.shape[:-1], c.shape[-1])


def gradients(x: jax.Array, dy: jax.Array, y: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Returns xᵀ dz and Σ dz, summed over all leading axes, dz = dy or, if y is given, [y > 0] ⊙ dy.

    Args:
        x: (…, I).
        dy: (…, O).
        y: (…, O), relu's, or None.
    """
    args = [_rows(a) for a in (x, dy, y) if a is not None]
    results = [jax.ShapeDtypeStruct(shape, x.dtype) for shape in ((x.shape[-1], dy.shape[-1]), dy.shape[-1:])]
    dweight, dbias = ffi.call("jaxnet_linear_gradients", results, *args, batched=True)
    return dweight, dbias


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _product(transpose_b: bool, relu: bool) -> Callable[..., jax.Array]:
    """The product of matrices; under `jax.vmap` over the rows of `a` alone one product of all of them."""

    def call(a: jax.Array, b: jax.Array, y: jax.Array | None, bias: jax.Array | None) -> jax.Array:
        result = jax.ShapeDtypeStruct((a.shape[0], b.shape[0 if transpose_b else 1]), a.dtype)
        args = [x for x in (a, b, y, bias) if x is not None]
        options: dict[str, Any] = {"transpose_b": transpose_b, "relu": relu, "masked": y is not None}
        return ffi.call("jaxnet_product", [result], *args, batched=True, **options)[0]

    product = custom_vmap(call)

    @product.def_vmap
    def batched(
        size: int,
        is_batched: list[Any],
        a: jax.Array,
        b: jax.Array,
        y: jax.Array | None,
        bias: jax.Array | None,
    ) -> tuple[jax.Array, bool]:
        a_is, b_is, y_is, bias_is = is_batched
        if not (b_is or bias_is) and (y is None or a_is == y_is):
            left, mask = (None if x is None else x.reshape(size * x.shape[1], x.shape[2]) for x in (a, y))
            c = product(left, b, mask, bias)
            return c.reshape(size, a.shape[1], c.shape[1]), True
        axes = [0 if x else None for x in is_batched]
        return jax.vmap(call, axes, axis_size=size)(a, b, y, bias), True

    return product
