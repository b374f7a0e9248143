"""Mini-batches: every example once, in an order that is a function of the key and the epoch."""

import threading

import jax
import numpy as np
import pytest

from jaxnet import data

KEY = jax.random.key(3)
X, Y = np.arange(46).reshape(23, 2).astype(np.float32), np.arange(23)


def rows(batches) -> list[int]:
    return [int(y) for _, ys in batches for y in np.ravel(ys)]


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("key", [None, KEY], ids=["in order", "shuffled"])
def test_an_epoch_has_every_example_once(key, prefetch):
    batches = data.batches((X, Y), 5, key=key, prefetch=prefetch)
    assert sorted(rows(batches.epoch(4))) == list(range(23))
    assert len(batches) == len(list(batches)) == 5
    assert all(np.array_equal(x[:, 0], 2 * y) for x, y in batches.epoch(1))  # x and y stay together
    assert (rows(batches) == list(range(23))) is (key is None)


def test_the_order_is_a_function_of_key_and_epoch():
    one, other = data.batches((X, Y), 5, key=KEY), data.batches((X, Y), 5, key=jax.random.key(4))
    assert rows(one.epoch(1)) == rows(one.epoch(1))
    assert rows(one.epoch(1)) != rows(one.epoch(2))
    assert rows(one.epoch(1)) != rows(other.epoch(1))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("start", range(5))
def test_an_epoch_can_be_taken_up_anywhere(start, drop_last):
    batches = data.batches((X, Y), 5, key=KEY, drop_last=drop_last)
    whole, rest = rows(batches.epoch(2)), rows(batches.epoch(2, start=min(start, len(batches))))
    assert rest == whole[5 * start :]
    assert len(whole) == (20 if drop_last else 23)


def test_a_group_has_a_leading_axis_and_a_partial_batch_comes_alone():
    shapes = [x.shape for x, _ in data.batches((X, Y), 5).epoch(0, group=3)]
    assert shapes == [(3, 5, 2), (1, 5, 2), (1, 3, 2)]
    assert rows(data.batches((X, Y), 5, key=KEY).epoch(7, group=3)) == rows(
        data.batches((X, Y), 5, key=KEY).epoch(7)
    )


def test_an_epoch_left_early_leaves_no_thread():
    before = threading.active_count()
    epoch = data.batches((X, Y), 2, prefetch=3).epoch(0)
    next(epoch)
    epoch.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ((X, Y[:-1]), {}, r"one first axis in common; got shapes \[\(23, 2\), \(22,\)\]"),
        ((X, np.float32(1)), {}, "one first axis in common"),
        ((), {}, r"got shapes \[\]"),
        ((X[:0], Y[:0]), {}, "no batch to give: 0 examples"),
        ((X, Y), {"batch_size": 24, "drop_last": True}, "no batch to give: 23 examples, batch_size=24"),
        ((X, Y), {"batch_size": 0}, "batch_size ≥ 1"),
        ((X, Y), {"prefetch": -1}, "prefetch ≥ 0"),
    ],
)
def test_errors(arrays, options, message):
    with pytest.raises(ValueError, match=message):
        data.batches(arrays, **({"batch_size": 5} | options))


@pytest.mark.parametrize("options", [{"start": -1}, {"start": 6}, {"group": 0}, {"group": -2}], ids=str)
def test_an_epoch_that_cannot_be(options):
    with pytest.raises(ValueError, match="start from 0 to 5 and group ≥ 1 or None; got"):
        data.batches((X, Y), 5).epoch(0, **options)


def test_an_epoch_taken_up_at_its_end_is_empty():
    assert list(data.batches((X, Y), 5).epoch(0, start=5)) == []


def test_batches_are_a_tree_of_the_same_form_and_dtype():
    tree = {"x": X, "more": [Y.astype(np.int8), X.astype(np.float16)]}
    for prefetch in (0, 2):
        one = next(iter(data.batches(tree, 4, prefetch=prefetch)))
        assert jax.tree.structure(one) == jax.tree.structure(tree)
        assert [leaf.dtype for leaf in jax.tree.leaves(one)] == [leaf.dtype for leaf in jax.tree.leaves(tree)]
