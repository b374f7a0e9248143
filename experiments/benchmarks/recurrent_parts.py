"""Where the time of an LSTM layer goes: its loops, and the products for all steps, beside the machine's GEMM rate.

Forwards all is one kernel. The loop's time backwards is what is left of the pass: with it goes what XLA copies,
and fresh memory.

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

FORWARD, BACKWARD = "forward", "backward"
PRODUCTS = "dx = da Wᵀ", "dW = xᵀ da", "dU = hᵀ da"


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
        spent = {name: (times.seconds(name), each * depth) for name, (_, depth) in runs.items()}
        spent["loop backwards"] = rest(spent[BACKWARD], *(spent[name] for name in PRODUCTS))
        result = Table(title=title)
        result.add_column("")
        for column in ("ms", "GFLOP/s", "of the GEMM rate"):
            result.add_column(column, justify="right")
        for name, (seconds, work) in spent.items():
            speed = work / seconds / 1e9
            result.add_row(name, f"{seconds * 1e3:.2f}", f"{speed:.0f}", f"{speed / rate:.0%}")
        console.print(result)


def rest(whole: tuple[float, float], *of_it: tuple[float, float]) -> tuple[float, float]:
    """Seconds and operations of a pass without its products."""
    return whole[0] - sum(seconds for seconds, _ in of_it), whole[1] - sum(work for _, work in of_it)


def parts(batch: int, time: int, inputs: int, hidden: int) -> dict[str, tuple[Callable[[], Any], int]]:
    """The two passes of an LSTM layer, and the products for all steps in the second; the depth of each."""
    x, w, u, b = draw(batch, time, inputs), draw(inputs, 4 * hidden), draw(hidden, 4 * hidden), draw(4 * hidden)
    (y, final), pullback = jax.jit(ops.lstm_vjp)(x, w, u, b)
    cotangents = draw(*y.shape), jax.tree.map(jnp.zeros_like, final)
    first = timed(ops.lstm, x, w, u, b)
    x, h, da = draw(time, batch, inputs), draw(time, batch, hidden), draw(time, batch, 4 * hidden)
    product = partial(ops.linear, implementation="cpu")

    def gradient(left: jax.Array, da: jax.Array) -> jax.Array:
        """leftᵀ da, summed over all steps."""
        return jax.vjp(partial(product, left), jnp.zeros((left.shape[-1], 4 * hidden)))[1](da)[0]

    return {
        FORWARD: (first, inputs + hidden),
        BACKWARD: (
            timed(lambda pullback, cotangents: pullback(cotangents), pullback, cotangents),
            2 * (inputs + hidden),
        ),
        PRODUCTS[0]: (timed(lambda da, w: product(da, w.T), da, w), inputs),
        PRODUCTS[1]: (timed(gradient, x, da), inputs),
        PRODUCTS[2]: (timed(gradient, h, da), hidden),
    }


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape) / shape[0] ** 0.5, "float32")


def timed(run: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    run = jax.jit(run)
    return lambda: jax.block_until_ready(run(*args))


if __name__ == "__main__":
    main()
