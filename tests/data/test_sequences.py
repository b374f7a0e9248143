"""Sequences: padded, in batches of similar length that are a function of key and epoch, cut into windows."""

import itertools

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnet import data, layers, losses, train

KEY = jax.random.key(3)
LENGTHS = np.random.default_rng(0).integers(0, 20, 53)
SENTENCES = [list(range(100 * i, 100 * i + t)) for i, t in enumerate(LENGTHS)]
LABELS = np.arange(53, dtype=np.int32)


def test_padded():
    array, lengths = data.padded([[5, 6, 7], [], [8]], value=-1)
    np.testing.assert_array_equal(array, [[5, 6, 7], [-1, -1, -1], [8, -1, -1]])
    np.testing.assert_array_equal(lengths, [3, 0, 1])
    assert (array.dtype, lengths.dtype) == (np.int32, np.int32)
    assert data.padded([[], []])[0].shape == (2, 0)
    assert data.padded([[1]], 4)[0].shape == (1, 4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_padded_arrays_keep_shape_and_dtype(dtype):
    rows = [np.ones((t, 2, 3), dtype) for t in (1, 4, 0)]
    array, lengths = data.padded(rows)
    assert (array.shape, array.dtype) == ((3, 4, 2, 3), dtype)
    np.testing.assert_array_equal(array.sum((1, 2, 3)), 6 * lengths)
    assert data.padded([[0.5], [1]])[0].dtype == np.float32
    assert data.padded([[[0.5, 1]], []])[0].shape == (2, 1, 2)


def test_every_batch_has_the_dtype_and_rank_of_its_column():
    columns = [[], [[1, 2]], [[3, 4], [0.5, 0]]], [1, 0, 2]
    batches = list(data.bucketed(columns, 1))
    assert [x.shape for (x, _), _ in batches] == [(1, 0, 2), (1, 1, 2), (1, 2, 2)]
    assert {(str(x.dtype), str(y.dtype)) for (x, _), y in batches} == {("float32", "int32")}


@pytest.mark.parametrize(
    ("sequences", "options", "message"),
    [
        ([[1, 2, 3]], {"length": 2}, "length=2 would cut a sequence of 3"),
        ([], {}, r"needs sequences \(t, …\)"),
        ([[1], 2], {}, "got a single number among them"),
        ([np.ones((2, 3)), np.ones((2, 4))], {}, r"got steps of shapes \[\(3,\), \(4,\)\]"),
    ],
)
def test_what_cannot_be_padded(sequences, options, message):
    with pytest.raises(ValueError, match=message):
        data.padded(sequences, **options)


def seen(batches) -> list[int]:
    return [int(label) for _, labels in batches for label in np.ravel(labels)]


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("key", [None, KEY], ids=["in order", "shuffled"])
def test_an_epoch_has_every_example_once_and_whole(key, prefetch):
    batches = data.bucketed((SENTENCES, LABELS), 5, key=key, prefetch=prefetch)
    assert len(batches) == len(list(batches)) == 11
    assert sorted(seen(batches.epoch(4))) == list(range(53))
    for (array, lengths), labels in batches.epoch(1):
        for row, length, label in zip(np.asarray(array), lengths, labels, strict=True):
            assert list(row[:length]) == SENTENCES[label]
            assert not row[length:].any()


def test_few_shapes_and_little_padding():
    shapes, filled, cells = set(), 0, 0
    batches = data.bucketed((SENTENCES, LABELS), 4, key=KEY, boundaries=5)
    for epoch in range(4):
        for (array, lengths), _ in batches.epoch(epoch):
            shapes.add(array.shape)
            filled, cells = filled + int(lengths.sum()), cells + array.size
    assert len(shapes) <= 6  # a last, partial batch has a shape of its own
    assert filled / cells > 0.75
    assert LENGTHS.mean() / LENGTHS.max() < 0.6  # what it would be without buckets


def test_the_order_is_a_function_of_key_and_epoch():
    one, other = (data.bucketed((SENTENCES, LABELS), 5, key=key) for key in (KEY, jax.random.key(4)))
    assert seen(one.epoch(1)) == seen(one.epoch(1))
    assert seen(one.epoch(1)) != seen(one.epoch(2))
    assert seen(one.epoch(1)) != seen(other.epoch(1))
    longest = [array.shape[1] for (array, _), _ in one.epoch(1)]
    assert longest[:-1] != sorted(longest[:-1])  # the batches are shuffled too


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("group", [None, 2])
def test_an_epoch_can_be_taken_up_anywhere(drop_last, group):
    batches = data.bucketed((SENTENCES, LABELS), 5, key=KEY, drop_last=drop_last)
    whole = seen(batches.epoch(2))
    assert len(whole) == len(set(whole)) == (50 if drop_last else 53)
    for start in range(len(batches) + 1):
        assert seen(batches.epoch(2, start=start, group=group)) == whole[5 * start :]


def test_each_epoch_drops_others():
    batches = data.bucketed((SENTENCES, LABELS), 5, key=KEY, drop_last=True)
    dropped = [set(range(53)) - set(seen(batches.epoch(epoch))) for epoch in range(6)]
    assert len(set.union(*dropped)) > 10


def test_a_group_has_one_shape():
    batches = data.bucketed((SENTENCES, LABELS), 5, key=KEY, boundaries=2)
    groups = [array.shape for (array, _), _ in batches.epoch(0, group=3)]
    assert {shape[0] for shape in groups} <= {1, 3}
    assert (3, 5) in {shape[:2] for shape in groups}
    assert groups[-1][:2] == (1, 3)
    assert sum(shape[0] for shape in groups) == len(batches)


def test_pairs_have_one_length_and_are_arranged():
    targets = [sentence[: len(sentence) // 2] for sentence in SENTENCES]
    for (x, n), (y, m) in data.bucketed((SENTENCES, targets), 8, key=KEY):
        assert x.shape == y.shape
        np.testing.assert_array_equal(n // 2, m)

    def shifted(source, target):
        return (source, target[0][:, :-1]), target[0][:, 1:]

    for (source, shown), wanted in data.bucketed((SENTENCES, targets), 8, boundaries=[8, 20], arrange=shifted):
        assert source[0].shape[1] - 1 == shown.shape[1] == wanted.shape[1]
    for group in (None, 2):
        plain = data.bucketed(SENTENCES, 8, arrange=lambda sentence: sentence[0])
        assert sum(np.sign(x).sum() for x in plain.epoch(0, group=group)) == LENGTHS.sum() - (LENGTHS[0] > 0)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.integers(1, 4))
def test_boundaries_are_chosen_for_the_least_padding(lengths, number):
    chosen = data.bucketed([[1] * t for t in lengths], 1, boundaries=number).boundaries
    kinds = sorted(set(lengths))

    def cells(ends):
        return sum(min(end for end in ends if end >= t) for t in lengths)

    ways = itertools.combinations(kinds[:-1], min(number, len(kinds)) - 1)
    assert cells(chosen) == min(cells([*ends, kinds[-1]]) for ends in ways)
    assert len(chosen) == min(number, len(kinds))


def test_boundaries_of_very_many_lengths():
    lengths = np.random.default_rng(0).integers(0, 20000, 3000)
    batches = data.bucketed([np.zeros(t, np.int8) for t in lengths], 32, boundaries=8)
    assert len(batches.boundaries) == 8
    assert batches.boundaries[-1] == lengths.max()


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ((SENTENCES, LABELS[:-1]), {}, r"got \[53, 52\] of them"),
        (LABELS, {}, "needs equally many sequences"),
        ([], {}, "no batch to give: 0 examples"),
        (SENTENCES, {"batch_size": 0}, "batch_size ≥ 1"),
        (SENTENCES, {"boundaries": 0}, "boundaries ≥ 1 or a list of lengths; got 0"),
        (SENTENCES, {"boundaries": [5, 10]}, r"at least the longest sequence, 19; got \[5, 10\]"),
        (SENTENCES, {"boundaries": []}, "at least the longest sequence"),
        (SENTENCES, {"batch_size": 54, "drop_last": True}, "no batch to give"),
    ],
)
def test_what_cannot_be_bucketed(columns, options, message):
    with pytest.raises(ValueError, match=message):
        data.bucketed(columns, **({"batch_size": 5} | options))


@pytest.mark.parametrize("steps", [None, 2])
def test_a_run_stopped_within_an_epoch_resumes_to_the_same_bits(steps, tmp_path):
    sounds = [np.float32(np.random.default_rng(t).normal(size=(t + 1, 3))) for t in LENGTHS[:16]]
    net, optimizer = layers.dense(2), optax.sgd(0.1)
    step = train.make_step(net, losses.cross_entropy, optimizer, steps=steps)

    def fit(epochs, run, made=99, **options):
        """On batches of which no more than `made` can be had."""
        left = iter(range(made))

        def mean(sound, label):
            assert next(left, None) is not None, "no more"
            return sound[0].sum(1) / np.float32(20), label

        batches = data.bucketed((sounds, LABELS[:16] % 2), 3, key=KEY, boundaries=2, arrange=mean, prefetch=0)
        state = train.init(net, optimizer, KEY, np.ones((1, 3), np.float32))
        options = {"progress": False, "checkpoint_every": 4} | options
        return train.fit(state, step, batches, epochs=epochs, run=run, **options)

    straight = fit(2, None)
    with pytest.raises(AssertionError, match="no more"):
        fit(2, tmp_path / "stopped", made=9)  # of 12
    resumed = fit(2, tmp_path / "stopped", made=6, resume=True)
    assert int(straight.step) == int(resumed.step) == 12
    jax.tree.map(np.testing.assert_array_equal, straight.params, resumed.params)


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_windows(stride):
    series = np.arange(40.0).reshape(20, 2)
    x, y = data.windows(series, 4, 3, stride=stride)
    assert (x.shape[1:], y.shape[1:]) == ((4, 2), (3, 2))
    assert len(x) == len(y) == (20 - 7) // stride + 1
    for i in range(len(x)):
        np.testing.assert_array_equal(np.concatenate([x[i], y[i]]), series[i * stride : i * stride + 7])
    assert np.shares_memory(x, series)
    flat, _ = data.windows(np.arange(7), 4, 3)
    np.testing.assert_array_equal(flat, [[0, 1, 2, 3]])


def test_next_tokens():
    ids = np.arange(10)
    x, y = data.next_tokens(ids, 3)
    np.testing.assert_array_equal(x, ids[:9].reshape(3, 3))
    np.testing.assert_array_equal(y, x + 1)
    assert data.next_tokens(ids, 9)[0].shape == (1, 9)
    for length in (0, 10):
        with pytest.raises(ValueError, match=rf"got {length} and shape \(10,\)"):
            data.next_tokens(ids, length)


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (8, 3, 1)], ids=str)
def test_windows_that_cannot_be(numbers):
    with pytest.raises(ValueError, match=rf"got {numbers[0]}, {numbers[1]}, {numbers[2]} and shape \(10,\)"):
        data.windows(np.arange(10), *numbers[:2], stride=numbers[2])


@pytest.mark.parametrize(
    ("tokens", "length", "context"), [(30, 5, 3), (31, 5, 7), (4, 9, 3), (20, 1, 1), (9, 4, 1)]
)
def test_scored_counts_every_token_once_with_its_context(tokens, length, context):
    ids = np.arange(1, tokens + 1, dtype=np.int32)
    x, y = data.scored(ids, length, context)
    assert x.shape == y.shape == (-(-(tokens - context) // length), context + length - 1)
    assert x.dtype == y.dtype == np.int32
    counted = y >= 0
    np.testing.assert_array_equal(y[counted], ids[context:])
    np.testing.assert_array_equal(x[counted] + 1, y[counted])  # its predecessor is at its place
    assert not counted[:, : context - 1].any()
    np.testing.assert_array_equal(data.scored(ids, length, context, ignore=-7)[1] == -7, ~counted)


def test_the_mean_over_scored_pieces_is_that_over_the_text():
    ids = np.random.default_rng(1).integers(0, 5, 50)
    table = np.random.default_rng(2).normal(size=(5, 5)).astype(np.float32)  # logits by the token before
    x, y = data.scored(ids, 8, 4)
    found = losses.cross_entropy(table[x], y, ignore_label=-1).sum() / (len(ids) - 4)
    np.testing.assert_allclose(found, losses.cross_entropy(table[ids[3:-1]], ids[4:]).mean(), rtol=1e-6)


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0), (2, 6), (2, 7)])
def test_scored_refused(numbers):
    with pytest.raises(ValueError, match=r"scored needs a length ≥ 1, 1 ≤ context < tokens \(t,\)"):
        data.scored(np.arange(6), *numbers)


def test_excerpts_come_from_anywhere_anew_in_each_epoch():
    ids = np.arange(50, 150, dtype=np.int32)
    batches = data.excerpts(ids, 7, 4, steps=30, key=KEY)
    assert len(batches) == 30
    starts = []
    for epoch in (0, 1):
        for x, y in (map(np.asarray, batch) for batch in batches.epoch(epoch)):
            assert x.shape == y.shape == (4, 7)
            np.testing.assert_array_equal(x, x[:, :1] + np.arange(7))
            np.testing.assert_array_equal(y, x + 1)
            starts.append(x[:, 0])
    assert len(np.unique(starts)) > 60
    assert np.min(starts) >= 50
    assert np.max(starts) <= 142
    assert (np.stack(starts[:30]) != np.stack(starts[30:])).any()
    (again, _), *_ = batches.epoch(1, start=12)
    np.testing.assert_array_equal(again[:, 0], starts[42])
    (grouped, _), *_ = batches.epoch(1, start=12, group=3)
    np.testing.assert_array_equal(grouped[..., 0], starts[42:45])


def test_excerpts_of_a_text_shorter_than_an_epoch():
    (x, y), *_ = data.excerpts(np.arange(4), 3, 8, steps=2, key=KEY)
    np.testing.assert_array_equal(x, np.tile(np.arange(3), (8, 1)))
    np.testing.assert_array_equal(y, np.tile(np.arange(1, 4), (8, 1)))


@pytest.mark.parametrize("numbers", [(4, 2, 1), (0, 2, 1), (2, 0, 1), (2, 2, 0)], ids=str)
def test_excerpts_refused(numbers):
    length, batch_size, steps = numbers
    with pytest.raises(ValueError, match="needs"):
        data.excerpts(np.arange(4), length, batch_size, steps=steps, key=KEY)


def test_teacher_forcing():
    source, target = data.padded([[5, 6], [7]]), data.padded([[1, 8, 9, 2], [1, 2]])
    (given, before), after = data.teacher_forcing(source, target)
    assert given is source
    np.testing.assert_array_equal(before, [[1, 8, 9], [1, 2, 0]])
    np.testing.assert_array_equal(after, [[8, 9, 2], [2, 0, 0]])
