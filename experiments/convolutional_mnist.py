"""MNIST by a convolutional network."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax
from click import FloatRange
from sklearn.metrics import confusion_matrix

from jaxnet import activations, cli, data, layers, losses, networks, ops, train
from jaxnet.cli import NOT_NEGATIVE, POSITIVE, option


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train a convolutional network on the 60,000 handwritten digits of MNIST."""

    data: str = option("", "Folder of the four IDX files, or of mnist/ with them; by default $JAXNET_DATA.")
    smoke: bool = option(False, "Try everything in seconds, on the 8×8 digits of scikit-learn.")
    stages: tuple[int, ...] = option((32, 64), "Features of the convolutions; each stage halves the resolution.")
    hidden: tuple[int, ...] = option((128,), "Widths of the hidden dense layers.")
    dropout: float = option(0.3, "Dropout rate before each dense layer.", FloatRange(0, 1, max_open=True))
    shift: int = option(2, "Augmentation: each image is moved by up to so many pixels.", NOT_NEGATIVE)
    epochs: int = option(8, "Passes over the training data.", POSITIVE)
    batch_size: int = option(128, "Examples in a step.", POSITIVE)
    learning_rate: float = option(4e-3, "Peak step size of AdamW, which rises and falls.", FloatRange(min=0))
    weight_decay: float = option(0.02, "Weight decay of AdamW.", FloatRange(min=0))


def main(config: Config, folder: Path) -> None:
    # x (n, h, w, 1) in [0, 1], y (n,) in 0…9
    digits = data.digits(flat=False) if config.smoke else data.mnist(config.data or None, flat=False)
    net = networks.convolutional(
        config.stages, [*config.hidden, 10], normalization="batch", dropout_rate=config.dropout
    )
    run_key, order_key = jax.random.split(jax.random.key(config.seed))
    batches = data.batches(digits.train, config.batch_size, key=order_key, drop_last=True)
    steps = config.epochs * len(batches)
    schedule = optax.linear_onecycle_schedule(steps, config.learning_rate, pct_start=0.2, pct_final=0.9)
    optimizer = train.adamw(schedule, weight_decay=config.weight_decay, mask=layers.trainable)
    state = train.init(net, optimizer, run_key, digits.train[0][:1])

    sample = tuple(a[:4] for a in digits.train)
    gradients = train.check_gradients(net, losses.cross_entropy, state.params, sample)
    print(gradients, "\n")

    some = data.batches(tuple(a[: 20 * config.batch_size] for a in digits.train), config.batch_size)
    test_batches = data.batches(digits.test, 500)

    def evaluate(params):
        params = train.population_statistics(net, params, some, key=run_key)
        metrics = {"loss": losses.cross_entropy, "accuracy": train.accuracy}
        return train.evaluate(net, params, test_batches, metrics)

    step = train.make_step(
        net,
        losses.cross_entropy,
        optimizer,
        metrics={"accuracy": train.accuracy},
        augment=data.augment.shift(config.shift) if config.shift else None,
    )
    state = train.fit(
        state,
        step,
        batches,
        epochs=config.epochs,
        run=folder,
        resume=config.resume,
        config=cli.configuration(config),
        evaluate=evaluate,
    )

    params = train.population_statistics(net, state.params, some, key=run_key)
    logits = np.concatenate([jax.jit(net.apply)(params, x) for x, _ in test_batches])
    report(config, folder, params, digits, gradients, logits)
    print(f"\ntest accuracy {np.mean(logits.argmax(-1) == digits.test[1]):.2%}")
    print(f"report        {folder / 'report.html'}")


def report(config, folder, params, digits, gradients, logits) -> None:
    x, y = digits.test
    probabilities = np.asarray(activations.softmax(logits))
    said = probabilities.argmax(-1)
    rows = train.read_metrics(folder / "metrics.csv")
    page = train.Report(
        digits.name if config.smoke else "MNIST",
        f"A convolutional network, stages {'-'.join(map(str, config.stages))}, "
        f"trained on {len(digits.train[0]):,} handwritten digits and tested on {len(x):,}",
        {
            "test accuracy": f"{np.mean(said == y):.2%}",
            "parameters": f"{train.count(params):,}",
            "steps": f"{len(rows):,}",
            "training time": f"{rows[-1]['seconds']:.0f} s",
        },
    )
    page.curves(rows)
    page.confusion(confusion_matrix(y, said), digits.classes)
    worst = np.argsort(probabilities[np.arange(len(y)), y])[:24]
    page.pictures(
        "The most wrong, and the least sure",
        x[worst, ..., 0],
        [f"is {y[i]}, said {said[i]} ({probabilities[i, said[i]]:.0%})" for i in worst],
    )
    weight = params[0][0]["weight"]  # (3, 3, 1, features)
    names = [f"filter {i + 1}" for i in range(weight.shape[-1])]
    page.pictures("Learned filters of the first layer", np.moveaxis(weight[:, :, 0], -1, 0), names)
    maps = activations.relu(ops.conv(x[worst[:1]], weight))  # (1, h, w, features)
    page.pictures("What they see in the most wrong digit", np.moveaxis(maps[0], -1, 0), names)
    page.html("Is the gradient right?", gradients.table_html())
    page.config(cli.configuration(config) | train.versions())
    page.write(folder / "report.html")


if __name__ == "__main__":
    cli.experiment(main, Config)
