"""Derivatives along lines by finite differences, each with an estimate of its own error.

For a smooth φ the central difference has an error in even powers of the step h,

    (φ(h) - φ(-h)) / 2h = φ'(0) + c₂h² + c₄h⁴ + …

so that Richardson's table A_j(h) = (16ʲ·A_{j-1}(h/4) - A_{j-1}(h)) / (16ʲ - 1) cancels one power after the
other. Ridders' choice is the entry which differs least from the two that it was made of; rounding adds
4·noise/h, where noise is the error of one value of φ.

Reference: C. J. F. Ridders, "Accurate computation of F'(x) and F'(x)F''(x)", Advances in Engineering
Software 4 (1982); Press et al., "Numerical Recipes", section 5.7.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.verify.leaves import Leaf

STEPS = 2.0**-3 * 4.0 ** -np.arange(13)
_FIRST = slice(2, 8)  # enough for most functions; all thirteen for the lines that did not converge
_BLOCK = 128  # evaluations per call of the one compiled program
_ELEMENT_ROW = 4
DIRECTIONS = 4  # random directions per leaf: two families, two draws


@dataclass(frozen=True)
class Probes:
    """Lines through the point: row of the directions' table, restricted to places start ≤ i < stop."""

    leaf: np.ndarray
    row: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    @property
    def element(self) -> np.ndarray:
        """Which probes move a single element."""
        return self.row == _ELEMENT_ROW

    def __getitem__(self, chosen: Any) -> "Probes":
        """The chosen probes."""
        return Probes(self.leaf[chosen], self.row[chosen], self.start[chosen], self.stop[chosen])


@dataclass(frozen=True)
class Estimate:
    """For each probe φ and its noise, the derivative, its error and the jump of the slope at a kink."""

    value: np.ndarray
    noise: np.ndarray
    derivative: np.ndarray
    error: np.ndarray
    kink: np.ndarray


def scales(part: np.ndarray) -> tuple[float, np.ndarray]:
    """A leaf's root mean square (1 for zeros) and the size of each element (that RMS where it is 0)."""
    rms = float(np.sqrt(np.mean(part**2))) or 1.0
    return rms, np.where(part == 0, rms, np.abs(part))


def directions(leaves: tuple[Leaf, ...], point: np.ndarray, seed: int) -> np.ndarray:
    """Rows 0-1: u = r·RMS; rows 2-3: u_i = r_i·|x_i|; row 4: the step of each element on its own.

    The first family sees small elements; the second respects the edge of a domain such as log's.
    """
    table = np.empty((DIRECTIONS + 1, point.size))
    for leaf in leaves:
        rng = np.random.default_rng((zlib.crc32(leaf.name.encode()) ^ seed) & 0xFFFFFFFF)
        rms, sizes = scales(point[leaf.part])
        draws = rng.standard_normal((DIRECTIONS, leaf.stop - leaf.start))
        table[:2, leaf.part] = draws[:2] * rms
        table[2:4, leaf.part] = draws[2:] * sizes
        table[_ELEMENT_ROW, leaf.part] = np.maximum(sizes, 0.1 * rms)
    return table


def along_leaves(leaves: tuple[Leaf, ...], chosen: list[int]) -> Probes:
    """Four random directions for each of the chosen leaves."""
    numbers = np.repeat(np.array(chosen, np.int64), DIRECTIONS)
    bounds = np.array([(leaf.start, leaf.stop) for leaf in leaves])[numbers]
    return Probes(numbers, np.tile(np.arange(DIRECTIONS), len(chosen)), bounds[:, 0], bounds[:, 1])


def at_elements(numbers: list[int], places: list[int]) -> Probes:
    """One probe for each (leaf, place in the vector)."""
    where = np.array(places, np.int64)
    return Probes(np.array(numbers, np.int64), np.full(len(places), _ELEMENT_ROW), where, where + 1)


def join(first: Probes, second: Probes) -> Probes:
    """Both sets of probes."""
    return Probes(
        *(np.concatenate([getattr(first, k), getattr(second, k)]) for k in ("leaf", "row", "start", "stop"))
    )


class Lines:
    """Values of φ along lines through a point, by one compiled program for every line."""

    def __init__(self, phi: Callable[[Any], Any]) -> None:
        """Compile nothing yet; `phi` maps the vector to a scalar."""

        def value(point: Any, table: Any, probe: Any) -> Any:
            row, start, stop, step = probe
            place = jnp.arange(point.size)
            inside = (start <= place) & (place < stop)
            return phi(point + step * jnp.where(inside, table[row], 0))

        # A loop rather than vmap: each evaluation is then exactly the function that was given.
        self._run = jax.jit(
            lambda point, table, probes: jax.lax.map(lambda probe: value(point, table, probe), probes)
        )

    def __call__(self, point: np.ndarray, table: np.ndarray, probes: Probes, steps: np.ndarray) -> np.ndarray:
        """φ(x + t·u) for each probe (rows) and each step t (columns)."""
        repeated = [np.repeat(v, len(steps)) for v in (probes.row, probes.start, probes.stop)]
        columns = [*repeated, np.tile(steps, len(probes.row))]
        count = len(columns[0])
        point_, table_ = jnp.asarray(point), jnp.asarray(table)
        values = []
        for begin in range(0, count, _BLOCK):
            block = [np.resize(c[begin : begin + _BLOCK], _BLOCK) for c in columns]
            values.append(self._run(point_, table_, tuple(block)))
        return np.concatenate([np.asarray(v) for v in values])[:count].reshape(-1, len(steps))


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
    rough = ~(10 * result.error <= 1e-9 * np.maximum(scale, np.abs(result.derivative)))
    if rough.any():
        again = _ridders(lines, point, table, probes[rough], eps, rounding[rough], STEPS)
        better = again.error < result.error[rough]
        for name in ("derivative", "error"):
            values = getattr(result, name)
            values[rough] = np.where(better, getattr(again, name), values[rough])
        result.kink[rough] = again.kink
    return result


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
    with np.errstate(invalid="ignore", over="ignore"):
        column = (plus - minus) / (2 * steps)
        best, error = column[:, -1].copy(), np.full(len(column), np.inf)
        for j in range(1, len(steps)):
            coarse, fine = column[:, :-1], column[:, 1:]
            column = fine + (fine - coarse) / (16.0**j - 1)
            guess = np.maximum(np.abs(column - fine), np.abs(column - coarse))
            guess = np.where(np.isfinite(guess), guess + 4 * noise[:, None] / steps[j:], np.inf)
            pick = guess.argmin(axis=1)[:, None]
            least = np.take_along_axis(guess, pick, 1)[:, 0]
            best = np.where(least < error, np.take_along_axis(column, pick, 1)[:, 0], best)
            error = np.minimum(error, least)
        bend = np.abs(plus - 2 * centre[:, None] + minus) / steps
    # Without a finite error there is no estimate: 0, with an infinite bound.
    return Estimate(centre, noise, np.where(np.isfinite(error), best, 0), error, _kinks(bend, noise, steps))


def _kinks(bend: np.ndarray, noise: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The jump of the slope at the point, 0 where φ looks smooth.

    |φ(h) - 2φ(0) + φ(-h)|/h falls fourfold with h for a smooth φ and stays for a kink at h = 0.
    """
    small = slice(2, 6) if len(steps) < len(STEPS) else slice(4, 8)  # h = 2^-11 … 2^-17
    tail = bend[:, small]
    steady = (tail.min(axis=1) > 0.7 * tail.max(axis=1)) & (tail[:, -1] > 32 * noise / steps[small][-1])
    return np.where(steady & np.isfinite(tail).all(axis=1), tail[:, -1], 0.0)
