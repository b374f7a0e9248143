"""Derivatives along lines by finite differences, each with an estimate of its own error.

For a smooth φ the central difference has an error in even powers of the step h,

    (φ(h) - φ(-h)) / 2h = φ'(0) + c₂h² + c₄h⁴ + …

so that Richardson's table A_j(h) = (16ʲ·A_{j-1}(h/4) - A_{j-1}(h)) / (16ʲ - 1) cancels one power after the
other. Ridders' choice is the entry which differs least from the two that it was made of; rounding adds
4·noise/h, where noise is the error of one value of φ.

Reference: C. J. F. Ridders, "Accurate computation of F'(x) and F'(x)F''(x)", Advances in Engineering
Software 4 (1982); Press et al., "Numerical Recipes", section 5.7.
"""

import copy
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.verify.leaves import Leaf
from jaxnet.verify.roads import compiler_options

STEPS = 2.0**-3 * 4.0 ** -np.arange(13)
_FINE = STEPS * 2.0**-12
_FIRST = slice(2, 8)  # enough for most functions; all thirteen for the lines that did not converge
_BLOCK = 128  # lines per call of the one compiled program
DIRECTIONS = 4  # random directions of a whole leaf: two families, two draws
ELEMENT, BORDERS, EXTREMES = 4, 5, 6  # rows of the table: single elements, and two sparse directions
ALONG = np.array([0, 1, 2, 3, BORDERS, EXTREMES])  # the rows that move a leaf as a whole
_EXTREME = 8  # so many of the largest elements, and of the smallest
ANY = -1
_RUNS, _FLOATS = 2000, 2**29  # of φ in one examination: so many, of so many floats together


@dataclass(frozen=True)
class Probes:
    """Lines through the point: a row of the directions' table at the places start ≤ i < stop of one label.

    `leaf` says which leaf a probe belongs to (the first one of a group). `labels` gives each place of the
    vector the number of its group; a probe that wants `ANY` label does not care.
    """

    leaf: np.ndarray
    row: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    label: np.ndarray
    labels: np.ndarray

    def __getitem__(self, chosen: Any) -> "Probes":
        """The chosen probes."""
        leaf, row, start, stop, label = (
            column[chosen] for column in (self.leaf, self.row, self.start, self.stop, self.label)
        )
        return Probes(leaf, row, start, stop, label, self.labels)


@dataclass(frozen=True)
class Estimate:
    """For each probe φ and its noise, the derivative, its error and the jump of the slope at a kink.

    The last is infinite where φ itself jumps.
    """

    value: np.ndarray
    noise: np.ndarray
    derivative: np.ndarray
    error: np.ndarray
    kink: np.ndarray

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        """The fields in their order."""
        return self.value, self.noise, self.derivative, self.error, self.kink

    def __getitem__(self, chosen: Any) -> "Estimate":
        """The estimates of the chosen probes."""
        return Estimate(*(column[chosen] for column in self.columns))


def scales(part: np.ndarray) -> tuple[float, np.ndarray]:
    """A leaf's root mean square (1 for zeros) and the size of each element (that RMS where it is 0)."""
    rms = float(np.sqrt(np.mean(part**2))) or 1.0
    return rms, np.where(part == 0, rms, np.abs(part))


def directions(leaves: tuple[Leaf, ...], point: np.ndarray, seed: int) -> np.ndarray:
    """The table: a row per direction, leaf beside leaf.

    Rows 0-1: u = r·RMS; rows 2-3: u_i = r_i·|x_i|. The first family sees small elements; the second
    respects the edge of a domain such as log's. Row `ELEMENT`: the step of each element on its own.
    Rows `BORDERS` and `EXTREMES` move only the first and last elements along each axis, and the largest
    and smallest ones: one wrong element stands out there as it does not among millions.
    """
    table = np.zeros((7, point.size))
    for leaf in leaves:
        rng = np.random.default_rng((zlib.crc32(leaf.name.encode()) ^ seed) & 0xFFFFFFFF)
        rms, sizes = scales(point[leaf.part])
        for row in range(DIRECTIONS):
            rng.standard_normal(out=table[row, leaf.part])
        table[:2, leaf.part] *= rms
        table[2:4, leaf.part] *= sizes
        steps = np.maximum(sizes, 0.1 * rms)
        table[ELEMENT, leaf.part] = steps
        for row, places in ((BORDERS, _borders(leaf)), (EXTREMES, _extremes(np.abs(point[leaf.part])))):
            table[row, leaf.start + places] = rng.standard_normal(len(places)) * steps[places]
    return table


def _borders(leaf: Leaf) -> np.ndarray:
    """Places in the leaf that are first or last along an axis."""
    found = np.zeros(leaf.shape, bool)
    for axis in range(len(leaf.shape)):
        np.moveaxis(found, axis, 0)[[0, -1]] = True
    return np.flatnonzero(np.repeat(found, 2) if leaf.is_complex else found)


def _extremes(sizes: np.ndarray) -> np.ndarray:
    """Places of the largest and of the smallest sizes."""
    if sizes.size <= 2 * _EXTREME:
        return np.arange(sizes.size)
    order = np.argpartition(sizes, [_EXTREME, sizes.size - _EXTREME])
    return np.sort(np.concatenate([order[:_EXTREME], order[-_EXTREME:]]))


def along(leaves: tuple[Leaf, ...], groups: Sequence[Sequence[int]]) -> Probes:
    """Six directions for each group of leaves, which move together."""
    labels = np.full(leaves[-1].stop, ANY, np.int32)
    for mark, group in enumerate(groups):
        for number in group:
            labels[leaves[number].part] = mark
    first = np.repeat(np.array([group[0] for group in groups], np.int64), len(ALONG))
    rows, label = np.tile(ALONG, len(groups)), np.repeat(np.arange(len(groups), dtype=np.int32), len(ALONG))
    return Probes(first, rows, np.zeros_like(first), np.full_like(first, len(labels)), label, labels)


def at_elements(numbers: list[int], places: list[int]) -> Probes:
    """One probe for each (leaf, place in the vector)."""
    return within(numbers, ELEMENT, places, [place + 1 for place in places])


def within(numbers: list[int], row: int, starts: list[int], stops: list[int]) -> Probes:
    """One probe for each (leaf, start, stop): a row of the table between two places."""
    count = len(starts)
    start, stop, every = np.array(starts, np.int64), np.array(stops, np.int64), np.full(count, ANY, np.int32)
    return Probes(np.array(numbers, np.int64), np.full(count, row), start, stop, every, np.zeros(1, np.int32))


def join(*parts: Probes) -> Probes:
    """All the probes, with the labels of the first."""
    columns = ("leaf", "row", "start", "stop", "label")
    leaf, row, start, stop, label = (np.concatenate([getattr(p, k) for p in parts]) for k in columns)
    return Probes(leaf, row, start, stop, label, parts[0].labels)


class Lines:
    """Values of φ along lines through a point, by one compiled program for every line."""

    def __init__(self, phi: Callable[[Any, Any], Any], closed: Any) -> None:
        """Compile nothing yet.

        `phi(v, extra)` maps the vector, and what else is given for the point, to a scalar. `closed` is the
        jaxpr of what it calculates; it is called as it is if there is none.
        """

        def run(fixed: Any, probes: Any, count: Any, steps: Any, taken: Any) -> Any:
            point, table, labels, extra = fixed
            place = jnp.arange(point.size)

            def along(i: Any, values: Any) -> Any:
                row, start, stop, label = (column[i] for column in probes)
                inside = (start <= place) & (place < stop) & ((label == ANY) | (label == labels))
                direction = jnp.where(inside, table[row], 0)

                def at(j: Any, values: Any) -> Any:
                    return values.at[i, j].set(phi(point + steps[j] * direction, extra))

                return loop(0, taken, at, values)

            return loop(0, count, along, jnp.zeros((_BLOCK, steps.size), point.dtype))

        # Loops rather than vmap: each evaluation is then exactly the function that was given.
        loop = _python_loop if closed is None else jax.lax.fori_loop
        self._run = run
        if closed is not None:
            runs = min(_RUNS, _FLOATS // closed.in_avals[0].size)
            self._run = jax.jit(run, compiler_options=compiler_options(closed.jaxpr, runs))
        self._extra: Callable[[np.ndarray], Any] = lambda point: ()

    def given(self, extra: Callable[[np.ndarray], Any]) -> "Lines":
        """The same lines, `extra(point)` being what φ depends on besides; nothing is compiled anew."""
        lines = copy.copy(self)
        lines._extra = extra
        return lines

    def __call__(self, point: np.ndarray, table: np.ndarray, probes: Probes, steps: np.ndarray) -> np.ndarray:
        """φ(x + t·u) for each probe (rows) and each step t (columns)."""
        padded = np.resize(steps, 2 * len(STEPS) + 1)
        labels = np.broadcast_to(probes.labels, point.shape)
        fixed = jax.device_put((point, table, labels, self._extra(point)))
        values = []
        for begin in range(0, len(probes.row), _BLOCK):
            block = probes[begin : begin + _BLOCK]
            columns = tuple(
                jax.device_put(np.resize(c, _BLOCK)) for c in (block.row, block.start, block.stop, block.label)
            )
            found = self._run(fixed, columns, len(block.row), jax.device_put(padded), len(steps))
            values.append(np.asarray(found)[: len(block.row), : len(steps)])
        return np.concatenate(values)


def _python_loop(start: int, stop: int, body: Callable[[Any, Any], Any], value: Any) -> Any:
    for i in range(start, stop):
        value = body(i, value)
    return value


def estimate(
    lines: Lines,
    point: np.ndarray,
    table: np.ndarray,
    probes: Probes,
    *,
    eps: float,
    rounding: np.ndarray,
    scale: np.ndarray,
) -> Estimate:
    """Derivatives along `probes`, with all steps for those not converged to 1e-9 of `scale`.

    Smaller steps are no help where rounding is what limits: their error is at least 16·noise/h of the last
    step that was taken. Such lines are left at 1e-7.

    Args:
        lines: the compiled evaluations of φ.
        point: where.
        table: the directions.
        probes: the lines.
        eps: relative rounding error of the evaluations.
        rounding: absolute rounding error besides, per probe, such as that of x + t·u.
        scale: size of derivative that matters, per probe.
    """
    if not len(probes.row):
        return Estimate(*(np.empty(0) for _ in range(5)))
    result = _ridders(lines, point, table, probes, eps, rounding, STEPS[_FIRST])
    size = np.maximum(scale, np.abs(result.derivative))
    limited = (result.error <= 16 * result.noise / STEPS[_FIRST][-1]) & (10 * result.error <= 1e-7 * size)
    rough = ~limited & ~(10 * result.error <= 1e-9 * size)
    if rough.any():
        again = _ridders(lines, point, table, probes[rough], eps, rounding[rough], STEPS)
        better = again.error < result.error[rough]
        for name in ("derivative", "error"):
            values = getattr(result, name)
            values[rough] = np.where(better, getattr(again, name), values[rough])
        result.kink[rough] = again.kink
    return result


def finer(
    lines: Lines,
    point: np.ndarray,
    table: np.ndarray,
    probes: Probes,
    found: Estimate,
    eps: float,
    rounding: np.ndarray,
) -> Estimate:
    """The estimates again from far smaller steps where those contradict `found`.

    The derivative is a limit: a bump narrower than all the steps, or a pole between them, is not in it.
    """
    fine = _ridders(lines, point, table, probes, eps, rounding, _FINE)
    apart = np.abs(fine.derivative - found.derivative) > 10 * (fine.error + found.error)
    pairs = zip(fine.columns, found.columns, strict=True)
    return Estimate(*(np.where(apart, new, old) for new, old in pairs))


def _ridders(
    lines: Lines,
    point: np.ndarray,
    table: np.ndarray,
    probes: Probes,
    eps: float,
    rounding: np.ndarray,
    steps: np.ndarray,
) -> Estimate:
    values = lines(point, table, probes, np.concatenate([[0.0], steps, -steps])).astype(np.float64)
    centre, plus, minus = values[:, 0], values[:, 1 : 1 + len(steps)], values[:, 1 + len(steps) :]
    noise = eps * np.abs(centre) + rounding
    column = (plus - minus) / (2 * steps)
    bend = np.abs(plus - 2 * centre[:, None] + minus) / steps
    # x + h·u is rounded too, and the slope there is that of the point and the bend.
    unsure = noise[:, None] + eps * np.nan_to_num(bend, posinf=0)
    best, error = column[:, -1].copy(), np.full(len(column), np.inf)
    for j in range(1, len(steps)):
        coarse, fine = column[:, :-1], column[:, 1:]
        column = fine + (fine - coarse) / (16.0**j - 1)
        guess = np.maximum(np.abs(column - fine), np.abs(column - coarse))
        guess = np.where(np.isfinite(guess), guess + 4 * unsure[:, j:] / steps[j:], np.inf)
        pick = guess.argmin(axis=1)[:, None]
        least = np.take_along_axis(guess, pick, 1)[:, 0]
        best = np.where(least < error, np.take_along_axis(column, pick, 1)[:, 0], best)
        error = np.minimum(error, least)
    # What converges over coarser steps does not jump: its rounding grows near the point.
    torn = _torn(bend * steps, noise) | (_torn(np.abs(plus - minus), noise) & (error > 1e-3 * np.abs(best)))
    error[torn] = np.inf  # nothing can be told from values that do not come together
    kink = np.where(torn, np.inf, _kinks(bend, noise, steps))
    # Without a finite error there is no estimate: 0, with an infinite bound.
    size = np.nan_to_num(np.abs(np.stack([plus, minus])), posinf=0).max(axis=(0, 2))
    return Estimate(centre, np.maximum(noise, eps * size), np.where(np.isfinite(error), best, 0), error, kink)


def _torn(differences: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Whether differences of φ do not go to zero with the step: over two steps they must fall 16-fold."""
    last, before = differences[:, -1], differences[:, -3]
    return np.isfinite(before) & (last > 0.5 * before) & (last > 32 * noise)


def _kinks(bend: np.ndarray, noise: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The jump of the slope at the point, 0 where φ looks smooth.

    |φ(h) - 2φ(0) + φ(-h)|/h falls fourfold with h for a smooth φ and stays for a kink at h = 0.
    """
    small = slice(2, 6) if len(steps) < len(STEPS) else slice(4, 8)  # h = 2^-11 … 2^-17
    tail = bend[:, small]
    steady = (tail.min(axis=1) > 0.7 * tail.max(axis=1)) & (tail[:, -1] > 32 * noise / steps[small][-1])
    return np.where(steady & np.isfinite(tail).all(axis=1), tail[:, -1], 0.0)
