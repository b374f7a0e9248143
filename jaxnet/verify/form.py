"""The form of a gradient: dtype and shape of what it belongs to, and every element a finite number."""

from typing import Any

import numpy as np

from jaxnet.verify.kinks import Excuse
from jaxnet.verify.leaves import Leaf
from jaxnet.verify.problem import Problem
from jaxnet.verify.report import WitnessReport


def form(
    problem: Problem, gradients: list[Any], claimed: dict[int, Any], verdicts: dict[int, Excuse]
) -> WitnessReport:
    """Judge the gradients as the caller gets them, and the dtypes of those that were claimed by hand.

    A leaf that passed, in `verdicts`, fails if its gradient has another form.
    """
    wrong: list[str] = []
    for number, (leaf, gradient) in enumerate(zip(problem.arguments.leaves, gradients, strict=True)):
        before = len(wrong)
        if gradient.shape != leaf.shape or gradient.dtype != leaf.dtype:
            kinds = [f"{v.dtype}{list(v.shape)}" for v in (gradient, leaf)]
            wrong.append(f"d{leaf.name} is {kinds[0]}, {leaf.name} {kinds[1]}")
        if number in claimed and _other_dtype(claimed[number], leaf):
            wrong.append(f"by hand d{leaf.name} is {claimed[number]}, {leaf.name} {leaf.dtype}")
        wrong += _not_finite(leaf, gradient)
        if verdicts[number].state != "fail" and len(wrong) > before:
            verdicts[number] = Excuse("fail", f"WRONG: {wrong[before]}", None)
    if wrong:
        return WitnessReport("form", "fail", "WRONG: " + "; ".join(wrong[:8]))
    return WitnessReport("form", "pass", "trees, shapes and dtypes of the arguments, all finite")


def _other_dtype(claim: Any, leaf: Leaf) -> bool:
    # NumPy computes in float64 whatever it is given; JAX code that leaves the leaf's dtype does so by mistake.
    return claim != leaf.dtype and claim not in (np.float64, np.complex128)


def _not_finite(leaf: Leaf, gradient: Any) -> list[str]:
    finite = np.isfinite(np.asarray(gradient))
    if finite.all():
        return []
    index = ",".join(map(str, np.argwhere(~finite)[0])) if finite.ndim else ""
    return [f"d{leaf.name} is not finite at {int((~finite).sum())} of {finite.size} elements, first [{index}]"]
