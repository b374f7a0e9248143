"""AdamW's step: ours against optax and PyTorch, in milliseconds, beside the memory's bandwidth.

The contenders take turns, in rounds; a round's figure is the median of its repeats and the table has the
best round of each, since other processes can only make a figure worse.

    python experiments/benchmarks/adamw.py
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jaxnet.kernels import ffi
from rich.console import Console
from rich.table import Table

from jaxnet.train.optimizer import adamw

WORKLOADS = {
    "5 leaves of 1000 x 1000": [(1000, 1000)] * 5,
    "60 small leaves": [(64, 64), (64,), (64, 256)] * 20,  # twenty small layers
}
STREAMS = 7  # each step reads g, m, v, w and writes m, v, w: it can't be faster than moving them


LOOP = 20  # steps inside one lax.scan: what the step costs within a compiled program, without the call


class Contender(NamedTuple):
    run: Callable[[], object]  # does `steps` steps and waits for them
    steps: int = 1


def contenders(shapes: list[tuple[int, ...]]) -> dict[str, Contender]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    grads = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]

    def in_jax(optimizer, *, fused=False, donate=True, steps=1) -> Contender:
        # Parameters and state stand in the same order in arguments and results: jax.jit pairs the
        # donated buffers with results of the same shape by their order.
        def step(params, state, grads):
            if fused:
                return optimizer.apply(grads, state, params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        def loop(params, state, grads):
            return jax.lax.fori_loop(0, steps, lambda _, carry: step(*carry, grads), (params, state))

        jitted = jax.jit(step if steps == 1 else loop, donate_argnums=(0, 1) if donate else ())
        values = [[jnp.array(g) for g in grads], optimizer.init(grads)]

        def run() -> None:
            values[:] = jax.block_until_ready(jitted(*values, grads))

        return Contender(run, steps)

    def in_torch() -> Contender:
        params = [torch.nn.Parameter(torch.from_numpy(np.array(g))) for g in grads]
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.from_numpy(np.array(g))
        return Contender(torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-4, fused=True).step)

    theirs, ours = optax.adamw(1e-3), adamw(1e-3)
    return {
        "torch.optim.AdamW(fused=True)": in_torch(),
        "optax, not donated": in_jax(theirs, donate=False),
        "optax": in_jax(theirs),
        "optax, in a loop": in_jax(theirs, steps=LOOP),
        "jaxnet update": in_jax(ours),
        "jaxnet apply, not donated": in_jax(ours, fused=True, donate=False),
        "jaxnet apply": in_jax(ours, fused=True),
        "jaxnet apply, in a loop": in_jax(ours, fused=True, steps=LOOP),
    }


def bandwidth(repeats: int) -> float:
    """GB/s of torch's copy, reading and writing counted; the step writes where it read, which is faster."""
    source, target = torch.ones(20_000_000), torch.zeros(20_000_000)
    times = [timed(lambda: target.copy_(source)) for _ in range(5 * repeats)]
    return 2 * source.nbytes / min(times) / 1e9


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(contenders: dict[str, Contender], rounds: int, repeats: int) -> dict[str, float]:
    """Seconds a step for each: the best of the rounds' medians."""
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, (run, steps) in contenders.items():
            run()  # brings the contender's own buffers and threads back
            median = statistics.median(timed(run) for _ in range(repeats))
            best[name] = min(best[name], median / steps)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="PyTorch's; XLA uses all")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    console = Console()
    console.print(
        f"jax {jax.__version__}, torch {torch.__version__}, {args.threads} threads, {ffi.isa()} kernels"
    )
    for workload, shapes in WORKLOADS.items():
        seconds = measure(contenders(shapes), args.rounds, args.repeats)
        megabytes = STREAMS * 4 * sum(int(np.prod(s)) for s in shapes) / 1e6
        table = Table(
            title=f"{workload}: {megabytes:.1f} MB a step; a copy moves {bandwidth(args.repeats):.1f} GB/s"
        )
        table.add_column("")
        for column in ("ms a step", "GB/s", "optax's time / its", "torch's time / its"):
            table.add_column(column, justify="right")
        for name, s in seconds.items():
            ratios = [seconds[other] / s for other in ("optax", "torch.optim.AdamW(fused=True)")]
            table.add_row(name, f"{s * 1e3:.3f}", f"{megabytes / s / 1e3:.1f}", *(f"{r:.2f}" for r in ratios))
        console.print(table)


if __name__ == "__main__":
    main()
