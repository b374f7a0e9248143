"""Models of n-grams: by hand, as probabilities, better than chance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnet import data

RNG = np.random.default_rng(0)


def everything_after(model, before):
    """P (order, V) of each token after these."""
    each = [model.log_probabilities(np.array([*before, w]))[:, -1] for w in range(model.vocabulary)]
    return np.exp(np.array(each)).T


def test_bigrams_by_hand():
    """Of a b a b a c: few occur four times, so ½, 1, 1½ are taken off."""
    model = data.NGrams(np.array([0, 1, 0, 1, 0, 2]), 4, 2)
    # Alone: a 3, b 2, c 1 of 6. What is taken off, 1½ + 1 + ½ = 3, is for 1/4 each.
    alone = np.array([1.5, 1, 0.5, 0]) / 6 + 3 / 6 / 4
    np.testing.assert_allclose(everything_after(model, [])[0], alone)
    # Below the pairs: b, a and c have come after one other token each, of 3; ½ is taken off each.
    below = np.array([0.5, 0.5, 0.5, 0]) / 3 + 1.5 / 3 / 4
    # After a: b twice, c once, of 3; 1 and ½ are taken off.
    np.testing.assert_allclose(everything_after(model, [0])[1], np.array([0, 1, 0.5, 0]) / 3 + 1.5 / 3 * below)
    # After b: a twice, of 2; 1 is taken off. After c and d nothing is known.
    np.testing.assert_allclose(everything_after(model, [1])[1], np.array([1, 0, 0, 0]) / 2 + 1 / 2 * below)
    for unknown in (2, 3):
        np.testing.assert_allclose(everything_after(model, [unknown])[1], below)


def test_discounts_by_hand():
    """Of tokens that occur 1, 1, 1, 2, 2, 3, 4 and 9 times: n = 3, 2, 1, 1."""
    ids = np.repeat(np.arange(8), [1, 1, 1, 2, 2, 3, 4, 9])
    y = 3 / (3 + 2 * 2)
    d = np.array([1 - 2 * y * 2 / 3, 2 - 3 * y * 1 / 2, 3 - 4 * y * 1 / 1])
    taken = d[[0, 0, 0, 1, 1, 2, 2, 2]]
    expected = (np.bincount(ids) - taken) / len(ids) + taken.sum() / len(ids) / 8
    np.testing.assert_allclose(everything_after(data.NGrams(ids, 8, 1), [])[0], expected)


@settings(max_examples=30)
@given(
    st.integers(1, 5),
    st.lists(st.integers(0, 4), min_size=4, max_size=200),
    st.lists(st.integers(0, 4), max_size=6),
)
def test_probabilities_are_positive_and_sum_to_one(order, ids, before):
    found = everything_after(data.NGrams(np.array([*ids, 0]), 5, order), before)
    assert (found > 0).all()
    np.testing.assert_allclose(found.sum(1), 1)


def test_rows_are_those_of_smaller_orders():
    ids, others = RNG.integers(0, 9, 500), RNG.integers(0, 9, 50)
    found = data.NGrams(ids, 9, 4).log_probabilities(others)
    for order in (1, 2, 3):
        np.testing.assert_array_equal(data.NGrams(ids, 9, order).log_probabilities(others), found[:order])
    assert data.NGrams(ids, 9, 4).log_probabilities(others[:0]).shape == (4, 0)


def test_what_stands_at_the_end_alone():
    """c has nothing after it, and a b c, the last of the 3-grams, no 4-gram."""
    model = data.NGrams(np.array([0, 1, 2]), 3, 3)
    found = everything_after(model, [1, 2])
    np.testing.assert_allclose(found[1:], np.stack([found[1]] * 2))
    np.testing.assert_allclose(found.sum(1), 1)


def test_large_vocabularies():
    """Of the numbers of n-grams, not of their codes, 64 bits are enough."""
    ids = RNG.integers(0, 2**31 - 1, 400)
    found = data.NGrams(np.concatenate([ids, ids]), 2**31 - 1, 6).log_probabilities(ids)
    assert found[-1, 5:].min() > np.log(0.9)


def test_losses_of_a_text_by_the_text_before_it():
    ids = (np.arange(3000) * 7 // 3) % 50  # of three tokens in a row the next follows, of two not always
    losses, order = data.ngram_losses(ids[:2500], ids[2500:], 50)
    assert losses.shape == (6,)
    model = data.NGrams(ids[:2500], 50, 6)
    np.testing.assert_allclose(losses, -model.log_probabilities(ids[2490:])[:, 10:].mean(1))
    held_out = data.NGrams(ids[:2250], 50, 6).log_probabilities(ids[:2500])[:, 2250:]
    assert order == held_out.mean(1).argmax() + 1 > 1


@pytest.mark.parametrize(
    ("ids", "vocabulary", "order", "message"),
    [
        ([0, 1], 2, 3, "NGrams of order 3 needs as many tokens; got 2"),
        ([0, 2], 2, 1, r"whole numbers \(t,\) from 0 to 1; got int64 \(2,\) from 0 to 2"),
        ([0.0, 1.0], 2, 1, r"whole numbers \(t,\) from 0 to 1; got float64"),
        ([[0, 1]], 2, 1, r"whole numbers \(t,\) from 0 to 1; got int64 \(1, 2\)"),
        ([0, 1], 2, 0, "a vocabulary and an order ≥ 1; got 2 and 0"),
        ([0, 1], 0, 1, "a vocabulary and an order ≥ 1; got 0 and 1"),
    ],
)
def test_what_cannot_be_counted(ids, vocabulary, order, message):
    with pytest.raises(ValueError, match=message):
        data.NGrams(np.array(ids), vocabulary, order)


def test_what_cannot_be_measured():
    with pytest.raises(ValueError, match=r"from 0 to 1; got int64 \(1,\) from 5 to 5"):
        data.NGrams(np.array([0, 1]), 2, 1).log_probabilities(np.array([5]))
    for ids, share in ((np.zeros(0, int), 0.9), (np.array([0, 1]), 1.0)):
        with pytest.raises(ValueError, match="ngram_losses needs tokens to count and to measure on"):
            data.ngram_losses(np.array([0, 1, 0, 1]), ids, 2, 1, share=share)
