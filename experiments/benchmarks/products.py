"""Matrix products in float32: jaxnet's kernel, XLA's dot, and the BLAS of NumPy, SciPy and PyTorch.

    python experiments/benchmarks/products.py

a b as in a layer's forward pass, then a bᵀ and aᵀ b as in its backward pass. SciPy's BLAS is the one that jaxlib
calls in its linear algebra. The last column is the kernel's part of the best rate at the square of 2048.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg.blas
import torch
from rich.console import Console
from rich.table import Table
from timing import Contender, gemm_rate, heading, measure

from jaxnet.kernels.linear import cpu

SIZES = [(1024, 1024, 1024), (32, 512, 2048), (12, 128, 512), (2048, 256, 1024), (128, 784, 512), (1, 784, 512)]
KINDS = {"a b": (False, False), "a bᵀ": (False, True), "aᵀ b": (True, False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.05, help="of each contender in each round")
    args = parser.parse_args()

    console = Console(width=120)
    heading(console, "numpy", "scipy")
    rate = gemm_rate()
    result = Table(title="GFLOP/s")
    names = list(contenders("a b", 1, 1, 1))
    result.add_column("rows × depth × columns", no_wrap=True)
    for column in (*names, "jaxnet, % of the best", f"% of {rate:.0f} GFLOP/s"):
        result.add_column(column, justify="right")
    for rows, depth, columns in SIZES:
        for kind in KINDS:
            operations = 2 * rows * depth * columns
            each = contenders(kind, rows, depth, columns)
            times = measure(each, args.rounds, max(3, int(args.seconds * rate * 1e9 / operations)))
            rates = [operations / times.seconds(name) / 1e9 for name in names]
            others = max(names[1:], key=lambda name: 1 / times.seconds(name))
            percent = f"{100 * times.ratio(names[0], others):.0f}", f"{100 * rates[0] / rate:.0f}"
            result.add_row(f"{rows}×{depth}×{columns}, {kind}", *(f"{r:.1f}" for r in rates), *percent)
    console.print(result)


def contenders(kind: str, rows: int, depth: int, columns: int) -> dict[str, Contender]:
    rng = np.random.default_rng(0)
    shapes = (rows, depth), (depth, columns)
    a, b = (
        rng.normal(size=shape[::-1] if transposed else shape).astype(np.float32)
        for shape, transposed in zip(shapes, KINDS[kind], strict=True)
    )
    left, right = (x.T if transposed else x for x, transposed in zip((a, b), KINDS[kind], strict=True))
    c, to = np.empty((rows, columns), np.float32), torch.empty(rows, columns)
    of_a, of_b = (
        torch.from_numpy(x).T if t else torch.from_numpy(x) for x, t in zip((a, b), KINDS[kind], strict=True)
    )

    def kernel(a: jax.Array, b: jax.Array) -> jax.Array:
        if KINDS[kind][0]:
            return cpu.gradients(a, b, None)[0]
        return cpu.product(a, b, None, None, transpose_b=KINDS[kind][1])[0]

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return (a.T if KINDS[kind][0] else a) @ (b.T if KINDS[kind][1] else b)

    def compiled(f: object) -> Contender:
        arrays = jnp.asarray(a), jnp.asarray(b)
        program = jax.jit(f).lower(*arrays).compile()
        return Contender(lambda: jax.block_until_ready(program(*arrays)))

    return {
        "jaxnet": compiled(kernel),
        "XLA": compiled(dot),
        "NumPy": Contender(lambda: np.matmul(left, right, out=c)),
        # Of Fortran's order: (a b)ᵀ = bᵀ aᵀ.
        "SciPy": Contender(
            lambda: scipy.linalg.blas.sgemm(1.0, b.T, a.T, trans_a=KINDS[kind][1], trans_b=KINDS[kind][0])
        ),
        "PyTorch": Contender(lambda: torch.matmul(of_a, of_b, out=to)),
    }


if __name__ == "__main__":
    main()
