"""stop_gradient on purpose: its outputs are recorded at the point and replayed while the point moves.

JAX differentiates y = f(x, stop(g(x))) as if the second argument were a constant. A difference that
evaluates f anew sees it change: for a straight-through estimator x + stop(round(x) - x), or a target
bootstrapped from the same parameters, the two must differ. With the recorded value held fixed,

    φ(x + t·u) = f(x + t·u, g(x)),

they must agree. Recordings go through scan (stacked), cond (of the branch taken) and while (a buffer).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.verify import rules
from jaxnet.verify.roads import Program

_CAPACITY = 64  # turns of a while loop for which there is room at first


class _Loop(NamedTuple):
    """The recording of a while loop: its number of turns and a row for each."""

    turns: Any
    kept: Any


class Tape:
    """Values of stop_gradient in the order of evaluation: recorded, or replayed if they are given."""

    def __init__(self, values: Sequence[Any] | None, capacity: int) -> None:
        """Record without `values`; `capacity` is the room for the turns of a while loop."""
        self.recording = values is None
        self.values = [] if values is None else list(values)
        self.capacity = capacity

    def stop(self, x: Any) -> Any:
        """The output of a stop_gradient whose operand is `x`."""
        if not self.recording:
            return self.values.pop(0)
        self.values.append(x)
        return x


def has_stops(jaxpr: Any) -> bool:
    """Whether there is a stop_gradient anywhere in `jaxpr`."""
    return any(eqn.primitive.name == "stop_gradient" for eqn in rules.equations(jaxpr))


def frozen(closed: Any, *, into_rules: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Two functions of a closed jaxpr: `record(*args, capacity)` and `replay(recorded, *args)`.

    `into_rules` evaluates custom rules by their primal, whose stop_gradients are then held fixed too.
    Otherwise the rules stay, and with them what they do with a stop_gradient of their own.
    """

    def record(*args: Any, capacity: int) -> list[Any]:
        tape = Tape(None, capacity)
        _run(closed.jaxpr, closed.consts, args, tape, into_rules)
        return tape.values

    def replay(recorded: Any, *args: Any) -> list[Any]:
        return _run(closed.jaxpr, closed.consts, args, Tape(recorded, 0), into_rules)

    return record, replay


class Recorder:
    """Recordings at any point, with as much room for while loops as they turn out to need."""

    def __init__(self, record: Callable[..., Any], promoted: bool) -> None:
        """Compile nothing yet."""
        self._record, self._promoted = record, promoted
        self._capacity = _CAPACITY
        self._program: Program | None = None

    def __call__(self, *args: Any) -> Any:
        """The recorded values at `args`."""
        while True:
            if self._program is None:
                self._program = Program(partial(self._record, capacity=self._capacity), args, self._promoted)
            recorded = self._program(*args)
            loops = [
                x
                for x in jax.tree.leaves(recorded, is_leaf=lambda x: isinstance(x, _Loop))
                if isinstance(x, _Loop)
            ]
            turns = max((int(np.max(loop.turns)) for loop in loops), default=0)
            if turns <= self._capacity:
                return recorded
            self._capacity, self._program = turns, None


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], tape: Tape, into_rules: bool) -> list[Any]:
    def apply(eqn: Any, operands: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        keeps = name in rules.RULES and not into_rules
        if name == "stop_gradient":
            return [tape.stop(operands[0])]
        if keeps or not any(map(has_stops, rules.inner(eqn))):
            return rules.apply(eqn, operands) if into_rules else rules.bind(eqn, operands, eqn.params)
        if call := rules.inlined(eqn):
            return _run(*call, operands, tape, into_rules)
        through = {"scan": _scan, "cond": _cond, "while": _while}.get(name)
        if through is None:
            raise NotImplementedError(f"stop_gradient inside {name} cannot be held fixed")
        return through(eqn.params, operands, tape, into_rules)

    return rules.walk(jaxpr, consts, args, apply)


def _scan(params: Any, operands: list[Any], tape: Tape, into_rules: bool) -> list[Any]:
    body = params["jaxpr"]
    if "num_consts" in params:
        fixed, carried = params["num_consts"], params["num_carry"]
    else:  # from jax 0.11 on
        fixed, carried, _ = (len(part.vals) for part in params["ft_in"].unpack())
    consts, init, xs = operands[:fixed], operands[fixed : fixed + carried], operands[fixed + carried :]

    def step(carry: Any, inputs: Any) -> Any:
        x, kept = inputs
        inside = Tape(kept, tape.capacity)
        outs = _run(body.jaxpr, body.consts, [*consts, *carry, *x], inside, into_rules)
        return outs[:carried], (outs[carried:], inside.values)

    kept = None if tape.recording else tape.stop(None)
    carry, (ys, kept) = jax.lax.scan(step, init, (xs, kept), length=params["length"], reverse=params["reverse"])
    if tape.recording:
        tape.values.append(kept)
    return [*carry, *ys]


def _cond(params: Any, operands: list[Any], tape: Tape, into_rules: bool) -> list[Any]:
    index, *args = operands

    def run(branch: Any, kept: Any, *args: Any) -> Any:
        inside = Tape(kept, tape.capacity)
        outs = _run(branch.jaxpr, branch.consts, args, inside, into_rules)
        return outs, inside.values

    if not tape.recording:
        stored = tape.stop(None)
        replays = [lambda *a, b=b, k=k: run(b, k, *a)[0] for b, k in zip(params["branches"], stored, strict=True)]
        return list(jax.lax.switch(index, replays, *args))
    empty = [
        jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(partial(run, branch, None), *args)[1])
        for branch in params["branches"]
    ]

    def recording(number: int) -> Callable[..., Any]:
        def take(*args: Any) -> Any:
            outs, kept = run(params["branches"][number], None, *args)
            return outs, [*empty[:number], kept, *empty[number + 1 :]]

        return take

    outs, kept = jax.lax.switch(index, [recording(n) for n in range(len(empty))], *args)
    tape.values.append(kept)
    return list(outs)


def _while(params: Any, operands: list[Any], tape: Tape, into_rules: bool) -> list[Any]:
    test, body = params["cond_jaxpr"], params["body_jaxpr"]
    first = params["cond_nconsts"]
    second = first + params["body_nconsts"]
    tests, consts, init = operands[:first], operands[first:second], operands[second:]

    def turn(carry: Any, kept: Any) -> Any:
        inside = Tape(kept, tape.capacity)
        return _run(body.jaxpr, body.consts, [*consts, *carry], inside, into_rules), inside.values

    def goes_on(state: Any) -> Any:
        return rules.walk(test.jaxpr, test.consts, [*tests, *state[0]], rules.apply)[0]

    if not tape.recording:
        rows = tape.stop(None).kept

        def step(state: Any) -> Any:
            carry, i = state
            # A point moved can take more turns than were recorded: the last row then serves on.
            return turn(carry, jax.tree.map(lambda row: row[jnp.minimum(i, len(row) - 1)], rows))[0], i + 1

        return list(jax.lax.while_loop(goes_on, step, (init, 0))[0])

    shapes = jax.eval_shape(lambda carry: turn(carry, None)[1], init)
    room = jax.tree.map(lambda s: jnp.zeros((tape.capacity, *s.shape), s.dtype), shapes)

    def record(state: Any) -> Any:
        carry, i, rows = state
        carry, kept = turn(carry, None)
        return carry, i + 1, jax.tree.map(lambda row, value: row.at[i].set(value, mode="drop"), rows, kept)

    carry, turns, rows = jax.lax.while_loop(goes_on, record, (init, 0, room))
    tape.values.append(_Loop(turns, rows))
    return list(carry)
