"""Two calls of one compiled gradient must return the same bits, or what the caller says they may differ by."""

from typing import Any

import numpy as np

from jaxnet.verify.problem import Problem
from jaxnet.verify.report import WitnessReport


def determinism(problem: Problem, first: list[Any], second: list[Any]) -> WitnessReport:
    """Compare two calls: the largest difference of an element, relative to its leaf's largest element."""
    worst, where = 0.0, ""
    for leaf, a, b in zip(problem.arguments.leaves, first, second, strict=True):
        if np.asarray(a).tobytes() == np.asarray(b).tobytes():
            continue
        wide = [np.asarray(v).astype(np.complex128) for v in (a, b)]
        gap = np.abs(wide[0] - wide[1])
        gap = np.where(np.isnan(wide[0]) & np.isnan(wide[1]), 0, np.nan_to_num(gap, nan=np.inf))
        relative = float(gap.max() / (np.abs(wide[0]).max() or 1.0))
        if relative >= worst:
            worst, where = relative, leaf.name
    if not where:
        return WitnessReport("determinism", "pass", "two calls, the same bits")
    allowed = problem.options.nondeterminism
    words = f"two calls differ by {worst:.2g} of the largest element of {where}"
    if worst <= allowed:
        return WitnessReport("determinism", "pass", f"{words}, {allowed:.2g} allowed")
    return WitnessReport(
        "determinism", "fail", f"WRONG: {words}, {allowed:.2g} allowed. If that is meant, state nondeterminism="
    )
