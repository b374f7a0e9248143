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
    x: jax.Array,
    initial: jax.Array,
    lengths: jax.Array | None,
    *,
    reset_after: bool,
    reverse: bool,
    keep: bool,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array | None, Kept | None]:
    """Returns (y (B, T, H), the final h); h before each step, (T, B, H); (r, z, n) and u or s of each step.

    Args:
        weights: W (I, 3 H), U (H, 3 H), b (3 H,) or None, d (H,) or None.
        x: (B, T, I).
        initial: h, (B, H).
        lengths: (B,), or None.
        reset_after: whether r multiplies u = h Un + d, or h itself, to s.
        reverse: whether from the last step to the first.
        keep: whether a backward pass will come; if not, the last two results are None.
    """
    w, u, b, d = weights
    d = jnp.zeros(len(u), x.dtype) if d is None else d
    args = ffi.present(x, w, ffi.or_zero(b, w), u, d, initial, lengths)
    axes = (
        "B t i, i k, k, h k, h, B h"
        + ", B" * (lengths is not None)
        + " -> B t h, B h"
        + ", t B k, t B h, t B h" * keep
    )
    options = {"reset_after": reset_after, "reverse": reverse}
    y, h, *rest = ffi.spread_call("jaxnet_gru", axes, *args, **options)
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
    axes = (
        "t B k, u k, t B h, t B h, B t h, B h"
        + ", B" * (lengths is not None)
        + " -> t B k, B h"
        + ", t B k" * reset_after
    )
    da, dinitial, *rest = ffi.spread_call("jaxnet_gru_backward", axes, *args, aliases={0: 0}, reverse=reverse)
    return da, rest[0] if rest else None, dinitial
