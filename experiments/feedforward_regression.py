"""Regression by a feedforward network: the course of diabetes after a year, beside linear regression."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from click import FloatRange
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, r2_score

from jaxnet import cli, data, losses, networks, train
from jaxnet.cli import POSITIVE, option


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train a feedforward network on the diabetes data that ship with scikit-learn, and compare it with a line."""

    hidden: tuple[int, ...] = option((64,), "Widths of the hidden layers.")
    activation: str = option("gelu", "Activation of the hidden layers.")
    dropout: float = option(0.3, "Dropout rate after each hidden layer.", FloatRange(0, 1, max_open=True))
    epochs: int = option(60, "Passes over the training data.", POSITIVE)
    batch_size: int = option(32, "Examples in a step.", POSITIVE)
    learning_rate: float = option(1e-3, "Step size of AdamW.", FloatRange(min=0))
    weight_decay: float = option(1.0, "Weight decay of AdamW.", FloatRange(min=0))


def main(config: Config, folder: Path) -> None:
    diabetes = data.diabetes(seed=config.seed)  # x (n, 10) standardised, y (n,) between 25 and 346
    (train_x, train_y), (test_x, test_y) = diabetes.train, diabetes.test
    mean, deviation = train_y.mean(), train_y.std()

    def standardised(y):  # (n,) -> (n, 1): a network's numbers are best of order 1
        return ((y - mean) / deviation)[:, None].astype(np.float32)

    net = networks.feedforward([10, *config.hidden, 1], activation=config.activation, dropout_rate=config.dropout)
    optimizer = train.adamw(config.learning_rate, weight_decay=config.weight_decay)
    run_key, order_key = jax.random.split(jax.random.key(config.seed))
    batches = data.batches((train_x, standardised(train_y)), config.batch_size, key=order_key, drop_last=True)
    state = train.init(net, optimizer, run_key, train_x[:1])

    sample = train_x[:16], standardised(train_y[:16])
    gradients = train.check_gradients(net, losses.squared_error, state.params, sample)
    print(gradients, "\n")

    test_batches = data.batches((test_x, standardised(test_y)), len(test_x))

    def evaluate(params):
        return train.evaluate(net, params, test_batches, {"loss": losses.squared_error})

    step = train.make_step(net, losses.squared_error, optimizer, steps=len(batches))
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

    predictions = {
        "feedforward network": np.asarray(net.apply(state.params, test_x))[:, 0] * deviation + mean,
        "linear regression": LinearRegression().fit(train_x, train_y).predict(test_x),
        "mean of the training data": np.full_like(test_y, mean),
    }
    scores = [
        {
            "model": name,
            "R²": float(r2_score(test_y, prediction)),
            "mean absolute error": float(mean_absolute_error(test_y, prediction)),
        }
        for name, prediction in predictions.items()
    ]
    report(config, folder, state.params, diabetes, gradients, predictions, scores)
    for score in scores:
        print(
            f"{score['model']:<26} R² {score['R²']:6.3f}   mean absolute error {score['mean absolute error']:.1f}"
        )
    print(f"report {folder / 'report.html'}")


def report(config, folder, params, diabetes, gradients, predictions, scores) -> None:
    rows = train.read_metrics(folder / "metrics.csv")
    network, line, _ = scores
    page = train.Report(
        "The course of diabetes",
        f"A feedforward network, {'-'.join(map(str, (10, *config.hidden, 1)))}, trained on "
        f"{len(diabetes.train[0])} patients and tested on {len(diabetes.test[0])}, beside linear regression",
        {
            "R² of the network": f"{network['R²']:.3f}",
            "R² of the line": f"{line['R²']:.3f}",
            "parameters": f"{train.count(params):,}",
            "steps": f"{len(rows):,}",
            "training time": f"{rows[-1]['seconds']:.1f} s",
        },
    )
    page.table("Beside linear regression", scores, "On the test data; the target runs from 25 to 346.")
    page.curves(rows)
    page.scatter(
        "Predicted and true",
        diabetes.test[1],
        predictions["feedforward network"],
        "true",
        "predicted",
        diagonal=True,
    )
    page.html("Is the gradient right?", gradients.table_html())
    page.config(cli.configuration(config) | train.versions())
    page.write(folder / "report.html")


if __name__ == "__main__":
    cli.experiment(main, Config)
