"""Functions that are not smooth at the point.

At a kink (relu at exactly 0, two equal maxima) differences converge to the mean of two slopes while the
right answer is any subgradient; at a jump (floor of an integer) they do not converge. Then (a) the same
examination at a point moved by 1e-3 of each element judges the formula, and (b) at the point itself the
gradient must lie in the convex hull of the gradients at points nearby: two equal maxima share one slope of 1.

Reference: F. H. Clarke, "Optimization and Nonsmooth Analysis" (1983): the generalized gradient is the
convex hull of limits of gradients nearby.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from jaxnet.verify.differences import scales
from jaxnet.verify.error_map import ErrorMap
from jaxnet.verify.judge import Examination, examine, roads_for
from jaxnet.verify.locate import locate
from jaxnet.verify.problem import Problem, Rounding
from jaxnet.verify.report import Worst
from jaxnet.verify.roads import HAND, OWN, REFERENCE, Gradient

_SAMPLES = 24
_LEAVES_MOVED = 32
_CUTS = 32


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
        f"the function {what} at this point: formulas were judged at a point moved by 1e-3, and here "
        "the gradient must lie in the convex hull of those nearby"
    )
    return {n: _excuse(problem, base, again, nearby, n) for n in suspects}


def _outside(
    problem: Problem, base: Examination, nearby: np.ndarray, number: int, road: str
) -> tuple[int, float] | None:
    """The place that is furthest outside the hull of the gradients nearby, and the nearest value; None if inside.

    The hull of known gradients is widened towards g as long as that brings it nearer: r = g - p, p its point
    nearest to g, and gradients at x + t·r reach furthest along r (those of concave parts at x - t·r).
    """
    part = problem.arguments.leaves[number].part
    rng = np.random.default_rng((problem.seed + number) & 0xFFFFFFFF)
    sizes, sample = scales(problem.point[part])[1], _sampler(problem)

    def beside(d: np.ndarray) -> np.ndarray:
        move = np.zeros_like(problem.point)
        # A little beside the line, which may run along a kink.
        move[part] = 1e-7 * sizes * (d + 0.01 * np.abs(d).max() * rng.standard_normal(sizes.size))
        found: np.ndarray = sample(problem.point + move)[part] * sizes
        return found

    rows, g = nearby[:, part] * sizes, base.gradients[road][part] * sizes
    size = np.abs(rows).max()
    low, high = rows.min(axis=0), rows.max(axis=0)
    beyond = np.maximum(low - g, g - high)
    if beyond.max() > 1e-5 * size:
        place = int(beyond.argmax())
        return place, float(np.clip(g, low, high)[place] / sizes[place])
    bends = np.where(beside(np.ones(sizes.size)) < beside(-np.ones(sizes.size)), -1.0, 1.0)
    for _ in range(_CUTS):
        nearest = _nearest(rows, g)
        r = g - nearest
        if not np.abs(r).max() > 1e-5 * size:
            return None
        d = r / np.abs(r).max()
        new = np.stack([beside(d), beside(d * bends)])
        new = new[np.isfinite(new).all(axis=1)]
        gained = (new @ d).max(initial=-np.inf) - (rows @ d).max()
        if not gained > 1e-5 * np.abs(rows * d).sum(axis=1).max():
            place = int(np.abs(r).argmax())
            return place, float(nearest[place] / sizes[place])
        rows = np.concatenate([rows, new])
    return None


def _nearest(rows: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The point nearest to g in the convex hull of the rows.

    Reference: Wolfe, "Finding the nearest point in a polytope" (1976): min |Aλ|² + (Σλ - 1)² over λ ≥ 0, A the
    rows less g, has its direction.
    """
    away = (rows - g) / (np.abs(rows - g).max() or 1.0)
    away = np.linalg.qr(away.T, mode="r") if away.shape[1] > away.shape[0] else away.T
    system = np.concatenate([away, np.ones((1, len(rows)))])
    weights = nnls(system, np.append(np.zeros(len(away)), 1.0))[0]
    nearest: np.ndarray = weights @ rows / weights.sum()
    return nearest


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
        cause = locate(again, number)
        words = cause.verdict.replace("WRONG", "WRONG beside the kink too")
        return Excuse("fail", words, cause.worst, cause.diagnosis, cause.errors)
    if judged.disputed or not (judged.decided or judged.negligible):
        return Excuse("undecided", "on a kink, and differences beside it are too inexact", None)
    low, high = nearby[:, leaf.part].min(axis=0), nearby[:, leaf.part].max(axis=0)
    size = np.abs(nearby[:, leaf.part]).max()
    for road in roads_for(problem, number, base.gradients):
        if road != REFERENCE and (found := _outside(problem, base, nearby, number, road)):
            got = float(base.gradients[road][leaf.part][found[0]])
            worst = Worst(road, leaf.index(found[0]), got, found[1])
            return Excuse("fail", f"WRONG: {road} is no subgradient at the kink", worst)
    if base.judged[number].jumped:
        return Excuse("pass", "ok: the function jumps here; right beside the jump", None)
    count = int((high - low > 1e-3 * size).sum())
    return Excuse("pass", f"ok: {count} elements on a kink, a valid subgradient", None)
