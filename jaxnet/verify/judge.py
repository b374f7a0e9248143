"""The judgement of the leaves at one point: finite differences are the judge, the other roads locate.

A road with gradient g is right along u if |⟨g,u⟩ - D| ≤ 10·err + 1e-9·max(|⟨g,u⟩|, |D|) + 1e-12·Σ|g u|,
with D and err from Ridders' differences, taken again with far smaller steps before a road is called wrong.
Where two roads differ in an element although each is right along every direction, differences at that
element decide between them.

Each leaf has directions of its own. In a tree so large that this takes too long, leaves whose derivatives
are of one order move together in groups, and a group is split only if something is wrong in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxnet.verify import differences
from jaxnet.verify.differences import ALONG, DIRECTIONS, ELEMENT, Estimate, Probes
from jaxnet.verify.problem import Problem, Rounding
from jaxnet.verify.roads import HAND, OWN, REFERENCE, setting

ALL_ELEMENTS = 64  # leaves of up to so many elements are differenced element by element
_SOME_ELEMENTS = 8
_LINES = 512  # lines of one examination beside the directions, where the vector is short
_MOVED = 2.0**29  # floats that the lines of one examination may move: some seconds of a CPU
_EVALUATIONS = 13.0  # per line
_SUMMED = 4096  # roundings of a leaf's largest element that any of its elements may carry
_ONE_ORDER = 100.0  # ratio of derivatives in one group: an error of 1e-6 of the smallest is seen then


@dataclass
class Judged:
    """What was found about one leaf."""

    number: int
    wrong: set[str] = field(default_factory=set)
    deviations: dict[str, float] = field(default_factory=dict)
    bound: float = np.inf
    spread: float | None = None
    decided: bool = False  # differences resolved a random direction
    complete: bool = False  # ... every random direction
    negligible: bool = False  # the derivative is below the rounding of φ, so is the bound
    disputed: bool = False  # two roads differ and differences cannot say which is right
    kinked: bool = False
    jumped: bool = False


@dataclass
class Examination:
    """All roads and all differences at one point."""

    problem: Problem
    point: np.ndarray
    rounding: Rounding
    gradients: Mapping[str, np.ndarray]
    table: np.ndarray
    judged: dict[int, Judged] = field(default_factory=dict)
    value: float = np.nan

    def differences(self, probes: Probes, groups: Sequence[Sequence[int]]) -> Estimate:
        """Derivatives along `probes`; a probe of a label moves the leaves of that one of `groups`."""
        problem, leaves = self.problem, self.problem.arguments.leaves
        summed, scale = np.zeros(len(leaves)), np.zeros(len(leaves))
        for number in {int(n) for n in probes.leaf}.union(*groups):
            part = leaves[number].part
            for road in roads_for(problem, number, self.gradients):
                g = np.nan_to_num(self.gradients[road][part], posinf=0, neginf=0)
                summed[number] = max(summed[number], np.linalg.norm(g * self.point[part]))
                scale[number] = max(scale[number], np.abs(g * self.table[ELEMENT, part]).max())
        together = [list(groups[label]) if label >= 0 else [int(n)]
                    for n, label in zip(probes.leaf, probes.label, strict=True)]  # fmt: skip
        rounding = problem.eps * np.array([np.linalg.norm(summed[n]) for n in together]) + self.rounding.value
        sizes = np.array([scale[n].max() for n in together])
        with setting(problem.promoted):
            found = differences.estimate(
                problem.lines, self.point, self.table, probes, eps=problem.eps, rounding=rounding, scale=sizes
            )
            if (wrong := self._missed(probes, together, found)).any():
                again = differences.finer(
                    problem.lines,
                    self.point,
                    self.table,
                    probes[wrong],
                    found[wrong],
                    problem.eps,
                    rounding[wrong],
                )
                for mine, new in zip(found.columns, again.columns, strict=True):
                    mine[wrong] = new
        return found

    def _missed(self, probes: Probes, together: list[list[int]], found: Estimate) -> np.ndarray:
        """The probes whose derivative a road claims to be another."""
        missed = np.zeros(len(together), bool)
        for k, numbers in enumerate(together):
            for road in roads_for(self.problem, numbers[0], self.gradients):
                claim, moved = 0.0, 0.0
                for number in numbers:
                    part = self.problem.arguments.leaves[number].part
                    mine = slice(max(part.start, probes.start[k]), min(part.stop, probes.stop[k]))
                    u = self.table[probes.row[k], mine]
                    claim, moved = claim + self.gradients[road][mine] @ u, moved + np.abs(u).sum()
                missed[k] |= not abs(claim - found.derivative[k]) <= self.bound(found, claim, moved)[k]
        return missed

    def bound(self, found: Estimate, claims: Any, moved: Any) -> np.ndarray:
        """By how much claims may differ from derivatives: 10·err + 1e-9·max(|claim|, |D|) + atol·Σ|u|."""
        scale = np.maximum(np.abs(claims), np.abs(found.derivative))
        bound: np.ndarray = 10 * found.error + self.problem.floor * scale + self.problem.options.atol * moved
        return bound


def examine(problem: Problem, point: np.ndarray, rounding: Rounding, chosen: list[int]) -> Examination:
    """Judge the `chosen` leaves at `point`; `rounding` is how exactly φ and its gradient are known there."""
    gradients = {road: gradient(point) for road, gradient in problem.roads.items()}
    here = point is problem.point
    table = problem.table if here else differences.directions(problem.arguments.leaves, point, problem.seed)
    seen = Examination(problem, point, rounding, gradients, table)
    groups = _groups(seen, chosen)
    spare = affordable_lines(problem) - len(ALONG) * len(groups)
    elements = _some_elements(seen, chosen, min(_LINES, spare))
    while groups:
        along = differences.along(problem.arguments.leaves, groups)
        mine = elements[np.isin(elements.leaf, [number for group in groups for number in group])]
        found = seen.differences(differences.join(along, mine), groups)
        seen.value = float(found.value[0])
        split: list[list[int]] = []
        for label, group in enumerate(groups):
            ours = np.arange(label * len(ALONG), (label + 1) * len(ALONG))
            if not _judge_group(seen, group, found[ours]):
                split += [group[: len(group) // 2], group[len(group) // 2 :]]
        for number in seen.judged:
            ours = len(along.row) + np.flatnonzero(mine.leaf == number)
            _judge_elements(seen, number, mine.start[ours - len(along.row)], found[ours])
        groups = split
    for judged in seen.judged.values():
        _compare(seen, judged)
        if judged.wrong - {REFERENCE} and not judged.kinked:
            judged.kinked = not _additive(seen, judged.number)
    return seen


def affordable_lines(problem: Problem) -> int:
    """How many lines take some seconds in a vector of this length."""
    return int(_MOVED / _EVALUATIONS / problem.point.size)


def roads_for(problem: Problem, number: int, gradients: Mapping[str, np.ndarray]) -> list[str]:
    """The roads that say something about a leaf."""
    return [road for road in gradients if road != HAND or number in problem.claimed]


def _groups(seen: Examination, chosen: list[int]) -> list[list[int]]:
    """A group per leaf; if those are too many, leaves of one order of size of the derivative together."""
    if len(ALONG) * len(chosen) <= max(affordable_lines(seen.problem), len(ALONG)):
        return [[number] for number in chosen]
    sizes = {number: max(_sizes(seen, number).values()) for number in chosen}
    smallest = 1e-8 * max(sizes.values())  # below that nothing can be told anyway
    groups: dict[bool, list[list[int]]] = {True: [], False: []}
    for number in sorted(chosen, key=lambda n: -sizes[n]):
        mine = groups[number in seen.problem.claimed]
        if not mine or max(sizes[number], smallest) * _ONE_ORDER < sizes[mine[-1][0]]:
            mine.append([])
        mine[-1].append(number)
    return groups[True] + groups[False]


def _sizes(seen: Examination, number: int) -> dict[str, float]:
    """The size of the derivative along the first direction, by road."""
    part = seen.problem.arguments.leaves[number].part
    return {
        road: float(np.linalg.norm(np.nan_to_num(seen.gradients[road][part]) * seen.table[0, part]))
        for road in roads_for(seen.problem, number, seen.gradients)
    }


def _some_elements(seen: Examination, chosen: list[int], lines: int) -> Probes:
    """Every element of small leaves; of large ones first, last, random and the most disputed elements."""
    limit = min(ALL_ELEMENTS, lines // len(chosen))
    rng = np.random.default_rng(seen.problem.seed & 0xFFFFFFFF)
    numbers: list[int] = []
    places: list[int] = []
    for number in chosen if limit > 0 else ():
        leaf = seen.problem.arguments.leaves[number]
        size = leaf.stop - leaf.start
        if size <= max(limit, _SOME_ELEMENTS):
            mine = np.arange(size)
        else:
            mine = np.concatenate([[0, size - 1], rng.integers(0, size, _SOME_ELEMENTS - 2)])
            for gap, tolerance in gaps(seen, number).values():
                beyond = gap - tolerance
                mine = np.concatenate([np.argsort(beyond)[-3:], mine]) if beyond.max() > 0 else mine
            mine = np.unique(mine[: max(limit, 3)])
        numbers += [number] * len(mine)
        places += [leaf.start + int(i) for i in mine]
    return differences.at_elements(numbers, places)


def gaps(seen: Examination, number: int) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Elementwise differences of each pair of roads, and the differences that mean nothing."""
    part = seen.problem.arguments.leaves[number].part
    roads = roads_for(seen.problem, number, seen.gradients)
    found = {}
    for first, second in ((OWN, REFERENCE), (HAND, REFERENCE), (HAND, OWN)):
        if first in roads and second in roads:
            a, b = seen.gradients[first][part], seen.gradients[second][part]
            gap = np.nan_to_num(np.abs(a - b), nan=np.inf)
            found[first, second] = (gap, nothing(seen, number, b))
    return found


def nothing(seen: Examination, number: int, gradient: np.ndarray) -> np.ndarray:
    """The difference from each element of the leaf's `gradient` that means nothing."""
    problem, part = seen.problem, seen.problem.arguments.leaves[number].part
    sizes = np.abs(np.where(np.isfinite(gradient), gradient, 0))
    found: np.ndarray = problem.floor * sizes + rounded(problem) * sizes.max(initial=0)
    return found + 16 * seen.rounding.gradient[part] + problem.options.atol


def rounded(problem: Problem) -> float:
    """What sums leave in an element of a leaf, relative to the leaf's largest."""
    return min(problem.floor, _SUMMED * problem.eps)


def _judge_group(seen: Examination, group: list[int], found: Estimate) -> bool:
    """Judge leaves by the directions along which they move together; False if that has to be split."""
    problem, leaves = seen.problem, seen.problem.arguments.leaves
    off: dict[str, bool | None] = {}
    kinked, jumped = bool((found.kink > 0).any()), bool(np.isinf(found.kink).any())
    results = {number: Judged(number, kinked=kinked, jumped=jumped) for number in group}
    for road in roads_for(problem, group[0], seen.gradients):
        claims, summed, moved, sizes = np.zeros(len(ALONG)), np.zeros(len(ALONG)), np.zeros(len(ALONG)), {}
        for number in group:
            part = leaves[number].part
            for k, row in enumerate(ALONG):
                terms = seen.gradients[road][part] * seen.table[row, part]
                claims[k] += terms.sum()
                summed[k] += np.abs(terms).sum()
                moved[k] += np.abs(seen.table[row, part]).sum()
                sizes[number, k] = float(np.linalg.norm(terms))
        bound = seen.bound(found, claims, moved) + 1e-12 * summed
        missed = ~(np.abs(claims - found.derivative) <= bound)
        # One direction of four is no proof: an estimate of the error can be unlucky.
        off[road] = True if missed.sum() > 1 or missed[DIRECTIONS:].any() else None if missed.any() else False
        for number, result in results.items():
            size = np.array([sizes[number, k] for k in range(DIRECTIONS)])
            _resolve(problem, result, road, bool(off[road]), claims[:DIRECTIONS], size, bound[:DIRECTIONS], found)
    if len(group) == 1:
        results[group[0]].wrong = {road for road, state in off.items() if state}
        results[group[0]].disputed = None in off.values()
    elif any(state is not False for state in off.values()) and not _attribute(seen, results, off):
        return False
    seen.judged.update(results)
    return True


def _attribute(seen: Examination, results: dict[int, Judged], off: Mapping[str, bool | None]) -> bool:
    """Find in which leaves of a group a road is wrong by comparing it with one that is right in all of them."""
    right = next((road for road, state in off.items() if state is False), None)
    if right is None:
        return False
    for road in [road for road, state in off.items() if state]:
        for number, result in results.items():
            part = seen.problem.arguments.leaves[number].part
            expected = seen.gradients[right][part]
            gap = np.abs(seen.gradients[road][part] - expected)
            if not (gap <= nothing(seen, number, expected)).all():
                result.wrong.add(road)
        if not any(road in result.wrong for result in results.values()):
            return False
    return None not in off.values()


def _judge_elements(seen: Examination, number: int, places: np.ndarray, found: Estimate) -> None:
    """Hold the roads against differences at single elements of a leaf."""
    leaf, judged, steps = seen.problem.arguments.leaves[number], seen.judged[number], seen.table[ELEMENT]
    judged.kinked |= bool((found.kink > 0).any())
    judged.jumped |= bool(np.isinf(found.kink).any())
    for road in roads_for(seen.problem, number, seen.gradients):
        g = seen.gradients[road]
        claims = g[places] * steps[places]
        # What sums leave in an element is known on the scale of its leaf.
        bound = seen.bound(found, claims, steps[places])
        bound += rounded(seen.problem) * np.abs(g[leaf.part] * steps[leaf.part]).max()
        if (~(np.abs(claims - found.derivative) <= bound)).any():
            judged.wrong.add(road)


def _resolve(
    problem: Problem,
    result: Judged,
    road: str,
    wrong: bool,
    claims: np.ndarray,
    size: np.ndarray,
    bound: np.ndarray,
    found: Estimate,
) -> None:
    """How well the differences resolved the leaf's directions, and how far the road is from them."""
    derivative, error = found.derivative[:DIRECTIONS], found.error[:DIRECTIONS]
    scale = np.maximum(np.nan_to_num(size), np.abs(derivative))
    decided = bound <= problem.resolution * scale
    tiny = 10 * error <= max(1e-9 / problem.eps, 1e3) * found.noise[:DIRECTIONS]
    gap = np.abs(claims - derivative)
    relative = np.where(gap == 0, 0.0, gap / scale)
    bounds = np.where(scale > 0, 10 * error / scale, np.inf)
    chosen = decided if decided.any() else np.ones(DIRECTIONS, bool)
    result.deviations[road] = float(np.nan_to_num(relative[chosen], nan=np.inf).max())
    if not wrong:
        result.bound = min(result.bound, float(bounds[chosen].max()))
        result.decided |= bool(decided.any())
        result.complete |= bool(decided.all())
        result.negligible |= bool(tiny.all())


def _additive(seen: Examination, number: int) -> bool:
    """Whether the derivative along a direction is the sum of those along its parts: halves of the leaf, the rest.

    The median of equal numbers has a kink that no line shows: along each its slope is the same on both sides.
    """
    leaf, size = seen.problem.arguments.leaves[number], seen.point.size
    ends = sorted({0, leaf.start, (leaf.start + leaf.stop) // 2, leaf.stop, size})
    for row in range(DIRECTIONS):
        probes = differences.within([number] * len(ends), row, [0, *ends[:-1]], [size, *ends[1:]])
        found = seen.differences(probes, ())
        gap = abs(found.derivative[0] - found.derivative[1:].sum())
        if gap > 10 * found.error.sum() + 1e-5 * np.abs(found.derivative).sum():
            return False
    return True


def _compare(seen: Examination, result: Judged) -> None:
    """Compare, element by element, the roads that differences found nothing against."""
    part = seen.problem.arguments.leaves[result.number].part
    for (first, second), (gap, tolerance) in gaps(seen, result.number).items():
        if first not in result.wrong and second not in result.wrong:
            size = np.abs(seen.gradients[second][part]).max()
            relative = float(gap.max() / size) if size else float(gap.max() > 0)
            result.spread = max(result.spread or 0.0, relative)
            result.disputed |= bool((gap > tolerance).any())
