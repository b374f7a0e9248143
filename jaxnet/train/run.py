"""The folder of a run: `config.json`, `metrics.csv`, `checkpoints/`, and what else an experiment puts there.

`metrics.csv` is written before the checkpoint that it belongs to, and on resuming it is cut back to the
checkpoint taken: no line is lost or doubled, whenever the run was killed.
"""

import csv
import io
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxnet.train.checkpoint import Checkpoints
from jaxnet.train.files import remove_temporaries, write_atomically
from jaxnet.train.state import TrainState

Row = dict[str, int | float | None]
_COUNTS = ("step", "epoch")


class RunFolder:
    """What `fit` writes and reads."""

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        """Opens a new folder, or one to resume.

        Raises:
            FileExistsError: if there is a run in it and `resume` is False.
            FileNotFoundError: if there is nothing to resume.
        """
        self.path = Path(path)
        exists = (self.path / "config.json").exists() or any(self.path.glob("checkpoints/*"))
        if exists and not resume:
            raise FileExistsError(f"{path} already holds a run: resume it, or give the new one another name")
        if resume and not exists:
            raise FileNotFoundError(f"there is no run to resume in {path}")
        self.checkpoints = Checkpoints(self.path / "checkpoints")
        remove_temporaries(self.path)
        self.rows: list[Row] = []

    def configure(self, options: Mapping[str, Any]) -> None:
        """Writes `config.json`: the options given, and the versions of what computes."""
        config = {"options": dict(options), "versions": versions()}
        write_atomically(self.path / "config.json", json.dumps(config, indent=2, default=str) + "\n")

    def restore(self, state: TrainState) -> TrainState:
        """Returns the last whole checkpoint, or `state` if there is none yet, and takes up its metrics."""
        restored = self.checkpoints.restore(state)
        if restored is None:
            return state
        step = int(restored.step)
        self.rows = [row for row in read_metrics(self.path / "metrics.csv") if (row["step"] or 0) <= step]
        return restored

    def save(self, state: TrainState) -> None:
        """Writes the metrics so far, then a checkpoint."""
        names = dict.fromkeys([*_COUNTS, "seconds", *(name for row in self.rows for name in row)])
        text = io.StringIO()
        writer = csv.DictWriter(text, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _text(name, row.get(name)) for name in names} for row in self.rows)
        write_atomically(self.path / "metrics.csv", text.getvalue())
        self.checkpoints.save(state)


def read_metrics(path: str | Path) -> list[Row]:
    """Reads a `metrics.csv`: a dict for each step; None where a metric wasn't measured."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        return [
            {name: float(text) if text else None for name, text in row.items()} for row in csv.DictReader(file)
        ]


def versions() -> dict[str, str]:
    """The versions of Python, jaxnet and what it stands on, and the platform."""
    packages = ("jaxnet", "jax", "jaxlib", "optax", "orbax-checkpoint", "numpy", "scikit-learn")
    found = {name: metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found, "platform": jax.default_backend()}


def _text(name: str, value: int | float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if name in _COUNTS else f"{value:.3f}" if name == "seconds" else f"{value:.9g}"
