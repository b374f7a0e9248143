"""The next two weeks of a power transformer's loads and oil temperature, foretold by a recurrent network."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from click import FloatRange, IntRange

from jaxnet import cli, data, layers, losses, train
from jaxnet.cli import POSITIVE, option

DAY = 24
LOSS = partial(losses.huber, delta=0.5)  # beyond, errors count linearly
# Mean squared and absolute error on ETTh1, all seven columns.
SOURCE = "Zhou et al., “Informer” (AAAI 2021), table 2, as repeated by Gu, Goel and Ré, “S4” (2021), table 14"
PUBLISHED = {
    "LSTMa, as published": {24: (0.650, 0.624), 48: (0.702, 0.675), 168: (1.212, 0.867), 336: (1.424, 0.994)},
    "LSTnet, as published": {24: (1.293, 0.901), 48: (1.456, 0.960), 168: (1.997, 1.214), 336: (2.655, 1.369)},
    "Informer, as published": {24: (0.577, 0.549), 48: (0.685, 0.625), 168: (0.931, 0.752), 336: (1.128, 0.873)},
}


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train a recurrent network to foretell each column of ETTh1, hour by hour, from its last weeks."""

    data: str = option("", "Folder of ETTh1.csv, or of ett/ with it; by default $JAXNET_DATA.")
    smoke: bool = option(False, "Try everything in seconds, on waves made here.")
    input: int = option(336, "Hours that are seen, whole segments.", IntRange(min=DAY))
    segment: int = option(24, "Hours that the recurrent layer reads in a step.", POSITIVE)
    horizons: tuple[int, ...] = option((24, 48, 168, 336), "Hours that are foretold; the longest is trained.")
    features: int = option(128, "Features of the recurrent layer.", POSITIVE)
    dropout: float = option(0.5, "Dropout rate before the output.", FloatRange(0, 1, max_open=True))
    epochs: int = option(3, "Passes over the training data.", POSITIVE)
    batch_size: int = option(256, "Windows of one column in a step.", POSITIVE)
    learning_rate: float = option(1e-3, "Peak step size of AdamW; a cosine takes it to 0.", FloatRange(min=0))
    weight_decay: float = option(0.01, "Weight decay of AdamW.", FloatRange(min=0))


def main(config: Config, folder: Path) -> None:
    if config.input % config.segment:
        raise ValueError(
            f"--input must be a multiple of --segment; got {config.input} and {config.segment}: try "
            f"--input {-(-config.input // config.segment) * config.segment}"
        )
    if not config.horizons:
        raise ValueError("--horizons must be at least one number of hours, such as 24,336; got none")
    series = waves(config.input) if config.smoke else data.ett(config.data or None, history=config.input)
    horizon = max(config.horizons)
    net = forecaster(config, horizon)
    known, validation = (columns(part, config.input, horizon) for part in (series.train, series.validation))
    run_key, order_key = jax.random.split(jax.random.key(config.seed))
    batches = data.batches(known, config.batch_size, key=order_key, drop_last=True)
    optimizer = train.adamw(
        optax.cosine_decay_schedule(config.learning_rate, config.epochs * len(batches)),
        weight_decay=config.weight_decay,
    )
    state = train.init(net, optimizer, run_key, known[0][:1])
    gradients = train.check_gradients(net, LOSS, state.params, (known[0][:2], known[1][:2]))
    print(gradients, "\n")

    held_out = data.batches(validation, 1024)
    metrics = {"loss": LOSS} | {f"MSE_{hours}": partial(squared_error, hours=hours) for hours in config.horizons}
    state = train.fit(
        state,
        train.make_step(net, LOSS, optimizer),
        batches,
        epochs=config.epochs,
        run=folder,
        resume=config.resume,
        config=cli.configuration(config),
        evaluate=lambda params: train.evaluate(net, params, held_out, metrics),
    )

    apply = jax.jit(net.apply)

    def foretell(x: np.ndarray, hours: int) -> np.ndarray:
        last = x[:, -1:]
        seen = by_column(x - last)
        parts = [apply(state.params, seen[i : i + 1024]) for i in range(0, len(seen), 1024)]
        said = np.concatenate(parts).reshape(len(x), -1, horizon)  # (windows, columns, hours)
        return said.transpose(0, 2, 1)[:, :hours] + last

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
        for name, found in {} if config.smoke else PUBLISHED.items():
            if hours in found:
                table.append({"hours": hours, "": name} | dict(zip(("MSE", "MAE"), found[hours], strict=True)))
    report(config, folder, state.params, series, methods, table, gradients)
    print()
    for row in table:
        print(f"{row['hours']:>4} hours  {row['']:<26} MSE {row['MSE']:.3f}  MAE {row['MAE']:.3f}")
    print(f"report      {folder / 'report.html'}")


def forecaster(config: Config, horizon: int) -> layers.Layer:
    """All hours of the horizon (B, horizon) from those seen (B, input), of one column.

    A recurrent layer reads segments of hours (SegRNN, Lin et al., 2023); beside it is a linear map, the
    autoregression of LSTNet (Lai et al., 2018), which is 0 at first.
    """
    recurrent = layers.serial(
        layers.reshape(-1, config.segment),
        layers.dense(config.features, activation="relu"),
        layers.gru(config.features, output="last"),
        layers.dropout(config.dropout),
        layers.dense(horizon),
    )
    return layers.parallel(recurrent, layers.dense(horizon, weight_init="zeros"), combine="add")


def by_column(x: np.ndarray) -> np.ndarray:
    """(windows, hours, columns) -> (windows · columns, hours): one network foretells every column."""
    return x.transpose(0, 2, 1).reshape(-1, x.shape[1])


def columns(series: np.ndarray, input: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of each column and what follows them, as differences to the last hour seen."""
    x, y = data.windows(series, input, horizon)
    last = x[:, -1:]
    return by_column(x - last), by_column(y - last)


def linear(series: np.ndarray, input: int, horizon: int):
    """Each hour as a weighted sum of the hours seen, the same for all columns (Zeng et al., 2023)."""
    seen, target = (part.astype(np.float64) for part in columns(series, input, horizon))
    weight = np.linalg.solve(seen.T @ seen + np.eye(input), seen.T @ target)

    def foretell(x: np.ndarray, hours: int) -> np.ndarray:
        last = x[:, -1:]
        return np.einsum("nic,ih->nhc", x - last, weight[:, :hours], optimize=True) + last

    return foretell


def squared_error(prediction, target, *, hours: int):
    """The mean over the first hours."""
    return losses.squared_error(prediction[:, :hours], target[:, :hours]).mean(-1)


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
        "Beside simple forecasts" + ("" if config.smoke else " and published ones"),
        table,
        "Over all windows of the test months and all columns, in deviations of the training data."
        + ("" if config.smoke else f" Published: {SOURCE}."),
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
