"""Flax's recurrent cells as ops: what the modules for Linen and NNX share.

Axes: B batch, all batch axes in one · T time · I features in · H hidden. A carry is h, or (c, h) of an LSTM.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnet import ops
from jaxnet.ops.recurrence import Weights

Carry = Any

_ACTIVATIONS: dict[Callable, str] = {jnp.tanh: "tanh", jax.nn.relu: "relu"}


class Options(NamedTuple):
    """How a module is called."""

    time_major: bool
    return_carry: bool
    reverse: bool
    keep_order: bool


def options(module: Any, **given: bool | None) -> Options:
    """What a call gives, and of what it leaves None the module's own."""
    return Options(**{name: getattr(module, name) if value is None else value for name, value in given.items()})


def check(module: str, cell: Any, cells: Mapping[type, str], unserved: Mapping[str, Any]) -> None:
    """Checks that an op does the steps of `cell`, and that no option in `unserved` is set.

    Raises:
        TypeError: for another cell; a subclass may compute anything.
        ValueError: for a cell with other activations, or an option.
    """
    instead = f"use flax.{module}"
    if type(cell) not in cells:
        names = ", ".join(kind.__name__ for kind in cells)
        kind = type(cell)
        raise TypeError(
            f"jaxnet's {module} needs one of {names} of {next(iter(cells)).__module__}, and no subclass; got "
            f"{kind.__name__} of {kind.__module__}: {instead}"
        )
    op, gate = cells[type(cell)], getattr(cell, "gate_fn", jax.nn.sigmoid)
    served = _ACTIVATIONS if op == "rnn" else {jnp.tanh}
    if gate is not jax.nn.sigmoid or cell.activation_fn not in served:
        needed = "activation_fn jnp.tanh" + (" or jax.nn.relu" if op == "rnn" else " and gate_fn jax.nn.sigmoid")
        got = [cell.activation_fn] if op == "rnn" else [cell.activation_fn, gate]
        names = " and ".join(getattr(f, "__name__", repr(f)) for f in got)
        raise ValueError(f"jaxnet's {module} with {type(cell).__name__} needs {needed}; got {names}: {instead}")
    for name, value in unserved.items():
        raise ValueError(f"jaxnet's {module} has no use for {name}; got {value!r}: {instead}")


def batch_shape(inputs: Array, time_major: bool) -> tuple[int, ...]:
    """The batch axes of (…, T, I), or time-major (T, …, I).

    Raises:
        ValueError: for less than two axes.
    """
    if inputs.ndim < 2:
        raise ValueError(f"RNN needs inputs (…, T, I), or time-major (T, …, I); got {inputs.shape}")
    return inputs.shape[1:-1] if time_major else inputs.shape[:-2]


def run(
    op: str,
    cell: Any,
    step: Callable[[Carry, Array], tuple[Carry, Array]],
    weights: Callable[[], Weights],
    inputs: Array,
    carry: Carry,
    lengths: Any,
    how: Options,
) -> Any:
    """What Flax's RNN returns: y, in the padding too, or (carry, y).

    Args:
        op: of the cell, "lstm", "gru" or "rnn".
        cell: its options.
        step: the cell itself. It is called with shapes, for its checks and dtypes.
        weights: returns those of the op, after the cell's checks.
        inputs: (…, T, I), or time-major (T, …, I).
        carry: before the first step, each (…, H).
        lengths: (…,), or None.
        how: the options of the call.

    Raises:
        ValueError: for a carry or lengths that don't fit.
    """
    batch, hidden = batch_shape(inputs, how.time_major), _hidden(cell)
    axis, rows = 0 if how.time_major else len(batch), math.prod(batch)
    steps, features = inputs.shape[axis], inputs.shape[-1]
    carry = jax.tree.map(jnp.asarray, carry)
    dtype = _dtype(op, step, inputs, carry, (*batch, hidden))
    lengths = None if lengths is None else _lengths(lengths, batch)
    # Rounded as in Flax, which in a narrow cell also rounds h, at each step.
    fit = partial(_fit, dtype if cell.dtype is None else cell.dtype, dtype)
    fitted = jax.tree.map(fit, weights())
    if getattr(cell, "residual", False):  # h U + h
        fitted = fitted._replace(recurrent_weight=fitted.recurrent_weight + jnp.eye(hidden, dtype=dtype))
    states = [state.reshape(rows, hidden) for state in jax.tree.leaves(carry)]
    call = partial(_call, op, cell, fitted, tuple(reversed(states)) if op == "lstm" else states[0])
    x = fit(jnp.moveaxis(inputs, axis, -2).reshape(rows, steps, features))
    y, final = _forward(call, x, how) if lengths is None else _padded(op, call, x, lengths, how)
    y = jnp.moveaxis(y.reshape(*batch, steps, hidden), -2, axis)
    if not how.return_carry:
        return y
    final = final[::-1] if op == "lstm" else final
    return jax.tree.map(lambda state: state.reshape(*batch, hidden), final), y


def _forward(call: Callable, x: Array, how: Options) -> tuple[Array, Any]:
    y, final = call(x, reverse=how.reverse)
    return jnp.flip(y, 1) if how.reverse and not how.keep_order else y, final


def _padded(op: str, call: Callable, x: Array, lengths: Array, how: Options) -> tuple[Array, Any]:
    """Flax goes on through the padding, and takes the state at the last step of each sequence."""
    x = _flip(x, lengths) if how.reverse else x
    y, final = call(x)
    if how.return_carry:
        steps = x.shape[1]
        last = (jnp.minimum(lengths, steps) - 1) % steps  # of a sequence of length 0 T − 1, as in Flax
        # Only h is in y. If y or the carry isn't used, XLA drops the run that it came from.
        final = call(x, lengths=last + 1)[1] if op == "lstm" else y[jnp.arange(x.shape[0]), last]
    return _flip(y, lengths) if how.reverse and how.keep_order else y, final


def _call(op: str, cell: Any, weights: Weights, initial: Any, x: Array, **how: Any) -> tuple[Array, Any]:
    if op == "gru":
        return ops.gru(x, *weights, initial, **how)
    if op == "lstm":
        return ops.lstm(x, *weights[:3], initial, **how)
    return ops.rnn(x, *weights[:3], initial, activation=_ACTIVATIONS[cell.activation_fn], **how)


def _flip(x: Array, lengths: Array) -> Array:
    """Each sequence, and its padding, from its end to its beginning; twice is once forwards."""
    at = (lengths[:, None] - 1 - jnp.arange(x.shape[1], dtype="int32")[None]) % x.shape[1]
    return jnp.take_along_axis(x, at[..., None], 1)


def _fit(rounded: Any, dtype: Any, array: Array) -> Array:
    return array.astype(rounded).astype(dtype)


def _hidden(cell: Any) -> int:
    return cell.features if hasattr(cell, "features") else cell.hidden_features


def _dtype(op: str, step: Callable, inputs: Array, carry: Carry, shape: tuple[int, ...]) -> Any:
    """The dtype of y by Flax's rules, for which the cell itself is asked; it checks its parameters too."""
    expected = [shape, shape] if op == "lstm" else [shape]
    if isinstance(carry, tuple) != (op == "lstm") or [*map(jnp.shape, jax.tree.leaves(carry))] != expected:
        kind = f"a tuple (c, h), each {shape}" if op == "lstm" else f"h {shape}"
        raise ValueError(f"RNN needs as its initial carry {kind}; got {jax.tree.map(jnp.shape, carry)}")
    x = jax.ShapeDtypeStruct((*shape[:-1], inputs.shape[-1]), inputs.dtype)
    after, y = jax.eval_shape(step, carry, x)
    before, dtypes = ([a.dtype for a in jax.tree.leaves(tree)] for tree in (carry, after))
    if before != dtypes:
        raise ValueError(
            f"RNN needs a carry that keeps its dtype; got {', '.join(map(str, before))}, after a step "
            f"{', '.join(map(str, dtypes))}: give an initial_carry, or the cell a param_dtype, of that"
        )
    return y.dtype


def _lengths(lengths: Any, batch: tuple[int, ...]) -> Array:
    lengths = jnp.asarray(lengths)
    if lengths.shape != batch or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"RNN needs seq_lengths {batch} of whole numbers; got {lengths.shape} of {lengths.dtype}")
    return lengths.astype("int32").reshape(-1)
