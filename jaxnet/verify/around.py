"""Other points around the given one: a rule can be wrong only for negative, large, tiny, zero or equal inputs."""

from collections.abc import Sequence

import numpy as np

from jaxnet.verify.leaves import Leaf
from jaxnet.verify.problem import Problem

PLACES = ("negated", "small", "large", "zeros", "ties")


def places(around: str | Sequence[str]) -> tuple[str, ...]:
    """The places that were asked for.

    Raises:
        ValueError: there is no such place.
    """
    if around == "all":
        return PLACES
    chosen = (around,) if isinstance(around, str) else tuple(around)
    if unknown := [place for place in chosen if place not in PLACES]:
        raise ValueError(f"around={unknown}: there is no such place. Take some of {PLACES}, or 'all'.")
    return chosen


def moved(problem: Problem, place: str) -> np.ndarray:
    """The point with every leaf negated, scaled, partly zero or with equal pairs, rounded to its dtype."""
    parts = [_moved(leaf, problem.point[leaf.part], place) for leaf in problem.arguments.leaves]
    return problem.arguments.rounded(np.concatenate(parts))


def _moved(leaf: Leaf, part: np.ndarray, place: str) -> np.ndarray:
    if place in ("negated", "small", "large"):
        return part * {"negated": -1.0, "small": 1e-3, "large": 1e3}[place]
    elements = part.reshape(-1, 2 if leaf.is_complex else 1).copy()
    if place == "zeros":
        elements[::2] = 0.0  # every other one: where all are zero much else vanishes too
    else:
        elements[1::2] = elements[: len(elements) // 2 * 2 : 2]
    return elements.reshape(-1)
