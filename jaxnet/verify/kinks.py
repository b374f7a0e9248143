"""Functions that are not smooth at the point.

At a kink (relu at exactly 0, two equal maxima) differences converge to the mean of two slopes while the
right answer is any subgradient; at a jump (floor of an integer) they do not converge. Then (a) the same
examination at a point moved by 1e-3 of each element judges the formula, and (b) at the point itself every
element of the gradient must lie in the interval of the gradients at points nearby, and so must its slope
⟨g, d⟩ along directions d that move many elements: two equal maxima share one slope of 1.

Reference: F. H. Clarke, "Optimization and Nonsmooth Analysis" (1983): the generalized gradient is the
convex hull of limits of gradients nearby. Its support along d is reached by gradients at x ± t·d; the
interval per element is its bounding box.
"""

from dataclasses import dataclass

import numpy as np

from jaxnet.verify.differences import scales
from jaxnet.verify.error_map import ErrorMap
from jaxnet.verify.judge import Examination, examine, roads_for
from jaxnet.verify.locate import locate
from jaxnet.verify.problem import Problem, Rounding
from jaxnet.verify.report import Worst
from jaxnet.verify.roads import HAND, OWN, REFERENCE, Gradient

_SAMPLES = 24
_LEAVES_MOVED = 32
_COUPLED = 4


@dataclass(frozen=True)
class Excuse:
    """The verdict on a leaf at which the function has a kink."""

    state: str
    verdict: str
    worst: Worst | None
    diagnosis: str | None = None
    errors: ErrorMap | None = None


def excuse(problem: Problem, base: Examination, rounding: Rounding) -> dict[int, Excuse]:
    """Judge again the leaves with a kink at the point whose gradient differs there."""

    def finite(number: int) -> bool:
        part = problem.arguments.leaves[number].part
        roads = roads_for(problem, number, base.gradients)
        return all(np.isfinite(base.gradients[road][part]).all() for road in roads if road != REFERENCE)

    suspects = [
        n for n, judged in base.judged.items()
        if judged.kinked and finite(n)
        and (judged.disputed or judged.wrong - {REFERENCE} or not (judged.complete or judged.negligible))
    ]  # fmt: skip
    if not suspects:
        return {}
    rng = np.random.default_rng(problem.seed & 0xFFFFFFFF)
    sizes = np.concatenate([scales(problem.point[leaf.part])[1] for leaf in problem.arguments.leaves])
    signs = rng.choice([-1.0, 1.0], sizes.size)
    moved = problem.point + 1e-3 * signs * sizes * rng.uniform(0.5, 1, sizes.size)
    again = examine(problem, moved, rounding, suspects)
    nearby = _nearby(problem, base, sizes, rng)
    what = "jumps" if any(base.judged[n].jumped for n in suspects) else "has a kink"
    problem.remarks.append(
        f"the function {what} at this point: formulas were judged at a point moved by 1e-3, and here each "
        "element must lie between the gradients nearby"
    )
    return {n: _excuse(problem, base, again, nearby, n) for n in suspects}


def _slopes_outside(problem: Problem, base: Examination, nearby: np.ndarray, number: int, road: str) -> bool:
    """Whether ⟨g, d⟩ is outside the slopes nearby for a direction d of the leaf, once all ones, else random."""
    part = problem.arguments.leaves[number].part
    rng = np.random.default_rng((problem.seed + number) & 0xFFFFFFFF)
    sizes = scales(problem.point[part])[1]
    sample = _sampler(problem)
    for k in range(_COUPLED):
        d = np.ones(sizes.size) if k == 0 else rng.standard_normal(sizes.size)
        rows = list(nearby)
        for sign in (1.0, -1.0):
            move = np.zeros_like(problem.point)
            # A little beside the line, which may run along a kink.
            move[part] = 1e-7 * sign * sizes * (d + 0.01 * rng.standard_normal(sizes.size))
            rows.append(sample(problem.point + move))
        slopes = np.stack(rows)[:, part] * sizes @ d
        slope = float(base.gradients[road][part] * sizes @ d)
        allowed = 1e-5 * float(np.abs(np.stack(rows)[:, part] * sizes * d).sum(axis=1).max())
        if not np.nanmin(slopes) - allowed <= slope <= np.nanmax(slopes) + allowed:
            return True
    return False


def _sampler(problem: Problem) -> Gradient:
    """The road that knows no custom rule if there is one."""
    taken = problem.roads
    return taken[next(road for road in (REFERENCE, OWN, HAND) if road in taken)]


def _nearby(problem: Problem, base: Examination, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gradients at points nearby, a row each, by the road that knows no custom rule if there is one.

    Random moves of everything, and each leaf moved up or down as a whole: where many kinks add up (a bias
    of zeros over dead inputs) random moves never reach the end of the interval. The plain function's own
    derivative at the point is a limit of such gradients too, or JAX's choice between them.
    """
    sample = _sampler(problem)
    moves = [10.0 ** -rng.uniform(6, 8) * sizes * rng.standard_normal(sizes.size) for _ in range(_SAMPLES)]
    for leaf in problem.arguments.leaves[:_LEAVES_MOVED]:
        alone = np.zeros_like(sizes)
        alone[leaf.part] = 1e-7 * sizes[leaf.part]
        moves += [alone, -alone]
    rows = [sample(problem.point + move) for move in moves]
    rows += [base.gradients[REFERENCE]] if REFERENCE in base.gradients else []
    return np.stack([row for row in rows if np.isfinite(row).all()] or rows)


def _excuse(problem: Problem, base: Examination, again: Examination, nearby: np.ndarray, number: int) -> Excuse:
    leaf, judged = problem.arguments.leaves[number], again.judged[number]
    wrong = [road for road in (OWN, HAND) if road in judged.wrong]
    if wrong:
        found = locate(again, number)
        words = found.verdict.replace("WRONG", "WRONG beside the kink too")
        return Excuse("fail", words, found.worst, found.diagnosis, found.errors)
    if judged.disputed or not (judged.decided or judged.negligible):
        return Excuse("undecided", "on a kink, and differences beside it are too inexact", None)
    low, high = nearby[:, leaf.part].min(axis=0), nearby[:, leaf.part].max(axis=0)
    size = np.abs(nearby[:, leaf.part]).max()
    for road in roads_for(problem, number, base.gradients):
        got = base.gradients[road][leaf.part]
        outside = np.nan_to_num(np.maximum(low - got, got - high), nan=np.inf)
        if road != REFERENCE and outside.max() > 1e-5 * size:
            place = int(outside.argmax())
            nearest = float(np.clip(got[place], low[place], high[place]))
            worst = Worst(road, leaf.index(place), float(got[place]), nearest)
            return Excuse("fail", f"WRONG: {road} is no subgradient at the kink", worst)
        if road != REFERENCE and _slopes_outside(problem, base, nearby, number, road):
            place = int((high - low).argmax())
            worst = Worst(
                road, leaf.index(place), float(got[place]), float(nearby[:, leaf.part].mean(axis=0)[place])
            )
            return Excuse("fail", f"WRONG: {road} is no subgradient at the kink, all elements together", worst)
    if base.judged[number].jumped:
        return Excuse("pass", "ok: the function jumps here; right beside the jump", None)
    count = int((high - low > 1e-3 * size).sum())
    return Excuse("pass", f"ok: {count} elements on a kink, a valid subgradient", None)
