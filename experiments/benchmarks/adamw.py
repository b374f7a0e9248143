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


def contenders(shapes: list[tuple[int, ...]]) -> dict[str, Callable[[], None]]:
    """Name -> a function that does one step and waits for it."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    grads = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]

    def jax_step(optimizer: optax.GradientTransformation, fused: bool, donate: bool) -> Callable[[], None]:
        # Parameters and state stand in the same order in arguments and results: jax.jit pairs the
        # donated buffers with results of the same shape by their order.
        def step(params, state, grads):
            if fused:
                return optimizer.apply(grads, state, params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        jitted = jax.jit(step, donate_argnums=(0, 1) if donate else ())
        values = [[jnp.array(g) for g in grads], optimizer.init(grads)]

        def run() -> None:
            values[:] = jax.block_until_ready(jitted(*values, grads))

        return run

    def torch_step() -> Callable[[], None]:
        params = [torch.nn.Parameter(torch.from_numpy(np.array(g))) for g in grads]
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.from_numpy(np.array(g))
        return torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-4, fused=True).step

    ours, theirs = adamw(1e-3), optax.adamw(1e-3)
    return {
        "optax.adamw": jax_step(theirs, fused=False, donate=False),
        "optax.adamw, donated": jax_step(theirs, fused=False, donate=True),
        "jaxnet.train.adamw update, donated": jax_step(ours, fused=False, donate=True),
        "jaxnet.train.adamw apply": jax_step(ours, fused=True, donate=False),
        "jaxnet.train.adamw apply, donated": jax_step(ours, fused=True, donate=True),
        "torch.optim.AdamW(fused=True)": torch_step(),
    }


def bandwidth(repeats: int) -> float:
    """GB/s of a copy on all of torch's threads, reading and writing counted."""
    source, target = torch.ones(20_000_000), torch.zeros(20_000_000)
    times = [timed(lambda: target.copy_(source)) for _ in range(repeats)]
    return 2 * source.nbytes / min(times) / 1e9


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(functions: dict[str, Callable[[], None]], rounds: int, repeats: int) -> dict[str, float]:
    """Seconds for each: the best of the rounds' medians."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            function()  # brings the contender's own buffers and threads back
            median = statistics.median(timed(function) for _ in range(repeats))
            best[name] = min(best[name], median)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="PyTorch's; XLA uses all")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    console = Console()
    console.print(f"jax {jax.__version__}, torch {torch.__version__}, {args.threads} threads")
    console.print(f"kernels: {ffi.isa()}; copy: {bandwidth(args.repeats):.1f} GB/s")
    for workload, shapes in WORKLOADS.items():
        seconds = measure(contenders(shapes), args.rounds, args.repeats)
        size = sum(int(np.prod(s)) for s in shapes)
        table = Table(
            title=f"{workload}: {size / 1e6:.2f} M parameters, {STREAMS * 4 * size / 1e6:.1f} MB a step"
        )
        for column in ("", "ms", "GB/s of the fused step's bytes", "times optax donated", "times torch"):
            table.add_column(column, justify="left" if not column else "right")
        for name, s in seconds.items():
            of_optax = seconds["optax.adamw, donated"] / s
            of_torch = seconds["torch.optim.AdamW(fused=True)"] / s
            gigabytes = STREAMS * 4 * size / s / 1e9
            table.add_row(name, f"{s * 1e3:.3f}", f"{gigabytes:.1f}", f"{of_optax:.2f}", f"{of_torch:.2f}")
        console.print(table)


if __name__ == "__main__":
    main()
