"""Masked words: how many, which, what is put there; the same from the same key; in batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import data

KEY = jax.random.key(0)
MASKING = data.Masking(mask=100, words=(4, 100))


def sentences(rows=400, length=20):
    ids = jax.random.randint(jax.random.key(1), (rows, length), 4, 100)
    return ids.at[:, 0].set(1), jnp.arange(rows) % length + 1  # a beginning, which is no word


def test_how_many_and_only_words_inside_of_the_lengths():
    ids, lengths = sentences()
    (masked, same, places), target = data.mask_words(KEY, ids, lengths, MASKING)
    assert (masked.shape, places.shape, target.shape) == ((400, 20), (400, 3), (400, 3))
    np.testing.assert_array_equal(same, lengths)
    count = np.sum(target >= 0, 1)
    words = np.asarray(lengths) - 1
    np.testing.assert_array_equal(count, np.minimum(np.maximum(np.round(0.15 * words), 1), words))
    used = np.asarray(target) >= 0
    assert (np.asarray(places)[used] < np.repeat(lengths, count)).all()
    assert (np.asarray(places)[used] > 0).all()
    np.testing.assert_array_equal(target[used], jnp.take_along_axis(ids, places, 1)[used])
    elsewhere = np.ones(ids.shape, bool)
    elsewhere[np.nonzero(used)[0], np.asarray(places)[used]] = False
    np.testing.assert_array_equal(masked[elsewhere], ids[elsewhere])
    assert all(len(set(row[of])) == of.sum() for row, of in zip(np.asarray(places), used, strict=True))


def test_the_shares_of_mask_other_words_and_the_same():
    ids, lengths = jnp.full((3000, 20), 50), jnp.full(3000, 20)
    (masked, _, places), target = data.mask_words(KEY, ids, lengths, MASKING)
    put = np.asarray(jnp.take_along_axis(masked, places, 1))
    n = put.size
    assert (np.asarray(target) == 50).all()
    other = 0.1 * 95 / 96  # a random word may be the same
    for share, expected in (
        (np.mean(put == 100), 0.8),
        (np.mean((put != 100) & (put != 50)), other),
        (np.mean(put == 50), 0.2 - other),
    ):
        assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / n)  # five standard deviations
    assert set(np.unique(put)) == set(range(4, 101))
    where = np.bincount(np.asarray(places).ravel(), minlength=20) / n  # each place alike
    assert np.abs(where - 1 / 20).max() < 5 * np.sqrt(1 / 20 * 19 / 20 / n)


def test_a_function_of_the_key():
    ids, lengths = sentences(8)
    first, again, other = (
        data.mask_words(jax.random.key(seed), ids, lengths, MASKING)[0][0] for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_batches_are_masked_anew_in_each_epoch_and_go_on_anywhere():
    texts = [list(range(4, 4 + n)) for n in (5, 9, 3, 7, 8, 6)]
    inner = data.bucketed(texts, 2, key=KEY, boundaries=[5, 9])
    batches = data.masked(inner, MASKING, key=jax.random.key(2))
    assert len(batches) == len(inner) == 3
    first, again, other = (list(batches.epoch(epoch)) for epoch in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    jax.tree.map(np.testing.assert_array_equal, first[1:], list(batches.epoch(0, start=1)))
    assert jax.tree.leaves(other)[0].shape != jax.tree.leaves(first)[0].shape or any(
        (a != b).any() for a, b in zip(jax.tree.leaves(first[0]), jax.tree.leaves(other[0]), strict=True)
    )
    with pytest.raises(ValueError, match=r"one by one.*got group=2"):
        list(batches.epoch(0, group=2))


@pytest.mark.parametrize(
    ("masking", "ids", "message"),
    [
        (MASKING._replace(rate=1.5), (2, 3), r"rates in \[0, 1\].*got \(1.5, 0.8, 0.1\)"),
        (MASKING._replace(random=0.3), (2, 3), r"replaced \+ random too; got \(0.15, 0.8, 0.3\)"),
        (MASKING._replace(words=(4, 4)), (2, 3), r"to before a larger one; got \(4, 4\)"),
        (MASKING, (2, 0), r"ids \(B, T\), T ≥ 1, and lengths \(B,\); got \(2, 0\), \(2,\)"),
        (MASKING, (3, 3), r"got \(3, 3\), \(2,\)"),
    ],
)
def test_errors(masking, ids, message):
    with pytest.raises(ValueError, match=message):
        data.mask_words(KEY, jnp.zeros(ids, int), jnp.zeros(2, int), masking)
