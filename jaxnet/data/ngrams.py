"""Models of n-grams: what a language model by a network is measured against.

Axes: t places of a text · n the order · V vocabulary.
"""

from typing import NamedTuple

import numpy as np


class _Estimate(NamedTuple):
    """What the counts of one order say."""

    share: np.ndarray  # (c(h w) − D) / c(h), of each n-gram
    rest: np.ndarray  # γ(h), of each h: what is left for the order below


class _Grams(NamedTuple):
    """All different n-grams h w of one n."""

    codes: np.ndarray  # V · (the number of h among the (n − 1)-grams) + w, sorted
    longest: _Estimate  # by how often each occurs
    lower: _Estimate | None  # by how many tokens come before each; None of the longest


class NGrams:
    """How likely a token w is after the n − 1 before it, h: interpolated, modified Kneser-Ney smoothing.

    With h′ being h without its first token, c how often something occurs, and Nᵢ(h ·) how many tokens follow h i
    times (N₃: three times or more):

        P(w | h) = (c(h w) − D) / c(h) + γ(h) P(w | h′)        γ(h) = (D₁ N₁(h ·) + D₂ N₂(h ·) + D₃ N₃(h ·)) / c(h)

    Below the longest n-grams c(h w) is how many different tokens come before h w. The last, without h, goes on to
    1 / V. What to take off one that occurs i times, D, is estimated from how many occur 1, 2, 3 and 4 times, nᵢ:

        Dᵢ = i − (i + 1) nᵢ₊₁ / nᵢ · n₁ / (n₁ + 2 n₂)

    or is ½, 1 and 1½ where a small text has too few for that.

    Args:
        ids: a text to count in, whole numbers (t,) from 0 to V − 1.
        vocabulary: V.
        order: the longest n.

    Raises:
        ValueError: for other numbers, a vocabulary or an order < 1, fewer than `order` tokens.

    Example:
        >>> model = data.NGrams(np.array([0, 1, 0, 1, 0]), 2, 2)
        >>> model.log_probabilities(np.array([0, 1])).shape
        (2, 2)

    Reference: Chen and Goodman, An Empirical Study of Smoothing Techniques for Language Modeling, 1998
    """

    def __init__(self, ids: np.ndarray, vocabulary: int, order: int) -> None:
        """See the class."""
        if vocabulary < 1 or order < 1:
            raise ValueError(f"NGrams needs a vocabulary and an order ≥ 1; got {vocabulary} and {order}")
        self.vocabulary, self.order = vocabulary, order
        ids = self._checked(ids)
        if len(ids) < order:
            raise ValueError(f"NGrams of order {order} needs as many tokens; got {len(ids)}")
        self._grams: list[_Grams] = []
        before = numbers = np.zeros(len(ids), np.int64)
        sizes = [1]  # how many n-grams there are from n = 0 on
        for n in range(1, order + 1):
            # Numbers the n-gram that ends at each place, by the number of the (n − 1)-gram before the place.
            codes, first, here, counts = np.unique(
                before * vocabulary + ids[n - 1 :], return_index=True, return_inverse=True, return_counts=True
            )
            if n > 1:
                below = self._grams[-1]
                different = np.bincount(numbers[first + 1], minlength=len(below.codes))
                self._grams[-1] = below._replace(lower=_estimate(different, below.codes // vocabulary, sizes[-2]))
            self._grams.append(_Grams(codes, _estimate(counts, codes // vocabulary, sizes[-1]), None))
            sizes.append(len(codes))
            before, numbers = here[:-1], here

    def log_probabilities(self, ids: np.ndarray) -> np.ndarray:
        """Returns ln P (order, t) of each token, given those before it: in row n − 1 by n-grams.

        Where fewer tokens come before, there are only these.

        Raises:
            ValueError: for other than whole numbers (t,) from 0 to V − 1.
        """
        ids = self._checked(ids)
        p, rows = np.full(len(ids), 1 / self.vocabulary), []
        before = np.zeros(len(ids), np.int64)  # the number of the (n − 1)-gram before each place, −1 if it is new
        for grams in self._grams:
            code = before * self.vocabulary + ids
            at = np.minimum(np.searchsorted(grams.codes, code), len(grams.codes) - 1)
            at = np.where((before >= 0) & (grams.codes[at] == code), at, -1)
            rows.append(_interpolated(grams.longest, at, before, p))
            p = p if grams.lower is None else _interpolated(grams.lower, at, before, p)
            before = np.concatenate([[-1], at[:-1]]) if len(ids) else before
        return np.log(rows)

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids)
        if (
            ids.ndim != 1
            or ids.dtype.kind not in "iu"
            or (ids.size and not 0 <= ids.min() <= ids.max() < self.vocabulary)
        ):
            raise ValueError(
                f"NGrams needs whole numbers (t,) from 0 to {self.vocabulary - 1}; got {ids.dtype} {ids.shape}"
                + (f" from {ids.min()} to {ids.max()}" if ids.size else "")
            )
        return ids.astype(np.int64)


def ngram_losses(
    train: np.ndarray, test: np.ndarray, vocabulary: int, order: int = 6, *, share: float = 0.9
) -> tuple[np.ndarray, int]:
    """Returns the mean −ln P (order,) of a text by 1-grams, 2-grams, … of the text before it, and the n to choose.

    That is the n at which those of the first `share` of `train` foretell the rest of it best.

    Raises:
        ValueError: as `NGrams`, for a share that isn't between 0 and 1, or a text without tokens.
    """
    cut = int(share * len(train))
    if not 0 < share < 1 or not len(test) or cut == len(train):
        raise ValueError(
            f"ngram_losses needs tokens to count and to measure on, and a share between 0 and 1; got {len(train)} "
            f"and {len(test)} tokens and {share}"
        )
    chosen = NGrams(train[:cut], vocabulary, order).log_probabilities(train)[:, cut:].mean(1).argmax()
    whole = np.concatenate([train[-order:], test])
    found = NGrams(train, vocabulary, order).log_probabilities(whole)[:, -len(test) :]
    return -found.mean(1), int(chosen) + 1


def _estimate(counts: np.ndarray, before: np.ndarray, contexts: int) -> _Estimate:
    """Of n-grams with these counts after these h, by their numbers; where c(h) = 0, γ(h) = 1."""
    discount = _discounts(counts)[np.minimum(counts, 3)]
    total, taken = (np.bincount(before, of, contexts) for of in (counts, discount))
    some = np.maximum(total, 1)
    return _Estimate((counts - discount) / some[before], np.where(total, taken / some, 1))


def _interpolated(estimate: _Estimate, at: np.ndarray, before: np.ndarray, below: np.ndarray) -> np.ndarray:
    """P(w | h) of the n-grams with these numbers, after those (n − 1)-grams; −1 is one that doesn't occur."""
    share, rest = (
        np.where(i >= 0, a[i], new) for a, i, new in ((estimate.share, at, 0), (estimate.rest, before, 1))
    )
    return share + rest * below


def _discounts(counts: np.ndarray) -> np.ndarray:
    """D of what occurs 0, 1, 2, 3 or more times."""
    n = np.array([np.count_nonzero(counts == i) for i in range(5)])
    i = np.arange(1, 4)
    if n[1:].all():
        d = i - (i + 1) * n[2:] / n[1:4] * n[1] / (n[1] + 2 * n[2])
        if (d > 0).all():
            return np.concatenate([[0], d])
    return np.array([0, 0.5, 1, 1.5])
