"""Timing contenders side by side on a shared machine.

They take turns, round after round. A contender's time is the median over rounds of its median repeat; a ratio
is the median of the rounds' ratios, so that what slows a whole round down slows both sides of it.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import ops
from jaxnet.cli.machine import serving


class Contender(NamedTuple):
    """One of those that take turns."""

    run: Callable[[], object]  # does `steps` steps and waits for them
    steps: int = 1


class Times(NamedTuple):
    """What `measure` found."""

    rounds: dict[str, list[float]]  # seconds a step, for each contender and round

    def seconds(self, name: str) -> float:
        """The median of its rounds."""
        return statistics.median(self.rounds[name])

    def ratio(self, name: str, other: str) -> float:
        """How many times faster `name` is than `other`."""
        return statistics.median(b / a for a, b in zip(self.rounds[name], self.rounds[other], strict=True))


def measure(contenders: dict[str, Contender], rounds: int, repeats: int) -> Times:
    """In each round each contender in turn, `repeats` times."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (run, steps) in contenders.items():
            run()  # brings the contender's own buffers and threads back
            times[name].append(statistics.median(timed(run) for _ in range(repeats)) / steps)
    return Times(times)


def repeats_within(contenders: dict[str, Contender], seconds: float) -> int:
    """How many repeats of all contenders `seconds` have room for, from 1 to 100."""
    once = sum(min(timed(run), timed(run)) for run, _ in contenders.values())  # the first is a warm-up
    return max(1, int(min(100, seconds / once)))


def timed(function: Callable[[], object]) -> float:
    """Its seconds, once."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def rate(work: int, function: Callable[[], object], seconds: float = 0.5) -> float:
    """1e9 units of work a second, at best: what others use of the machine doesn't lower what it can do."""
    function()
    end, found = time.perf_counter() + seconds, [timed(function)]
    while time.perf_counter() < end:
        found.append(timed(function))
    return work / min(found) / 1e9


def gemm_rate() -> float:
    """GFLOP/s of the fastest float32 product of square matrices: by XLA, by a kernel, by NumPy's BLAS."""
    on_cpu = jax.default_backend() == "cpu"
    return max(
        rate(2 * size**3, product)
        for size in ((512, 1024, 2048) if on_cpu else (8192,))  # short ones for a CPU that others use too
        for product in _products(size, on_cpu)
    )


def _products(size: int, on_cpu: bool) -> Iterator[Callable[[], object]]:
    a = np.ones((size, size), np.float32)
    x = jnp.asarray(a)
    for name in serving("linear"):
        compiled = jax.jit(partial(ops.linear, implementation=name)).lower(x, x).compile()
        yield partial(_run, compiled, x, x)
    if on_cpu:
        yield partial(np.matmul, a, a)


def _run(function: Callable[..., Any], *args: jax.Array) -> Any:
    return jax.block_until_ready(function(*args))


def memory_rate() -> float:
    """GB/s of changing the signs of 80 MB in place, reading and writing counted: by XLA or by NumPy, the faster.

    As much as the large step of AdamW has in hand, so that caches serve both alike.
    """
    a = np.ones(20_000_000, np.float32)
    negate, x = jax.jit(jnp.negative, donate_argnums=0), [jnp.asarray(a)]

    def run() -> None:
        x[0] = _run(negate, x[0])

    found = rate(2 * a.nbytes, run, seconds=1.0)
    if jax.default_backend() == "cpu":
        found = max(found, rate(2 * a.nbytes, partial(np.negative, a, out=a), seconds=1.0))
    return found
