"""Recurrent layers, training steps and generation: jaxnet, Flax, PyTorch.

    python experiments/benchmarks/recurrent.py                    # all
    python experiments/benchmarks/recurrent.py lstm               # those with "lstm" in the name
    python experiments/benchmarks/recurrent.py --memory backward

A layer's gradients are those of x and all weights, under a fixed random cotangent of y. The floor of a title is
the time that its matrix products alone take at the GEMM rate measured before: x W and h U, backwards the two
gradients of each.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from rich.console import Console
from timing import Contender, gemm_rate, heading, measure, table

from jaxnet import layers, losses, networks, ops, train, using
from jaxnet.cli.workloads import RECURRENT as SIZES
from jaxnet.interop.flax import linen

# gates, jaxnet, Flax's cell, PyTorch's module
CELLS: dict[str, tuple[int, Callable[..., Any], Callable[..., Any], type[torch.nn.RNNBase]]] = {
    "lstm": (4, ops.lstm, nn.OptimizedLSTMCell, torch.nn.LSTM),
    "gru": (3, ops.gru, nn.GRUCell, torch.nn.GRU),
    "rnn": (1, ops.rnn, nn.SimpleCell, torch.nn.RNN),
}


TOKENS, VOCABULARY, GENERATED = 64, 65, 256  # of a prompt, of Shakespeare's characters, after the prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", nargs="*", default=[""], help="of the names of the cases to run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--memory", action="store_true", help="measure memory instead, each in a process of its own"
    )
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # the process of --memory: case, contender
    args = parser.parse_args()

    if args.one:
        print(grown(cases()[args.one[0]][0](), args.one[1]))
        return
    console = Console()
    heading(console, "flax")
    rate = gemm_rate()
    for title, (contenders, operations) in cases().items():
        if not any(part in title for part in args.part):
            continue
        if args.memory:
            names = list(contenders())
            console.print(title, {name: output_of(title, name) for name in names}, "MiB", highlight=False)
            continue
        each = contenders()
        floor = f", floor {operations / rate / 1e6:.2f} ms" if operations else ""
        table(console, title + floor, measure(each, args.rounds, args.repeats), list(each)[:2])


def cases() -> dict[str, tuple[Callable[[], dict[str, Contender]], int]]:
    """The contenders of each case, and the operations of its matrix products."""
    found: dict[str, tuple[Callable[[], dict[str, Contender]], int]] = {}
    for name, (gates, *_) in CELLS.items():
        for batch, time, inputs, hidden in SIZES:
            title, shape = f"{name} B{batch} T{time} I{inputs} H{hidden}", (batch, time, inputs)
            products = 2 * batch * time * (inputs + hidden) * gates * hidden
            found[f"{title}, forward"] = partial(layer, name, shape, hidden, False), products
            found[f"{title}, forward + backward"] = partial(layer, name, shape, hidden, True), 3 * products
            # x needs no gradient.
            whole = products * 3 - 2 * batch * time * inputs * gates * hidden
            found[f"{title}, training step"] = partial(training, name, shape, hidden), whole
        for hidden in (256, 512):
            found[f"{name} H{hidden}, {GENERATED} tokens one at a time"] = partial(generation, name, hidden), 0
    return found


def layer(name: str, shape: tuple[int, ...], hidden: int, backward: bool) -> dict[str, Contender]:
    return {
        "Flax": in_flax(nn.RNN, name, shape, hidden, backward),
        "PyTorch": in_torch(name, shape, hidden, backward),
        "jaxnet by XLA": in_jaxnet(name, "xla", shape, hidden, backward),
        "jaxnet": in_jaxnet(name, None, shape, hidden, backward),
        "jaxnet in Flax": in_flax(linen.RNN, name, shape, hidden, backward),
    }


def training(name: str, shape: tuple[int, ...], hidden: int) -> dict[str, Contender]:
    """A step of Adam for a classifier of ten classes by the last output."""
    batch = draw(*shape), np.arange(shape[0], dtype=np.int32) % 10
    return {
        "Flax": training_in_flax(nn.RNN, name, batch, hidden),
        "PyTorch": training_in_torch(name, batch, hidden),
        "jaxnet": training_in_jaxnet(name, batch, hidden),
        "jaxnet in Flax": training_in_flax(linen.RNN, name, batch, hidden),
    }


def training_in_jaxnet(name: str, batch: Any, hidden: int) -> Contender:
    net = layers.serial(getattr(layers, name)(hidden, output="last"), layers.dense(10))
    optimizer = train.adam(1e-3)
    step = train.make_step(net, losses.cross_entropy, optimizer)
    state, arrays = [train.init(net, optimizer, jax.random.key(0), batch[0])], jax.tree.map(jnp.asarray, batch)

    def run() -> None:
        state[0], metrics = step(state[0], arrays)
        jax.block_until_ready((state[0], metrics))

    return Contender(run)


def training_in_flax(rnn: type[nn.RNN], name: str, batch: Any, hidden: int) -> Contender:
    class Classifier(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(10)(rnn(CELLS[name][2](hidden))(x)[:, -1])

    network, optimizer = Classifier(), optax.adam(1e-3)
    x, y = jax.tree.map(jnp.asarray, batch)
    params = network.init(jax.random.key(0), x)
    state = [params, optimizer.init(params)]

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
        def objective(params: Any) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(network.apply(params, x), y).mean()

        loss, grads = jax.value_and_grad(objective)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    def run() -> None:
        state[0], state[1], _ = jax.block_until_ready(step(*state, x, y))

    return Contender(run)


def training_in_torch(name: str, batch: Any, hidden: int) -> Contender:
    x, y = torch.from_numpy(batch[0]), torch.from_numpy(batch[1]).long()
    module, head = CELLS[name][3](x.shape[-1], hidden, batch_first=True), torch.nn.Linear(hidden, 10)
    optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], 1e-3, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(module(x)[0][:, -1]), y).backward()
        optimizer.step()

    return Contender(run)


def generation(name: str, hidden: int) -> dict[str, Contender]:
    """The likeliest token after the other, by a language model of one layer on an embedding."""
    prompt = np.arange(TOKENS, dtype=np.int32)[None] % VOCABULARY
    return {
        "Flax": generation_in_flax(name, prompt, hidden),
        "PyTorch": generation_in_torch(name, prompt, hidden),
        "jaxnet": generation_in_jaxnet(name, prompt, hidden),
    }


def generation_in_jaxnet(name: str, prompt: np.ndarray, hidden: int) -> Contender:
    net, ids = networks.recurrent_decoder(VOCABULARY, hidden, cell=name, tied=False), jnp.asarray(prompt)
    params = net.init(jax.random.key(0), ids)
    write = partial(networks.generate, net, params, ids, GENERATED, temperature=0.0)
    return Contender(lambda: jax.block_until_ready(write().ids))


def generation_in_flax(name: str, prompt: np.ndarray, hidden: int) -> Contender:
    class Model(nn.Module):
        def setup(self) -> None:
            self.embed, self.head = nn.Embed(VOCABULARY, hidden), nn.Dense(VOCABULARY)
            self.cell = CELLS[name][2](hidden)

        def __call__(self, carry: Any, token: jax.Array) -> Any:
            carry, y = self.cell(carry, self.embed(token))
            return carry, self.head(y)

    model, ids = Model(), jnp.asarray(prompt)
    carry = CELLS[name][2](hidden, parent=None).initialize_carry(jax.random.key(0), (1, hidden))
    params = model.init(jax.random.key(0), carry, ids[:, 0])

    @jax.jit
    def write(params: Any, ids: jax.Array) -> jax.Array:
        def read(carry: Any, token: jax.Array) -> Any:
            return model.apply(params, carry, token)

        def step(state: Any, _: None) -> Any:
            carry, token = state
            carry, logits = read(carry, token)
            token = logits.argmax(-1).astype("int32")
            return (carry, token), token

        state, _ = jax.lax.scan(read, carry, ids[:, :-1].T)
        return jax.lax.scan(step, (state, ids[:, -1]), None, GENERATED)[1]

    return Contender(lambda: jax.block_until_ready(write(params, ids)))


def generation_in_torch(name: str, prompt: np.ndarray, hidden: int) -> Contender:
    embed, head = torch.nn.Embedding(VOCABULARY, hidden), torch.nn.Linear(hidden, VOCABULARY)
    module, ids = CELLS[name][3](hidden, hidden, batch_first=True), torch.from_numpy(prompt).long()

    @torch.inference_mode()
    def run() -> None:
        y, state = module(embed(ids))
        for _ in range(GENERATED):
            token = head(y[:, -1:]).argmax(-1)
            y, state = module(embed(token), state)

    return Contender(run)


def grown(contenders: dict[str, Contender], name: str) -> int:
    """By how many MiB this process grows at most while a contender runs three times. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    for _ in range(3):
        contenders[name].run()
    return (resident("VmHWM") - before) // 1024


def resident(field: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def output_of(title: str, name: str) -> int:
    command = [sys.executable, __file__, "--one", title, name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


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
