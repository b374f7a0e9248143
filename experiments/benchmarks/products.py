"""Matrix products in float32: jaxnet's kernel, XLA's dot, and the BLAS of NumPy, SciPy and PyTorch.

    python experiments/benchmarks/products.py

a b as in a layer's forward pass, a bᵀ and aᵀ b as in its backward pass. "In a loop" are products inside one
program, each of which waits for the one before. SciPy's BLAS is the one that jaxlib calls in its linear algebra.
Each library runs in processes of its own, in turns: the threads of one, which wait for more work for a while,
would take the cores from the next.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg.blas
import torch
from jax import lax
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import heading

from jaxnet import ops

SIZES = [(1024, 1024, 1024), (32, 512, 2048), (12, 128, 512), (2048, 256, 1024), (128, 784, 512), (1, 784, 512)]
KINDS = {"a b": (False, False), "a bᵀ": (False, True), "aᵀ b": (True, False)}
LIBRARIES = ["jaxnet", "XLA", "NumPy", "SciPy", "PyTorch"]
LOOPS = ["jaxnet in a loop", "XLA in a loop"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--library", choices=LIBRARIES + LOOPS, help="print the rates of one, as JSON")
    args = parser.parse_args()
    if args.library:
        print(json.dumps([rate(args.library, kind, *size) for size in SIZES for kind in KINDS]))
        return

    console = Console(width=130)
    heading(console, "numpy", "scipy")
    found: dict[str, list[list[float]]] = {name: [] for name in LIBRARIES + LOOPS}
    for _ in track(range(args.rounds), "rounds", console=Console(stderr=True), transient=True):
        for name in found:
            command = [sys.executable, __file__, "--library", name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[name].append(json.loads(output))
    rates = {
        name: [statistics.median(each) for each in zip(*rounds, strict=True)] for name, rounds in found.items()
    }
    best = max(max(each) for each in rates.values())
    result = Table(title=f"GFLOP/s; best {best:.0f}")
    result.add_column("rows × depth × columns", no_wrap=True)
    for column in (*found, "jaxnet, % of the fastest other", "% of the best", "in a loop, % of the best"):
        result.add_column(column, justify="right")
    cases = [f"{m}×{k}×{n}, {kind}" for m, k, n in SIZES for kind in KINDS]
    for case, *row in zip(cases, *rates.values(), strict=True):
        call, others, looped = row[0], row[1 : len(LIBRARIES)], row[len(LIBRARIES)]
        percent = (f"{100 * part:.0f}" for part in (call / max(others), call / best, looped / best))
        result.add_row(case, *(f"{r:.1f}" for r in row), *percent)
    console.print(result)


def rate(library: str, kind: str, rows: int, depth: int, columns: int) -> float:
    """The median of a quarter of a second."""
    size = rows * depth * columns
    repeats = 1 + 10**8 // size if library in LOOPS else 1
    run, times = product(library, kind, rows, depth, columns, repeats), []
    run()
    end = time.perf_counter() + 0.25
    while (start := time.perf_counter()) < end or len(times) < 3:
        run()
        times.append(time.perf_counter() - start)
    return 2 * size * repeats / statistics.median(times) / 1e9


def product(library: str, kind: str, rows: int, depth: int, columns: int, repeats: int) -> Callable[[], object]:
    rng, (transpose_a, transpose_b) = np.random.default_rng(0), KINDS[kind]
    a = rng.normal(size=(depth, rows) if transpose_a else (rows, depth)).astype(np.float32)
    b = rng.normal(size=(columns, depth) if transpose_b else (depth, columns)).astype(np.float32)

    def kernel(a: jax.Array, b: jax.Array) -> jax.Array:
        by_kernel = {"implementation": "cpu"}
        if transpose_b:  # dx = dy Wᵀ
            return ops.linear_vjp(jnp.zeros((rows, columns)), b, **by_kernel)[1](a)[0]
        if transpose_a:  # dW = xᵀ dy
            return ops.linear_vjp(a, jnp.zeros((rows, columns)), **by_kernel)[1](b)[1]
        return ops.linear(a, b, **by_kernel)

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return (a.T if transpose_a else a) @ (b.T if transpose_b else b)

    def loop(a: jax.Array, b: jax.Array, f: Callable[..., jax.Array]) -> jax.Array:
        # The barrier: XLA must not compute only the number that is used.
        return lax.fori_loop(0, repeats, lambda _, a: a.at[0, 0].add(lax.optimization_barrier(f(a, b))[0, 0]), a)

    if library.startswith(("jaxnet", "XLA")):
        arrays, f = (jnp.asarray(a), jnp.asarray(b)), kernel if library.startswith("jaxnet") else dot
        run = functools.partial(loop, f=f) if library in LOOPS else f
        program = jax.jit(run)
        return lambda: jax.block_until_ready(program(*arrays))
    if library == "SciPy":  # of Fortran's order: (a b)ᵀ = bᵀ aᵀ
        return lambda: scipy.linalg.blas.sgemm(1.0, b.T, a.T, trans_a=transpose_b, trans_b=transpose_a)
    if library == "NumPy":
        left, right, c = (
            a.T if transpose_a else a,
            b.T if transpose_b else b,
            np.empty((rows, columns), np.float32),
        )
        return lambda: np.matmul(left, right, out=c)
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    x, y, z = x.T if transpose_a else x, y.T if transpose_b else y, torch.empty(rows, columns)
    return lambda: torch.matmul(x, y, out=z)


if __name__ == "__main__":
    main()
