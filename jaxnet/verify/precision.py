"""How much rounding a gradient carries: in float64, and in the function's own dtype."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from jaxnet.verify.problem import Problem, Rounding
from jaxnet.verify.roads import HAND, OWN

_FLOAT64 = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class OwnDtype:
    """The worse of the roads in the leaf's own dtype: error and bound in machine epsilons."""

    road: str
    error: float
    bound: float


def rounding(problem: Problem) -> Rounding:
    """Change of φ and of each element of its gradient when the arguments change by one rounding.

    It shows how exactly they are known at all, also where the true value is 0.
    """
    value = 0.0
    if problem.forward is not None:
        centre = problem.forward(problem.point)
        values = [problem.forward(point) for point in _perturbed(problem, problem.eps, 3)]
        value = float(np.nan_to_num(np.abs(np.array(values) - centre), posinf=0).max())
    return Rounding(value, np.abs(_changes(problem, problem.eps, 3)).max(axis=0))


def own_dtype(problem: Problem, gradients: Mapping[str, np.ndarray], rounding: Rounding) -> dict[int, OwnDtype]:
    """Hold the gradient as the caller gets it against the one in float64, leaf by leaf.

    ‖g_own - g‖ ≤ 48·eps·‖g‖ + 16·(change of g when the arguments are perturbed by eps/2), and four times
    the rounding of float64 scaled to eps, for gradients that are 0 but for rounding.
    """
    if not problem.promoted or problem.own_eps <= _FLOAT64:
        return {}
    changes = _changes(problem, problem.own_eps / 2, 4)
    found = _compare(problem, gradients, rounding, changes)
    if problem.random and any(own.error > own.bound for own in found.values()):
        # Random numbers may depend on the default dtype: draw those that float64 drew.
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            found = _compare(problem, gradients, rounding, changes)
        if any(own.error > own.bound for own in found.values()):
            problem.remarks.append(
                "own dtype: the function draws other random numbers there than in float64; not compared"
            )
            return {}
    return found


def _compare(
    problem: Problem, gradients: Mapping[str, np.ndarray], rounding: Rounding, changes: np.ndarray
) -> dict[int, OwnDtype]:
    own = problem.own_dtype()
    found: dict[int, OwnDtype] = {}
    for number, leaf in enumerate(problem.arguments.leaves):
        for road, gradient in own.items():
            exact = gradients.get(road, next(iter(gradients.values())))[leaf.part]
            if road == HAND and number not in problem.claimed:
                continue
            unit = problem.own_eps * (float(np.linalg.norm(exact)) or 1.0)
            allowed = 16 * np.linalg.norm(changes[:, leaf.part], axis=1).max()
            allowed += 4 * np.linalg.norm(rounding.gradient[leaf.part]) * problem.own_eps / problem.eps
            with np.errstate(invalid="ignore", over="ignore"):
                error = float(np.nan_to_num(np.linalg.norm(gradient[leaf.part] - exact), nan=np.inf)) / unit
            result = OwnDtype(road, error, 48 + float(allowed) / unit)
            if number not in found or error > found[number].error:
                found[number] = result
    return found


def _perturbed(problem: Problem, amount: float, draws: int) -> list[np.ndarray]:
    rng = np.random.default_rng(problem.seed & 0xFFFFFFFF)
    signs = rng.choice([-1.0, 1.0], (draws, problem.point.size))
    return [problem.point * (1 + amount * row) for row in signs]


def _changes(problem: Problem, amount: float, draws: int) -> np.ndarray:
    """Changes of the gradient under relative perturbations of `amount`, a row per draw."""
    gradient = problem.roads.get(OWN) or problem.roads.get(HAND)
    if gradient is None:
        return np.zeros((draws, problem.point.size))
    centre = gradient(problem.point)
    with np.errstate(invalid="ignore"):
        rows = np.stack([gradient(point) - centre for point in _perturbed(problem, amount, draws)])
    return np.nan_to_num(rows, posinf=0.0, neginf=0.0)
