"""MNIST by a feedforward network 784-512-512-10."""

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
    """Train a feedforward network on the 60,000 handwritten digits of MNIST."""

    data: str = option("", "Folder of the four IDX files, or of mnist/ with them; by default $JAXNET_DATA.")
    hidden: tuple[int, ...] = option((512, 512), "Widths of the hidden layers.")
    activation: str = option("relu", "Activation of the hidden layers.")
    dropout: float = option(0.3, "Dropout rate after each hidden layer.", FloatRange(0, 1, max_open=True))
    epochs: int = option(15, "Passes over the training data.", POSITIVE)
    batch_size: int = option(128, "Examples in a step.", POSITIVE)
    learning_rate: float = option(1e-3, "Step size of AdamW.", FloatRange(min=0))
    weight_decay: float = option(0.05, "Weight decay of AdamW.", FloatRange(min=0))


def main(config: Config, folder: Path) -> None:
    mnist = data.mnist(config.data or None)  # x (n, 784) in [0, 1], y (n,) in 0…9
    net = networks.feedforward(
        [784, *config.hidden, 10], activation=config.activation, dropout_rate=config.dropout
    )
    optimizer = train.adamw(config.learning_rate, weight_decay=config.weight_decay)
    run_key, order_key = jax.random.split(jax.random.key(config.seed))
    batches = data.batches(mnist.train, config.batch_size, key=order_key, drop_last=True)
    state = train.init(net, optimizer, run_key, mnist.train[0][:1])

    sample = tuple(a[:8] for a in mnist.train)
    gradients = train.check_gradients(net, losses.cross_entropy, state.params, sample)
    print(gradients, "\n")

    def evaluate(params):
        metrics = {"loss": losses.cross_entropy, "accuracy": train.accuracy}
        return train.evaluate(net, params, data.batches(mnist.test, 2500), metrics)

    step = train.make_step(net, losses.cross_entropy, optimizer, metrics={"accuracy": train.accuracy})
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
    report(config, folder, net, state.params, mnist, gradients, test)
    print(f"\ntest accuracy {test['accuracy']:.2%}, loss {test['loss']:.4f}")
    print(f"report        {folder / 'report.html'}")


def report(config, folder, net, params, mnist, gradients, test) -> None:
    x, y = mnist.test
    probabilities = np.asarray(activations.softmax(net.apply(params, x)))
    said = probabilities.argmax(-1)
    rows = train.read_metrics(folder / "metrics.csv")
    page = train.Report(
        "MNIST",
        f"A feedforward network, {'-'.join(map(str, (784, *config.hidden, 10)))}, "
        f"trained on {len(mnist.train[0]):,} handwritten digits and tested on {len(x):,}",
        {
            "test accuracy": f"{test['accuracy']:.2%}",
            "test loss": f"{test['loss']:.3f}",
            "parameters": f"{train.count(params):,}",
            "steps": f"{len(rows):,}",
            "training time": f"{rows[-1]['seconds']:.0f} s",
        },
    )
    page.curves(rows)
    page.confusion(confusion_matrix(y, said), mnist.classes)
    worst = np.argsort(probabilities[np.arange(len(y)), y])[:24]
    page.pictures(
        "The most wrong, and the least sure",
        x[worst].reshape(-1, 28, 28),
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
        picture=x.reshape(28, 28),
    )


if __name__ == "__main__":
    cli.experiment(main, Config)
