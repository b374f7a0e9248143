"""Handwritten digits, read by a feedforward network: from the data to a verified, trained network."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from click import FloatRange
from sklearn.metrics import confusion_matrix

from jaxnet import activations, cli, data, losses, networks, train
from jaxnet.cli import POSITIVE, option


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train a feedforward network on the 1,797 handwritten digits that ship with scikit-learn."""

    hidden: tuple[int, ...] = option((256, 256), "Widths of the hidden layers.")
    activation: str = option("relu", "Activation of the hidden layers.")
    dropout: float = option(0.3, "Dropout rate after each hidden layer.", FloatRange(0, 1, max_open=True))
    epochs: int = option(60, "Passes over the training data.", POSITIVE)
    batch_size: int = option(64, "Examples in a step.", POSITIVE)
    learning_rate: float = option(3e-3, "Step size of AdamW.", FloatRange(min=0))
    weight_decay: float = option(0.1, "Weight decay of AdamW.", FloatRange(min=0))


def main(config: Config, folder: Path) -> None:
    digits = data.digits(seed=config.seed)  # x (n, 64) in [0, 1], y (n,) in 0…9
    net = networks.feedforward([64, *config.hidden, 10], activation=config.activation, dropout_rate=config.dropout)
    optimizer = train.adamw(config.learning_rate, weight_decay=config.weight_decay)
    run_key, order_key = jax.random.split(jax.random.key(config.seed))
    batches = data.batches(digits.train, config.batch_size, key=order_key, drop_last=True)
    state = train.init(net, optimizer, run_key, digits.train[0][:1])

    # Before a step is taken: is the gradient right? Sixteen examples tell.
    sample = tuple(a[:16] for a in digits.train)
    gradients = train.check_gradients(net, losses.cross_entropy, state.params, sample)
    print(gradients, "\n")

    def evaluate(params):
        metrics = {"loss": losses.cross_entropy, "accuracy": train.accuracy}
        return train.evaluate(net, params, data.batches(digits.test, 512), metrics)

    # One call makes all steps of an epoch: they are shorter than the call of one.
    step = train.make_step(
        net, losses.cross_entropy, optimizer, metrics={"accuracy": train.accuracy}, steps=len(batches)
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

    test = evaluate(state.params)
    report(config, folder, net, state.params, digits, gradients, test)
    print(f"\ntest accuracy {test['accuracy']:.2%}, loss {test['loss']:.4f}")
    print(f"report        {folder / 'report.html'}")


def report(config, folder, net, params, digits, gradients, test) -> None:
    x, y = digits.test
    probabilities = np.asarray(activations.softmax(net.apply(params, x)))
    said = probabilities.argmax(-1)
    rows = train.read_metrics(folder / "metrics.csv")
    page = train.Report(
        "Handwritten digits",
        f"A feedforward network, {'-'.join(map(str, (64, *config.hidden, 10)))}, "
        f"trained on {len(digits.train[0]):,} digits and tested on {len(x):,}",
        {
            "test accuracy": f"{test['accuracy']:.1%}",
            "test loss": f"{test['loss']:.3f}",
            "parameters": f"{train.count(params):,}",
            "steps": f"{len(rows):,}",
            "training time": f"{rows[-1]['seconds']:.1f} s",
        },
    )
    page.curves(rows)
    page.confusion(confusion_matrix(y, said), digits.classes)
    worst = np.argsort(probabilities[np.arange(len(y)), y])[:24]
    page.pictures(
        "The most wrong, and the least sure",
        x[worst].reshape(-1, 8, 8),
        [f"is {y[i]}, said {said[i]} ({probabilities[i, said[i]]:.0%})" for i in worst],
    )
    page.html("Is the gradient right?", gradients.table_html())
    page.worked_update(worked(config, net, params, x[worst[0]], y[worst[0]]))
    page.config(cli.configuration(config) | train.versions())
    page.write(folder / "report.html")


def worked(config, net, params, x, y) -> train.WorkedUpdate:
    """One step of gradient descent on the example that the network gets most wrong, beside jax.grad's numbers."""
    gradients = jax.grad(lambda params: losses.cross_entropy(net.apply(params, x), y))(params)
    return train.work_update(
        params,
        x,
        int(y),
        activation=(activations.get(config.activation), activations.derivative(config.activation)),
        output="cross_entropy",
        learning_rate=config.learning_rate,
        gradients=gradients,
        picture=x.reshape(8, 8),
    )


if __name__ == "__main__":
    cli.experiment(main, Config)
