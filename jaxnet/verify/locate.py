"""Where a leaf's gradient is wrong: the elements, what they should be, and the mistake that explains them.

A road that differences found right tells the right gradient at every element. Where there is none,
differences are taken at each element of a small leaf; a large one is bisected: of two halves of a direction
those which miss ⟨g, u⟩ are halved again, some k·log N lines for k wrong elements.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
import numpy as np

from jaxnet.verify import differences
from jaxnet.verify.diagnose import Evidence, Influence, diagnose
from jaxnet.verify.differences import DIRECTIONS, ELEMENT
from jaxnet.verify.error_map import ErrorMap
from jaxnet.verify.judge import Examination, affordable_lines, nothing, roads_for, rounded
from jaxnet.verify.leaves import Leaf
from jaxnet.verify.report import Worst
from jaxnet.verify.roads import HAND, OWN, REFERENCE

_EVERY_ELEMENT = 256  # leaves of up to so many elements are differenced at each of them
_SAMPLE = 64
_WIDTH = 8  # wrong parts of a leaf that are followed at once


@dataclass(frozen=True)
class Finding:
    """What is wrong with one leaf, in words, at its worst element, by its cause and as a picture."""

    verdict: str
    worst: Worst | None
    diagnosis: str | None
    errors: ErrorMap | None


@dataclass(frozen=True)
class _Known:
    """The right gradient at some places of the leaf, by how much it may be off, and where `got` is wrong."""

    places: np.ndarray
    expected: np.ndarray
    error: np.ndarray
    wrong: np.ndarray


def locate(seen: Examination, number: int) -> Finding:
    """Find where and why a leaf is wrong of which at least one road has been found wrong."""
    leaf, judged = seen.problem.arguments.leaves[number], seen.judged[number]
    roads = roads_for(seen.problem, number, seen.gradients)
    wrong = [road for road in (HAND, OWN) if road in judged.wrong] or sorted(judged.wrong)
    right = next((road for road in (REFERENCE, *roads) if road in roads and road not in judged.wrong), None)
    got = seen.gradients[wrong[0]][leaf.part]
    known = _by_differences(seen, number, wrong[0]) if right is None else _by_road(seen, number, got, right)
    worst = None
    if known.wrong.any():
        miss = np.abs(got[known.places] - known.expected)
        miss = np.where(known.wrong, np.where(np.isfinite(miss), miss, np.inf), -1)
        k = int(miss.argmax())
        place = int(known.places[k])
        worst = Worst(
            wrong[0], leaf.index(place), float(got[place]), float(known.expected[k]), float(known.error[k])
        )
    names = " and ".join(sorted(wrong))
    verdict = f"WRONG: {names} {_extent(leaf, got, known)}"
    diagnosis = diagnose(_evidence(seen, number, wrong[0], right, known))
    return Finding(verdict, worst, diagnosis, error_map(leaf, got, known.places, known.expected))


def _extent(leaf: Leaf, got: np.ndarray, known: _Known) -> str:
    """At how many elements."""
    count, size = int(known.wrong.sum()), got.size
    if not np.isfinite(got).all():
        return f"not finite at {int((~np.isfinite(got)).sum())} of {size}"
    if len(known.places) == size:
        return f"at {count} of {size}"
    return f"at {count} or more of {size}" if count else f"somewhere in {size}"


def _by_road(seen: Examination, number: int, got: np.ndarray, right: str) -> _Known:
    """Every element, from a road that is right."""
    part = seen.problem.arguments.leaves[number].part
    expected = seen.gradients[right][part]
    allowed = nothing(seen, number, expected)
    wrong = ~(np.abs(got - expected) <= allowed)
    return _Known(np.arange(got.size), expected, allowed, wrong)


def _by_differences(seen: Examination, number: int, road: str) -> _Known:
    """The elements of a small leaf; of a large one those to which bisection leads, and a sample."""
    leaf = seen.problem.arguments.leaves[number]
    got, steps = seen.gradients[road][leaf.part], seen.table[ELEMENT, leaf.part]
    lines = max(affordable_lines(seen.problem), _SAMPLE)
    if got.size <= min(_EVERY_ELEMENT, lines):
        places = np.arange(got.size)
    else:
        rng = np.random.default_rng(seen.problem.seed & 0xFFFFFFFF)
        found = np.flatnonzero(~np.isfinite(got))[:_SAMPLE]
        if not len(found):
            found = np.array(_bisect(seen, number, road, lines), np.int64)
        sample = rng.choice(got.size, min(got.size, _SAMPLE, lines), replace=False)
        places = np.unique(np.concatenate([[0, got.size - 1], sample, found]))
    taken = seen.differences(
        differences.at_elements([number] * len(places), [leaf.start + int(i) for i in places]), ()
    )
    claims = got[places] * steps[places]
    bound = seen.bound(taken, claims, steps[places])
    bound += rounded(seen.problem) * np.abs(np.nan_to_num(got) * steps).max()
    wrong = ~(np.abs(claims - taken.derivative) <= bound)
    return _Known(places, taken.derivative / steps[places], taken.error / steps[places], wrong)


def _bisect(seen: Examination, number: int, road: str, lines: int) -> list[int]:
    """Places of the leaf at which directions restricted to ever smaller parts of it miss, the worst first."""
    leaf = seen.problem.arguments.leaves[number]
    terms = seen.gradients[road][leaf.part] * seen.table[0, leaf.part]
    width = int(np.clip(lines // (2 * np.log2(terms.size)), 1, _WIDTH))
    parts, found = [(0, terms.size)], []
    while parts:
        halves = [half for a, b in parts for half in ((a, (a + b) // 2), ((a + b) // 2, b))]
        starts, stops = ([leaf.start + int(v) for v in ends] for ends in zip(*halves, strict=True))
        taken = seen.differences(differences.within([number] * len(halves), 0, starts, stops), ())
        claims = np.array([terms[a:b].sum() for a, b in halves])
        summed = np.array([np.abs(terms[a:b]).sum() for a, b in halves])
        moved = np.array([np.abs(seen.table[0, a:b]).sum() for a, b in zip(starts, stops, strict=True)])
        miss, bound = np.abs(claims - taken.derivative), seen.bound(taken, claims, moved)
        missed = [k for k in np.argsort(-miss) if miss[k] > bound[k] + 1e-12 * summed[k]][:width]
        found += [halves[k][0] for k in missed if halves[k][1] - halves[k][0] == 1]
        parts = [halves[k] for k in missed if halves[k][1] - halves[k][0] > 1]
    return found


def _evidence(seen: Examination, number: int, road: str, right: str | None, known: _Known) -> Evidence:
    problem = seen.problem
    arguments, leaf = problem.arguments, problem.arguments.leaves[number]
    shape = (*leaf.shape, 2) if leaf.is_complex else leaf.shape
    complete = len(known.places) == leaf.stop - leaf.start
    directions = np.zeros((0, leaf.stop - leaf.start))
    derivative = np.zeros(0)
    if not complete:
        count = min(DIRECTIONS, affordable_lines(problem))
        directions = seen.table[:count, leaf.part]
        derivative = np.concatenate([
            seen.differences(differences.within([number], row, [leaf.start], [leaf.stop]), ()).derivative
            for row in range(count)
        ])  # fmt: skip
    sizes: dict[int, str] = {leaf.stop - leaf.start: f"elements of {leaf.name}"}
    for other in arguments.leaves:
        for axis, length in enumerate(other.shape):
            sizes.setdefault(length, f"axis {axis} of {other.name}")
    scale = float(np.linalg.norm(known.expected)) or 1.0
    return Evidence(
        got=seen.gradients[road][leaf.part].reshape(shape),
        point=seen.point[leaf.part].reshape(shape),
        places=known.places,
        expected=known.expected,
        wrong=known.wrong,
        directions=directions,
        derivative=derivative,
        fits=float(np.clip(10 * np.linalg.norm(known.error) / scale, 100 * problem.floor, 1e-3)),
        sizes=sizes,
        others={
            other.name: seen.gradients[right or road][other.part]
            for n, other in enumerate(arguments.leaves)
            if n != number and (right or road) in roads_for(problem, n, seen.gradients)
        },
        indices={
            f"argument {position}": np.asarray(value)
            for position, value in enumerate(arguments.values)
            if jnp.issubdtype(getattr(value, "dtype", np.float64), jnp.integer)
        },
        influence=lambda: _influences(seen, number, road, right),
    )


def _influences(seen: Examination, number: int, road: str, right: str | None) -> Iterator[Influence]:
    """How gradients change when another leaf moves at one end of an axis, or everywhere else."""
    problem = seen.problem
    mine = problem.arguments.leaves[number]

    def change(which: str, point: np.ndarray) -> float:
        before = seen.gradients[which][mine.part]
        after = problem.roads[which](point)[mine.part]
        return float(np.linalg.norm(after - before) / (np.linalg.norm(before) or 1.0))

    def truth(point: np.ndarray) -> float:
        if right is not None:
            return change(right, point)
        probe = differences.within([number], 0, [mine.start], [mine.stop])
        there = Examination(problem, point, seen.rounding, seen.gradients, seen.table)
        before, after = (float(where.differences(probe, ()).derivative[0]) for where in (seen, there))
        return abs(after - before) / (abs(before) or 1.0)

    few = min(len(problem.arguments.leaves), 8, affordable_lines(problem) // 8)
    for n, leaf in enumerate(problem.arguments.leaves[:few]):
        for axis, length in enumerate(leaf.shape if n != number and not leaf.is_complex else ()):
            for end, index in (("first", 0), ("last", -1)) if length > 1 else ():
                here = np.zeros(leaf.shape, bool)
                np.moveaxis(here, axis, 0)[index] = True
                points = [seen.point.copy(), seen.point.copy()]
                for point, moved in zip(points, (here, ~here), strict=True):
                    point[leaf.part] += 0.01 * seen.table[0, leaf.part] * moved.reshape(-1)
                elsewhere = change(road, points[1])
                if elsewhere <= 1e-12:
                    yield leaf.name, axis, end, change(road, points[0]), elsewhere, partial(truth, points[1])


def error_map(leaf: Leaf, got: np.ndarray, places: np.ndarray, expected: np.ndarray) -> ErrorMap:
    """Errors relative to the largest right element, as a picture of rows and columns."""
    errors = np.full(got.size, np.nan)
    size = float(np.abs(expected).max(initial=0, where=np.isfinite(expected))) or 1.0
    errors[places] = np.nan_to_num(np.abs(got[places] - expected) / size, nan=np.inf, posinf=np.inf)
    if leaf.is_complex:
        errors = errors.reshape(-1, 2).max(axis=1)
    return ErrorMap.of(errors.reshape(leaf.shape))
