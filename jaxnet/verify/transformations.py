"""Transformations must not change a gradient: `jit` against eager, `vmap` against a loop.

Both are asked beside the point, each element moved by up to 1e-3 of itself: exactly at a tie, the last bit
of a sum decides between two subgradients, and a compiler may round it either way.
"""

import jax
import numpy as np

from jaxnet.verify import rules
from jaxnet.verify.adjoint import allowance, beyond
from jaxnet.verify.differences import scales
from jaxnet.verify.problem import Problem, Rounding
from jaxnet.verify.report import WitnessReport
from jaxnet.verify.roads import brief, pull, setting

# Different operations that eager mode may have to compile, some 10 ms each. Python code that tells tracers from
# values sits in custom rules and kernels; JAX's own primitives are the same ones either way.
_EAGER_OPERATIONS, _EAGER_OPERATIONS_PLAIN = 60, 16


def beside(problem: Problem, draws: int) -> np.ndarray:
    """Points beside the point, a row each."""
    rng = np.random.default_rng(problem.seed & 0xFFFFFFFF)
    sizes = np.concatenate([scales(problem.point[leaf.part])[1] for leaf in problem.arguments.leaves])
    moves = rng.uniform(0.5, 1, (draws, sizes.size)) * rng.choice([-1.0, 1.0], (draws, sizes.size))
    return problem.point + 1e-3 * sizes * moves


def jit(problem: Problem, rounding: Rounding) -> WitnessReport:
    """Compare the gradient that is compiled to the one that runs operation by operation."""
    name = "jit"
    if problem.own is None or problem.own.jaxpr is None or not problem.reverse_mode:
        return WitnessReport(
            name, "not taken", problem.own_reason or "the function branches on values and cannot be compiled"
        )
    count = rules.different(problem.own.jaxpr)
    ruled = problem.closed is None or rules.has_rules(problem.closed.jaxpr)
    if count > (_EAGER_OPERATIONS if ruled else _EAGER_OPERATIONS_PLAIN):
        return WitnessReport(name, "not taken", f"{count} operations, which eager mode would compile one by one")
    point = beside(problem, 1)[0]
    extra = problem.extra(point)
    expected = problem.own(point, problem.weights, extra)[1]
    try:
        with setting(problem.promoted):
            arrays = jax.device_put((point, problem.weights, extra))
            got = np.asarray(pull(problem.outputs)(*arrays)[1], np.float64)
    except Exception as error:
        return WitnessReport(name, "fail", f"WRONG: without jit the gradient raises {brief(error)}")
    if wrong := beyond(problem, got, expected, _allowance(problem, rounding, [got, expected])):
        return WitnessReport(name, "fail", f"WRONG: with and without jit the gradients differ: {', '.join(wrong)}")
    return WitnessReport(name, "pass", "with and without jit the same gradient")


def vmap(problem: Problem, rounding: Rounding) -> WitnessReport:
    """Compare the gradient under `vmap`, over points and cotangents, to one call for each."""
    name = "vmap"
    if problem.own is None or not problem.reverse_mode or problem.own.jaxpr is None:
        return WitnessReport(name, "not taken", problem.own_reason or "there is no compiled reverse mode")
    points = beside(problem, 2)
    cotangents = np.stack([problem.weights, -0.5 * problem.weights])
    extras = [problem.extra(point) for point in points]
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *extras)
    try:
        program = problem.batched.get(problem.outputs, (points, cotangents, stacked), problem.promoted)
    except Exception as error:  # a kernel that states no rule for batches
        return WitnessReport(name, "not taken", f"the function has no rule for vmap ({brief(error)})")
    found = program(points, cotangents, stacked)[1]
    rows = zip(points, cotangents, extras, strict=True)
    expected = np.stack([problem.own(*row)[1] for row in rows])
    if (np.isfinite(expected) & ~np.isfinite(found)).any() and problem.has("cond"):
        words = "not finite under vmap, which turns cond into select: both branches are differentiated"
        problem.remarks.append(f"{name}: the gradient is {words}. Keep the branch not taken finite too")
        return WitnessReport(name, "not taken", words)
    for got, right in zip(found, expected, strict=True):
        if wrong := beyond(problem, got, right, _allowance(problem, rounding, [got, right])):
            return WitnessReport(name, "fail", f"WRONG: under vmap the gradient is another: {', '.join(wrong)}")
    return WitnessReport(name, "pass", "under vmap the gradient of each row")


def _allowance(problem: Problem, rounding: Rounding, gradients: list[np.ndarray]) -> np.ndarray:
    """What two programs for one gradient may differ by: data in a narrow dtype may be summed in another order."""
    eps = 0.0 if problem.own is None or problem.own.jaxpr is None else rules.coarsest(problem.own.jaxpr)
    relative = (48 + np.sqrt(problem.longest_sum)) * eps
    return allowance(problem, rounding, gradients, max(problem.floor, relative))
