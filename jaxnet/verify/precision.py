"""How much rounding a gradient carries: in float64, and in the function's own dtype."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.verify import roads
from jaxnet.verify.differences import DIRECTIONS, join, within
from jaxnet.verify.problem import FLOAT64, Problem, Rounding
from jaxnet.verify.report import Worst
from jaxnet.verify.roads import HAND, OWN, REFERENCE

_MANY = 2**20  # floats from which on seven more gradients would be felt
_DISTINCT = 12  # values of 24 by which φ changes more than its last digit


@dataclass(frozen=True)
class OwnDtype:
    """The worse of the roads in the leaf's own dtype: error and bound in machine epsilons, worst element."""

    road: str
    error: float
    bound: float
    worst: Worst

    @property
    def ok(self) -> bool:
        """Whether the error is within the bound."""
        return self.error <= self.bound


class Native:
    """The outputs and their pullback as the caller gets them: own dtype, own device, own settings."""

    def __init__(self, problem: Problem) -> None:
        """Compile nothing yet."""
        fn, arguments, spec = problem.fn, problem.arguments, problem.spec

        def run(arrays: Sequence[Any], w: Any) -> Any:
            y, pullback = jax.vjp(lambda a: spec.flatten(fn(*arguments.rebuild(a))), list(arrays))
            return y, pullback(w.astype(y.dtype))[0]

        def value(arrays: Sequence[Any]) -> Any:
            return spec.flatten(fn(*arguments.rebuild(arrays)))

        self.arguments, self.plain, self.compiled, self.forward = arguments, run, jax.jit(run), jax.jit(value)

    def __call__(self, point: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, list[Any]]:
        """The outputs and one gradient for each leaf, at the rounded point."""
        arrays = self.arguments.round(point)
        try:
            y, gradients = self.compiled(arrays, jax.device_put(w))
        except roads.UNTRACEABLE:
            y, gradients = self.plain(arrays, jax.device_put(w))
        return np.asarray(y, np.float64), gradients


def rounding(problem: Problem) -> Rounding:
    """Change of φ and of each element of its gradient when the arguments change by one rounding.

    It shows how exactly they are known at all, also where the true value is 0. Rounding inside the function,
    1e8 + x - 1e8, shows in its high differences over equal small steps h: what is smooth falls like h⁶,
    noise of deviation σ leaves √C(12,6)·σ in the sixth and √C(8,4)·σ in the fourth.

    Reference: J. Moré and S. Wild, "Estimating computational noise", SIAM J. Sci. Comput. 33 (2011).
    """
    value, points = _noise(problem), perturbed(problem, problem.eps, 3)
    if problem.forward is not None:
        centre = problem.forward(problem.point)
        values = [problem.forward(point) for point in points]
        value = max(value, float(np.nan_to_num(np.abs(np.array(values) - centre), posinf=0).max()))
    return Rounding(value, _gradient_rounding(problem, points))


def _gradient_rounding(problem: Problem, points: Sequence[np.ndarray]) -> np.ndarray:
    changes = np.abs(_changes(problem, problem.point, points)).max(axis=0)
    for leaf in problem.arguments.leaves:
        # Where the gradient is 0 but for rounding, a few changes of one element can all happen to be small.
        mine = changes[leaf.part]
        np.maximum(mine, np.median(mine) if mine.size else 0.0, out=mine)
    return np.maximum(changes, _gradient_noise(problem))


def _noise(problem: Problem) -> float:
    """Twice the deviation of φ's rounding, by the median of its sixth differences along the worst of some lines.

    Along one line the steps can happen to be a whole number of the last digit, and all be rounded alike.
    """
    table, size = problem.table, problem.point.size
    rows = list(range(DIRECTIONS)) if size < _MANY else [2]
    probes = join(*(within([0], row, [0], [size]) for row in rows))
    least = np.inf
    for step in _steps(problem):
        with roads.setting(problem.promoted):
            values = problem.lines(problem.point, table, probes, step * np.arange(1.0, 25.0)).astype(np.float64)
        if np.isfinite(least) and min(len(np.unique(row)) for row in values) < _DISTINCT:
            break
        left = np.median(np.abs(np.diff(values, 6)), axis=1).max() / 0.67 / np.sqrt(comb(12, 6))
        least = min(least, float(np.nan_to_num(2 * left, nan=0.0, posinf=0.0)))
        if least <= 16 * problem.eps * np.abs(np.nan_to_num(values)).max():
            break
    return least


def _gradient_noise(problem: Problem) -> np.ndarray:
    """Twice the deviation of each element's rounding, by its fourth differences along one line."""
    gradient = _first_road(problem)
    if gradient is None or problem.point.size > _MANY:
        return np.zeros_like(problem.point)
    u = problem.table[2]
    least = np.full_like(problem.point, np.inf)
    for step in _steps(problem):
        values = np.stack([gradient(problem.point + step * k * u) for k in range(1, 8)])
        changes, left = np.abs(np.diff(values, axis=0)), np.abs(np.diff(values, 4, axis=0)).max(axis=0)
        left = np.nan_to_num(2 * left / np.sqrt(comb(8, 4)), nan=0.0, posinf=0.0)
        least = np.where(np.isfinite(least) & (changes == 0).any(axis=0), least, np.minimum(least, left))
        if (least <= 16 * problem.eps * np.abs(np.nan_to_num(values)).max()).all():
            break
    return least


def _steps(problem: Problem) -> tuple[float, ...]:
    """Steps over which most smooth functions leave nothing in high differences, and still above x's rounding.

    Smaller ones follow, for a function that is not smooth over the first.
    """
    return (2.0**-20, 2.0**-26, 2.0**-32) if problem.promoted else (2.0**-10,)


def own_dtype(
    problem: Problem, native: Native, gradients: Mapping[str, np.ndarray], rounding: Rounding, point: np.ndarray
) -> dict[int, OwnDtype]:
    """Hold the gradient as the caller gets it against the one in float64 at `point`, leaf by leaf.

    ‖g_own - g‖ ≤ (48·eps + √n·eps₃₂)·‖g‖ + 16·(change of g when the arguments are perturbed by eps/2), and
    four times the rounding of float64 scaled to eps, for gradients that are 0 but for rounding. n is the
    length of the longest sum: its rounding errors are independent and add up like a random walk, in
    float32, because nobody may sum in less.
    """
    if not problem.promoted or problem.own_eps <= FLOAT64:
        return {}
    taken = native if problem.reverse_mode else None
    if problem.plain is not None and problem.own is not None and problem.plain is not problem.own:
        # What the plain function rounds is excused, what only its rule rounds is not.
        problem = replace(problem, own=None)
        rounding = Rounding(
            rounding.value,
            np.minimum(rounding.gradient, _gradient_rounding(problem, perturbed(problem, problem.eps, 3))),
        )
    changes = _changes(problem, point, perturbed(problem, problem.own_eps / 2, 4, point))
    found = _compare(problem, taken, gradients, rounding, changes, point)
    if problem.random and not all(own.ok for own in found.values()):
        # Random numbers may depend on the default dtype: draw those that float64 drew.
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            found = _compare(problem, taken, gradients, rounding, changes, point)
        if not all(own.ok for own in found.values()):
            problem.remarks.append(
                "own dtype: the function draws other random numbers there than in float64; not compared"
            )
            return {}
    return found


def _compare(
    problem: Problem,
    native: Native | None,
    gradients: Mapping[str, np.ndarray],
    rounding: Rounding,
    changes: np.ndarray,
    point: np.ndarray,
) -> dict[int, OwnDtype]:
    own: dict[str, np.ndarray] = {}
    if native is not None:
        own[OWN] = problem.arguments.pack(native(point, problem.weights)[1])
    if problem.options.hand_written is not None:
        own[HAND] = roads.hand_own_dtype(problem.options.hand_written, problem.arguments)(point)
    found: dict[int, OwnDtype] = {}
    for number, leaf in enumerate(problem.arguments.leaves):
        for road, gradient in own.items():
            exact = gradients.get(road, next(iter(gradients.values())))[leaf.part]
            if road == HAND and number not in problem.claimed:
                continue
            result = _own(problem, number, road, gradient[leaf.part], exact, rounding, changes[:, leaf.part])
            if number not in found or result.error - result.bound > found[number].error - found[number].bound:
                found[number] = result
    return found


def _own(
    problem: Problem,
    number: int,
    road: str,
    got: np.ndarray,
    exact: np.ndarray,
    rounding: Rounding,
    changes: np.ndarray,
) -> OwnDtype:
    leaf = problem.arguments.leaves[number]
    size = float(np.linalg.norm(exact)) or 1.0
    unit = problem.own_eps * size
    allowed = 16 * np.linalg.norm(changes, axis=1).max()
    allowed += 4 * np.linalg.norm(rounding.gradient[leaf.part]) * problem.own_eps / problem.eps
    allowed += np.sqrt(problem.longest_sum) * float(jnp.finfo(jnp.float32).eps) * size
    gap = np.nan_to_num(np.abs(got - exact), nan=np.inf)
    place = int(gap.argmax())
    error = float(np.linalg.norm(gap)) / unit
    allowed += float(jnp.finfo(leaf.dtype).tiny) * np.sqrt(got.size)  # below it a dtype has no digits
    allowed += problem.options.rtol * size + problem.options.atol * np.sqrt(got.size)
    worst = Worst(road, leaf.index(place), float(got[place]), float(exact[place]))
    return OwnDtype(road, error, 48 + float(allowed) / unit, worst)


def perturbed(problem: Problem, amount: float, draws: int, at: np.ndarray | None = None) -> list[np.ndarray]:
    """Points whose elements differ from the point's by `amount` of themselves, up or down at random.

    Among millions of elements two draws tell as much as more.
    """
    draws = min(draws, 2) if problem.point.size > _MANY else draws
    rng = np.random.default_rng(problem.seed & 0xFFFFFFFF)
    signs = 2 * rng.integers(0, 2, (draws, problem.point.size), np.int8) - 1
    return [(problem.point if at is None else at) * (1 + amount * row) for row in signs]


def _changes(problem: Problem, at: np.ndarray, points: Sequence[np.ndarray]) -> np.ndarray:
    """Changes of the gradient from `at` to each of `points`, a row each."""
    gradient = _first_road(problem)
    if gradient is None:
        return np.zeros((len(points), problem.point.size))
    centre = gradient(at)
    rows = np.stack([gradient(point) - centre for point in points])
    return np.nan_to_num(rows, copy=False, posinf=0.0, neginf=0.0)


def _first_road(problem: Problem) -> roads.Gradient | None:
    taken = problem.roads
    return next((taken[road] for road in (OWN, REFERENCE, HAND) if road in taken), None)
