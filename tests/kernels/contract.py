"""The ops that have kernels, an entry each: what test_contract.py needs to know to hold them to their contract."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnet import activations, ops


class Contract(NamedTuple):
    """An op with a kernel: `function(*args, **options, implementation=)`; `vjp` has the hand-written pullback.

    ===============  =======================================================================================
    `targets`        the kernels' names, forwards and backwards
    `arguments`      `arguments(size, dtype)`: arrays, or tuples of them
    `missing`        which of them may be None
    `batched`        which of them have the batch as their first axis; so have all results
    `options`        each set of options
    `sizes`          each way to cut the work; the first, whose batch is even, also for the transformations
    `more_sizes`     beside the boundaries of blocks, tiles and vectors: 1, primes, empty, large
    `large`          at which several threads share the work; the first so that None chooses the kernel
    `left_to_xla`    at which None doesn't
    `roundings`      `roundings(size)`: how many follow each other in one number, each term of a sum being one
    `half`           whether half precision is served, or refused
    ===============  =======================================================================================
    """

    function: Callable[..., Any]
    vjp: Callable[..., Any]
    targets: tuple[str, str]
    arguments: Callable[..., tuple[Any, ...]]
    missing: tuple[int, ...]
    batched: tuple[int, ...]
    options: list[dict[str, Any]]
    sizes: list[Any]
    more_sizes: list[Any]
    large: list[Any]
    left_to_xla: list[Any]
    roundings: Callable[[Any], int]
    half: bool
    implementation: str = "cpu"


def draw(rng, dtype, *shape, scale=1.0):
    return jnp.asarray(rng.normal(size=shape) * scale, dtype)


# ------------------------------------------------------------------------------------------------- linear


GELU_EXACT = partial(activations.gelu, approximate=False)


def linear_arguments(size, dtype):
    leading, inputs, outputs = size
    new = partial(draw, np.random.default_rng(0), dtype)
    return new(*leading, inputs), new(inputs, outputs, scale=max(inputs, 1) ** -0.5), new(outputs)


linear = Contract(
    ops.linear,
    ops.linear_vjp,
    ("jaxnet_product", "jaxnet_linear_gradients"),
    linear_arguments,
    missing=(2,),
    batched=(0,),
    options=[
        {"activation": f}
        for f in (
            "silu",
            None,
            *sorted({*activations._NAMES} - {"silu"}),
            GELU_EXACT,
        )
    ],
    sizes=[((4, 3), 7, 5), ((37,), 31, 33), ((), 3, 5), ((0,), 3, 5), ((2, 0), 3, 5)],
    more_sizes=[
        *((leading, 3, 5) for leading in ((1,), (14,), (3, 5), (0, 3))),
        *(((29,), i, o) for i, o in ((0, 2), (2, 0), (1, 1), (13, 67), (320, 16), (321, 17), (65, 512))),
        ((513,), 33, 41),
    ],
    large=[((128,), 784, 512), ((1,), 2000, 100), ((700,), 700, 10), ((600,), 70, 3000), ((3000,), 600, 70)],
    left_to_xla=[((2,), 3, 4)],
    roundings=lambda size: max(int(np.prod(size[0])), *size[1:]),
    half=False,
)


# ---------------------------------------------------------------------------------------------- recurrent


def recurrent(op, gates, **options):
    """The lengths are the last argument, the state before the first step the last but one."""

    def arguments(size, dtype):
        batch, steps, inputs, hidden = size
        new = partial(draw, np.random.default_rng(0), dtype)
        weights = [new(n, gates * hidden, scale=hidden**-0.5) for n in (inputs, hidden)] + [new(gates * hidden)]
        if op == "gru":
            weights.append(new(hidden) if options["reset_after"] else None)
        state = (new(batch, hidden), new(batch, hidden)) if op == "lstm" else new(batch, hidden)
        return new(batch, steps, inputs), *weights, state, jnp.arange(batch, dtype="int32")[::-1] % (steps + 1)

    def positional(f):
        return lambda *args, **more: f(*args[:-1], lengths=args[-1], **options, **more)

    last = 6 if op == "gru" else 5
    return Contract(
        positional(getattr(ops, op)),
        positional(getattr(ops, f"{op}_vjp")),
        (f"jaxnet_{op}", f"jaxnet_{op}_backward"),
        arguments,
        missing=tuple(range(3, last + 1)),
        batched=(0, last - 1, last),
        options=[{}, {"reverse": True}, {"remat": True}],
        sizes=[(4, 3, 2, 5), (1, 3, 2, 163), (17, 4, 3, 21)],
        # Around a tile's rows (14 or 6), which are also the steps whose products with W are computed at once, a
        # block's (56 or 24), a vector (4 to 16) and a panel (8 to 32) of units; from enough rows for all
        # threads to one row, whose units they share.
        more_sizes=[
            *((b, 3, 2, 5) for b in (1, 2, 5, 6, 7, 13, 14, 15, 29, 57, 113)),
            *((3, 4, 3, h) for h in (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 67)),
            *((2, t, 2, 3) for t in (0, 1, 2, 6, 7, 14, 15, 29)),
            *((3, 4, i, 5) for i in (1, 33)),
            *((0, 2, 3, 4), (1, 3, 5, 200), (2, 3, 5, 161)),
        ],
        large=[(40, 17, 7, 96), (1, 31, 4, 300), (3, 5, 4, 161), (130, 4, 5, 33)],
        left_to_xla=[(3, 1, 2, 5), (8, 4, 2, 600), (8, 4, 4500, 60)],
        roundings=lambda size: 10 * size[1] + max(size[0] * size[1], *size[2:]),
        half=True,
    )


CONTRACTS = {
    "linear": linear,
    "rnn tanh": recurrent("rnn", 1, activation="tanh"),
    "rnn relu": recurrent("rnn", 1, activation="relu"),
    "lstm": recurrent("lstm", 4),
    "gru after": recurrent("gru", 3, reset_after=True),
    "gru before": recurrent("gru", 3, reset_after=False),
}
