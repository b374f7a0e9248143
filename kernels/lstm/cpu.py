"""The LSTM's loop over time on the CPU. The formulas are in `jaxnet/ops/lstm.py`."""

from collections.abc import Callable
from typing import Any

import jax

from .. import ffi

Pair = tuple[jax.Array, jax.Array]


def loops() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The loops forwards and backwards, as `jaxnet.ops.recurrence` calls them."""
    return forward, backward


def forward(
    weights: Any, x: jax.Array, initial: Pair, lengths: jax.Array | None, *, reverse: bool, keep: bool
) -> tuple[tuple[jax.Array, Pair], Pair | None, jax.Array | None]:
    """Returns (y (B, T, H), the final (h, c)); h and c before each step, (T, B, H); the gates (T, B, 4 H).

    Args:
        weights: W (I, 4 H), U (H, 4 H), b (4 H,) or None.
        x: (B, T, I).
        initial: (h, c), each (B, H).
        lengths: (B,), or None.
        reverse: whether from the last step to the first.
        keep: whether a backward pass will come; if not, the last two results are None.
    """
    w, u, b, _ = weights
    args = ffi.present(x, w, ffi.or_zero(b, w), u, *initial, lengths)
    axes = (
        "B t i, i k, k, h k, B h, B h"
        + ", B" * (lengths is not None)
        + " -> B t h, B h, B h"
        + ", t B k, t B h, t B h" * keep
    )
    y, h, c, *rest = ffi.spread_call("jaxnet_lstm", axes, *args, reverse=reverse)
    return (y, (h, c)), (rest[1], rest[2]) if keep else None, rest[0] if keep else None


def backward(
    weights: Any,
    before: Pair,
    kept: jax.Array,
    cotangents: tuple[jax.Array, Pair],
    lengths: jax.Array | None,
    *,
    reverse: bool,
) -> tuple[jax.Array, None, Pair]:
    """Returns da (T, B, 4 H), None, and the gradient of the initial (h, c).

    Args:
        weights: with the `recurrent_weight` U, (H, 4 H).
        before: h and c before each step.
        kept: the gates; their memory becomes that of da.
        cotangents: dy (B, T, H), and that of the final (h, c).
        lengths: (B,), or None.
        reverse: whether forwards went from the last step to the first.
    """
    dy, dfinal = cotangents
    args = ffi.present(kept, weights.recurrent_weight, before[1], dy, *dfinal, lengths)
    axes = "t B k, u k, t B h, B t h, B h, B h" + ", B" * (lengths is not None) + " -> t B k, B h, B h"
    da, dh, dc = ffi.spread_call("jaxnet_lstm_backward", axes, *args, aliases={0: 0}, reverse=reverse)
    return da, None, (dh, dc)
