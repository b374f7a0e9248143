"""The usual mistakes, tried against a gradient that is wrong: which of them explains it?

Each hypothesis is a small function that looks at the evidence and yields pairs (words, residual), simple
ones first: the residual is the relative distance between the wrong gradient, repaired as the hypothesis
says, and the right one. `HYPOTHESES` lists them from the simplest to the most special; the first that fits
names the mistake.

The right gradient g is known at some elements, or at all, and along some directions u by the number ⟨g, u⟩:
a repaired gradient that agrees with all of these is right.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import comb
from typing import Any

import numpy as np

Found = Iterator[tuple[str, float]]
Influence = tuple[str, int, str, float, float, Callable[[], float]]
_CHANCE = 0.02  # of so few wrong elements lying in a region by accident; more likely than that is no evidence


@dataclass(frozen=True)
class Evidence:
    """What is known about one wrong leaf.

    Attributes:
        got: the wrong gradient, of the leaf's shape (complex leaves: and 2, for real and imaginary).
        point: the values of the leaf, of the same shape.
        places: flat places at which the right gradient is known.
        expected: the right gradient there.
        wrong: which of these places are wrong.
        directions: directions of the whole leaf, flat, in rows; they may be none.
        derivative: ⟨right gradient, direction⟩ for each.
        fits: the largest residual of an explanation that fits.
        sizes: lengths that occur in the arguments, with words for each: candidates for a lost factor.
        others: right gradients of other leaves, by name.
        indices: integer arguments by name.
        influence: for each axis of each other argument and each end of it ("first", "last"): the relative
            change of the wrong gradient when the argument moves only at that end, its change when it
            moves everywhere else, and a function that returns the change of the right gradient then.
    """

    got: np.ndarray
    point: np.ndarray
    places: np.ndarray
    expected: np.ndarray
    wrong: np.ndarray
    directions: np.ndarray
    derivative: np.ndarray
    fits: float
    sizes: Mapping[int, str] = field(default_factory=dict)
    others: Mapping[str, np.ndarray] = field(default_factory=dict)
    indices: Mapping[str, np.ndarray] = field(default_factory=dict)
    influence: Callable[[], Iterator["Influence"]] = lambda: iter(())

    def residual(self, repaired: np.ndarray) -> float:
        """Relative distance of a repaired gradient from the right one; its NaN are not compared."""
        flat = repaired.reshape(-1)
        known = np.isfinite(flat[self.places])
        if not known.any():
            return np.inf
        worst = _relative(flat[self.places][known] - self.expected[known], self.expected[known])
        if np.isfinite(flat).all() and len(self.directions):
            terms = self.directions * flat
            gap = np.abs(terms.sum(axis=1) - self.derivative)
            worst = max(worst, float((gap / (np.linalg.norm(terms, axis=1) + 1e-300)).max()))
        return worst

    def factor(self) -> float | None:
        """The c with got = c·right that explains best; None if the right gradient is zero."""
        got, right = self.got.reshape(-1)[self.places], self.expected
        if len(self.directions):
            got = np.concatenate([got, self.directions @ self.got.reshape(-1)])
            right = np.concatenate([right, self.derivative])
        square = float(right @ right)
        return float(got @ right) / square if square > 0 else None


def diagnose(evidence: Evidence) -> str | None:
    """The mistake in words with its residual, or None if no usual one fits."""
    if not np.isfinite(evidence.got).all():
        return _not_finite(evidence)
    if not evidence.wrong.any() and not len(evidence.directions):
        return None
    # A repair that helps little is none, however small its residual.
    limit = min(evidence.fits, 0.1 * evidence.residual(evidence.got))
    for hypothesis in HYPOTHESES:
        for words, residual in hypothesis(evidence):
            if residual <= limit:
                return f"{words} (residual {residual:.0e})" if residual else words
    return None


def zero(e: Evidence) -> Found:
    """No gradient at all."""
    if not e.got.any():
        yield "zero, where it should not be", 0.0


def zero_is_right(e: Evidence) -> Found:
    """A gradient where there is none."""
    if not e.expected.any() and len(e.places) == e.got.size:
        yield "not zero, where zero is right", 0.0


def factor(e: Evidence) -> Found:
    """One constant factor: a lost sign, 2, N or √d."""
    c = e.factor()
    if c:
        known = _factor_words(c, e.sizes)
        measured = int((e.expected != 0).sum()) + len(e.derivative)
        if known or measured > 2:
            yield known or f"{c:.7g} times the right one", e.residual(np.asarray(e.got / c))


def transposed(e: Evidence) -> Found:
    """Two axes swapped, also where the lengths differ and the numbers lie in the other order."""
    for a, b in itertools.combinations(range(e.got.ndim), 2):
        shape = list(e.got.shape)
        shape[a], shape[b] = shape[b], shape[a]
        if min(shape[a], shape[b]) > 1:
            yield f"transposed (axes {a} and {b})", e.residual(e.got.reshape(shape).swapaxes(a, b))


def reversed_axis(e: Evidence) -> Found:
    """Back to front along one axis, or along all."""
    for axis in range(e.got.ndim):
        yield f"reversed along axis {axis}", e.residual(np.flip(e.got, axis))
    if e.got.ndim > 1:
        yield "reversed along every axis", e.residual(np.flip(e.got))


def shifted(e: Evidence) -> Found:
    """Moved by one along an axis; what leaves at one end comes back at the other, or is lost."""
    for axis, by in itertools.product(range(e.got.ndim), (1, -1)):
        if e.got.shape[axis] > 2:
            back = np.roll(e.got, -by, axis)
            yield f"rolled by {by} along axis {axis}", e.residual(back)
            np.moveaxis(back, axis, 0)[-1 if by > 0 else 0] = np.nan  # nobody knows what was lost
            yield f"shifted by {by} along axis {axis}", e.residual(back)


def conjugated(e: Evidence) -> Found:
    """The imaginary part with the other sign."""
    if e.got.shape[-1:] == (2,) and e.got.ndim:
        yield "conjugated (for a complex leaf)", e.residual(e.got * np.array([1.0, -1.0]))


def other_leaf(e: Evidence) -> Found:
    """The gradient that belongs to another leaf."""
    for name, gradient in e.others.items():
        if gradient.size == e.got.size and gradient.any():
            yield f"the gradient of {name}", _relative(e.got.reshape(-1) - gradient.reshape(-1), gradient)


def missing_sum(e: Evidence) -> Found:
    """A sum over an axis of an argument left out: all but its first (or last) element have no influence."""
    for name, axis, end, here, elsewhere, right in e.influence():
        # The wrong gradient must not move at all where the right one moves visibly.
        if here > 1e-6 and elsewhere <= 1e-12 and right() > 1e-6:
            yield f"the sum over axis {axis} of {name} is missing: only its {end} element counts", 0.0


def missing_term(e: Evidence) -> Found:
    """Right but for a term a·x + b, of the whole leaf or in each row."""
    if len(e.places) < e.got.size or e.got.size < 4:
        return
    gap, x = e.expected.reshape(e.got.shape) - e.got, e.point
    ways = [(None, "")] + [(axis, f" along axis {axis}") for axis in range(e.got.ndim) if e.got.ndim > 1]
    for axis, where in ways:
        rows = [(gap.reshape(-1), x.reshape(-1))] if axis is None else [
            *zip(np.moveaxis(gap, axis, -1).reshape(-1, gap.shape[axis]),
                 np.moveaxis(x, axis, -1).reshape(-1, gap.shape[axis]), strict=True)]  # fmt: skip
        if len(rows[0][0]) < 4:
            continue
        for words, columns in (("b", (0,)), ("a·x", (1,)), ("a·x + b", (0, 1))):
            left = [_least_squares(np.stack([np.ones_like(xs), xs], 1)[:, list(columns)], d) for d, xs in rows]
            # The noise of `expected` is relative to it, not to the term.
            residual = float(np.linalg.norm(np.concatenate(left))) / float(np.linalg.norm(gap))
            yield f"right up to a missing term {words}{where}", residual


def border(e: Evidence) -> Found:
    """Wrong only at one index of an axis, above all the first or the last."""
    shape = e.got.shape
    at = np.unravel_index(e.places[e.wrong], shape) if shape else ()
    for axis, indices in enumerate(at):
        values = set(indices.tolist())
        length = shape[axis]
        region = np.zeros(shape, bool)
        if length > 2 and values <= {0, length - 1}:
            np.moveaxis(region, axis, 0)[sorted(values)] = True
            words = {0: "first", length - 1: "last"}
            yield from _only(
                e, region, f"at the {' and '.join(words[v] for v in sorted(values))} index of axis {axis}"
            )
        elif len(values) == 1 and length > 1:
            np.moveaxis(region, axis, 0)[values.copy().pop()] = True
            yield from _only(e, region, f"at index {values.copy().pop()} of axis {axis}")


def by_sign(e: Evidence) -> Found:
    """Wrong only where the argument is negative, positive or zero."""
    x = e.point
    for words, region in (("zero", x == 0), ("negative", x < 0), ("positive", x > 0)):
        yield from _only(e, region, f"where the argument is {words}")
    yield from _only(e, x <= 0, "where the argument is not positive")
    yield from _only(e, x >= 0, "where the argument is not negative")


def by_size(e: Evidence) -> Found:
    """Wrong only where the argument lies above or below a threshold."""
    x = e.point.reshape(-1)
    bad = x[e.places][e.wrong]
    if not len(bad):
        return
    for words, values in (("large", np.abs(x)), ("small", -np.abs(x)), ("", x), ("", -x)):
        least = values[e.places][e.wrong].min()
        region = values >= least
        limit = f"|x| {'≥' if words == 'large' else '≤'} {abs(least):.4g}" if words else (
            f"x ≥ {least:.4g}" if values is x else f"x ≤ {-least:.4g}")  # fmt: skip
        name = f"where the argument is {words} ({limit})" if words else f"where {limit}"
        yield from _only(e, region.reshape(e.point.shape), name)


def ties(e: Evidence) -> Found:
    """Wrong only at elements that are equal to another element."""
    _, inverse, count = np.unique(e.point, return_inverse=True, return_counts=True)
    yield from _only(e, np.reshape(count[inverse] > 1, e.point.shape), "at ties (elements that equal another one)")


def duplicates(e: Evidence) -> Found:
    """Wrong only in rows that an integer argument names more than once."""
    for name, index in e.indices.items():
        for axis, length in enumerate(e.got.shape):
            named = index[(index >= -length) & (index < length)] % length
            twice = np.bincount(named.reshape(-1), minlength=length) > 1
            if twice.any() and index.size:
                region = np.zeros(e.got.shape, bool)
                np.moveaxis(region, axis, 0)[twice] = True
                yield from _only(e, region, f"at indices of axis {axis} that {name} names more than once")


HYPOTHESES: tuple[Callable[[Evidence], Found], ...] = (
    zero,
    zero_is_right,
    factor,
    transposed,
    reversed_axis,
    shifted,
    conjugated,
    other_leaf,
    missing_sum,
    missing_term,
    border,
    duplicates,
    ties,
    by_sign,
    by_size,
)


def _only(e: Evidence, region: Any, words: str) -> Found:
    """Whether `region` holds every wrong element and nothing but wrong ones, more than by chance."""
    inside = np.reshape(region, -1)[e.places]
    wrong, total = int(e.wrong.sum()), len(e.places)
    counted = inside & ((e.expected != 0) | e.wrong)  # 0 is right whatever it was multiplied by
    if not wrong or (e.wrong & ~inside).any() or int(counted.sum()) == total or wrong < 0.9 * counted.sum():
        return
    if wrong == 1 and np.sum(region) > 1:  # its index says all there is to say
        return
    if comb(int(inside.sum()), wrong) > _CHANCE * comb(total, wrong):
        return
    got, right = e.got.reshape(-1)[e.places][e.wrong], e.expected[e.wrong]
    how = ""
    if not got.any():
        how = ": zero there"
    elif wrong > 2 and right.any():
        c = float(got @ right) / float(right @ right)
        if c and _relative(got - c * right, got) <= e.fits:
            how = f": {_factor_words(c, e.sizes) or f'{c:.7g} times the right one'} there"
    yield f"wrong only {words}, {wrong} of {int(inside.sum())} elements{how}", 0.0


def _factor_words(c: float, sizes: Mapping[int, str]) -> str | None:
    """Words for a factor that has a name: -1, 2, 1/2, a length that occurs, or its root."""
    sign = "sign flipped" if c < 0 else ""
    size = abs(c)
    if _near(size, 1.0):
        return f"{sign} (-1 times the right one)" if sign else None
    named = {2.0: "2", 0.5: "1/2"}
    for length, where in sizes.items():
        for value, text in ((length, f"{length}"), (1 / length, f"1/{length}"),
                            (length**0.5, f"√{length}"), (length**-0.5, f"1/√{length}")):  # fmt: skip
            if length > 2:
                named.setdefault(float(value), f"{text}, {where}")
    for value, text in named.items():
        if _near(size, value):
            return f"{sign + ' and ' if sign else ''}{c:.7g} times the right one (factor {text})"
    return None


def _near(value: float, other: float) -> bool:
    return abs(value - other) <= 1e-6 * other


def _not_finite(e: Evidence) -> str:
    bad = ~np.isfinite(e.got)
    return f"not finite at {int(bad.sum())} of {bad.size} elements"


def _least_squares(columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What is left of `values` after the best combination of the columns."""
    return values - columns @ np.linalg.lstsq(columns, values, rcond=None)[0]


def _relative(gap: np.ndarray, of: np.ndarray) -> float:
    size = float(np.linalg.norm(of))
    gap_ = float(np.linalg.norm(gap))
    return gap_ / size if size else (np.inf if gap_ else 0.0)
