"""Learning curves: one small chart per family of metrics, training and test together."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple, SupportsFloat

import numpy as np

from jaxnet.train.report.figures import INK, TEST, TRAIN, chart, smooth, thin, word

AXES = ("step", "epoch", "seconds")
PREFIXES = {"train_": "training", "test_": "test", "validation_": "validation", "val_": "validation"}


class Series(NamedTuple):
    """One metric's values at its steps; `kind` says whose they are."""

    kind: str
    x: np.ndarray
    y: np.ndarray


def curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """The charts of every metric in `rows`, as a fragment of HTML."""
    if not rows:
        raise ValueError("curves needs at least one row of metrics, got none")
    stepped = all(_number(row, "step", i) is not None for i, row in enumerate(rows))
    families: dict[str, list[Series]] = {}
    for metric in dict.fromkeys(key for row in rows for key in row if key not in AXES):
        points = [
            (_number(row, "step", i) if stepped else i + 1, value)
            for i, row in enumerate(rows)
            if (value := _number(row, metric, i)) is not None
        ]
        if points:
            x, y = np.array(points, np.float64).T
            prefix = next((prefix for prefix in PREFIXES if metric.startswith(prefix)), "")
            families.setdefault(metric.removeprefix(prefix), []).append(
                Series(PREFIXES.get(prefix, "training"), x, y)
            )
    axis = "step" if stepped else "row"
    figures = (_family(name, family, axis, i) for i, (name, family) in enumerate(families.items()))
    return f'<div class="charts">{"".join(figures)}</div>'


def _number(row: Mapping[str, Any], key: str, i: int) -> float | None:
    """A row's value; None where it is blank, which is no point at all, whereas nan is a gap."""
    value = row.get(key)
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"curves: {key!r} in row {i} must be a number or None, got {value!r}") from None


def _family(name: str, family: list[Series], axis: str, number: int) -> str:
    label = name.replace("_", " ")

    def draw(axes: Any) -> None:
        for series in family:
            _draw(axes, series)
        if _wide(family):
            axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: _number_text(value, 6))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.get_major_locator().set_params(nbins=5)
        axes.set_xlabel(word(0))
        axes.grid(axis="x", visible=False)

    keys = "".join(
        f'<span class="key {series.kind}">{series.kind} <b>{_last(series)}</b></span>' for series in family
    )
    missing = sum(int(np.sum(~np.isfinite(series.y))) for series in family)
    note = f'<span class="note">{missing:,} not finite</span>' if missing else ""
    alt = f"{label} by {axis}: " + ", ".join(f"{series.kind} ends at {_last(series)}" for series in family)
    svg = chart(f"curve{number}", alt, draw, words=[axis])
    return f"<figure><figcaption><h3>{escape(label)}</h3>{keys}{note}</figcaption>{svg}</figure>"


def _draw(axes: Any, series: Series) -> None:
    """Training: the raw values faint, their moving average on top. Test: points on a line."""
    if series.kind != "training":
        few = len(series.x) <= 60
        axes.plot(*_finite(series.x, series.y), color=TEST, lw=1.4, marker="o" if few else "", ms=3.2, zorder=3)
    elif len(series.x) < 60:
        axes.plot(*_finite(series.x, series.y), color=TRAIN, lw=1.4, marker="." if len(series.x) < 3 else "")
    else:
        axes.plot(*_finite(*thin(series.x, series.y)), color=TRAIN, lw=0.6, alpha=0.35)
        axes.plot(*_finite(*thin(series.x, smooth(series.y))), color=TRAIN, lw=1.6)
    if not np.isfinite(series.y).any():
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color=INK)


def _finite(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x, np.where(np.isfinite(y), y, np.nan)


def _wide(family: list[Series]) -> bool:
    """Whether positive values span so many sizes that only a logarithmic axis shows them all."""
    values = np.concatenate([smooth(series.y) if len(series.y) >= 60 else series.y for series in family])
    raw = np.concatenate([series.y for series in family])
    values, raw = values[np.isfinite(values)], raw[np.isfinite(raw)]
    return bool(values.size and raw.min() > 0 and values.max() / values.min() >= 50)


def _last(series: Series) -> str:
    finite = series.y[np.isfinite(series.y)]
    return _number_text(finite[-1], 4) if finite.size else "–"


def _number_text(value: SupportsFloat, digits: int) -> str:
    value = float(value)
    return (f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.{digits}g}").replace("-", "−")
