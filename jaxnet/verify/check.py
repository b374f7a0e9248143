"""The public checks: is the gradient of this function right?"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxnet.verify import kinks, precision
from jaxnet.verify.judge import Examination, Judged, examine, roads_for
from jaxnet.verify.locate import locate
from jaxnet.verify.problem import Problem, Rounding, pose
from jaxnet.verify.report import LeafReport, Report
from jaxnet.verify.roads import HAND, OWN, REFERENCE


class GradientError(AssertionError):
    """A gradient that is wrong, or could not be proved right; `report` tells which and where."""

    def __init__(self, report: Report) -> None:
        """Take the report's table as the message."""
        super().__init__(f"\n{report}")
        self.report = report


def check_gradients(
    fn: Callable[..., Any], *args: Any, hand_written: Callable[..., Any] | None = None, seed: int = 0
) -> Report:
    r"""Compare four roads to the gradient of `fn` at `args`, leaf by leaf.

    The roads are autodiff of the plain function ("reference": every `custom_jvp` and `custom_vjp` rule
    left out), `jax.grad` with the function's own rules, a hand-written gradient if there is one, and
    finite differences in float64. The last judge the others: along random directions u, and at single
    elements, with D ± err from a Richardson table,

        |⟨g, u⟩ - D| ≤ 10·err + 1e-9·max(|⟨g, u⟩|, |D|) + 1e-12·Σ|g·u|.

    There is no tolerance to choose. A leaf where err is too large to tell is "undecided", which is not ok.
    The gradient in the leaves' own dtype is held against the one in float64, in machine epsilons:
    ‖g_own - g‖ ≤ 48·eps·‖g‖ + 16·(change of g when the arguments are perturbed by eps/2).

    Args:
        fn: any JAX function with a float output. If that is not a real scalar, a random cotangent is used.
        *args: pytrees. Leaves of float or complex dtype are differentiated, all others held fixed.
        hand_written: `hand_written(*args)` returns the gradients to be proved: a tuple with one entry per
            argument, of the argument's tree (None for what cannot be differentiated). Arguments beyond
            its end have no claim.
        seed: of the random directions.

    Returns:
        A `Report`: `.ok`, `.leaves`, `str(report)`, `.to_html(path)`.

    Raises:
        ValueError: no float output, nothing to differentiate, or `hand_written` disagrees with the
            arguments' tree or shapes. What `fn` itself raises comes through.
        TypeError: `hand_written` does not return a tuple.

    Example:
        >>> report = check_gradients(lambda w, x: jnp.tanh(x @ w).sum(), w, x)
        >>> report.ok
        True

    Reference: Griewank and Walther, "Evaluating Derivatives" (2008); Ridders (1982), see differences.py.
    """
    began = time.perf_counter()
    problem = pose(fn, args, hand_written, seed)
    chosen = list(range(len(problem.arguments.leaves)))
    rounding = precision.rounding(problem)
    base = examine(problem, problem.point, rounding, chosen)
    if not np.isfinite(base.value):
        problem.remarks.append(f"the function's value is {base.value}: there is no gradient to check")
    excused = kinks.excuse(problem, base, rounding)
    own = precision.own_dtype(problem, base.gradients, rounding)
    reports = [_leaf_report(base, base.judged[n], excused.get(n), own.get(n)) for n in chosen]
    reports += _value_report(problem, base.value, rounding)
    if problem.stops and any(report.state == "fail" for report in reports):
        problem.remarks.append(
            "the function has a stop_gradient, through which differences still see: a mismatch may be meant"
        )
    title = getattr(fn, "__name__", type(fn).__name__)
    return Report(title, tuple(reports), tuple(problem.remarks), time.perf_counter() - began)


def assert_gradients(
    fn: Callable[..., Any], *args: Any, hand_written: Callable[..., Any] | None = None, seed: int = 0
) -> None:
    """Raise `GradientError`, which holds the report, unless `check_gradients` passes.

    Raises:
        GradientError: a gradient is wrong or undecided.
    """
    report = check_gradients(fn, *args, hand_written=hand_written, seed=seed)
    if not report.ok:
        raise GradientError(report)


def _leaf_report(
    base: Examination, judged: Judged, excuse: kinks.Excuse | None, own: precision.OwnDtype | None
) -> LeafReport:
    problem, gradients = base.problem, base.gradients
    leaf = problem.arguments.leaves[judged.number]
    said = _verdict(base, judged, excuse)
    if said.state == "pass" and own is not None and own.error > own.bound:
        verdict = f"WRONG in {leaf.dtype}: {own.road} is {own.error:.3g} eps off, {own.bound:.3g} allowed"
        said = kinks.Excuse("fail", verdict, None, f"right in float64, wrong in {leaf.dtype}")
    roads = roads_for(problem, judged.number, gradients)
    best = next(r for r in (REFERENCE, OWN, HAND) if r in roads)
    agreed = max(gap for road, gap in judged.deviations.items() if road != REFERENCE or len(roads) == 1)
    return LeafReport(
        name=leaf.name,
        shape=leaf.shape,
        dtype=str(leaf.dtype),
        state=said.state,
        norm=float(np.linalg.norm(gradients[best][leaf.part])),
        deviations={road: judged.deviations.get(road) for road in (REFERENCE, OWN, HAND)},
        bound=judged.bound if np.isfinite(judged.bound) else None,
        spread=judged.spread,
        digits=float(np.clip(-np.log10(max(agreed, 1e-16)), 0, 16)),
        own_dtype_eps=None if own is None else own.error,
        own_dtype_bound=None if own is None else own.bound,
        verdict=said.verdict,
        worst=said.worst,
        diagnosis=said.diagnosis,
        errors=said.errors,
    )


def _verdict(base: Examination, judged: Judged, excuse: kinks.Excuse | None) -> kinks.Excuse:
    if not np.isfinite(base.value):
        return kinks.Excuse("undecided", "the function's value is not finite", None)
    if excuse is not None:
        return excuse
    if judged.wrong - {REFERENCE}:
        found = locate(base, judged.number)
        return kinks.Excuse("fail", found.verdict, found.worst, found.diagnosis, found.errors)
    if judged.disputed:
        words = "the roads differ by more than rounding; differences cannot tell which is right"
        return kinks.Excuse("undecided", words, None)
    trusted = REFERENCE in judged.deviations and REFERENCE not in judged.wrong
    if judged.complete or (judged.decided and trusted):
        return kinks.Excuse("pass", "ok", None)
    if judged.negligible:
        return kinks.Excuse("pass", "ok: no effect on the value beyond rounding", None)
    return kinks.Excuse("undecided", "differences are too inexact here to tell", None)


def _value_report(problem: Problem, value: float, rounding: Rounding) -> list[LeafReport]:
    """A row of its own if the forward pass of a custom rule returns another value than the function."""
    if problem.forward is None:
        return []
    forward = problem.forward(problem.point)
    allowed = problem.floor * max(abs(forward), abs(value)) + 16 * rounding.value
    if not np.isfinite(value) or abs(forward - value) <= allowed:
        return []
    verdict = f"WRONG: under jax.grad the function returns {forward:.9g}, without {value:.9g}"
    return [LeafReport("value", (), "float64", "fail", 0.0, {}, None, None, None, None, None, verdict)]
