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
    weights: Any, a: jax.Array, initial: Pair, lengths: jax.Array | None, *, reverse: bool, keep: bool
) -> tuple[tuple[jax.Array, Pair], Pair | None, jax.Array | None]:
    """Returns (y (B, T, H), the final (h, c)); h and c before each step, (T, B, H); the gates (T, B, 4 H).

    Args:
        weights: with the `recurrent_weight` U, (H, 4 H).
        a: x W + b, (T, B, 4 H); its memory becomes that of the gates.
        initial: (h, c), each (B, H).
        lengths: (B,), or None.
        reverse: whether from the last step to the first.
        keep: whether a backward pass will come; if not, the last two results are None.
    """
    steps, batch, hidden = *a.shape[:2], weights.recurrent_weight.shape[0]
    shapes = [(batch, steps, hidden), *2 * [(batch, hidden)]]
    kept = [a.shape, *2 * [(steps, batch, hidden)]] if keep else []
    args = ffi.present(a, weights.recurrent_weight, *initial, lengths)
    results = [jax.ShapeDtypeStruct(shape, a.dtype) for shape in shapes + kept]
    aliases = {0: len(shapes)} if keep else {}
    y, h, c, *rest = ffi.call("jaxnet_lstm", results, *args, aliases=aliases, reverse=reverse)
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
    results = [jax.ShapeDtypeStruct(shape, kept.dtype) for shape in (kept.shape, *(s.shape for s in dfinal))]
    da, dh, dc = ffi.call("jaxnet_lstm_backward", results, *args, aliases={0: 0}, reverse=reverse)
    return da, None, (dh, dc)
