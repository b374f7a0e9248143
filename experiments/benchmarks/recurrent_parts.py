"""Where the time of an LSTM layer goes: each of its products and loops, beside the machine's GEMM rate.

python experiments/benchmarks/recurrent_parts.py              # all sizes of recurrent.py
python experiments/benchmarks/recurrent_parts.py H256         # those with "H256" in the name
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from timing import Contender, gemm_rate, heading, measure

from jaxnet import ops
from jaxnet.cli.workloads import RECURRENT as SIZES
from jaxnet.kernels.lstm import cpu
from jaxnet.ops.recurrence import Weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", nargs="*", default=[""], help="of the names of the sizes to run")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    console = Console()
    heading(console)
    rate = gemm_rate()
    for batch, time, inputs, hidden in SIZES:
        title = f"lstm B{batch} T{time} I{inputs} H{hidden}"
        if not any(part in title for part in args.part):
            continue
        runs, each = parts(batch, time, inputs, hidden), 2 * batch * time * 4 * hidden
        times = measure({name: Contender(run) for name, (run, _) in runs.items()}, args.rounds, 3)
        result = Table(title=title)
        result.add_column("")
        for column in ("ms", "GFLOP/s", "of the GEMM rate"):
            result.add_column(column, justify="right")
        total = work = 0.0
        for name, (_, depth) in runs.items():
            seconds = times.seconds(name)
            total, work = total + seconds, work + each * depth
            result.add_row(name, *figures(each * depth, seconds, rate))
        result.add_row("all", *figures(work, total, rate))
        console.print(result)


def figures(work: float, seconds: float, rate: float) -> tuple[str, str, str]:
    speed = work / seconds / 1e9
    return f"{seconds * 1e3:.2f}", f"{speed:.0f}", f"{speed / rate:.0%}"


def parts(batch: int, time: int, inputs: int, hidden: int) -> dict[str, tuple[Callable[[], Any], int]]:
    """What an LSTM layer computes, part by part as it does, and the depth of each part's products."""
    x, w = draw(time, batch, inputs), draw(inputs, 4 * hidden)
    u, b, dy = draw(hidden, 4 * hidden), draw(4 * hidden), draw(batch, time, hidden)
    weights, zero = Weights(w, u, b), jnp.zeros((batch, hidden))
    product = partial(ops.linear, implementation="cpu")
    a = product(x, w, b)
    loop = partial(cpu.forward, weights, initial=(zero, zero), lengths=None, reverse=False)
    _, before, kept = jax.jit(partial(loop, keep=True))(a)
    back = partial(cpu.backward, weights, before, cotangents=(dy, (zero, zero)), lengths=None, reverse=False)
    da = jax.jit(back)(kept)[0]

    def gradients(left: jax.Array, da: jax.Array) -> jax.Array:
        """leftᵀ da, summed over all steps."""
        return jax.vjp(lambda w: product(left, w), jnp.zeros((left.shape[-1], 4 * hidden)))[1](da)[0]

    return {
        "a = x W + b": (timed(partial(product, weight=w, bias=b), x), inputs),
        "loop forwards": (timed(partial(loop, keep=False), a), hidden),
        "loop backwards": (timed(back, kept), hidden),
        "dx = da Wᵀ": (timed(lambda da, w: product(da, w.T), da, w), inputs),
        "dW = xᵀ da": (timed(gradients, x, da), inputs),
        "dU = hᵀ da": (timed(gradients, before[0], da), hidden),
    }


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape) / shape[0] ** 0.5, "float32")


def timed(run: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    run = jax.jit(run)
    return lambda: jax.block_until_ready(run(*args))


if __name__ == "__main__":
    main()
