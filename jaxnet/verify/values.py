"""The values of a function: against those of its plain form, and with its rules against without them."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxnet.verify import rules
from jaxnet.verify.precision import Native, perturbed
from jaxnet.verify.problem import Problem
from jaxnet.verify.report import WitnessReport

Values = Callable[[np.ndarray], np.ndarray]


def plain_form(problem: Problem, native: np.ndarray) -> WitnessReport:
    """Compare the outputs in float64, or the own dtype's against float64's where there is no other."""
    plain = problem.plain
    if plain is None:
        return WitnessReport("reference", "not taken", "the reference has no derivative")
    extra = problem.extra(problem.point)
    got, eps = native, problem.own_eps
    if problem.own is not None:
        got, eps = problem.own(problem.point, problem.weights, extra)[0], problem.eps

    def values(point: np.ndarray) -> np.ndarray:
        found: np.ndarray = plain(point, problem.weights, extra)[0]
        return found

    error, different = _compare(problem, got, values, eps)
    if different is None:
        return WitnessReport("reference", "pass", f"the values agree to {error:.0e}")
    place, expected = different
    words = f"output {place} is {got[place]:.9g}, by the reference {expected:.9g}"
    return WitnessReport("reference", "fail", f"WRONG: the values differ: {words}")


def own_value(problem: Problem, native: Native, y: np.ndarray) -> str | None:
    """What is wrong in the own dtype with the value that the rules' forward passes return, or None."""
    ruled = problem.closed is not None and rules.has_rules(problem.closed.jaxpr)
    if not ruled or problem.options.reference is not None:
        return None

    def values(point: np.ndarray) -> np.ndarray:
        return np.asarray(native.forward(native.arguments.round(point)), np.float64)

    different = _compare(problem, y, values, problem.own_eps)[1]
    if different is None:
        return None
    place, expected = different
    return f"under jax.grad output {place} is {y[place]:.9g}, without {expected:.9g}"


def _compare(
    problem: Problem, got: np.ndarray, values: Values, eps: float
) -> tuple[float, tuple[int, float] | None]:
    """The relative error of `got` and, if it is too large, the worst place and the value expected there.

    ‖got - y‖ ≤ (48·eps + √n·eps₃₂)·‖y‖ + 16·(change of y when the arguments are perturbed by eps/2).
    """
    expected = values(problem.point)
    change = max(float(np.linalg.norm(values(point) - expected)) for point in perturbed(problem, eps / 2, 3))
    sums = np.sqrt(problem.longest_sum) * min(eps, float(jnp.finfo(jnp.float32).eps))
    size = float(np.linalg.norm(expected))
    allowed = (max(48 * eps + sums, problem.floor) * size + 16 * change) + problem.options.atol * np.sqrt(got.size)
    gap = np.where((got == expected) | (np.isnan(got) & np.isnan(expected)), 0, np.abs(got - expected))
    gap = np.nan_to_num(gap, nan=np.inf)
    error = float(np.linalg.norm(gap))
    place = int(gap.argmax())
    return error / (size or 1.0), None if error <= allowed else (place, float(expected[place]))
