"""Recurrent layers, forward and forward + backward: jaxnet, Flax's `nn.RNN`, PyTorch.

    python experiments/benchmarks/recurrent.py            # all
    python experiments/benchmarks/recurrent.py lstm       # those with "lstm" in the name

Gradients of x and all weights, under a fixed random cotangent of y. The floor of a title is the time that its
matrix products alone take at the GEMM rate measured before: x W and h U, backwards the two gradients of each.
"""

import argparse
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.console import Console
from timing import Contender, gemm_rate, heading, measure, table

from jaxnet import ops, using
from jaxnet.cli.workloads import RECURRENT as SIZES
from jaxnet.interop.flax import linen

# gates, jaxnet, Flax's cell, PyTorch's module
CELLS: dict[str, tuple[int, Callable[..., Any], Callable[..., Any], type[torch.nn.RNNBase]]] = {
    "lstm": (4, ops.lstm, nn.OptimizedLSTMCell, torch.nn.LSTM),
    "gru": (3, ops.gru, nn.GRUCell, torch.nn.GRU),
    "rnn": (1, ops.rnn, nn.SimpleCell, torch.nn.RNN),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", nargs="*", default=[""], help="of the names of the cases to run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    console = Console()
    heading(console, "flax")
    rate = gemm_rate()
    for name, (gates, *_) in CELLS.items():
        for batch, time, inputs, hidden in SIZES:
            title = f"{name} B{batch} T{time} I{inputs} H{hidden}"
            if not any(part in title for part in args.part):
                continue
            for backward in (False, True):
                contenders = {
                    "Flax": in_flax(nn.RNN, name, (batch, time, inputs), hidden, backward),
                    "PyTorch": in_torch(name, (batch, time, inputs), hidden, backward),
                    "jaxnet by XLA": in_jaxnet(name, "xla", (batch, time, inputs), hidden, backward),
                    "jaxnet": in_jaxnet(name, None, (batch, time, inputs), hidden, backward),
                    "jaxnet in Flax": in_flax(linen.RNN, name, (batch, time, inputs), hidden, backward),
                }
                times = measure(contenders, args.rounds, args.repeats)
                floor = (2 + 4 * backward) * batch * time * (inputs + hidden) * gates * hidden / rate / 1e6
                which = "forward + backward" if backward else "forward"
                table(console, f"{title}, {which}, floor {floor:.2f} ms", times, list(contenders)[:2])


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def in_jaxnet(
    name: str, implementation: str | None, shape: tuple[int, ...], hidden: int, backward: bool
) -> Contender:
    gates, op, *_ = CELLS[name]
    weights = [draw(n, gates * hidden, seed=n, scale=hidden**-0.5) for n in (shape[-1], hidden)]

    def outputs(x: jax.Array, *weights: jax.Array) -> jax.Array:
        return op(x, *weights)[0]

    with using(implementation):
        return in_jax(outputs, (draw(*shape), *weights, draw(gates * hidden)), (*shape[:2], hidden), backward)


def in_flax(rnn: type[nn.RNN], name: str, shape: tuple[int, ...], hidden: int, backward: bool) -> Contender:
    module, x = rnn(CELLS[name][2](hidden)), jnp.asarray(draw(*shape))
    params = module.init(jax.random.key(0), x)
    return in_jax(lambda x, params: module.apply(params, x), (x, params), (*shape[:2], hidden), backward)


def in_jax(function: Callable[..., Any], args: Any, outputs: tuple[int, ...], backward: bool) -> Contender:
    args, dy = jax.tree.map(jnp.asarray, (args, draw(*outputs, seed=9)))

    def both(args: Any, dy: jax.Array) -> Any:
        y, pullback = jax.vjp(function, *args)
        return y, pullback(dy)

    jitted = jax.jit(both) if backward else jax.jit(lambda args, dy: function(*args))
    compiled = jitted.lower(args, dy).compile()
    return Contender(lambda: jax.block_until_ready(compiled(args, dy)))


def in_torch(name: str, shape: tuple[int, ...], hidden: int, backward: bool) -> Contender:
    module = CELLS[name][3](shape[-1], hidden, batch_first=True)
    x = torch.from_numpy(draw(*shape)).requires_grad_(backward)
    dy = torch.from_numpy(draw(*shape[:2], hidden, seed=9))

    def run() -> None:
        x.grad = None
        module.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(backward):
            y = module(x)[0]
        if backward:
            y.backward(dy)

    return Contender(run)


if __name__ == "__main__":
    main()
