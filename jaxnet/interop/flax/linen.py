"""Flax Linen's layers, computed by jaxnet's ops."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxnet.interop.flax import recurrent
from jaxnet.ops.recurrence import Weights

_CELLS = {nn.LSTMCell: "lstm", nn.OptimizedLSTMCell: "lstm", nn.GRUCell: "gru", nn.SimpleCell: "rnn"}
_UNSERVED = "variable_axes", "variable_broadcast", "variable_carry", "split_rngs"


class RNN(nn.RNN):
    """`flax.linen.RNN`, computed by `jaxnet.ops.lstm`, `gru` or `rnn`: the same parameters, the same values.

    It is constructed and called as Flax's, and has its parameters, at the same places and from the same keys: what
    is stored of one loads into the other. Until there are parameters Flax's own runs, and makes them.

    The cell is an `LSTMCell`, `OptimizedLSTMCell`, `GRUCell` or `SimpleCell`, with any option but other
    activations; a `SimpleCell` may have `nn.relu`. Reverse mode only, as the ops. `unroll` changes nothing. If
    both y and the carry of an LSTM with `seq_lengths` are used, the op runs twice.

    Where the cell's `dtype` is narrower than the carry's, x and the weights are rounded to it, and all else is
    computed in the carry's; Flax also rounds each h and each gate.

    Raises:
        TypeError: for another cell.
        ValueError: for other activations, an option of `nn.scan`; in a call, for shapes that don't fit.

    Example:
        >>> layer = RNN(nn.OptimizedLSTMCell(32), return_carry=True)
        >>> params = nn.RNN(nn.OptimizedLSTMCell(32)).init(jax.random.key(0), x)
        >>> (c, h), y = layer.apply(params, x, seq_lengths=lengths)
    """

    def __post_init__(self) -> None:
        """Checks the cell and the options."""
        defaults = {name: nn.RNN.__dataclass_fields__[name].default for name in _UNSERVED}
        changed = {name: getattr(self, name) for name in _UNSERVED if getattr(self, name) != defaults[name]}
        recurrent.check("linen.RNN", self.cell, _CELLS, changed)
        super().__post_init__()

    def __call__(
        self,
        inputs: Any,
        *,
        initial_carry: Any = None,
        init_key: Array | None = None,
        seq_lengths: Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """As `flax.linen.RNN`: y, or (carry, y)."""
        how = recurrent.options(
            self, time_major=time_major, return_carry=return_carry, reverse=reverse, keep_order=keep_order
        )
        params = self.cell.variables.get("params")
        if not params:
            given = {"initial_carry": initial_carry, "init_key": init_key, "seq_lengths": seq_lengths}
            return super().__call__(inputs, **given, **how._asdict())
        inputs = jnp.asarray(inputs)
        if initial_carry is None:
            key = jax.random.key(0) if init_key is None else init_key
            shape = *recurrent.batch_shape(inputs, how.time_major), inputs.shape[-1]
            initial_carry = self.cell.initialize_carry(key, shape)
        cell = self.cell.clone(parent=None)

        def step(carry: Any, x: Any) -> Any:
            return cell.apply({"params": params}, carry, x)

        op = _CELLS[type(cell)]
        weights = partial(_weights, op, nn.meta.unbox(params))
        return recurrent.run(op, cell, step, weights, inputs, initial_carry, seq_lengths, how)


def _weights(op: str, params: Any) -> Weights:
    """The gates of the op side by side."""
    gates = {"lstm": "ifgo", "gru": "rzn", "rnn": [""]}[op]

    def beside(side: str, leaf: str) -> Array:
        return jnp.concatenate([params[side + gate][leaf] for gate in gates], -1)

    bias = beside("h" if op == "lstm" else "i", "bias")
    return Weights(
        beside("i", "kernel"), beside("h", "kernel"), bias, params["hn"]["bias"] if op == "gru" else None
    )
