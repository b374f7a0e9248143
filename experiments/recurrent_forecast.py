"""The next two weeks of a power transformer's loads and oil temperature, foretold by a recurrent network."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax
from click import FloatRange

from jaxnet import cli, data, losses, networks, train
from jaxnet.cli import POSITIVE, option

DAY = 24


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train a recurrent network to foretell ETTh1, hour by hour, from the last days of all seven columns."""

    data: str = option("", "Folder of ETTh1.csv, or of ett/ with it; by default $JAXNET_DATA.")
    smoke: bool = option(False, "Try everything in seconds, on waves made here.")
    input: int = option(168, "Hours that are seen.", POSITIVE)
    horizons: tuple[int, ...] = option((24, 48, 168, 336), "Hours that are foretold; the longest is trained.")
    features: int = option(96, "Features of the recurrent layer.", POSITIVE)
    dropout: float = option(0.3, "Dropout rate before the output.", FloatRange(0, 1, max_open=True))
    epochs: int = option(6, "Passes over the training data.", POSITIVE)
    batch_size: int = option(64, "Windows in a step.", POSITIVE)
    learning_rate: float = option(1e-3, "Peak step size of AdamW; a cosine takes it to 0.", FloatRange(min=0))
    weight_decay: float = option(0.1, "Weight decay of AdamW.", FloatRange(min=0))


def main(config: Config, folder: Path) -> None:
    series = waves(config.input) if config.smoke else data.ett(config.data or None, history=config.input)
    horizon, columns = max(config.horizons), len(series.columns)
    net = networks.recurrent(config.features, horizon * columns, cell="gru", dropout_rate=config.dropout)
    known, validation = (
        centred(*data.windows(part, config.input, horizon)) for part in (series.train, series.validation)
    )
    run_key, order_key = jax.random.split(jax.random.key(config.seed))
    batches = data.batches(known[:2], config.batch_size, key=order_key, drop_last=True)
    optimizer = train.adamw(
        optax.cosine_decay_schedule(config.learning_rate, config.epochs * len(batches)),
        weight_decay=config.weight_decay,
    )
    state = train.init(net, optimizer, run_key, known[0][:1])

    def loss(prediction, target):
        """Of all hours and columns; errors beyond 1 count linearly."""
        return losses.huber(prediction, target).mean(-1)

    loss.derivative = lambda p, t: losses.derivative(losses.huber)(p, t) / p.shape[-1]
    gradients = train.check_gradients(net, loss, state.params, (known[0][:2, :6], known[1][:2]))
    print(gradients, "\n")

    held_out = data.batches(validation[:2], 256)
    metrics = {"loss": loss, "squared_error": lambda p, t: losses.squared_error(p, t).mean(-1)}
    state = train.fit(
        state,
        train.make_step(net, loss, optimizer),
        batches,
        epochs=config.epochs,
        run=folder,
        resume=config.resume,
        config=cli.configuration(config),
        evaluate=lambda params: train.evaluate(net, params, held_out, metrics),
    )

    apply = jax.jit(net.apply)

    def foretell(x: np.ndarray, hours: int) -> np.ndarray:
        seen, _, last = centred(x, x)
        said = np.concatenate([apply(state.params, seen[i : i + 256]) for i in range(0, len(seen), 256)])
        return said.reshape(len(x), horizon, columns)[:, :hours] + last

    methods = {
        "recurrent network": foretell,
        "as the last hour": lambda x, hours: np.repeat(x[:, -1:], hours, 1),
        "as the last day": lambda x, hours: np.tile(x[:, -DAY:], (1, -(-hours // DAY), 1))[:, :hours],
        "linear, by least squares": linear(series.train, config.input, horizon),
    }
    table = []
    for hours in config.horizons:
        x, y = data.windows(series.test, config.input, hours)
        for name, method in methods.items():
            table.append({"hours": hours, "": name} | errors(method(x, hours), y))
    report(config, folder, state.params, series, methods, table, gradients)
    print()
    for row in table:
        print(f"{row['hours']:>4} hours  {row['']:<26} MSE {row['MSE']:.3f}  MAE {row['MAE']:.3f}")
    print(f"report      {folder / 'report.html'}")


def centred(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows and what follows as differences to the last hour seen, the latter flat; and that hour."""
    last = x[:, -1:]
    return x - last, (y - last).reshape(len(y), -1), last


def linear(series: np.ndarray, input: int, horizon: int):
    """Each hour as a weighted sum of the hours seen, the same for all columns (Zeng et al., 2023)."""
    x, y = data.windows(series, input, horizon)
    seen, _, last = centred(x, x)
    flat = seen.transpose(0, 2, 1).reshape(-1, input).astype(np.float64)
    target = (y - last).transpose(0, 2, 1).reshape(-1, horizon).astype(np.float64)
    weight = np.linalg.solve(flat.T @ flat + np.eye(input), flat.T @ target)

    def foretell(x: np.ndarray, hours: int) -> np.ndarray:
        seen, _, last = centred(x, x)
        return np.einsum("nic,ih->nhc", seen, weight[:, :hours], optimize=True) + last

    return foretell


def errors(said: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Mean squared and absolute error over all windows, hours and columns, in deviations of the training data."""
    return {"MSE": float(np.square(said - y).mean()), "MAE": float(np.abs(said - y).mean())}


def waves(history: int) -> data.Forecast:
    """Three daily waves in noise."""
    rng, t = np.random.default_rng(0), np.arange(2600)[:, None]
    values = np.sin(2 * np.pi * (t / DAY + np.array([[0, 0.3, 0.6]]))) + 0.2 * rng.normal(size=(len(t), 3))
    values = values.astype(np.float32)
    parts = values[:1400], values[1400 - history : 2000], values[2000 - history :]
    return data.Forecast("waves", *parts, ("a", "b", "c"), np.zeros(3), np.ones(3), "made here")


def report(config, folder, params, series, methods, table, gradients) -> None:
    rows = train.read_metrics(folder / "metrics.csv")
    first = {row[""]: row for row in table if row["hours"] == config.horizons[0]}
    page = train.Report(
        f"The next hours of {series.name}",
        f"A gated recurrent network trained on {len(series.train):,} hours of {len(series.columns)} columns; from "
        f"{config.input} hours it foretells the next {max(config.horizons)}",
        {
            f"MSE at {config.horizons[0]} hours": f"{first['recurrent network']['MSE']:.3f}",
            "as the last day": f"{first['as the last day']['MSE']:.3f}",
            "linear": f"{first['linear, by least squares']['MSE']:.3f}",
            "parameters": f"{train.count(params):,}",
            "training time": f"{rows[-1]['seconds']:.0f} s",
        },
    )
    page.table(
        "Beside simple forecasts",
        table,
        "Over all windows of the test months and all columns, in deviations of the training data.",
    )
    hours, column = max(config.horizons), len(series.columns) - 1
    x, y = data.windows(series.test, config.input, hours)
    mean, deviation = series.mean[column], series.deviation[column]
    shown = []
    for i in np.linspace(0, len(x) - 1, 4).astype(int):
        true = np.concatenate([x[i, :, column], y[i, :, column]])
        for name in ("recurrent network", "linear, by least squares"):
            said = methods[name](x[i : i + 1], hours)[0, :, column]
            foretold = np.concatenate([np.full(config.input, np.nan), said])
            title = f"{series.columns[column]}, window {i + 1:,}: {name}"
            shown.append((title, np.stack([true, foretold]) * deviation + mean, [], []))
    page.series("True, and in colour foretold", shown, "The hours seen, and those foretold from there on.")
    page.curves(rows)
    page.html("Is the gradient right?", gradients.table_html())
    page.config(cli.configuration(config) | train.versions())
    page.write(folder / "report.html")


if __name__ == "__main__":
    cli.experiment(main, Config)
