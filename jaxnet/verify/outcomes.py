"""What became of each case that `jaxnet verify` ran, and the exit code that says so."""

import dataclasses
import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

EXIT_CODES = {"pass": 0, "fail": 1, "error": 2, "undecided": 3}
_ORDER = ("fail", "error", "undecided", "pass")  # the worst first
# Frames of these modules say nothing about the function of a user.
_NOT_THE_USERS = (
    "jaxnet.verify",
    "jaxnet.cli",
    "jaxnet.pytest_plugin",
    "jax",
    "jaxlib",
    "importlib",
    "jaxtyping",
    "beartype",
)


class ReportLike(Protocol):
    """A `Report`, or that of a mutation."""

    title: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether all is well."""

    def to_json(self) -> str:
        """All of it as JSON."""


@dataclass(frozen=True)
class Outcome:
    """One case, or a target without one: its report, or why there is none.

    Attributes:
        place: the file or module.
        name: `function[case]`; empty if the target could not be taken up.
        report: None if it could not be checked.
        error: why not, in one line.
        trace: the user's frames, if it was the user's function that raised.
        seconds: how long it took.
    """

    place: str
    name: str
    report: Any
    error: str
    trace: str
    seconds: float

    @property
    def title(self) -> str:
        """`file::function[case]`."""
        return f"{self.place}::{self.name}" if self.name else self.place

    @property
    def state(self) -> str:
        """ "pass", "fail", "undecided" or "error"."""
        if self.report is None:
            return "error"
        return getattr(self.report, "state", "pass" if self.report.ok else "fail")

    @property
    def why(self) -> str:
        """Why it is not "pass", in a line; empty if it is."""
        if self.report is None or self.report.ok:
            return self.error
        rows = [*getattr(self.report, "leaves", ()), *getattr(self.report, "witnesses", ())]
        bad = [f"{row.name}: {row.verdict}" for row in rows if row.state in ("fail", "undecided")]
        return (
            "; ".join([*bad, *([text] if (text := resolution(self.report)) else [])])
            or str(self.report).splitlines()[0]
        )

    def __str__(self) -> str:
        """The outcome in one line."""
        said = self.why or getattr(self.report, "counts", "")
        return f"{self.state.upper()}  {self.title}  {self.seconds:.1f} s  {said}".rstrip()


def attempt(place: str, name: str, check: Callable[[], ReportLike]) -> Outcome:
    """Run one check, whatever it raises."""
    began = time.perf_counter()
    try:
        report: Any = check()
    except (Exception, SystemExit) as error:
        return raised(place, name, error, time.perf_counter() - began)
    outcome = Outcome(place, name, report, "", "", time.perf_counter() - began)
    return dataclasses.replace(outcome, report=dataclasses.replace(report, title=outcome.title))


def raised(place: str, name: str, error: BaseException, seconds: float = 0.0) -> Outcome:
    """The outcome of what could not be checked."""
    return Outcome(place, name, None, *explain(error), seconds)


def explain(error: BaseException) -> tuple[str, str]:
    """An error in one line and, if the user's code raised it, the user's frames of its traceback."""
    frames = list(traceback.walk_tb(error.__traceback__))
    message = str(error).split("\n--------------------\n")[0]  # of JAX, about its own traceback
    line, _, more = message.strip().partition("\n")
    if not frames or _module(frames[-1][0]).startswith(("jaxnet.verify", "jaxnet.cli")):
        return line or type(error).__name__, more  # ours, which says what to do
    users = [pair for pair in frames if not _is_foreign(_module(pair[0]))]
    trace = "".join(traceback.StackSummary.extract(iter(users)).format())
    if isinstance(error, SyntaxError):
        more = "".join(traceback.format_exception_only(error)[:-1])
    return f"{type(error).__name__}: {line}".rstrip(": "), (trace + more).rstrip()


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_foreign(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in _NOT_THE_USERS)


def resolution(report: Any) -> str:
    """How closely the undecided leaves could be judged; empty if there are none."""
    leaves = [leaf for leaf in getattr(report, "leaves", ()) if leaf.state == "undecided"]
    if not leaves:
        return ""
    bounds = [leaf.bound for leaf in leaves]
    if None in bounds:
        return f"no resolution reached in {', '.join(leaf.name for leaf in leaves)}"
    worst = max(leaves, key=lambda leaf: leaf.bound)
    return f"resolution reached: {worst.bound:.0e} of the derivative, in {worst.name}"


def state(outcomes: Sequence[Outcome]) -> str:
    """The worst state: "fail" before "error" before "undecided" before "pass"."""
    return min((outcome.state for outcome in outcomes), key=_ORDER.index)


def summary(outcomes: Sequence[Outcome], seconds: float) -> str:
    """How many cases ended how."""
    states = [outcome.state for outcome in outcomes]
    counts = ", ".join(f"{states.count(s)} {s}" for s in _ORDER if s in states)
    return f"{len(states)} {'case' if len(states) == 1 else 'cases'}: {counts}  {seconds:.1f} s"


def to_json(outcomes: Sequence[Outcome], seconds: float) -> str:
    """All outcomes and their reports."""
    worst = state(outcomes)
    cases = [
        {
            "place": o.place,
            "case": o.name,
            "state": o.state,
            "seconds": o.seconds,
            "error": o.error or None,
            "trace": o.trace or None,
            "report": o.report and json.loads(o.report.to_json()),
        }
        for o in outcomes
    ]
    content = {"state": worst, "exit_code": EXIT_CODES[worst], "seconds": seconds, "cases": cases}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
