"""The values of a function against those of its plain form; the gradients are compared leaf by leaf."""

import jax.numpy as jnp
import numpy as np

from jaxnet.verify import precision
from jaxnet.verify.problem import Problem, Rounding
from jaxnet.verify.report import WitnessReport


def plain_form(problem: Problem, native: np.ndarray, rounding: Rounding) -> WitnessReport:
    """Compare the outputs in float64, or the own dtype's against float64's where there is no other.

    ‖y_own - y‖ ≤ (48·eps + √n·eps₃₂)·‖y‖ + 16·(change of y when the arguments are perturbed by eps/2).
    """
    plain = problem.plain
    if plain is None:
        return WitnessReport("reference", "not taken", "the reference has no derivative")
    extra = problem.extra(problem.point)

    def values(point: np.ndarray) -> np.ndarray:
        found: np.ndarray = plain(point, problem.weights, extra)[0]
        return found

    expected = values(problem.point)
    got, eps = native, problem.own_eps
    if problem.own is not None:
        got, eps = problem.own(problem.point, problem.weights, extra)[0], problem.eps
    change = max(
        float(np.linalg.norm(values(point) - expected)) for point in precision.perturbed(problem, eps / 2, 3)
    )
    sums = np.sqrt(problem.longest_sum) * min(eps, float(jnp.finfo(jnp.float32).eps))
    size = float(np.linalg.norm(expected))
    allowed = (max(48 * eps + sums, problem.floor) * size + 16 * change) + problem.options.atol * np.sqrt(got.size)
    with np.errstate(invalid="ignore"):
        gap = np.where((got == expected) | (np.isnan(got) & np.isnan(expected)), 0, np.abs(got - expected))
    error = float(np.linalg.norm(np.nan_to_num(gap, nan=np.inf)))
    if error <= allowed:
        return WitnessReport("reference", "pass", f"the values agree to {error / (size or 1):.0e}")
    place = int(np.nan_to_num(gap, nan=np.inf).argmax())
    return WitnessReport(
        "reference",
        "fail",
        f"WRONG: the values differ: output {place} is {got[place]:.9g}, by the reference {expected[place]:.9g}",
    )
