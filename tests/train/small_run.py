"""A small training run: what the tests train in their own process and, as a script, kill and resume.

With `SLOW` in the environment the evaluation after an epoch takes as long as anyone waits.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import cli, data, losses, networks, train
from jaxnet.cli import POSITIVE, option

EXAMPLES, BATCH_SIZE = 22, 5  # the last batch has two
PER_EPOCH = 5


class Problem(NamedTuple):
    """All that `fit` takes; `state()` is a new one, since the buffers of the old are donated."""

    net: Any
    optimizer: Any
    step: train.Step
    batches: data.Batches
    state: Callable[[], train.TrainState]

    def evaluate(self, params):
        metrics = {"loss": losses.cross_entropy, "accuracy": train.accuracy}
        return train.evaluate(self.net, params, self.batches, metrics)


def problem(steps: int | None = None) -> Problem:
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.standard_normal((EXAMPLES, 7)), jnp.float32)
    y = jnp.asarray(draw.integers(0, 3, EXAMPLES), jnp.int32)
    net = networks.feedforward([7, 13, 3], dropout_rate=0.2)
    optimizer = train.adamw(1e-2)
    step = train.make_step(net, losses.cross_entropy, optimizer, metrics={"accuracy": train.accuracy}, steps=steps)
    batches = data.batches((x, y), BATCH_SIZE, key=jax.random.key(1))
    return Problem(net, optimizer, step, batches, lambda: train.init(net, optimizer, jax.random.key(0), x))


def before_each_call(step: train.Step, do: Callable[[], None]) -> train.Step:
    """The same step, compiled once with it, that does something first."""

    def call(state, batch):
        do()
        return step.jitted(state, batch)

    return replace(step, jitted=call)


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train a small network on noise."""

    hidden: tuple[int, ...] = option((4, 2), "Some numbers.")
    epochs: int = option(20, "Passes over the data.", POSITIVE)
    steps: int = option(1, "Steps in a call.", POSITIVE)
    note: str = option("", "Of no consequence for what is trained.", free=True)


def main(config: Config, folder: Path) -> None:
    it = problem(steps=config.steps)

    def evaluate(params):
        if "SLOW" in os.environ:
            print("evaluating", flush=True)
            time.sleep(600)
        return it.evaluate(params)

    train.fit(
        it.state(),
        it.step,
        it.batches,
        epochs=config.epochs,
        run=folder,
        resume=config.resume,
        config=cli.configuration(config),
        evaluate=evaluate,
        checkpoint_every=2,
    )


if __name__ == "__main__":
    cli.experiment(main, Config)
