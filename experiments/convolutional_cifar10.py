"""CIFAR-10 by a convolutional network that sees whitened patches."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax
from click import FloatRange
from sklearn.metrics import confusion_matrix

from jaxnet import activations, cli, data, layers, losses, networks, ops, train
from jaxnet.cli import NOT_NEGATIVE, option


class Preset(NamedTuple):
    """What fits a machine."""

    stages: tuple[tuple[int, ...], ...]
    epochs: int
    batch_size: int
    learning_rate: float


# "gpu" has the widths and the augmentation of airbench94 (Jordan, 2024, https://arxiv.org/abs/2404.00498).
PRESETS = {
    "cpu": Preset(((32,), (64, 64), (128,)), 10, 128, 8e-3),
    "gpu": Preset(((64, 64), (256, 256), (256, 256)), 40, 512, 1e-2),
}


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train a convolutional network on the 50,000 pictures of CIFAR-10."""

    data: str = option("", "Folder of cifar-10-jpeg.tar.gz, or of cifar10/ with it; by default $JAXNET_DATA.")
    smoke: bool = option(False, "Try everything in seconds, on the 8×8 digits of scikit-learn.")
    preset: str = option(
        "cpu", "Widths, batch and epochs for a machine: cpu or gpu.", click.Choice(tuple(PRESETS))
    )
    epochs: int = option(0, "Passes over the training data; 0 for the preset's.", NOT_NEGATIVE)
    shift: int = option(2, "Augmentation: each picture is moved by up to so many pixels.", NOT_NEGATIVE)
    smoothing: float = option(0.2, "Label smoothing.", FloatRange(0, 1, max_open=True))
    weight_decay: float = option(0.05, "Weight decay of AdamW.", FloatRange(min=0))


def main(config: Config, folder: Path) -> None:
    # x (n, h, w, channels) in [0, 1], y (n,) in 0…9
    pictures = data.digits(flat=False) if config.smoke else data.cifar10(config.data or None)
    preset = PRESETS[config.preset]
    epochs = config.epochs or preset.epochs
    filters = whitening(pictures.train[0][:5000])
    see = jax.jit(partial(whitened, filters))
    net = networks.convolutional(
        [stage for stage in preset.stages if not config.smoke or stage == preset.stages[0]],
        len(pictures.classes),
        activation="gelu",
        normalization="batch",
        global_pool=True,
    )
    run_key, order_key = jax.random.split(jax.random.key(config.seed))
    batches = data.batches(pictures.train, preset.batch_size, key=order_key, drop_last=True)
    schedule = optax.linear_onecycle_schedule(
        epochs * len(batches), preset.learning_rate, pct_start=0.25, pct_final=0.9
    )
    optimizer = train.adamw(schedule, weight_decay=config.weight_decay, mask=layers.trainable)
    state = train.init(net, optimizer, run_key, see(pictures.train[0][:1]))

    loss = partial(losses.cross_entropy, label_smoothing=config.smoothing)
    gradients = train.check_gradients(net, loss, state.params, (see(pictures.train[0][:4]), pictures.train[1][:4]))
    print(gradients, "\n")

    augment = data.augment.compose(
        data.augment.flip(), data.augment.shift(config.shift, mode="reflect"), lambda key, x: see(x)
    )
    step = train.make_step(net, loss, optimizer, metrics={"accuracy": train.accuracy}, augment=augment)
    some = [see(x) for x, _ in data.batches(tuple(a[::10] for a in pictures.train), preset.batch_size)]
    test_batches = data.batches(pictures.test, 500)

    @jax.jit
    def both(params, x):
        """Logits of a picture and of its mirror image together."""
        return net.apply(params, see(x)) + net.apply(params, see(x[:, :, ::-1]))

    def predict(params) -> np.ndarray:
        params = train.population_statistics(net, params, some, key=run_key)
        return np.concatenate([both(params, x) for x, _ in test_batches]) / 2

    def evaluate(params):
        logits = predict(params)
        return {
            "loss": losses.cross_entropy(logits, pictures.test[1]).mean(),
            "accuracy": train.accuracy(logits, pictures.test[1]).mean(),
        }

    state = train.fit(
        state,
        step,
        batches,
        epochs=epochs,
        run=folder,
        resume=config.resume,
        config=cli.configuration(config),
        evaluate=evaluate,
    )

    logits = predict(state.params)
    report(config, folder, state.params, pictures, filters, gradients, logits)
    print(f"\ntest accuracy {np.mean(logits.argmax(-1) == pictures.test[1]):.2%}")
    print(f"report        {folder / 'report.html'}")


def whitening(x: np.ndarray) -> np.ndarray:
    """Filters 2×2 whose answers to pictures like x are uncorrelated with variance 1, and their negatives.

    They are the patches' principal directions, each divided by its standard deviation.
    """
    h, w, channels = x.shape[1:]
    patches = np.stack([x[:, i : h - 1 + i, j : w - 1 + j] for i in (0, 1) for j in (0, 1)], -2)
    patches = patches.reshape(-1, 4 * channels).astype(np.float64)
    variances, directions = np.linalg.eigh(np.cov(patches.T))
    filters = directions / np.sqrt(variances + 5e-4)  # what hardly varies is noise
    filters = filters[:, ::-1].reshape(2, 2, channels, -1)
    return np.concatenate([filters, -filters], -1).astype(np.float32)


def whitened(filters, x):
    """What the network sees: (n, h − 1, w − 1, 8 channels)."""
    return activations.gelu(ops.conv(x, jnp.asarray(filters), padding="VALID"))


def report(config, folder, params, pictures, filters, gradients, logits) -> None:
    (x, y), classes = pictures.test, pictures.classes
    probabilities = np.asarray(activations.softmax(logits))
    said = probabilities.argmax(-1)
    rows = train.read_metrics(folder / "metrics.csv")
    page = train.Report(
        pictures.name,
        f"A convolutional network, preset {config.preset}, trained on {len(pictures.train[0]):,} pictures "
        f"and tested on {len(x):,}",
        {
            "test accuracy": f"{np.mean(said == y):.2%}",
            "parameters": f"{train.count(params):,}",
            "steps": f"{len(rows):,}",
            "training time": f"{rows[-1]['seconds']:.0f} s",
        },
    )
    page.curves(rows)
    page.confusion(confusion_matrix(y, said, labels=range(len(classes))), classes)
    worst = np.argsort(probabilities[np.arange(len(y)), y])[:24]
    page.pictures(
        "The most wrong",
        shown(x[worst]),
        [f"is {classes[y[i]]}, said {classes[said[i]]} ({probabilities[i, said[i]]:.0%})" for i in worst],
    )
    some = np.concatenate([np.flatnonzero(said == y)[:12], np.flatnonzero(said != y)[:12]])
    page.pictures(
        "Right, then wrong", shown(x[some]), [f"is {classes[y[i]]}, said {classes[said[i]]}" for i in some]
    )
    half = np.moveaxis(filters[..., : filters.shape[-1] // 2], -1, 0)
    scaled = half / np.abs(half).max((1, 2, 3), keepdims=True)
    names = [f"filter {i + 1}" for i in range(len(half))]
    page.pictures("The whitening filters: principal directions of the pictures' patches", shown(scaled), names)
    maps = whitened(filters, x[some[:1]])
    maps = np.asarray(activations.gelu(ops.conv(maps, params[0][0]["weight"]))[0])
    names = [f"feature {i + 1}" for i in range(maps.shape[-1])]
    page.pictures("What the first layer sees in the first of the pictures above", np.moveaxis(maps, -1, 0), names)
    page.html("Is the gradient right?", gradients.table_html())
    page.config(cli.configuration(config) | PRESETS[config.preset]._asdict() | train.versions())
    page.write(folder / "report.html")


def shown(x):
    """Pictures of one channel without it."""
    return x[..., 0] if x.shape[-1] == 1 else x


if __name__ == "__main__":
    cli.experiment(main, Config)
