"""The GRU's loop over time on the CPU. The formulas are in `jaxnet/ops/gru.py`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .. import ffi

Kept = tuple[jax.Array, jax.Array]


def loops(*, reset_after: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The loops forwards and backwards, as `jaxnet.ops.recurrence` calls them, for a form of the GRU."""
    return partial(forward, reset_after=reset_after), partial(backward, reset_after=reset_after)


def forward(
    weights: Any,
    a: jax.Array,
    initial: jax.Array,
    lengths: jax.Array | None,
    *,
    reset_after: bool,
    reverse: bool,
    keep: bool,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array | None, Kept | None]:
    """Returns (y (B, T, H), the final h); h before each step, (T, B, H); (r, z, n) and u or s of each step.

    Args:
        weights: with the `recurrent_weight` U, (H, 3 H), and the `recurrent_bias` d, (H,) or None.
        a: x W + b, (T, B, 3 H); its memory becomes that of (r, z, n).
        initial: h, (B, H).
        lengths: (B,), or None.
        reset_after: whether r multiplies u = h Un + d, or h itself, to s.
        reverse: whether from the last step to the first.
        keep: whether a backward pass will come; if not, the last two results are None.
    """
    steps, batch, hidden = *a.shape[:2], weights.recurrent_weight.shape[0]
    bias = weights.recurrent_bias if weights.recurrent_bias is not None else jnp.zeros(hidden, a.dtype)
    args = ffi.present(a, weights.recurrent_weight, bias, initial, lengths)
    shapes = [(batch, steps, hidden), initial.shape]
    kept = [a.shape, *2 * [(steps, batch, hidden)]] if keep else []
    results = [jax.ShapeDtypeStruct(shape, a.dtype) for shape in shapes + kept]
    options = {"reset_after": reset_after, "reverse": reverse}
    y, h, *rest = ffi.call("jaxnet_gru", results, *args, aliases={0: 2} if keep else {}, **options)
    return (y, h), rest[2] if keep else None, (rest[0], rest[1]) if keep else None


def backward(
    weights: Any,
    before: jax.Array,
    kept: Kept,
    cotangents: tuple[jax.Array, jax.Array],
    lengths: jax.Array | None,
    *,
    reset_after: bool,
    reverse: bool,
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Returns da (T, B, 3 H), dv (T, B, 3 H) or None, and the gradient of the initial h.

    Args:
        weights: with the `recurrent_weight` U, (H, 3 H).
        before: h before each step.
        kept: (r, z, n), whose memory becomes that of da, and u or s.
        cotangents: dy (B, T, H), and that of the final h.
        lengths: (B,), or None.
        reset_after: whether r multiplies u, or h itself. Only then dv isn't da.
        reverse: whether forwards went from the last step to the first.
    """
    gates, more = kept
    args = ffi.present(gates, weights.recurrent_weight, before, more, *cotangents, lengths)
    dv = [gates.shape] if reset_after else []
    results = [jax.ShapeDtypeStruct(shape, gates.dtype) for shape in (gates.shape, cotangents[1].shape, *dv)]
    da, dinitial, *rest = ffi.call("jaxnet_gru_backward", results, *args, aliases={0: 0}, reverse=reverse)
    return da, rest[0] if rest else None, dinitial
