"""The matrix product on the CPU. The formulas are in `jaxnet/ops/linear.py`."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from .. import ffi

_DTYPES = (jnp.dtype("float32"), jnp.dtype("float64"))
_SMALL = 1 << 12  # multiply-adds; below, XLA's inlined loops are faster than a call


def unsupported(*operands: jax.Array | None) -> str | None:
    """Why the kernel can't serve these operands, of which some may be None; None if it can."""
    if reason := ffi.unavailable():
        return reason
    types = [jax.typeof(x) for x in operands if x is not None]
    if len({t.dtype for t in types}) > 1 or types[0].dtype not in _DTYPES:
        found = ", ".join(t.dtype.name for t in types)
        return f"x, weight and bias must be all float32 or all float64; got {found}"
    if any(t.sharding.mesh.explicit_axes for t in types):
        return "arrays must not lie on a mesh with explicit axes, outside of shard_map"
    return None


def slow(a: jax.Array, b: jax.Array, *, transpose_a: bool, transpose_b: bool) -> str | None:
    """Why XLA is faster for these sizes; None if it isn't."""
    size = a.size * b.shape[-2 if transpose_b else -1]
    return f"a product of {size} multiply-adds is too small" if size < _SMALL else None


def run(a: jax.Array, b: jax.Array, bias: jax.Array | None, *, transpose_a: bool, transpose_b: bool) -> jax.Array:
    """Returns op(a) op(b) + bias, op the identity or the transpose.

    Args:
        a: (…, K), or with `transpose_a` (…, M), whose leading axes are then summed over.
        b: (K, N), with `transpose_b` (N, K), with `transpose_a` (…, N).
        bias: (N,) or None.
        transpose_a: op of a.
        transpose_b: op of b; not both.
    """
    rows = [x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) for x in (a, b)]
    c = _product(transpose_a, transpose_b)(*rows, bias)
    return c if transpose_a else c.reshape(*a.shape[:-1], c.shape[-1])


def _product(transpose_a: bool, transpose_b: bool) -> Callable[..., jax.Array]:
    """The product of matrices; under `jax.vmap` over the rows of `a` alone one product of all of them."""

    def call(a: jax.Array, b: jax.Array, bias: jax.Array | None) -> jax.Array:
        shape = a.shape[1 if transpose_a else 0], b.shape[0 if transpose_b else 1]
        result = jax.ShapeDtypeStruct(shape, a.dtype)
        args = (a, b) if bias is None else (a, b, bias)
        options: dict[str, Any] = {"transpose_a": transpose_a, "transpose_b": transpose_b}
        return ffi.call("jaxnet_product", [result], *args, batched=True, **options)[0]

    product = custom_vmap(call)

    @product.def_vmap
    def batched(
        size: int, is_batched: list[Any], a: jax.Array, b: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, bool]:
        if not (transpose_a or any(is_batched[1:])):
            c = product(a.reshape(size * a.shape[1], a.shape[2]), b, bias)
            return c.reshape(size, a.shape[1], c.shape[1]), True
        axes = [0 if b else None for b in is_batched]
        return jax.vmap(call, axes, axis_size=size)(a, b, bias), True

    return product
