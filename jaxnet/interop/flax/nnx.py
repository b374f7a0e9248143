"""Flax NNX's layers, computed by jaxnet's ops."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

from jaxnet.interop.flax import recurrent
from jaxnet.ops.recurrence import Weights

_CELLS = {nnx.LSTMCell: "lstm", nnx.OptimizedLSTMCell: "lstm", nnx.GRUCell: "gru", nnx.SimpleCell: "rnn"}


class RNN(nnx.RNN):
    """`flax.nnx.RNN`, computed by `jaxnet.ops.lstm`, `gru` or `rnn`: the same state, the same values.

    It is constructed and called as Flax's, and `nnx.state` of both is the same: what is stored of one loads into
    the other. The rest is as in `jaxnet.interop.flax.linen.RNN`.

    Raises:
        TypeError: for another cell, or one whose linear maps were replaced.
        ValueError: for other activations, `state_axes`, `broadcast_rngs`, a `promote_dtype` of its own; in a call,
            for shapes that don't fit.

    Example:
        >>> layer = RNN(nnx.OptimizedLSTMCell(3, 32, rngs=nnx.Rngs(0)), return_carry=True)
        >>> nnx.update(layer, nnx.state(trained))
        >>> (c, h), y = layer(x, seq_lengths=lengths)
    """

    def __init__(self, cell: Any, *, state_axes: Any = None, broadcast_rngs: Any = None, **options: Any) -> None:
        """As `flax.nnx.RNN`."""
        given = {"state_axes": state_axes, "broadcast_rngs": broadcast_rngs}
        _check(cell, {name: value for name, value in given.items() if value is not None})
        super().__init__(cell, **options)

    def __call__(
        self,
        inputs: Any,
        *,
        initial_carry: Any = None,
        seq_lengths: Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Any = None,
    ) -> Any:
        """As `flax.nnx.RNN`: y, or (carry, y)."""
        how = recurrent.options(
            self, time_major=time_major, return_carry=return_carry, reverse=reverse, keep_order=keep_order
        )
        _check(self.cell, {})  # what it was constructed with may have been replaced
        inputs, features = jnp.asarray(inputs), self.cell.in_features
        if inputs.shape[-1:] != (features,):
            raise ValueError(f"RNN needs inputs (…, {features}) for its cell; got {inputs.shape}")
        rngs = self.rngs if rngs is None else rngs
        rngs = rngs.carry.fork() if isinstance(rngs, nnx.Rngs) else rngs
        if initial_carry is None:
            shape = *recurrent.batch_shape(inputs, how.time_major), inputs.shape[-1]
            initial_carry = self.cell.initialize_carry(shape, rngs)

        def step(carry: Any, x: Any) -> Any:
            return self.cell(carry, x)

        op, weights = _CELLS[type(self.cell)], partial(_weights, self.cell)
        return recurrent.run(op, self.cell, step, weights, inputs, initial_carry, seq_lengths, how)


def _check(cell: Any, unserved: dict[str, Any]) -> None:
    recurrent.check("nnx.RNN", cell, _CELLS, unserved)
    if cell.promote_dtype is not dtypes.promote_dtype:
        got = getattr(cell.promote_dtype, "__name__", repr(cell.promote_dtype))
        raise ValueError(
            f"jaxnet's nnx.RNN needs a cell with Flax's own promote_dtype; got {got}: use flax.nnx.RNN"
        )
    for kind in {type(linear) for side in _maps(cell) for linear in side} - {nnx.Linear}:
        raise TypeError(f"jaxnet's nnx.RNN needs a cell of nnx.Linear; got {kind.__name__}: use flax.nnx.RNN")


def _maps(cell: Any) -> tuple[list[Any], list[Any]]:
    """Those of x and those of h, in the order of the op's gates."""
    if isinstance(cell, nnx.LSTMCell):
        return [cell.ii, cell.if_, cell.ig, cell.io], [cell.hi, cell.hf, cell.hg, cell.ho]
    return [cell.dense_i], [cell.dense_h]


def _weights(cell: Any) -> Weights:
    x, h = _maps(cell)
    weight, recurrent = (jnp.concatenate([linear.kernel[...] for linear in side], -1) for side in (x, h))
    biased = x if x[0].use_bias else h
    return Weights(weight, recurrent, jnp.concatenate([linear.bias[...] for linear in biased], -1))
