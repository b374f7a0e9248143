"""The outcome of a check: what each leaf's gradient was compared with, and how far apart they were."""

import dataclasses
import html
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROADS = ("reference", "jax.grad", "hand", "differences")
_CELLS = (48, 64)  # rows and columns of an error map at most
_HEADINGS = ("leaf", "shape", "dtype", "|gradient|", *ROADS, "digits", "own dtype", "verdict")


@dataclass(frozen=True)
class Worst:
    """The element at which a gradient is furthest from what it should be.

    Attributes:
        road: whose gradient it is.
        index: the element's index in the leaf.
        got: what that road gives.
        expected: what it should give.
        error: by how much `expected` may be off itself; None if that is unknown.
    """

    road: str
    index: tuple[int, ...]
    got: float
    expected: float
    error: float | None = None


@dataclass(frozen=True)
class ErrorMap:
    """Errors of a leaf's gradient as a picture.

    Attributes:
        cells: rows of numbers, each the largest error of a block of elements, relative to the largest right
            element of the leaf; inf where the gradient is not finite, None where the right one is unknown.
        block: elements per cell, down and across.
    """

    cells: tuple[tuple[float | None, ...], ...]
    block: tuple[int, int]

    @classmethod
    def of(cls, errors: np.ndarray) -> "ErrorMap":
        """Errors of the leaf's shape (NaN: unknown); the last axis goes across, all others go down."""
        last = errors.shape[-1] if errors.ndim else 1
        table = errors.reshape(-1, last) if errors.size else np.zeros((0, 0))
        if errors.ndim < 2 and errors.size > _CELLS[1]:  # a vector is folded like lines of text
            last = max(_CELLS[1], math.isqrt(errors.size))
            table = np.pad(errors.reshape(-1), (0, -errors.size % last), constant_values=np.nan).reshape(-1, last)
        block = tuple(-(-length // most) for length, most in zip(table.shape, _CELLS, strict=True))
        padding = [(0, -length % size) for length, size in zip(table.shape, block, strict=True)]
        table = np.pad(table, padding, constant_values=np.nan)
        rows, columns = table.shape[0] // block[0], table.shape[1] // block[1]
        cells = np.fmax.reduce(table.reshape(rows, block[0], columns, block[1]), axis=(1, 3))
        shown = tuple(tuple(None if math.isnan(c) else float(f"{c:.2e}") for c in row) for row in cells)
        return cls(shown, (block[0], block[1]))


@dataclass(frozen=True)
class WitnessReport:
    """One way of asking whether the gradient is right, over all leaves.

    Attributes:
        name: "differences", "reference", "adjoint", "linearity", "order 2", "own dtype", "jit", "vmap", …
        state: "pass", "fail", "undecided" or "not taken", which counts neither for nor against.
        verdict: the judgement in words, or why it was not taken.
    """

    name: str
    state: str
    verdict: str


@dataclass(frozen=True)
class LeafReport:
    """One differentiable leaf.

    Attributes:
        name: the argument's name and the path inside it.
        shape: the leaf's shape.
        dtype: the leaf's own dtype.
        state: "pass", "fail" or "undecided".
        norm: Euclidean norm of the gradient in float64.
        deviations: for each road the largest difference from finite differences over the random
            directions, relative to the derivative's size; None where the road was not taken.
        bound: error bound of those differences, relative to the derivative's size.
        spread: largest difference of an element between two roads, relative to the largest element.
        digits: decimal digits to which every road and the differences agree.
        own_dtype_eps: error of the gradient in the leaf's own dtype, in machine epsilons; None if unknown.
        own_dtype_bound: the error allowed, in machine epsilons.
        verdict: the judgement in words.
        worst: for a failure, the worst element.
        diagnosis: for a failure, words that name the mistake, if one of the usual ones fits.
        errors: for a failure, a picture of where it is.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    state: str
    norm: float
    deviations: Mapping[str, float | None]
    bound: float | None
    spread: float | None
    digits: float | None
    own_dtype_eps: float | None
    own_dtype_bound: float | None
    verdict: str
    worst: Worst | None = None
    diagnosis: str | None = None
    errors: ErrorMap | None = None

    def row(self) -> tuple[str, ...]:
        """The leaf's cells of the table."""
        deviations = [_number(self.deviations.get(road)) for road in ROADS[:-1]]
        bound = "-" if self.bound is None else f"±{self.bound:.0e}"
        own = "-" if self.own_dtype_eps is None else f"{self.own_dtype_eps:.1f} eps"
        digits = "-" if self.digits is None else f"{self.digits:.1f}"
        shape = "(" + ",".join(map(str, self.shape)) + ")"
        return (
            self.name,
            shape,
            self.dtype,
            f"{self.norm:.3g}",
            *deviations,
            bound,
            digits,
            own,
            self.verdict,
        )

    def failure(self) -> str | None:
        """Where the gradient is wrong, in one line."""
        if self.worst is None:
            return None
        w = self.worst
        index = "".join(f"[{','.join(map(str, w.index))}]") if w.index else ""
        error = "" if w.error is None else f" ± {w.error:.0e}"
        return f"{self.name}{index}: {w.road} gives {w.got:.9g}, expected {w.expected:.9g}{error}"


@dataclass(frozen=True)
class Report:
    """What was checked, leaf by leaf and witness by witness. `str(report)` is a table for the terminal."""

    title: str
    leaves: tuple[LeafReport, ...]
    remarks: tuple[str, ...]
    seconds: float
    witnesses: tuple[WitnessReport, ...] = ()

    @property
    def state(self) -> str:
        """The worst state of a leaf or a witness: "fail" before "undecided" before "pass"."""
        states = {leaf.state for leaf in self.leaves} | {witness.state for witness in self.witnesses}
        return next((state for state in ("fail", "undecided") if state in states), "pass")

    @property
    def ok(self) -> bool:
        """Whether everything passed; undecided is not passed."""
        return self.state == "pass"

    def __str__(self) -> str:
        """A table for the terminal, then what is wrong and where, the witnesses, and remarks."""
        rows = [_HEADINGS, *(leaf.row() for leaf in self.leaves)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS))]
        lines = [f"{self.state.upper()}  {self.title}  {self.seconds:.1f} s"]
        lines += ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [f"  worst: {text}" for leaf in self.leaves if (text := leaf.failure())]
        lines += [f"  {leaf.name}: {leaf.diagnosis}" for leaf in self.leaves if leaf.diagnosis]
        names = max((len(witness.name) for witness in self.witnesses), default=0)
        lines += [f"  {w.name.ljust(names)}  {w.state.ljust(9)}  {w.verdict}" for w in self.witnesses]
        return "\n".join([*lines, *(f"  note: {remark}" for remark in self.remarks)])

    def to_json(self) -> str:
        """The whole report as JSON; numbers that JSON does not have (inf, nan) become strings."""
        content = {"state": self.state, "ok": self.ok, **dataclasses.asdict(self)}
        return json.dumps(_plain(content), indent=1, allow_nan=False, ensure_ascii=False)

    def table_html(self) -> str:
        """Only the tables, as an HTML fragment for another page."""
        head = "".join(f"<th>{html.escape(text)}</th>" for text in _HEADINGS)
        body = []
        for leaf in self.leaves:
            *cells, verdict = (html.escape(cell) for cell in leaf.row())
            verdict += "".join(
                f"<br><code>{html.escape(text)}</code>" for text in (leaf.diagnosis, leaf.failure()) if text
            )
            columns = "".join(f"<td>{cell}</td>" for cell in [*cells, verdict])
            body.append(f'<tr class="{leaf.state}">{columns}</tr>')
        leaves = f'<table class="gradients"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
        rows = "".join(
            f'<tr class="{w.state}"><td>{html.escape(w.name)}</td><td>{w.state}</td>'
            f"<td>{html.escape(w.verdict)}</td></tr>"
            for w in self.witnesses
        )
        return leaves + (f'<table class="witnesses"><tbody>{rows}</tbody></table>' if rows else "")

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write a page that needs no other file. A reader never sees half of it."""
        remarks = "".join(f"<li>{html.escape(remark)}</li>" for remark in self.remarks)
        page = _PAGE.format(
            title=html.escape(self.title),
            state=self.state,
            seconds=f"{self.seconds:.1f}",
            table=self.table_html(),
            remarks=f"<ul>{remarks}</ul>" if remarks else "",
        )
        target = Path(path)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(page)
            os.chmod(temporary, 0o644)  # mkstemp's files are private
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
:root {{ color-scheme: light dark }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; display: block; overflow-x: auto }}
th, td {{ text-align: left; padding: .3rem .7rem; border-bottom: 1px solid #8884; white-space: nowrap }}
td {{ font-variant-numeric: tabular-nums }}
.pass td:last-child, h1.pass span {{ color: #1a7f37 }}
.fail td:last-child, h1.fail span {{ color: #cf222e }}
.undecided td:last-child, h1.undecided span {{ color: #9a6700 }}
</style></head><body>
<h1 class="{state}"><span>{state}</span> {title}</h1>
<p>Each gradient relative to finite differences in float64, with their error bound; {seconds} s.</p>
{table}{remarks}
</body></html>
"""
