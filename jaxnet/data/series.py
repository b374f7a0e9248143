"""The Numenta Anomaly Benchmark: time series with windows around their anomalies."""

import csv
import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxnet.data.archive import members


class Series(NamedTuple):
    """One time series; `windows` are (first, last) indices around each anomaly, inclusive."""

    name: str
    times: np.ndarray  # datetime64[s]
    values: np.ndarray  # float32
    windows: np.ndarray  # (k, 2)


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
