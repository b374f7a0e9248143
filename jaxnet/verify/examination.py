"""One check from beginning to end: what is compiled once, and the report of one seed."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxnet.verify import around, frozen, kinks, precision, roads, rules, second
from jaxnet.verify.adjoint import adjoint, complex_step, linearity
from jaxnet.verify.determinism import determinism
from jaxnet.verify.differences import Lines
from jaxnet.verify.form import form
from jaxnet.verify.judge import Examination, Judged, examine, roads_for
from jaxnet.verify.kinks import Excuse
from jaxnet.verify.locate import locate
from jaxnet.verify.pose import pose
from jaxnet.verify.precision import Native, OwnDtype
from jaxnet.verify.problem import Options, Problem, Rounding
from jaxnet.verify.report import LeafReport, Report, WitnessReport
from jaxnet.verify.roads import HAND, OWN, REFERENCE, brief
from jaxnet.verify.transformations import beside, jit, vmap
from jaxnet.verify.values import own_value, plain_form

_RANK = {"pass": 0, "undecided": 1, "fail": 2}


@dataclass
class Findings:
    """The examination of every leaf at one point."""

    problem: Problem
    base: Examination
    rounding: Rounding
    verdicts: dict[int, Excuse]
    held: set[int] = field(default_factory=set)  # leaves that agree once stop_gradient is held fixed

    @property
    def state(self) -> str:
        """The worst state of a leaf."""
        return max((verdict.state for verdict in self.verdicts.values()), key=_RANK.__getitem__)

    @property
    def kinked(self) -> bool:
        """Whether the function has a kink at the point."""
        return any(judged.kinked for judged in self.base.judged.values())

    def mark(self, where: str, other: "Findings") -> None:
        """Leaves that are right here, but wrong in `other`, are wrong."""
        for n, said in other.verdicts.items():
            if said.state == "fail" and self.verdicts[n].state != "fail":
                self.verdicts[n] = replace(said, verdict=f"{said.verdict} ({where})")

    def words(self) -> str:
        """The leaves in the worst state, in words."""
        leaves = self.problem.arguments.leaves
        bad = [(leaves[n].name, v) for n, v in self.verdicts.items() if v.state == self.state]
        return "; ".join(f"{name}: {verdict.verdict}" for name, verdict in bad[:4])


class Check:
    """A function and all that is compiled to check it. Each seed is one report; none compiles anything anew."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], options: Options) -> None:
        """Put the question; what is wrong with it is raised here."""
        if not callable(fn):
            raise TypeError(f"check_gradients needs a function; got {fn!r}.")
        if options.order not in (1, 2):
            raise ValueError(f"order={options.order!r}: the gradient is order 1, the gradient of the gradient 2.")
        for name in ("rtol", "atol", "nondeterminism"):
            bound = getattr(options, name)
            if not isinstance(bound, int | float | np.number) or not 0 <= bound < np.inf:
                raise ValueError(f"{name}={bound!r}: it must be a finite number, 0 or more.")
        self.places = around.places(options.around)
        self.title = getattr(fn, "__name__", type(fn).__name__)
        self.first = pose(fn, args, options, 0)
        self.native = Native(self.first)
        self.frozen: Lines | None = None
        self.recorder: frozen.Recorder | None = None
        self.second: Problem | None = None

    @np.errstate(all="ignore")  # a function may be infinite or NaN somewhere: that is what is looked for
    def report(self, seed: int, began: float | None = None, *, exact: bool = True) -> Report:
        """The report of one seed; without the witnesses that need no step size if not `exact`."""
        began = time.perf_counter() if began is None else began
        problem = self.first if seed == self.first.seed else self.first.seeded(seed)
        found = self.examine(problem)
        value = found.base.value
        if not np.isfinite(value):
            problem.remarks.append(f"the function's value is {value}: there is no gradient to check")
        native = self._native(problem)
        own = self._own_dtype(found) if np.isfinite(value) and not isinstance(native, Exception) else {}
        witnesses = [_differences(found), *self._own_witness(problem, own, native)]
        if exact:
            witnesses += self._exact(found, native)
        witnesses += [self.around(found, place) for place in self.places]
        if problem.options.order == 2:
            witnesses.append(self.order_two(found))
        leaves = [_leaf_report(found, n, own.get(n)) for n in found.verdicts]
        leaves += _value_report(problem, value, found.rounding)
        if any(leaf.state == "fail" for leaf in leaves):
            _remark_on_steps(problem)
        return Report(
            self.title, tuple(leaves), tuple(problem.remarks), time.perf_counter() - began, tuple(witnesses)
        )

    def examine(self, problem: Problem) -> Findings:
        """Judge every leaf at the point, with stop_gradients held fixed if that explains a difference."""
        found = _examine(problem)
        if found.state == "pass" or not problem.stops:
            return found
        try:
            again = _examine(self._hold_stops(problem))
        except NotImplementedError as reason:
            problem.remarks.append(f"{reason}: pass reference=, a function with a constant in its place")
            # What the plain function's autodiff says too may be right, for a value that was meant to be fixed.
            for n, judged in found.base.judged.items():
                if found.verdicts[n].state == "fail" and found.base.gradients.keys() <= judged.wrong | {HAND}:
                    found.verdicts[n] = Excuse("undecided", str(reason), None)
            return found
        better = {n for n, v in again.verdicts.items() if v.state == "pass" and found.verdicts[n].state != "pass"}
        if not better:
            return found
        held = Excuse("pass", "ok: agrees once stop_gradient is held fixed", None)
        again.verdicts = {n: held if n in better else said for n, said in found.verdicts.items()}
        own = again.base.gradients.get(OWN)
        cut = [problem.arguments.leaves[n] for n in sorted(better) if own is not None]
        if none := [leaf.name for leaf in cut if own is not None and not own[leaf.part].any()]:
            problem.remarks.append(f"stop_gradient: no gradient at all reaches {', '.join(none)}")
        again.held = better
        return again

    def around(self, at_point: Findings, place: str) -> WitnessReport:
        """Examine the leaves at another point; those that are wrong there are wrong."""
        name, problem = f"around: {place}", at_point.problem
        moved = replace(problem, point=around.moved(problem, place))
        found = self.examine(moved)
        if not np.isfinite(found.base.value):
            return WitnessReport(name, "not taken", f"the function's value is {found.base.value} there")
        at_point.mark(name, found)
        return WitnessReport(
            name, found.state, found.words() if found.state != "pass" else "every leaf agrees there"
        )

    def order_two(self, found: Findings) -> WitnessReport:
        """Examine the gradient of the gradient, beside the point if that is on a kink."""
        name, problem = "order 2", found.problem
        if problem.own is None or problem.closed is None or not problem.reverse_mode:
            return WitnessReport(name, "not taken", problem.own_reason or "there is no gradient to differentiate")
        first = replace(problem, point=beside(problem, 1)[0]) if found.kinked else problem
        try:
            if self.second is None:
                self.second = second.derivative(first, hold_stops=problem.stops)
        except Exception as error:  # a rule without a second derivative: any type
            problem.remarks.append(f"order 2: not supported ({brief(error)})")
            return WitnessReport(name, "not taken", f"not supported ({brief(error)})")
        again = _examine(second.seeded(self.second, first))
        if not np.isfinite(again.base.value):
            return WitnessReport(name, "not taken", "the gradient is not finite")
        found.mark(name, again)
        return WitnessReport(name, again.state, again.words() if again.state != "pass" else "every leaf agrees")

    def _hold_stops(self, problem: Problem) -> Problem:
        if self.frozen is None or self.recorder is None:
            record, replay = frozen.frozen(problem.closed, into_rules=True)
            self.recorder = frozen.Recorder(record, problem.promoted)
            self.frozen = Lines(lambda v, given: (given[0] * replay(given[1], v)[0]).sum(), problem.closed)
        return replace(problem, along=self.frozen, line_extra=self.recorder)

    def _native(self, problem: Problem) -> Any:
        """Outputs and gradients in the function's own dtype from two calls; what JAX raises instead."""
        try:
            first = self.native(problem.point, problem.weights)
            return first, self.native(problem.point, problem.weights)
        except Exception as error:
            return error

    def _exact(self, found: Findings, native: Any) -> list[WitnessReport]:
        """The witnesses that need no step size."""
        problem, rounding = found.problem, found.rounding
        if isinstance(native, Exception):
            ruled = problem.closed is None or rules.has_rules(problem.closed.jaxpr)
            stated = problem.options.hand_written is not None and not (problem.plain and problem.plain.reverse)
            if problem.reverse_mode and ruled and not stated:
                witnesses = [WitnessReport("form", "fail", f"WRONG: jax.grad raises {brief(native)}")]
            else:
                witnesses = [WitnessReport("form", "not taken", f"there is no reverse mode ({brief(native)})")]
        else:
            (y, first), (_, again) = native
            witnesses = [determinism(problem, first, again)]
            if np.isfinite(found.base.value):
                hand = problem.options.hand_written
                claims = {} if hand is None else roads.claims_of(hand, problem.arguments)
                witnesses.append(form(problem, first, claims, found.verdicts))
            if problem.options.reference is not None:
                witnesses.append(plain_form(problem, y))
        if np.isfinite(found.base.value):
            witnesses += [complex_step(problem, rounding, kinked=found.kinked)]
            witnesses += [ask(problem, rounding) for ask in (adjoint, linearity, jit, vmap)]
        return witnesses

    def _own_witness(self, problem: Problem, own: dict[int, OwnDtype], native: Any) -> list[WitnessReport]:
        if not own:
            return []
        worst = max(own.values(), key=lambda result: result.error - result.bound)
        words = f"{worst.road} is {worst.error:.2g} eps off, {worst.bound:.3g} allowed"
        wrong = words if not worst.ok else own_value(problem, self.native, native[0][0])
        return [WitnessReport("own dtype", "fail" if wrong else "pass", f"WRONG: {wrong}" if wrong else words)]

    def _own_dtype(self, found: Findings) -> dict[int, OwnDtype]:
        """The own dtype against float64; for leaves that differ on a kink, beside it."""
        problem = found.problem
        own = precision.own_dtype(problem, self.native, found.base.gradients, found.rounding, problem.point)
        suspects = [n for n, result in own.items() if not result.ok and found.base.judged[n].kinked]
        if suspects:
            point = problem.arguments.rounded(beside(problem, 1)[0])
            gradients = {road: gradient(point) for road, gradient in problem.roads.items()}
            again = precision.own_dtype(problem, self.native, gradients, found.rounding, point)
            own.update({n: again[n] for n in suspects if n in again})
        return own


def _examine(problem: Problem) -> Findings:
    rounding = precision.rounding(problem)
    base = examine(problem, problem.point, rounding, list(range(len(problem.arguments.leaves))))
    excused = kinks.excuse(problem, base, rounding)
    verdicts = {n: _verdict(base.judged[n], base, excused.get(n)) for n in base.judged}
    return Findings(problem, base, rounding, verdicts)


def _verdict(judged: Judged, base: Examination, excuse: Excuse | None) -> Excuse:
    if not np.isfinite(base.value):
        return Excuse("undecided", "the function's value is not finite", None)
    if excuse is not None:
        return Excuse(excuse.state, excuse.verdict, excuse.worst)
    if judged.wrong - {REFERENCE}:
        found = locate(base, judged.number)
        return Excuse("fail", found.verdict, found.worst, found.diagnosis, found.errors)
    if judged.disputed:
        return Excuse(
            "undecided", "the roads differ by more than rounding; differences cannot tell which is right", None
        )
    trusted = REFERENCE in judged.deviations and REFERENCE not in judged.wrong
    if judged.complete or (judged.decided and trusted):
        return Excuse("pass", "ok", None)
    if judged.negligible:
        return Excuse("pass", "ok: no effect on the value beyond rounding", None)
    return Excuse("undecided", f"differences are too inexact here to tell (± {judged.bound:.0e})", None)


def _leaf_report(found: Findings, number: int, own: OwnDtype | None) -> LeafReport:
    problem, judged, verdict = found.problem, found.base.judged[number], found.verdicts[number]
    leaf, gradients = problem.arguments.leaves[number], found.base.gradients
    if verdict.state == "pass" and own is not None and not own.ok:
        words = f"WRONG in {leaf.dtype}: {own.road} is {own.error:.3g} eps off, {own.bound:.3g} allowed"
        verdict = Excuse("fail", words, own.worst, f"right in float64, wrong in {leaf.dtype}")
    taken = roads_for(problem, number, gradients)
    best = next(r for r in (REFERENCE, OWN, HAND) if r in taken)
    agreed = max(gap for road, gap in judged.deviations.items() if road != REFERENCE or len(taken) == 1)
    return LeafReport(
        name=leaf.name,
        shape=leaf.shape,
        dtype=str(leaf.dtype),
        state=verdict.state,
        norm=float(np.linalg.norm(gradients[best][leaf.part])),
        deviations={road: judged.deviations.get(road) for road in (REFERENCE, OWN, HAND)},
        bound=judged.bound if np.isfinite(judged.bound) else None,
        spread=judged.spread,
        digits=float(np.clip(-np.log10(max(agreed, 1e-16)), 0, 16)),
        own_dtype_eps=None if own is None else own.error,
        own_dtype_bound=None if own is None else own.bound,
        verdict=verdict.verdict,
        worst=verdict.worst,
        diagnosis=verdict.diagnosis,
        errors=verdict.errors,
    )


def _value_report(problem: Problem, value: float, rounding: Rounding) -> list[LeafReport]:
    """A row of its own if the forward pass of a custom rule returns another value than the function."""
    if problem.forward is None or problem.options.reference is not None:
        return []
    forward = problem.forward(problem.point)
    allowed = problem.floor * max(abs(forward), abs(value)) + 16 * rounding.value
    if not np.isfinite(value) or abs(forward - value) <= allowed:
        return []
    verdict = f"WRONG: under jax.grad the function returns {forward:.9g}, without {value:.9g}"
    return [LeafReport("value", (), "float64", "fail", 0.0, {}, None, None, None, None, None, verdict)]


def _differences(found: Findings) -> WitnessReport:
    words = "every leaf agrees" if found.state == "pass" else found.words()
    if found.held and found.state == "pass":
        words += " once stop_gradient is held fixed"
    return WitnessReport("differences", found.state, words)


_STEPS = ("round", "floor", "ceil", "sign", "round_nearest_even")


def _remark_on_steps(problem: Problem) -> None:
    """Say why differences of a step function are zero, and what to pass if another slope is meant."""
    steps = [name for name in _STEPS if problem.has(name)]
    if steps:
        problem.remarks.append(
            f"the function has steps ({', '.join(steps)}), whose slope is 0 where it has one. If another "
            "slope s' is meant (straight-through, surrogate), pass reference=s(x) + stop_gradient(fn(x) - s(x))"
        )
