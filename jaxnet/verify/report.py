"""The outcome of a check: what each leaf's gradient was compared with, and how far apart they were."""

import dataclasses
import json
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxnet.verify import page
from jaxnet.verify.error_map import ErrorMap

ROADS = ("reference", "jax.grad", "hand", "differences")
HEADINGS = ("leaf", "shape", "dtype", "|gradient|", *ROADS, "digits", "own dtype", "verdict")
_IN_TERMINAL = (0, 1, 2, 8, 9, 10)  # columns: what a road's distance was is in the page and in the JSON
_COLUMNS = 100
_LEAVES = 40  # rows of leaves that passed, at most


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
        """The leaf's cells under `HEADINGS`."""
        deviations = [_number(self.deviations.get(road)) for road in ROADS[:-1]]
        bound = "-" if self.bound is None else f"±{self.bound:.0e}"
        own = "-" if self.own_dtype_eps is None else f"{self.own_dtype_eps:.2g} eps"
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
        """A table that fits a terminal, then what is wrong and where, the witnesses, and remarks."""
        shown = [leaf for leaf in self.leaves if leaf.state != "pass"]
        passed = [leaf for leaf in self.leaves if leaf.state == "pass"]
        kept = [leaf for leaf in self.leaves if leaf in shown or leaf in passed[:_LEAVES]]
        lines = [f"{self.state.upper()}  {self.title}  {self.seconds:.1f} s"]
        rows = [HEADINGS, *(leaf.row() for leaf in kept)]
        lines += _table([[_shortened(row[0]), *(row[k] for k in _IN_TERMINAL[1:])] for row in rows])
        lines += [f"  and {len(passed) - _LEAVES} leaves more, all ok"] if len(passed) > _LEAVES else []
        for leaf in shown:
            lines += _wrapped("  worst: ", leaf.failure() or "") if leaf.worst else []
            lines += _wrapped(f"  {leaf.name}: ", leaf.diagnosis) if leaf.diagnosis else []
        lines += _table([[w.name, w.state, w.verdict] for w in self.witnesses])
        return "\n".join(lines + [line for remark in self.remarks for line in _wrapped("  note: ", remark)])

    def to_json(self) -> str:
        """The whole report as JSON; numbers that JSON does not have (inf, nan) become strings."""
        content = {"state": self.state, "ok": self.ok, **dataclasses.asdict(self)}
        return json.dumps(_plain(content), indent=1, allow_nan=False, ensure_ascii=False)

    def table_html(self) -> str:
        """Only the tables, as an HTML fragment for another page."""
        return page.tables(self)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write a page that needs no other file. A reader never sees half of it."""
        page.write(path, page.page(self))


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns, two blanks in; the last one is wrapped."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    lines = []
    for *cells, last in rows:
        start = "  " + "".join(cell.ljust(width + 2) for cell, width in zip(cells, widths, strict=True))
        lines += _wrapped(start, last)
    return lines


def _wrapped(start: str, words: str) -> list[str]:
    """`start` and then `words`, on further lines below each other if they are too long for the terminal."""
    indent = min(len(start), _COLUMNS // 2)
    lines = textwrap.wrap(start + words, _COLUMNS, subsequent_indent=" " * indent, drop_whitespace=True,
                          break_long_words=False, break_on_hyphens=False, replace_whitespace=True)  # fmt: skip
    return lines if start.strip() else lines or [start]


def _shortened(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:18]}…{name[-21:]}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
