"""Time series: the Numenta Anomaly Benchmark, with windows around anomalies, and ETT, to be forecast."""

import csv
import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxnet.data.archive import find, lines, members, unzipped


class Series(NamedTuple):
    """One time series; `windows` are (first, last) indices around each anomaly, inclusive."""

    name: str
    times: np.ndarray  # datetime64[s]
    values: np.ndarray  # float32
    windows: np.ndarray  # (k, 2)


class Forecast(NamedTuple):
    """A series (t, columns) to be forecast, float32; x · deviation + mean has the units of the source."""

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    columns: tuple[str, ...]
    mean: np.ndarray  # (columns,), as the deviation
    deviation: np.ndarray
    source: str


def nab(folder: str | Path | None = None) -> list[Series]:
    """58 series with 116 anomaly windows, unsupervised: NAB takes the first 15 % of each as probation.

    Reads the CSV files below `NAB/data` and `NAB/labels/combined_windows.json`, from `nab.tar.gz` or the
    folder `NAB`, in `folder` or its subfolder `nab`.

    Raises:
        FileNotFoundError: if it isn't there; the message has the public source.
        ValueError: for a damaged file; the message names it.

    Reference: Lavin and Ahmad, "Evaluating real-time anomaly detection algorithms" (2015).
    """
    source = "https://github.com/numenta/NAB (data/ and labels/, packed as nab.tar.gz)"
    files = {Path(name): content for name, content in members(folder, "nab", "NAB", "nab.tar.gz", source)}
    labels = Path("NAB/labels/combined_windows.json")
    try:
        windows = json.loads(files[labels])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{labels} is missing or damaged: {error}") from error
    found = []
    for path, content in sorted(files.items()):
        if path.suffix == ".csv" and path.parts[1] == "data":
            name = "/".join(path.parts[2:])
            try:
                rows = list(csv.DictReader(io.StringIO(content.decode())))
                times = np.array([row["timestamp"] for row in rows], "datetime64[s]")
                values = np.array([row["value"] for row in rows], np.float32)
                ends = np.array([[end[:19] for end in window] for window in windows[name]], "datetime64[s]")
            except (KeyError, ValueError, UnicodeDecodeError) as error:
                raise ValueError(f"{path} is not a series of NAB: {error}") from error
            ends = ends.reshape(-1, 2)
            first = np.searchsorted(times, ends[:, 0])
            last = np.searchsorted(times, ends[:, 1], side="right") - 1
            found.append(Series(name, times, values, np.stack([first, last], 1)))
    return found


def ett(folder: str | Path | None = None, name: str = "ETTh1", *, history: int = 0) -> Forecast:
    """Two years of a transformer: six loads and the temperature of its oil, "OT", which is to be forecast.

    The first 12 months of 30 days are the training data, the next 4 the validation, the next 4 the test, as usual;
    each column is standardised by its mean and deviation over the first 12. Reads `NAME.csv` from `folder` or its
    subfolder `ett`. `windows` cuts it into inputs and what follows them.

    Args:
        folder: where it lies.
        name: "ETTh1" or "ETTh2", by the hour, "ETTm1" or "ETTm2", by the quarter.
        history: how many steps before the validation and the test are put in front of them: with the length of the
            input, forecasts begin at their first step, as in Informer.

    Raises:
        FileNotFoundError: if it isn't there; the message has the public source.
        ValueError: if it is damaged, there is no such series, or history isn't from 0 to 4 months.

    Reference: Zhou et al., "Informer: beyond efficient transformer for long sequence time-series forecasting"
    (2021).
    """
    if name not in ("ETTh1", "ETTh2", "ETTm1", "ETTm2"):
        raise ValueError(f"ett has ETTh1, ETTh2, ETTm1 and ETTm2; got {name!r}")
    month = 30 * 24 * (1 if "h" in name else 4)
    if not 0 <= history <= 4 * month:
        raise ValueError(f"ett needs a history from 0 to {4 * month} steps; got {history}")
    (path,) = find(folder, "ett", [f"{name}.csv"], "https://github.com/zhouhaoyi/ETDataset (ETT-small/)")
    columns = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    header, *rows = lines(path, unzipped(path)) or [""]
    if header != ",".join(("date", *columns)) or len(rows) < 20 * month:
        raise ValueError(
            f"{path} is not the whole {name}: it needs {20 * month} rows below date,{','.join(columns)}; it has "
            f"{len(rows)} below {header[:60]!r}"
        )
    try:
        values = np.loadtxt(rows[: 20 * month], delimiter=",", usecols=range(1, 8), ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path} has a damaged row: {error}") from error
    if len(values) != 20 * month or not np.isfinite(values).all():
        raise ValueError(f"{path} has a row without a number")
    mean, deviation = values[: 12 * month].mean(0), values[: 12 * month].std(0)
    scaled = ((values - mean) / deviation).astype(np.float32)
    train, validation = scaled[: 12 * month], scaled[12 * month - history : 16 * month]
    test = scaled[16 * month - history :]
    scale = mean.astype(np.float32), deviation.astype(np.float32)
    return Forecast(name, train, validation, test, columns, *scale, "Zhou et al., 2021")
