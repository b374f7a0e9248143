"""A training step of the feedforward network 784-512-512-10 at batch 128 with Adam: jaxnet, Flax, PyTorch.

    python experiments/benchmarks/feedforward.py

The floor is the arithmetic: three products for each layer but the first, whose input needs no gradient.
"""

import argparse
from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from rich.console import Console
from timing import Contender, gemm_rate, heading, measure, table

from jaxnet import losses, networks, train
from jaxnet.cli.workloads import BATCH
from jaxnet.cli.workloads import FEEDFORWARD as SIZES

LOOP = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()

    console = Console()
    heading(console, "flax", "optax")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, SIZES[0])).astype(np.float32)
    y = rng.integers(0, SIZES[-1], BATCH).astype(np.int32)
    contenders = {
        "Flax + optax": in_flax(x, y, donate=False),
        "Flax + optax, donated": in_flax(x, y, donate=True),
        "PyTorch, fused Adam": in_torch(x, y),
        "jaxnet + optax.adam": in_jaxnet(x, y, optax.adam(1e-3)),
        "jaxnet": in_jaxnet(x, y, train.adam(1e-3)),
        f"jaxnet, {LOOP} steps a call": in_jaxnet(x, y, train.adam(1e-3), steps=LOOP),
    }
    times = measure(contenders, args.rounds, args.repeats)
    pairs = list(pairwise(SIZES))
    operations = 2 * BATCH * (3 * sum(a * b for a, b in pairs) - pairs[0][0] * pairs[0][1])
    title = f"784-512-512-10, batch 128, Adam; floor {operations / gemm_rate() / 1e6:.2f} ms"
    table(console, title, times, ["Flax + optax", "Flax + optax, donated", "PyTorch, fused Adam"])


def in_jaxnet(x: np.ndarray, y: np.ndarray, optimizer: optax.GradientTransformation, steps=None) -> Contender:
    net = networks.feedforward(SIZES)
    step = train.make_step(net, losses.cross_entropy, optimizer, steps=steps)
    state = [train.init(net, optimizer, jax.random.key(0), x)]
    batch = jax.tree.map(lambda a: jnp.asarray(a if steps is None else np.stack([a] * steps)), (x, y))

    def run() -> None:
        state[0], metrics = step(state[0], batch)
        jax.block_until_ready((state[0], metrics))

    return Contender(run, steps or 1)


def in_flax(x: np.ndarray, y: np.ndarray, *, donate: bool) -> Contender:
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for width in SIZES[1:-1]:
                x = nn.relu(nn.Dense(width)(x))
            return nn.Dense(SIZES[-1])(x)

    network, optimizer = Network(), optax.adam(1e-3)
    params = network.init(jax.random.key(0), x)
    state, batch = [params, optimizer.init(params)], (jnp.asarray(x), jnp.asarray(y))

    def step(params, opt_state, x, y):
        def objective(params):
            return optax.softmax_cross_entropy_with_integer_labels(network.apply(params, x), y).mean()

        loss, grads = jax.value_and_grad(objective)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    jitted = jax.jit(step, donate_argnums=(0, 1) if donate else ())

    def run() -> None:
        state[0], state[1], _ = jax.block_until_ready(jitted(*state, *batch))

    return Contender(run)


def in_torch(x: np.ndarray, y: np.ndarray) -> Contender:
    modules = []
    for a, b in pairwise(SIZES):
        modules += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    network = torch.nn.Sequential(*modules[:-1])
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y).long()

    def run() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(inputs), labels).backward()
        optimizer.step()

    return Contender(run)


if __name__ == "__main__":
    main()
