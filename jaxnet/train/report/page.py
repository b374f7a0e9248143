"""The page of a training run: one HTML file that needs nothing else, not even a script."""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, SupportsFloat, SupportsInt

import numpy as np
from numpy.typing import ArrayLike

from jaxnet.train.report.curves import curves
from jaxnet.train.report.figures import INK, TEST, TRAIN, chart, pixels, png, thin, word
from jaxnet.train.report.worked_html import worked_html
from jaxnet.train.report.worked_update import WorkedUpdate

POINTS = 2000  # a scatter plot's most: each point is some 100 bytes of SVG


class Report:
    """A page put together section by section, in the order of the calls, and written once.

    Example:
        report = Report("Digits", "1,437 training images", facts={"test accuracy": "98.1 %"})
        report.curves(rows)
        report.confusion(matrix, classes=range(10))
        report.write("runs/digits/report.html")
    """

    def __init__(self, title: str, subtitle: str = "", facts: Mapping[str, str] | None = None) -> None:
        """`subtitle` says what was trained on what; `facts` are the key figures, shown large."""
        self._title = title
        self._subtitle = subtitle
        self._facts = dict(facts or {})
        self._sections: list[tuple[str, str]] = []

    def curves(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Learning curves from rows as in metrics.csv: step, and any metrics, blank (None) where not measured.

        `loss` and `test_loss` share a chart, and so does every other such pair (`test_`,
        `validation_`, `val_`). A value that is not finite is a gap in its line.
        """
        self._add("Learning curves", curves(rows))

    def confusion(self, matrix: ArrayLike, classes: Sequence[Any]) -> None:
        """How often class `true` was taken for class `predicted`: an integer matrix [true, predicted]."""
        self._add("Confusion matrix", _confusion(np.asarray(matrix), [str(name) for name in classes]))

    def pictures(self, title: str, images: ArrayLike, captions: Sequence[str]) -> None:
        """A grid of images, (n, h, w) or (n, h, w, 3): bytes as they are, other numbers from least to greatest.

        Those wider than 100 pixels are shown larger and smooth; of the others each pixel is a square.
        """
        array = np.asarray(images)
        if not (array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 3)) or array.size == 0:
            raise ValueError(
                f"images must have shape (n, h, w) or (n, h, w, 3) and not be empty, got {array.shape}"
            )
        if len(captions) != len(array):
            raise ValueError(f"captions must be one for each of the {len(array)} images, got {len(captions)}")
        grid, kind = ("pictures large", "") if array.shape[2] > 100 else ("pictures", ' class="pixels"')
        figures = (
            f'<figure><img{kind} src="{png(image)}" alt="{escape(caption)}">'
            f'<figcaption aria-hidden="true">{escape(caption)}</figcaption></figure>'
            for image, caption in zip(pixels(array), captions, strict=True)
        )
        self._add(title, f'<div class="{grid}">{"".join(figures)}</div>')

    def alignments(
        self, title: str, maps: Sequence[tuple[str, Sequence[str], Sequence[str], ArrayLike]], note: str = ""
    ) -> None:
        """Where attention looks, a table each: name, words of the rows, of the columns, p (rows, columns)."""
        parts = [f'<p class="note">{escape(note)}</p>'] if note else []
        for name, rows, columns, p in maps:
            parts.append(f"<h3>{escape(name)}</h3>" + _box(name, _alignment(rows, columns, np.asarray(p))))
        self._add(title, "".join(parts))

    def translations(self, title: str, rows: Sequence[tuple[str, str, str]], note: str = "") -> None:
        """Sentences, each with a person's translation and the network's."""
        parts = [f'<p class="note">{escape(note)}</p>'] if note else []
        for source, reference, found in rows:
            lines = (("source", source), ("person", reference), ("network", found))
            pairs = "".join(f"<dt>{name}</dt><dd>{escape(sentence)}</dd>" for name, sentence in lines)
            parts.append(f'<dl class="translation">{pairs}</dl>')
        self._add(title, "".join(parts))

    def roc(self, false_positive_rate: ArrayLike, true_positive_rate: ArrayLike, area: SupportsFloat) -> None:
        """The receiver operating characteristic and the area under it."""
        x, y = _pair("roc", false_positive_rate, true_positive_rate)

        def draw(axes: Any) -> None:
            axes.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=(0, (3, 3)))
            axes.plot(*thin(x, y), color=TRAIN, lw=1.8)
            axes.fill_between(*thin(x, y), color=TRAIN, alpha=0.1, lw=0)
            axes.set(xlabel=word(0), ylabel=word(1), xlim=(0, 1), ylim=(0, 1.005), aspect="equal")

        words = ["false positive rate", "true positive rate"]
        alt = f"ROC curve, area under it {float(area):.4f}"
        svg = chart(f"figure{len(self._sections)}", alt, draw, height=4.2, words=words)
        caption = f"Area under the curve <b>{float(area):.4f}</b>; the dashed diagonal is chance, 0.5."
        self._add("ROC curve", f'<figure class="single">{svg}<figcaption>{caption}</figcaption></figure>')

    def scatter(
        self,
        title: str,
        x: ArrayLike,
        y: ArrayLike,
        xlabel: str,
        ylabel: str,
        diagonal: bool = False,
        classes: ArrayLike | None = None,
    ) -> None:
        """Points, as for a regression's predicted against true values; `diagonal` draws the line y = x.

        With `classes`, one for each point, each class has a colour, and its name stands at their median.
        """
        xs, ys = _pair("scatter", x, y)
        groups = np.zeros(xs.shape, int) if classes is None else np.asarray(classes)
        if groups.shape != xs.shape:
            raise ValueError(f"classes must be one for each of the {xs.size} points, got shape {groups.shape}")
        finite = np.flatnonzero(np.isfinite(xs) & np.isfinite(ys))
        chosen = finite[np.linspace(0, finite.size - 1, min(finite.size, POINTS)).astype(int)]
        names = [] if classes is None else list(np.unique(groups[chosen]))

        def draw(axes: Any) -> None:
            if diagonal and chosen.size:
                ends = [min(xs[chosen].min(), ys[chosen].min()), max(xs[chosen].max(), ys[chosen].max())]
                axes.plot(ends, ends, color=TEST, lw=1)
            style = {"ls": "", "marker": "o", "ms": 3.5, "mew": 0, "alpha": 0.45}
            if classes is None:
                axes.plot(xs[chosen], ys[chosen], color=TRAIN, **style)
            for i, name in enumerate(names):
                mine = chosen[groups[chosen] == name]
                axes.plot(xs[mine], ys[mine], color=f"C{i % 10}", **style)
            for i, name in enumerate(names):
                mine = chosen[groups[chosen] == name]
                place = np.median(xs[mine]), np.median(ys[mine])
                axes.text(*place, word(2 + i), color=INK, weight="bold", ha="center", va="center")
            axes.set(xlabel=word(0), ylabel=word(1))

        alt = f"{ylabel} against {xlabel}, {xs.size:,} points"
        words = [xlabel, ylabel, *map(str, names)]
        svg = chart(f"figure{len(self._sections)}", alt, draw, height=3.8, words=words)
        caption = f"{chosen.size:,} of {xs.size:,} points" if chosen.size < xs.size else f"{xs.size:,} points"
        caption += ", and the line where both are equal." if diagonal else "."
        self._add(title, f'<figure class="single">{svg}<figcaption>{caption}</figcaption></figure>')

    def series(
        self, title: str, series: Sequence[tuple[str, ArrayLike, ArrayLike, ArrayLike]], note: str = ""
    ) -> None:
        """Time series, a chart each: name, values, windows of indices (k, 2) to shade, indices to mark.

        Values (2, t) are two lines, such as what is true and what was foretold; where one is NaN it has a gap.
        """
        figures = []
        for number, (name, values, windows, marks) in enumerate(series):
            (y, *others), places = np.atleast_2d(np.asarray(values, float)), np.asarray(marks, int)

            def draw(
                axes: Any,
                y: np.ndarray = y,
                others: Sequence[np.ndarray] = others,
                windows: ArrayLike = windows,
                places: np.ndarray = places,
            ) -> None:
                for first, last in np.asarray(windows, int).reshape(-1, 2):
                    axes.axvspan(first, last, color=TEST, alpha=0.25, lw=0)
                axes.plot(*thin(np.arange(y.size), y), color=TRAIN, lw=0.9)
                for other in others:
                    axes.plot(*thin(np.arange(other.size), other), color=TEST, lw=1.2)
                axes.plot(places, y[places], "o", color=TEST, ms=3, mew=0)
                axes.margins(x=0.01)

            alt = f"{name}: {y.size:,} values, {len(np.asarray(windows))} windows, {places.size} marks"
            svg = chart(f"figure{len(self._sections)}-{number}", alt, draw, height=1.9)
            figures.append(f"<figure>{svg}<figcaption>{escape(name)}</figcaption></figure>")
        note = f'<p class="note">{escape(note)}</p>' if note else ""
        self._add(title, f'<div class="charts">{"".join(figures)}</div>{note}')

    def table(self, title: str, rows: Sequence[Mapping[str, Any]], note: str = "") -> None:
        """Rows as a table; its columns are the rows' keys in order of appearance."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        head = "".join(f'<th scope="col">{escape(str(column))}</th>' for column in columns)
        body = "".join(f"<tr>{''.join(_cell(row.get(column)) for column in columns)}</tr>" for row in rows)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        self._add(title, _box(title, table) + (f'<p class="note">{escape(note)}</p>' if note else ""))

    def html(self, title: str, fragment: str) -> None:
        """A fragment of HTML as it is, unescaped: from a trusted source only."""
        self._add(title, _box(title, fragment))

    def worked_update(self, update: WorkedUpdate) -> None:
        """One update step worked through with its real numbers; see `work_update`."""
        self._add("One update step, worked by hand", worked_html(update))

    def config(self, config: Mapping[str, Any]) -> None:
        """Options, versions, seed: folded away; nested mappings become dotted names."""
        rows = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in _flat(config))
        table = _box("configuration", f'<table class="config">{rows}</table>')
        self._add("Configuration", f"<details><summary>Options, versions and seed</summary>{table}</details>")

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page, whole or not at all: a reader never sees half of it."""
        path = Path(path)
        page = self._page().encode()
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(page)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()

    def _add(self, title: str, body: str) -> None:
        self._sections.append((title, body))

    def _page(self) -> str:
        facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in self._facts.items())
        links = "".join(
            f'<li><a href="#s{i}">{escape(title)}</a></li>' for i, (title, _) in enumerate(self._sections)
        )
        sections = "".join(
            f'<section id="s{i}" aria-labelledby="h{i}"><h2 id="h{i}">{escape(title)}</h2>\n{body}</section>\n'
            for i, (title, body) in enumerate(self._sections)
        )
        style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{escape(self._title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<header>\n"
            f'<h1>{escape(self._title)}</h1>\n<p class="subtitle">{escape(self._subtitle)}</p>\n'
            + (f'<dl class="facts">{facts}</dl>\n' if facts else "")
            + (f'<nav aria-label="Sections"><ol>{links}</ol></nav>\n' if len(self._sections) > 2 else "")
            + f"</header>\n<main>\n{sections}</main>\n</body>\n</html>\n"
        )


def _confusion(matrix: np.ndarray, classes: list[str]) -> str:
    n = len(classes)
    if matrix.shape != (n, n) or not np.issubdtype(matrix.dtype, np.integer):
        wanted = f"square, of integers, ({n}, {n}) for the {n} classes"
        raise ValueError(f"confusion matrix must be {wanted}, got {matrix.shape} of {matrix.dtype}")
    right, true, said = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in classes)
    body = ""
    for i, name in enumerate(classes):
        cells = "".join(_count(int(c), c / max(true[i], 1), i == j) for j, c in enumerate(matrix[i]))
        recall = f'<td class="sum">{_percent(right[i], true[i])}</td>'
        body += f'<tr><th scope="row">{escape(name)}</th>{cells}{recall}</tr>'
    foot = "".join(f'<td class="sum">{_percent(r, s)}</td>' for r, s in zip(right, said, strict=True))
    total = f'<td class="sum"><b>{_percent(right.sum(), matrix.sum())}</b></td>'
    shape = " long" if n > 4 and max(map(len, classes)) > 3 else ""  # names stand upright
    shape += " many" if n > 12 else ""
    table = (
        f'<table class="confusion{shape}"><thead><tr><td></td>{head}'
        f'<th scope="col" class="sum"><span>recall %</span></th></tr></thead><tbody>{body}</tbody>'
        f'<tfoot><tr><th scope="row" class="sum">precision %</th>{foot}{total}</tr></tfoot></table>'
    )
    wrong = matrix * (1 - np.eye(n, dtype=matrix.dtype))
    worst = [divmod(int(k), n) for k in np.argsort(-wrong, axis=None, kind="stable")[:3]]
    named = ", ".join(
        f"<b>{escape(classes[i])}</b> taken for <b>{escape(classes[j])}</b> ({wrong[i, j]:,}×)"
        for i, j in worst
        if wrong[i, j]
    )
    count = f"{wrong.sum():,} of {matrix.sum():,} wrong."
    often = f" Most often: {named}." if named else ""
    return f"<p>{count}{often} Rows are the true classes, columns the predicted.</p>" + _box(
        "confusion matrix", table
    )


def _alignment(rows: Sequence[str], columns: Sequence[str], p: np.ndarray) -> str:
    if p.shape != (len(rows), len(columns)) or not (np.all(p >= 0) and np.all(p <= 1.001)):
        raise ValueError(
            f"an alignment needs probabilities ({len(rows)}, {len(columns)}), as its words; got {p.shape} from "
            f"{p.min(initial=np.inf):.3g} to {p.max(initial=-np.inf):.3g}"
        )
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in columns)
    body = ""
    for name, line in zip(rows, p, strict=True):
        cells = "".join(_share(float(value)) for value in line)
        body += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    return (
        f'<table class="confusion long many"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>'
    )


def _share(share: float) -> str:
    """A cell coloured by its share of the row, in percent."""
    percent = round(100 * share)
    return f'<td class="hit" style="--tint:{percent}%">{percent}</td>' if percent else '<td class="none">·</td>'


def _count(count: int, share: float, hit: bool) -> str:
    """A cell coloured by its share of the row; errors are rare, so a root keeps the small ones visible."""
    if not count:
        return '<td class="none">·</td>'
    tint = round(6 + 24 * share) if hit else round(10 + 55 * math.sqrt(share))
    return f'<td class="{"hit" if hit else "miss"}" style="--tint:{tint}%">{count:,}</td>'


def _percent(part: SupportsInt, whole: SupportsInt) -> str:
    part, whole = int(part), int(whole)
    return ("100" if part == whole else f"{100 * part / whole:.1f}") if whole else "–"


def _pair(name: str, x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if xs.ndim != 1 or xs.shape != ys.shape or xs.size == 0:
        raise ValueError(f"{name} needs two vectors of equal length, not empty; got {xs.shape} and {ys.shape}")
    return xs, ys


def _cell(value: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, str | bool):
        return f"<td>{escape(str(value))}</td>"
    if isinstance(value, int | np.integer):
        return f'<td class="number">{value:,}</td>'
    if isinstance(value, float | np.floating):
        return f'<td class="number">{float(value):,.5g}</td>'
    return f"<td>{escape(str(value))}</td>"


def _box(label: str, content: str) -> str:
    """A box that scrolls sideways on its own, also by keyboard."""
    return f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">{content}</div>'


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
