"""Breast cancer, benign or malignant, by a feedforward network with one sigmoid at its end."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from click import FloatRange
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from jaxnet import activations, cli, data, losses, networks, train
from jaxnet.cli import POSITIVE, option


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train a binary classifier on the breast cancer data that ship with scikit-learn."""

    hidden: tuple[int, ...] = option((32,), "Widths of the hidden layers.")
    activation: str = option("relu", "Activation of the hidden layers.")
    dropout: float = option(0.2, "Dropout rate after each hidden layer.", FloatRange(0, 1, max_open=True))
    epochs: int = option(40, "Passes over the training data.", POSITIVE)
    batch_size: int = option(32, "Examples in a step.", POSITIVE)
    learning_rate: float = option(2e-3, "Step size of AdamW.", FloatRange(min=0))
    weight_decay: float = option(0.1, "Weight decay of AdamW.", FloatRange(min=0))


def main(config: Config, folder: Path) -> None:
    cancer = data.breast_cancer(seed=config.seed)  # x (n, 30) standardised, y (n,): malignant 0, benign 1
    (train_x, train_y), (test_x, test_y) = (
        (x, y[:, None].astype(np.float32)) for x, y in (cancer.train, cancer.test)
    )
    # The network ends in a logit z; the loss holds the sigmoid, p = σ(z), where both together are stable.
    net = networks.feedforward([30, *config.hidden, 1], activation=config.activation, dropout_rate=config.dropout)
    optimizer = train.adamw(config.learning_rate, weight_decay=config.weight_decay)
    run_key, order_key = jax.random.split(jax.random.key(config.seed))
    batches = data.batches((train_x, train_y), config.batch_size, key=order_key, drop_last=True)
    state = train.init(net, optimizer, run_key, train_x[:1])

    gradients = train.check_gradients(net, losses.binary_cross_entropy, state.params, (train_x[:16], train_y[:16]))
    print(gradients, "\n")

    test_batches = data.batches((test_x, test_y), len(test_x))

    def evaluate(params):
        metrics = {"loss": losses.binary_cross_entropy, "accuracy": train.binary_accuracy}
        return train.evaluate(net, params, test_batches, metrics)

    step = train.make_step(
        net,
        losses.binary_cross_entropy,
        optimizer,
        metrics={"accuracy": train.binary_accuracy},
        steps=len(batches),
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
    probability = np.asarray(activations.sigmoid(net.apply(state.params, test_x)))[:, 0]
    area = roc_auc_score(test_y[:, 0], probability)
    report(config, folder, net, state.params, cancer, gradients, test, probability, area)
    print(f"\ntest accuracy {test['accuracy']:.2%}, loss {test['loss']:.4f}, area under the ROC curve {area:.4f}")
    print(f"report        {folder / 'report.html'}")


def report(config, folder, net, params, cancer, gradients, test, probability, area) -> None:
    rows, (x, y) = train.read_metrics(folder / "metrics.csv"), cancer.test
    page = train.Report(
        "Breast cancer",
        f"A feedforward network, {'-'.join(map(str, (30, *config.hidden, 1)))}, trained on "
        f"{len(cancer.train[0])} tumours and tested on {len(x)}",
        {
            "test accuracy": f"{test['accuracy']:.1%}",
            "area under ROC": f"{area:.4f}",
            "test loss": f"{test['loss']:.3f}",
            "parameters": f"{train.count(params):,}",
            "training time": f"{rows[-1]['seconds']:.1f} s",
        },
    )
    page.curves(rows)
    false_positive, true_positive, _ = roc_curve(y, probability)
    page.roc(false_positive, true_positive, area)
    page.confusion(confusion_matrix(y, probability > 0.5), cancer.classes)
    page.html("Is the gradient right?", gradients.table_html())
    example = int(np.argmin(np.where(y == 1, probability, 1 - probability)))  # the most wrong
    page.worked_update(worked(config, net, params, x[example], y[example : example + 1]))
    page.config(cli.configuration(config) | train.versions())
    page.write(folder / "report.html")


def worked(config, net, params, x, y) -> train.WorkedUpdate:
    """One step of gradient descent on one tumour, beside jax.grad's numbers."""
    y = y.astype(np.float32)
    gradients = jax.grad(lambda params: losses.binary_cross_entropy(net.apply(params, x), y).sum())(params)
    return train.work_update(
        params,
        x,
        y,
        activation=(activations.get(config.activation), activations.derivative(config.activation)),
        output="binary_cross_entropy",
        learning_rate=config.learning_rate,
        gradients=gradients,
    )


if __name__ == "__main__":
    cli.experiment(main, Config)
