"""Two exact identities of a derivative, which need no step size.

Forward and reverse mode apply one matrix J and its transpose: ⟨w, J·u⟩ = ⟨Jᵀ·w, u⟩ for every u and w; the
complex step is a forward mode too, that knows no derivative.
And the pullback w ↦ Jᵀ·w is linear, whatever rule states it: Jᵀ·(-2w) = -2·Jᵀ·w,
Jᵀ·(5w + w') = 5·Jᵀ·w + Jᵀ·w', Jᵀ·0 = 0.

Reference: Griewank and Walther, "Evaluating Derivatives" (2008), section 3.4.
"""

from typing import Any

import numpy as np

from jaxnet.verify import differences, rules
from jaxnet.verify.problem import Problem, Rounding
from jaxnet.verify.report import WitnessReport
from jaxnet.verify.roads import OWN, REFERENCE, Program, brief


def adjoint(problem: Problem, rounding: Rounding) -> WitnessReport:
    """Compare ⟨w, J·u⟩ by `jax.jvp` to ⟨Jᵀ·w, u⟩ by `jax.vjp`."""
    name = "adjoint"
    if problem.own is None or not problem.reverse_mode:
        return WitnessReport(
            name, "not taken", f"there is no reverse mode in float64: {problem.own_reason or 'see the notes'}"
        )
    try:
        forward = problem.forward_mode.get(problem.outputs, _example(problem), problem.promoted)
    except Exception as error:  # a custom_vjp, or a primitive without a rule for forward mode
        return WitnessReport(name, "not taken", f"no forward mode ({brief(error)})")
    return _transposed(problem, rounding, name, forward, "jax.jvp and jax.vjp")


def complex_step(problem: Problem, rounding: Rounding, *, kinked: bool) -> WitnessReport:
    """Compare ⟨w, J·u⟩ by the complex step to ⟨Jᵀ·w, u⟩ by `jax.vjp`."""
    name = "complex step"
    if problem.own is None or not problem.reverse_mode or not problem.promoted or problem.closed is None:
        return WitnessReport(name, "not taken", problem.own_reason or "there is no reverse mode in float64")
    if kinked or any(leaf.is_complex for leaf in problem.arguments.leaves):
        return WitnessReport(name, "not taken", "on a kink" if kinked else "the arguments are complex")
    if problem.options.reference is not None or rules.narrowest(problem.closed.jaxpr):
        return WitnessReport(name, "not taken", "the function is judged by its reference or in low precision")
    try:
        forward = problem.complex_mode.get(problem.outputs, _example(problem), True)
    except Exception as error:  # an operation without a complex form, ours or XLA's
        return WitnessReport(name, "not taken", f"not analytic ({brief(error)})")
    return _transposed(problem, rounding, name, forward, "the complex step and jax.vjp")


def _example(problem: Problem) -> tuple[np.ndarray, np.ndarray, Any]:
    return problem.point, np.zeros_like(problem.point), problem.extra(problem.point)


def _transposed(problem: Problem, rounding: Rounding, name: str, forward: Program, words: str) -> WitnessReport:
    r"""Whether `forward` applies J where `jax.vjp` applies Jᵀ, within 1e-9 of the summed terms.

    Besides, neither is known better than the gradient's own rounding, 16·Σ|δg·u|, nor is a change of φ along
    u seen that is below the rounding of its terms, 16·eps·Σ|w·y|.
    """
    assert problem.own is not None
    point, w, extra = problem.point, problem.weights, problem.extra(problem.point)
    table = problem.table
    y, gradient = problem.pulled(problem.own, point)
    unseen = 16 * problem.eps * float(np.abs(w * y).sum())

    def off(u: np.ndarray) -> float:
        """How many times the bound the two differ along u."""
        terms, claims = w * forward(point, u, extra), gradient * u
        allowed = problem.floor * (np.abs(terms).sum() + np.abs(claims).sum())
        allowed += unseen + 16 * (rounding.gradient * np.abs(u)).sum() + problem.options.atol * np.abs(u).sum()
        gap = abs(float(terms.sum() - claims.sum()))
        return gap / allowed if allowed else np.inf if gap else 0.0

    if not np.isfinite(gradient).all() or not np.isfinite(forward(point, table[0], extra)).all():
        return WitnessReport(name, "not taken", "not finite at this point")
    worst = max(off(row) for row in table[: differences.DIRECTIONS])
    if worst <= 1:
        return WitnessReport(name, "pass", f"⟨w, Ju⟩ = ⟨Jᵀw, u⟩ to {worst:.0e} of the bound")
    wrong = []
    for leaf in problem.arguments.leaves:
        alone = np.zeros_like(point)
        alone[leaf.part] = table[0, leaf.part]
        wrong += [leaf.name] if not off(alone) <= 1 else []
    return WitnessReport(name, "fail", f"WRONG: {words} are {worst:.3g} times the bound apart: {_names(wrong)}")


def linearity(problem: Problem, rounding: Rounding) -> WitnessReport:
    """Whether the pullback is linear in the cotangent, and zero for zero."""
    name = "linearity"
    road = OWN if problem.own is not None else REFERENCE
    program = problem.own or problem.plain
    if not problem.reverse_mode:
        return _linear_tangent(problem)
    if program is None:
        return WitnessReport(name, "not taken", "there is no pullback")
    rng = np.random.default_rng((problem.seed + 1) & 0xFFFFFFFF)
    w, extra = problem.weights, problem.extra(problem.point)
    other = w * rng.uniform(-2, 2, w.shape)
    dy = problem.pulled(program, problem.point)[1]
    dother, minus, both, zero = (
        program(problem.point, cotangent, extra)[1] for cotangent in (other, -2 * w, 5 * w + other, 0 * w)
    )
    if not np.isfinite(dy).all():
        return WitnessReport(name, "not taken", "the gradient is not finite")
    laws = {
        "zero for the cotangent 0": (zero, 0 * dy),
        "-2 times itself for -2w": (minus, -2 * dy),
        "the sum for 5w + w'": (both, 5 * dy + dother),
    }
    allowed = allowance(problem, rounding, [5 * dy, dother])
    for words, (got, expected) in laws.items():
        if wrong := beyond(problem, got, expected, allowed):
            return WitnessReport(name, "fail", f"WRONG: the pullback of {road} is not {words}: {_names(wrong)}")
    return WitnessReport(name, "pass", f"the pullback of {road} is linear in its cotangent")


def _linear_tangent(problem: Problem) -> WitnessReport:
    """The same of the pushforward u ↦ J·u, where there is no pullback."""
    point, extra = problem.point, problem.extra(problem.point)
    u = problem.table[0]
    forward = problem.forward_mode.get(problem.outputs, (point, u, extra), problem.promoted)
    dy = forward(point, u, extra)
    allowed = problem.floor * 5 * np.abs(dy).max()
    for factor in (-2.0, 5.0, 0.0):
        if not np.abs(forward(point, factor * u, extra) - factor * dy).max() <= allowed:
            words = f"WRONG: the tangent is not {factor:g} times itself for {factor:g}·u"
            return WitnessReport("linearity", "fail", words)
    return WitnessReport("linearity", "pass", "the tangent is linear in its argument")


def allowance(
    problem: Problem, rounding: Rounding, gradients: list[np.ndarray], floor: float | None = None
) -> np.ndarray:
    """What two computations of one gradient may differ by, per element.

    The floor on the scale of the leaf's largest element, and the rounding that the gradient shows itself.
    """
    floor = problem.floor if floor is None else floor
    allowed = 16 * rounding.gradient + problem.options.atol
    for leaf in problem.arguments.leaves:
        sizes = [np.abs(np.nan_to_num(g[leaf.part], posinf=0, neginf=0)).max() for g in gradients]
        allowed[leaf.part] += floor * max(sizes) + 16 * rounding.gradient[leaf.part].max()
    return allowed


def beyond(problem: Problem, got: np.ndarray, expected: np.ndarray, allowed: np.ndarray) -> list[str]:
    """Names of the leaves in which two gradients differ by more than is allowed; NaN equals NaN."""
    off = ~(np.abs(got - expected) <= allowed) & ~(got == expected) & ~(np.isnan(got) & np.isnan(expected))
    return [leaf.name for leaf in problem.arguments.leaves if off[leaf.part].any()]


def _names(names: list[str]) -> str:
    return (
        ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        if names
        else "all together"
    )
