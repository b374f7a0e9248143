"""AdamW's step: jaxnet, optax and PyTorch, beside the memory's bandwidth.

python experiments/benchmarks/adamw.py
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from rich.console import Console
from timing import Contender, heading, measure, table

from jaxnet.cli.timing import memory_rate
from jaxnet.cli.workloads import ADAMW, STREAMS
from jaxnet.train import adamw

LOOP = 20  # steps inside one lax.scan: what the step costs within a compiled program, without the call


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
        "PyTorch, fused": in_torch(),
        "optax, not donated": in_jax(theirs, donate=False),
        "optax": in_jax(theirs),
        "optax, in a loop": in_jax(theirs, steps=LOOP),
        "jaxnet update": in_jax(ours),
        "jaxnet apply, not donated": in_jax(ours, fused=True, donate=False),
        "jaxnet apply": in_jax(ours, fused=True),
        "jaxnet apply, in a loop": in_jax(ours, fused=True, steps=LOOP),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()

    console = Console()
    heading(console, "optax")
    bandwidth = memory_rate()
    for workload, shapes in ADAMW.items():
        times = measure(contenders(shapes), args.rounds, args.repeats)
        megabytes = STREAMS * 4 * sum(int(np.prod(s)) for s in shapes) / 1e6
        title = f"{workload}: {megabytes:.1f} MB a step, {megabytes / bandwidth:.2f} ms at the memory's rate"
        table(console, title, times, ["optax", "PyTorch, fused"])


if __name__ == "__main__":
    main()
