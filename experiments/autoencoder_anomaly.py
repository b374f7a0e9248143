"""Anomalies in time series, by what an autoencoder can't restore: the Numenta Anomaly Benchmark."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from click import FloatRange
from scipy.ndimage import maximum_filter1d
from scipy.special import expit, log_ndtr

from jaxnet import cli, data, losses, networks, train
from jaxnet.cli import POSITIVE, option

FALSE_ALARM, MISSED = 0.11, 1.0  # NAB's standard profile


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Train an autoencoder on the quiet beginnings of time series, and find their anomalies."""

    data: str = option("", "Folder of nab.tar.gz, or of nab/ with it; by default $JAXNET_DATA.")
    smoke: bool = option(False, "Try everything in seconds, on series made up here.")
    window: int = option(8, "Consecutive values that the autoencoder sees.", POSITIVE)
    code_size: int = option(2, "Numbers in the code.", POSITIVE)
    hidden: tuple[int, ...] = option((64, 32), "Widths of the hidden layers.")
    recent: int = option(1, "Values whose mean error is compared with the errors before.", POSITIVE)
    silence: int = option(400, "Values after an alarm in which only a louder one is raised.", POSITIVE)
    epochs: int = option(30, "Passes over the training data.", POSITIVE)
    batch_size: int = option(128, "Examples in a step.", POSITIVE)
    learning_rate: float = option(1e-3, "Peak step size of Adam; a cosine takes it to 0.", FloatRange(min=0))


def main(config: Config, folder: Path) -> None:
    series = made_up() if config.smoke else data.nab(config.data or None)
    deviations = [windows(s, config.window) for s in series]
    seen = [np.clip(x, -3, 3) for x in deviations]  # what is far out can't be restored
    quiet = np.concatenate(
        [x[: max(probation(s) - config.window + 1, 1)] for s, x in zip(series, seen, strict=True)]
    )

    net = networks.autoencoder(config.window, config.code_size, hidden=config.hidden, activation="gelu")
    run_key, order_key = jax.random.split(jax.random.key(config.seed))
    batches = data.batches((quiet, quiet), config.batch_size, key=order_key, drop_last=True)
    optimizer = train.adam(optax.cosine_decay_schedule(config.learning_rate, config.epochs * len(batches)))
    state = train.init(net, optimizer, run_key, quiet[:1])
    loss = partial(losses.huber, delta=1.0)
    gradients = train.check_gradients(net, loss, state.params, (quiet[:4], quiet[:4]))
    print(gradients, "\n")
    state = train.fit(
        state,
        train.make_step(net, loss, optimizer),
        batches,
        epochs=config.epochs,
        run=folder,
        resume=config.resume,
        config=cli.configuration(config),
    )

    apply = jax.jit(net.apply)
    errors = [np.abs(d - np.asarray(apply(state.params, x)))[:, -1] for d, x in zip(deviations, seen, strict=True)]
    values = [np.abs(d[:, -1]) for d in deviations]
    found = {
        "autoencoder": best([reported(unlikely(e, config), config) for e in errors], series),
        "the value, as unlikely": best([reported(unlikely(v, config), config) for v in values], series),
        "the value, a threshold": best([reported(v, config) for v in values], series),
    }
    report(config, folder, state.params, series, gradients, found)
    print()
    for name, result in found.items():
        print(f"{name:<24} NAB score {result['score']:.1f} ({result['found']} of {result['anomalies']} anomalies)")
    print(f"report                   {folder / 'report.html'}")


def probation(series: data.Series) -> int:
    """NAB scores nothing in the first 15 %, at most 750 values."""
    return int(0.15 * min(len(series.values), 5000))


def windows(series: data.Series, width: int) -> np.ndarray:
    """The window that ends at each value, (n, width), in units of the deviation over the probation."""
    quiet = series.values[: probation(series)]
    z = np.clip((series.values - quiet.mean()) / max(quiet.std(), 1e-6), -20, 20)
    padded = np.concatenate([np.full(width - 1, z[0]), z]).astype(np.float32)
    return np.lib.stride_tricks.sliding_window_view(padded, width).copy()


def unlikely(error: np.ndarray, config: Config) -> np.ndarray:
    """−log₁₀ of the chance of the recent mean error, by a Gaussian of all before. (Lavin and Ahmad, 2015)."""
    sums = np.cumsum(np.concatenate([[0.0], error]))
    squares = np.cumsum(np.concatenate([[0.0], error**2]))
    n = np.arange(1, len(error) + 1)
    mean = sums[1:] / n
    deviation = np.sqrt(np.maximum(squares[1:] / n - mean**2, 1e-6))
    first = np.maximum(n - config.recent, 0)
    recent = (sums[n] - sums[first]) / (n - first)
    return -log_ndtr(-(recent - mean) / deviation) / np.log(10)


def reported(score: np.ndarray, config: Config) -> np.ndarray:
    """An anomaly is reported once: what isn't above all of the `silence` values before counts as 0."""
    before = maximum_filter1d(score, config.silence, origin=(config.silence - 1) // 2)
    return np.where(score > np.concatenate([[np.inf], before[:-1]]), score, 0.0)


def weights(series: data.Series) -> np.ndarray:
    """What an alarm at each value is worth: in a window the more the earlier, outside the less the later."""
    n = len(series.values)
    worth, place = np.full(n, -FALSE_ALARM), np.arange(n)

    def sigmoid(x):
        return np.where(x > 3, -1, 2 * expit(-5 * x) - 1)

    for first, last in series.windows:
        after = place > last
        worth[after] = FALSE_ALARM * sigmoid((place[after] - last) / max(last - first, 1))
        inside = (first <= place) & (place <= last)
        worth[inside] = sigmoid(-(last - place[inside] + 1) / (last - first + 1)) / sigmoid(-1.0)
    return worth


def best(scores: list[np.ndarray], series: list[data.Series]) -> dict:
    """NAB's score at the one threshold for all series that is best, as NAB chooses it for every detector.

    100 (Σ − Σ₀)/(Σ₁ − Σ₀): 0 for a detector that is silent, 100 for a perfect one.
    """
    worths = [weights(s) for s in series]
    total = sum(len(s.windows) for s in series)

    def at(threshold: float) -> tuple[float, int]:
        gained, hits = 0.0, 0
        for score, worth, s in zip(scores, worths, series, strict=True):
            alarm = score >= threshold
            alarm[: probation(s)] = False
            outside = alarm.copy()
            for first, last in s.windows:
                inside = np.flatnonzero(alarm[first : last + 1])
                outside[first : last + 1] = False
                gained += worth[first + inside[0]] if inside.size else -MISSED
                hits += inside.size > 0
            gained += worth[outside].sum()
        return 100 * (gained + MISSED * total) / ((1 + MISSED) * total), hits

    thresholds = np.quantile(np.concatenate(scores), 1 - np.geomspace(1e-5, 0.2, 60))
    threshold = max(thresholds, key=lambda t: at(t)[0])
    score, hits = at(threshold)
    return {"score": score, "found": hits, "anomalies": total, "threshold": float(threshold), "scores": scores}


def made_up() -> list[data.Series]:
    """Sines with noise, each with one stretch of another kind."""
    rng, found = np.random.default_rng(0), []
    for i in range(6):
        t = np.arange(1200)
        values = np.sin(t / (5 + i)) + 0.1 * rng.normal(size=t.size)
        values[800:840] += 2 * rng.normal(size=40)
        times = np.datetime64("2024-01-01") + t.astype("timedelta64[h]")
        found.append(data.Series(f"made up {i + 1}", times, values.astype(np.float32), np.array([[780, 860]])))
    return found


def report(config, folder, params, series, gradients, found) -> None:
    rows = train.read_metrics(folder / "metrics.csv")
    ours = found["autoencoder"]
    page = train.Report(
        "Anomalies",
        f"An autoencoder of {config.window} consecutive values, trained on the start of {len(series)} series",
        {
            "NAB score": f"{ours['score']:.1f}",
            "a threshold on the value": f"{found['the value, a threshold']['score']:.1f}",
            "anomalies found": f"{ours['found']} of {ours['anomalies']}",
            "parameters": f"{train.count(params):,}",
            "training time": f"{rows[-1]['seconds']:.0f} s",
        },
    )
    page.table(
        "Score of the Numenta Anomaly Benchmark, standard profile",
        [{"": name, **{k: v for k, v in result.items() if k != "scores"}} for name, result in found.items()],
        "0 for silence, 100 for an alarm at the start of each window and nowhere else. All detectors see only "
        "what came before; each has the one threshold that is best for it over all series, as NAB chooses it. The "
        "baselines look at how far the value is from its mean over the beginning: as it is, and how unlikely.",
    )
    page.curves(rows)
    alarms = [np.flatnonzero(score >= ours["threshold"]) for score in ours["scores"]]
    page.series(
        "Every series: windows around anomalies, and alarms",
        [(s.name, s.values, s.windows, a[a >= probation(s)]) for s, a in zip(series, alarms, strict=True)],
    )
    page.html("Is the gradient right?", gradients.table_html())
    page.config(cli.configuration(config) | train.versions())
    page.write(folder / "report.html")


if __name__ == "__main__":
    cli.experiment(main, Config)
