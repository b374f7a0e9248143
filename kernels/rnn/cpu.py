"""The simple recurrent network's loop over time on the CPU. The formulas are in `jaxnet/ops/rnn.py`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from .. import ffi


def loops(*, relu: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The loops forwards and backwards, as `jaxnet.ops.recurrence` calls them, for relu or tanh."""
    return partial(forward, relu=relu), partial(backward, relu=relu)


def forward(
    weights: Any,
    x: jax.Array,
    initial: jax.Array,
    lengths: jax.Array | None,
    *,
    relu: bool,
    reverse: bool,
    keep: bool,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array | None, jax.Array | None]:
    """Returns (y (B, T, H), the final h); h before each step and after it, (T, B, H).

    Args:
        weights: W (I, H), U (H, H), b (H,) or None.
        x: (B, T, I).
        initial: h, (B, H).
        lengths: (B,), or None.
        relu: whether f is relu, or tanh.
        reverse: whether from the last step to the first.
        keep: whether a backward pass will come; if not, the last two results are None.
    """
    w, u, b, _ = weights
    args = ffi.present(x, w, ffi.or_zero(b, w), u, initial, lengths)
    axes = "B t i, i k, k, h k, B h" + ", B" * (lengths is not None) + " -> B t h, B h" + ", t B h, t B h" * keep
    y, h, *rest = ffi.spread_call("jaxnet_rnn", axes, *args, relu=relu, reverse=reverse)
    kept, before = rest if keep else (None, None)
    return (y, h), before, kept


def backward(
    weights: Any,
    before: jax.Array,
    kept: jax.Array,
    cotangents: tuple[jax.Array, jax.Array],
    lengths: jax.Array | None,
    *,
    relu: bool,
    reverse: bool,
) -> tuple[jax.Array, None, jax.Array]:
    """Returns da (T, B, H), None, and the gradient of the initial h.

    Args:
        weights: with the `recurrent_weight` U, (H, H).
        before: not used.
        kept: h after each step; its memory becomes that of da.
        cotangents: dy (B, T, H), and that of the final h.
        lengths: (B,), or None.
        relu: whether f is relu, or tanh.
        reverse: whether forwards went from the last step to the first.
    """
    args = ffi.present(kept, weights.recurrent_weight, *cotangents, lengths)
    axes = "t B h, u v, B t h, B h" + ", B" * (lengths is not None) + " -> t B h, B h"
    da, dinitial = ffi.spread_call("jaxnet_rnn_backward", axes, *args, aliases={0: 0}, relu=relu, reverse=reverse)
    return da, None, dinitial
