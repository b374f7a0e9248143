"""Each usual mistake is named by its name, from elements or from directions, and no other mistake is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxnet.verify.diagnose import Evidence, diagnose

SHAPE = (6, 6)
RNG = np.random.default_rng(0)
POINT = RNG.standard_normal(SHAPE)
POINT[1, 2] = POINT[4, 4] = POINT[2, 5] = POINT[5, 0] = POINT[0, 1]  # ties
RIGHT = RNG.standard_normal(SHAPE)
OTHER = RNG.standard_normal(SHAPE)
IDS = np.array([3, 1, 1, 4, 3])
ROW = np.arange(6)[:, None] * np.ones(6)
TIES = POINT[0, 1] == POINT


def shifted(g: np.ndarray, axis: int) -> np.ndarray:
    moved = np.roll(g, 1, axis)
    np.moveaxis(moved, axis, 0)[0] = 0
    return moved


def where(region: np.ndarray, factor: float = 1.1) -> np.ndarray:
    return np.where(region, factor * RIGHT, RIGHT)


PLANTED: dict[str, tuple[np.ndarray, str]] = {
    "zero": (0 * RIGHT, "zero, where it should not be"),
    "sign": (-RIGHT, "sign flipped"),
    "two": (2 * RIGHT, "2 times the right one (factor 2)"),
    "half": (RIGHT / 2, "(factor 1/2)"),
    "length": (RIGHT / 36, "(factor 1/36, elements of w)"),
    "root": (RIGHT * 7**0.5, "(factor √7, axis 0 of x)"),
    "sign and length": (-7 * RIGHT, "sign flipped and -7 times the right one (factor 7, axis 0 of x)"),
    "any factor": (1.3 * RIGHT, "1.3 times the right one"),
    "1e-5": ((1 + 1e-5) * RIGHT, "1.00001 times the right one"),
    "transposed": (RIGHT.T, "transposed (axes 0 and 1)"),
    "reversed": (RIGHT[:, ::-1], "reversed along axis 1"),
    "reversed twice": (RIGHT[::-1, ::-1], "reversed along every axis"),
    "rolled": (np.roll(RIGHT, 1, 0), "rolled by 1 along axis 0"),
    "rolled back": (np.roll(RIGHT, -1, 1), "rolled by -1 along axis 1"),
    "shifted": (shifted(RIGHT, 1), "shifted by 1 along axis 1"),
    "another leaf": (OTHER, "the gradient of b"),
    "parallel": (RIGHT - 0.3 * POINT, "right up to a missing term a·x ("),
    "constant": (RIGHT - 0.3, "right up to a missing term b ("),
    "both in rows": (RIGHT - ROW * POINT - ROW - 1, "missing term a·x + b along axis 1"),
    "mean in rows": (RIGHT - RIGHT.mean(axis=1, keepdims=True), "missing term b along axis 1"),
    "first": (where(ROW == 0), "at the first index of axis 0, 6 of 6 elements: 1.1 times"),
    "last": (where(ROW.T == 5), "at the last index of axis 1"),
    "ends": (where((ROW == 0) | (ROW == 5)), "at the first and last index of axis 0"),
    "slice": (where(ROW == 3), "at index 3 of axis 0"),
    "negative": (where(POINT < 0), "where the argument is negative"),
    "positive": (where(POINT > 0, 0.0), " of 17 elements: zero there"),
    "large": (where(np.abs(POINT) > 1), "where the argument is large (|x| ≥ "),
    "small": (where(np.abs(POINT) < 0.5), "where the argument is small (|x| ≤ "),
    "ties": (where(TIES, 0.5), "at ties (elements that equal another one), 5 of 5 elements: 0.5 times"),
    "duplicates": (where((ROW == 3) | (ROW == 1)), "at indices of axis 0 that ids names more than once"),
}


def evidence(got: np.ndarray, right: np.ndarray = RIGHT, point: np.ndarray = POINT, **more: Any) -> Evidence:
    places = np.arange(right.size)
    given = {
        "sizes": {right.size: "elements of w", 7: "axis 0 of x"},
        "others": {"b": OTHER},
        "indices": {"ids": IDS},
        **more,
    }
    flat = right.reshape(-1)
    return Evidence(
        got, point, places, flat, ~(np.abs(got.reshape(-1) - flat) < 1e-12),
        np.zeros((0, right.size)), np.zeros(0), 1e-7, **given,
    )  # fmt: skip


@pytest.mark.parametrize(("got", "words"), PLANTED.values(), ids=PLANTED)
def test_named(got: np.ndarray, words: str) -> None:
    named = diagnose(evidence(got))
    assert named is not None
    assert words in named


WHOLE = [name for name in PLANTED if "wrong only" not in PLANTED[name][1]][:16]


@pytest.mark.parametrize("name", WHOLE)
def test_named_by_four_directions_and_some_elements(name: str) -> None:
    got, words = PLANTED[name]
    directions = np.random.default_rng(1).standard_normal((4, RIGHT.size))
    places = np.array([0, 3, 8, 20, 35])
    right = RIGHT.reshape(-1)
    partial = Evidence(
        got, POINT, places, right[places], np.full(5, True), directions, directions @ right, 1e-7,
        sizes={36: "elements of w", 7: "axis 0 of x"}, others={"b": OTHER},
    )  # fmt: skip
    named = diagnose(partial) or ""
    if "shifted" in words:  # what was lost is not in the directions: elements alone would have to tell
        assert "rolled" not in named
    else:
        assert words in named


def test_shapes_of_other_kinds() -> None:
    wide = RNG.standard_normal((3, 4))
    assert "transposed" in (diagnose(evidence(wide.T.reshape(3, 4), wide, wide + 1, others={}, indices={})) or "")
    pairs = RNG.standard_normal((5, 2))
    conjugated = diagnose(evidence(pairs * np.array([1.0, -1.0]), pairs, pairs + 1, others={}, indices={}))
    assert "conjugated" in (conjugated or "")
    zeros = np.zeros(5)
    found = diagnose(evidence(np.ones(5), zeros, np.arange(5.0), others={}, indices={}))
    assert "where zero is right" in (found or "")
    scalar = diagnose(evidence(np.array(-2.0), np.array(2.0), np.array(1.0), others={}, indices={}))
    assert "sign flipped" in (scalar or "")
    assert diagnose(evidence(np.array(2.6), np.array(2.0), np.array(1.0), others={}, indices={})) is None


def test_where_the_argument_is_zero() -> None:
    point = np.where(np.arange(36).reshape(SHAPE) % 5 == 0, 0.0, POINT)
    point[point != 0] += np.arange((point != 0).sum()) * 1e-3  # no ties but the zeros
    named = diagnose(evidence(np.where(point == 0, 0.0, RIGHT), point=point, indices={}))
    assert "ties" in (named or "") or "argument is zero" in (named or "")


def test_not_finite() -> None:
    assert diagnose(evidence(np.where(ROW == 0, np.nan, RIGHT))) == "not finite at 6 of 36 elements"


@pytest.mark.parametrize(
    ("here", "elsewhere", "right", "named"),
    [(0.1, 0.0, 0.1, True), (0.1, 0.1, 0.1, False), (0.0, 0.0, 0.1, False), (0.1, 0.0, 0.0, False)],
)
def test_missing_sum(here: float, elsewhere: float, right: float, named: bool) -> None:
    def influence() -> Any:
        yield "x", 0, "first", here, elsewhere, lambda: right

    found = diagnose(evidence(RNG.standard_normal(SHAPE), influence=influence))
    assert found == ("the sum over axis 0 of x is missing: only its first element counts" if named else None)


@pytest.mark.parametrize("seed", range(20))
def test_no_name_for_what_is_no_usual_mistake(seed: int) -> None:
    rng = np.random.default_rng(seed)
    unusual: list[Callable[[], np.ndarray]] = [
        lambda: RIGHT + rng.standard_normal(SHAPE),
        lambda: RIGHT * (1 + 0.1 * rng.standard_normal(SHAPE)),
        lambda: np.where(rng.random(SHAPE) < 0.3, 1.1 * RIGHT, RIGHT),
        lambda: RIGHT + 1e-4 * (np.arange(36).reshape(SHAPE) == rng.integers(1, 35)),
    ]
    for make in unusual[:3]:
        assert diagnose(evidence(make())) is None
    # A single element may be the first of an axis by accident; 1 of 36 says nothing about where the sign is.
    named = diagnose(evidence(unusual[3](), indices={}))
    assert named is None or "wrong only" in named


def test_a_right_gradient_has_no_diagnosis() -> None:
    assert diagnose(evidence(RIGHT)) is None
