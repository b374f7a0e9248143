"""`ops.linear` with its activation, forward and forward + backward: jaxnet, the same by XLA, PyTorch.

    python experiments/benchmarks/linear.py

The floor is the time of the matrix products alone at the GEMM rate measured before.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.console import Console
from timing import Contender, gemm_rate, heading, measure, table
from torch.nn import functional

from jaxnet import activations, ops

SIZES = [(128, 512, 512), (2048, 256, 1024)]
ACTIVATIONS: dict[str, tuple[Any, Callable[[torch.Tensor], torch.Tensor]]] = {
    "none": (None, lambda z: z),
    "relu": ("relu", torch.relu),
    "tanh": ("tanh", torch.tanh),
    "sigmoid": ("sigmoid", torch.sigmoid),
    "silu": ("silu", functional.silu),
    "gelu": ("gelu", partial(functional.gelu, approximate="tanh")),
    "gelu, exact": (partial(activations.gelu, approximate=False), functional.gelu),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()

    console = Console()
    heading(console)
    rate = gemm_rate()
    for size in SIZES:
        for name in ACTIVATIONS:
            for backward in (False, True):
                contenders = {
                    "PyTorch": in_torch(name, size, backward),
                    "jaxnet by XLA": in_jaxnet(name, "xla", size, backward),
                    "jaxnet": in_jaxnet(name, None, size, backward),
                }
                times = measure(contenders, args.rounds, args.repeats)
                floor = (2 + 4 * backward) * np.prod(size) / rate / 1e6
                which = "forward + backward" if backward else "forward"
                title = f"{'×'.join(map(str, size))} {name}, {which}, floor {floor:.2f} ms"
                table(console, title, times, list(contenders)[:2])


def arrays(rows: int, depth: int, columns: int) -> list[np.ndarray]:
    """x, W, b, dy."""
    rng = np.random.default_rng(0)
    shapes = (rows, depth), (depth, columns), (columns,), (rows, columns)
    return [
        rng.normal(size=shape).astype(np.float32) / (depth**0.5 if i == 1 else 1) for i, shape in enumerate(shapes)
    ]


def in_jaxnet(name: str, implementation: str | None, size: tuple[int, ...], backward: bool) -> Contender:
    *args, dy = map(jnp.asarray, arrays(*size))
    options = {"activation": ACTIVATIONS[name][0], "implementation": implementation}

    def run(dy: jax.Array, *args: jax.Array) -> Any:
        if not backward:
            return ops.linear(*args, **options)
        y, pullback = ops.linear_vjp(*args, **options)
        return y, pullback(dy)

    compiled = jax.jit(run).lower(dy, *args).compile()
    return Contender(lambda: jax.block_until_ready(compiled(dy, *args)))


def in_torch(name: str, size: tuple[int, ...], backward: bool) -> Contender:
    *args, dy = map(torch.from_numpy, arrays(*size))
    x, weight, bias = (a.requires_grad_(backward) for a in args)

    def run() -> None:
        y = ACTIVATIONS[name][1](torch.addmm(bias, x, weight))
        if backward:
            torch.autograd.grad(y, (x, weight, bias), dy)

    return Contender(run)


if __name__ == "__main__":
    main()
