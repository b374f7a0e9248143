"""The judgement of one leaf at one point: finite differences are the judge, the other roads locate.

A road with gradient g is right along u if |⟨g,u⟩ - D| ≤ 10·err + 1e-9·max(|⟨g,u⟩|, |D|) + 1e-12·Σ|g u|,
with D and err from Ridders' differences; no tolerance is the caller's. Where two roads differ in an
element although each is right along every direction, differences at that element decide between them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from jaxnet.verify import differences
from jaxnet.verify.differences import DIRECTIONS, Estimate, Probes
from jaxnet.verify.problem import Problem, Rounding
from jaxnet.verify.report import Worst
from jaxnet.verify.roads import HAND, OWN, REFERENCE, setting

ALL_ELEMENTS = 64  # leaves of up to so many elements are differenced element by element
_SOME_ELEMENTS = 8
_ELEMENT_BUDGET = 512


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
    worst: Worst | None = None


@dataclass(frozen=True)
class Examination:
    """All roads and all differences at one point."""

    gradients: Mapping[str, np.ndarray]
    judged: Mapping[int, Judged]
    value: float


def examine(problem: Problem, point: np.ndarray, rounding: Rounding, chosen: list[int]) -> Examination:
    """Judge the `chosen` leaves at `point`; `rounding` is how exactly φ and its gradient are known there."""
    gradients = {road: gradient(point) for road, gradient in problem.roads.items()}
    leaves = problem.arguments.leaves
    table = differences.directions(leaves, point, problem.seed)
    probes = differences.join(
        differences.along_leaves(leaves, chosen), _some_elements(problem, gradients, rounding, chosen)
    )
    found = _differences(problem, point, table, probes, gradients, rounding)
    judged = {}
    for number in chosen:
        mine = probes.leaf == number
        part = Estimate(*(getattr(found, k)[mine] for k in ("value", "noise", "derivative", "error", "kink")))
        judged[number] = _judge(problem, number, table, probes[mine], part, gradients, rounding)
    return Examination(gradients, judged, float(found.value[0]))


def roads_for(problem: Problem, number: int, gradients: Mapping[str, np.ndarray]) -> list[str]:
    """The roads that say something about a leaf."""
    return [road for road in gradients if road != HAND or number in problem.claimed]


def _some_elements(
    problem: Problem, gradients: Mapping[str, np.ndarray], rounding: Rounding, chosen: list[int]
) -> Probes:
    """Every element of small leaves; of large ones first, last, random and the most disputed elements."""
    limit = min(ALL_ELEMENTS, max(_SOME_ELEMENTS, _ELEMENT_BUDGET // len(chosen)))
    rng = np.random.default_rng(problem.seed & 0xFFFFFFFF)
    numbers: list[int] = []
    places: list[int] = []
    for number in chosen:
        leaf = problem.arguments.leaves[number]
        size = leaf.stop - leaf.start
        if size <= limit:
            mine = np.arange(size)
        else:
            mine = np.concatenate([[0, size - 1], rng.integers(0, size, _SOME_ELEMENTS - 2)])
            for gap, tolerance in _gaps(problem, number, gradients, rounding).values():
                mine = np.concatenate([mine, np.argsort(gap)[-3:]]) if gap.max() > tolerance else mine
            mine = np.unique(mine)
        numbers += [number] * len(mine)
        places += [leaf.start + int(i) for i in mine]
    return differences.at_elements(numbers, places)


def _gaps(
    problem: Problem, number: int, gradients: Mapping[str, np.ndarray], rounding: Rounding
) -> dict[tuple[str, str], tuple[np.ndarray, float]]:
    """Elementwise differences of each pair of roads, and the difference that means nothing."""
    part = problem.arguments.leaves[number].part
    roads = roads_for(problem, number, gradients)
    gaps = {}
    for first, second in ((OWN, REFERENCE), (HAND, REFERENCE), (HAND, OWN)):
        if first in roads and second in roads:
            a, b = gradients[first][part], gradients[second][part]
            with np.errstate(invalid="ignore"):
                gap = np.nan_to_num(np.abs(a - b), nan=np.inf)
            size = np.nanmax(np.where(np.isfinite(b), np.abs(b), 0))
            gaps[first, second] = (gap, problem.floor * float(size) + 16 * float(rounding.gradient[part].max()))
    return gaps


def _differences(
    problem: Problem,
    point: np.ndarray,
    table: np.ndarray,
    probes: Probes,
    gradients: Mapping[str, np.ndarray],
    rounding: Rounding,
) -> Estimate:
    leaves = problem.arguments.leaves
    summed, scale = np.zeros(len(leaves)), np.zeros(len(leaves))
    for number in np.unique(probes.leaf):
        part = leaves[number].part
        for road in roads_for(problem, int(number), gradients):
            g = np.nan_to_num(gradients[road][part], posinf=0, neginf=0)
            summed[number] = max(summed[number], np.linalg.norm(g * point[part]))
            scale[number] = max(scale[number], np.abs(g * table[-1, part]).max())
    with setting(problem.promoted):
        return differences.estimate(
            problem.lines,
            point,
            table,
            probes,
            eps=problem.eps,
            rounding=problem.eps * summed[probes.leaf] + rounding.value,
            scale=scale[probes.leaf],
        )


def _judge(
    problem: Problem,
    number: int,
    table: np.ndarray,
    probes: Probes,
    found: Estimate,
    gradients: Mapping[str, np.ndarray],
    rounding: Rounding,
) -> Judged:
    leaf = problem.arguments.leaves[number]
    result = Judged(number, kinked=bool((found.kink > 0).any()))
    steps = table[:DIRECTIONS, leaf.part]
    places = probes.start[DIRECTIONS:]
    misses = {}
    for road in roads_for(problem, number, gradients):
        g = gradients[road]
        terms = g[leaf.part] * steps
        claims = np.concatenate([terms.sum(axis=1), g[places] * table[-1, places]])
        size = np.concatenate([np.linalg.norm(terms, axis=1), np.abs(g[places] * table[-1, places])])
        summed = np.concatenate([np.abs(terms).sum(axis=1), np.zeros(len(places))])
        # An element is judged on the scale of its leaf: no difference sees elements a billion times smaller.
        summed[DIRECTIONS:] = 1e12 * problem.floor * np.abs(g[leaf.part] * table[-1, leaf.part]).max()
        reach = np.maximum(np.abs(claims), np.abs(found.derivative))
        bound = 10 * found.error + problem.floor * reach + 1e-12 * summed
        with np.errstate(invalid="ignore"):
            misses[road] = np.abs(claims - found.derivative) - bound
            off = ~(misses[road] <= 0)
        # One direction of four is no proof: an estimate of the error can be unlucky.
        if off.sum() > 1 or off[DIRECTIONS:].any():
            result.wrong.add(road)
        elif off.any():
            result.disputed = True
        _resolve(problem, result, road, claims, size, bound, found)
    _compare(problem, result, gradients, rounding)
    wrong = [road for road in (HAND, OWN) if road in result.wrong]
    if wrong:
        result.worst = _worst(problem, result, wrong[0], gradients, places, misses[wrong[0]], found, table[-1])
    return result


def _resolve(
    problem: Problem,
    result: Judged,
    road: str,
    claims: np.ndarray,
    size: np.ndarray,
    bound: np.ndarray,
    found: Estimate,
) -> None:
    """How well the differences resolved the leaf's directions, and how far the road is from them."""
    derivative, error = found.derivative[:DIRECTIONS], found.error[:DIRECTIONS]
    scale = np.maximum(np.nan_to_num(size[:DIRECTIONS]), np.abs(derivative))
    decided = bound[:DIRECTIONS] <= problem.resolution * scale
    tiny = 10 * error <= max(1e-9 / problem.eps, 1e3) * found.noise[:DIRECTIONS]
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.abs(claims[:DIRECTIONS] - derivative)
        relative = np.where(gap == 0, 0.0, gap / scale)
        bounds = np.where(scale > 0, 10 * error / scale, np.inf)
    chosen = decided if decided.any() else np.ones(DIRECTIONS, bool)
    result.deviations[road] = float(np.nan_to_num(relative[chosen], nan=np.inf).max())
    if road not in result.wrong:
        result.bound = min(result.bound, float(bounds[chosen].max()))
        result.decided |= bool(decided.any())
        result.complete |= bool(decided.all())
        result.negligible |= bool(tiny.all())


def _compare(problem: Problem, result: Judged, gradients: Mapping[str, np.ndarray], rounding: Rounding) -> None:
    """Compare, element by element, the roads that differences found nothing against."""
    part = problem.arguments.leaves[result.number].part
    for (first, second), (gap, tolerance) in _gaps(problem, result.number, gradients, rounding).items():
        if first not in result.wrong and second not in result.wrong:
            size = np.abs(gradients[second][part]).max()
            relative = float(gap.max() / size) if size else float(gap.max() > 0)
            result.spread = max(result.spread or 0.0, relative)
            result.disputed |= bool(gap.max() > tolerance)


def _worst(
    problem: Problem,
    result: Judged,
    road: str,
    gradients: Mapping[str, np.ndarray],
    places: np.ndarray,
    misses: np.ndarray,
    found: Estimate,
    steps: np.ndarray,
) -> Worst | None:
    """The worst element of a wrong road: against a road found right, else against the differences."""
    leaf = problem.arguments.leaves[result.number]
    got = gradients[road][leaf.part]
    roads = roads_for(problem, result.number, gradients)
    right = next((r for r in (REFERENCE, OWN) if r in roads and r not in result.wrong), None)
    if right is not None:
        expected = gradients[right][leaf.part]
        with np.errstate(invalid="ignore"):
            place = int(np.nan_to_num(np.abs(got - expected), nan=np.inf).argmax())
        return Worst(road, leaf.index(place), float(got[place]), float(expected[place]))
    element = np.nan_to_num(misses[DIRECTIONS:], nan=np.inf)
    if not (element > 0).any():
        return None
    chosen = int(element.argmax())
    place = int(places[chosen]) - leaf.start
    expected = found.derivative[DIRECTIONS + chosen] / steps[places[chosen]]
    return Worst(road, leaf.index(place), float(got[place]), float(expected))
