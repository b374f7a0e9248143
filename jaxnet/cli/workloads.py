"""The sizes at which ops are measured, and at which their implementations must agree. All float32."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnet import ops, train

FEEDFORWARD, BATCH = (784, 512, 512, 10), 128  # MNIST's network
LINEAR = [  # rows, features in, features out
    *((BATCH, i, o) for i, o in pairwise(FEEDFORWARD)),
    (1, 784, 512),  # one example
    (768, 128, 512),  # nanoGPT's CPU configuration: 12 texts of 64 characters
    (2048, 512, 2048),  # a transformer's
]
RECURRENT = [  # batch, time, features in, hidden
    (32, 128, 64, 128),
    (32, 100, 256, 512),
    (64, 256, 128, 256),
    (1, 512, 64, 256),
    (256, 32, 32, 64),
]
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
ADAMW: dict[str, list[tuple[int, ...]]] = {
    "5 leaves of 1000 x 1000": [(1000, 1000)] * 5,
    "60 small leaves": [(64, 64), (64,), (64, 256)] * 20,  # twenty small layers
}
STREAMS = 7  # AdamW reads g, m, v, w and writes m, v, w: a step can't be faster than moving them


class Case(NamedTuple):
    """An op at one size: what is run, and what it must do at least."""

    op: str
    size: str
    what: str  # "forward", "forward + backward", "step"
    function: Callable[..., Any]
    arguments: Callable[[], tuple[Any, ...]]
    work: int  # multiplications and additions of its matrix products, or bytes moved
    bound: str = "GEMM"  # whose rate bounds it: "GEMM" or "memory"
    carried: int = 0  # so many arguments are donated, and replaced by the results


def cases(op: str) -> list[Case]:
    """All that is measured of an op, first all sizes forward."""
    if op == "linear":
        found = [case for size in LINEAR for case in linear(*size)]
    elif op == "adamw":
        found = [adamw(size, shapes) for size, shapes in ADAMW.items()]
    else:
        found = [case for size in RECURRENT for case in recurrent(op, *size)]
    return sorted(found, key=lambda case: case.what)


def linear(rows: int, inputs: int, outputs: int) -> Iterator[Case]:
    """max(x W + b, 0)."""

    def arguments() -> tuple[Array, ...]:
        return _draw(rows, inputs), _draw(inputs, outputs, scale=inputs**-0.5), _draw(outputs)

    function = partial(ops.linear, activation="relu")
    size = f"B{rows} {inputs}→{outputs}"
    yield from _both("linear", size, function, arguments, 2 * rows * inputs * outputs)


def recurrent(op: str, batch: int, time: int, inputs: int, hidden: int) -> Iterator[Case]:
    """All states of a recurrent layer, whose products are x W and h U."""
    width = GATES[op] * hidden

    def arguments() -> tuple[Array, ...]:
        weights = (_draw(n, width, scale=hidden**-0.5) for n in (inputs, hidden))
        return _draw(batch, time, inputs), *weights, _draw(width)

    def function(*args: Array) -> Array:
        return getattr(ops, op)(*args)[0]

    size = f"B{batch} T{time} I{inputs} H{hidden}"
    yield from _both(op, size, function, arguments, 2 * batch * time * (inputs + hidden) * width)


def adamw(size: str, shapes: list[tuple[int, ...]]) -> Case:
    """A step that takes parameters and state to new ones, in place."""
    optimizer = train.adamw(1e-3)

    def function(params: list[Array], state: Any, grads: list[Array]) -> Any:
        return optimizer.apply(grads, state, params)

    def arguments() -> tuple[Any, ...]:
        params, grads = ([_draw(*shape, seed=seed) for shape in shapes] for seed in (0, 1))
        return params, optimizer.init(params), grads

    moved = STREAMS * 4 * sum(map(math.prod, shapes))
    return Case("adamw", size, "step", function, arguments, moved, bound="memory", carried=2)


def _both(
    op: str,
    size: str,
    function: Callable[..., Array],
    arguments: Callable[[], tuple[Array, ...]],
    operations: int,
) -> Iterator[Case]:
    """Forward alone; then with the gradients of all arguments, two more products for each, under a cotangent."""

    def both(dy: Array, *args: Array) -> Any:
        y, pullback = jax.vjp(function, *args)
        return y, pullback(dy)

    def more() -> tuple[Array, ...]:
        args = arguments()
        return _draw(*jax.eval_shape(function, *args).shape, seed=9), *args

    yield Case(op, size, "forward", function, arguments, operations)
    yield Case(op, size, "forward + backward", both, more, 3 * operations)


def _draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), "float32")
