"""The chatbot's own arithmetic: texts as one types them, n-grams, retrieved replies, the choice of one."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "experiments" / "lstm_chatbot.py"


@pytest.fixture(scope="module")
def chatbot():
    spec = importlib.util.spec_from_file_location("lstm_chatbot", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the names in annotations
    spec.loader.exec_module(module)
    return module


def pairs(chatbot, said, replied, targets):
    sources = [np.array([5, chatbot.END])] * len(said)
    return chatbot.Pairs(said, replied, sources, [np.array(ids) for ids in targets])


@pytest.fixture
def known(chatbot):
    said = ["where is the cat", "where is the dog", "hello"]
    return pairs(chatbot, said, ["on the roof", "on the table", "hi"], [[1, 4, 5, 2], [1, 4, 6, 2], [1, 7, 2]])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I don ’ t know , Sir . You ' re late !", "I don't know, Sir. You're late!"),
        ("That's right.But they ' Ve gone", "That's right. But they'Ve gone"),
        ("At 3.30 p.m. , in the U.S.A. ?", "At 3.30 p.m., in the U.S.A.?"),
        ("'quoted' \n  lines", "'quoted' lines"),
        ("I see.", "I see."),
    ],
)
def test_as_one_types_it(chatbot, text, expected):
    assert chatbot.plain(text) == expected
    assert chatbot.plain(expected) == expected


def test_no_pair_of_the_test_is_in_the_training(chatbot):
    texts = chatbot.without_known("some", [["a", "b", "c ."], ["x", "y"]], [["b", "c."]], [["x", "z"]])
    assert texts == ("some", (["a", "x"], ["b", "y"]), (["b"], ["c."]), (["x"], ["z"]), 1)


def test_what_is_too_long_is_cut(chatbot, known):
    ids = np.arange(10)
    some = chatbot.cut(known._replace(sources=[ids], targets=[ids]), 4)
    np.testing.assert_array_equal(some.sources, [[6, 7, 8, 9]])
    np.testing.assert_array_equal(some.targets, [[0, 1, 2, 3]])


@pytest.mark.parametrize("order", [1, 2, 3])
def test_ngrams_are_probabilities(chatbot, known, order):
    """After each history all tokens have 1 in sum; those seen have more than those that aren't."""
    for history in ([4], [4, 5], [7], [9, 9]):
        p = [
            chatbot.ngrams(order, known, known._replace(targets=[np.array([1, *history, t])]), 10)[-1]
            for t in range(10)
        ]
        np.testing.assert_allclose(sum(p), 1)
    ids = [[1, 4, t] for t in (5, 6, 7)]
    seen, too, never = (chatbot.ngrams(order, known, known._replace(targets=[np.array(i)]), 10)[-1] for i in ids)
    assert seen == too
    assert (seen > never) == (order > 1)


def test_unigrams_by_hand(chatbot, known):
    counts = Counter([4, 5, 2, 4, 6, 2, 7, 2])
    expected = [(counts[t] + len(counts) / 10) / (8 + len(counts)) for t in known.tokens()]
    np.testing.assert_allclose(chatbot.ngrams(1, known, known, 10), expected)
    assert chatbot.perplexity(np.array([0.5, 0.125])) == pytest.approx(4)


def test_retrieved_replies(chatbot, known):
    retrieval = chatbot.Retrieval(known, 10)
    numbers, near = retrieval.nearest(["where is the dog", "nothing of it"])
    assert numbers[0].tolist() == [1, 0, 2]
    np.testing.assert_allclose(near[0, [0, 2]], [1, 0], atol=1e-6)
    weights = retrieval.weights((numbers, near), 2).toarray()
    np.testing.assert_allclose(weights.sum(1), 1)
    np.testing.assert_allclose(weights[0, 0] / weights[0, 1], near[0, 1], rtol=1e-4)
    np.testing.assert_allclose(weights[1].max(), 0.5, rtol=1e-6)
    asked = pairs(chatbot, ["where is the dog"], ["on the table"], [[1, 4, 6, 2]])
    np.testing.assert_allclose(retrieval.chances(asked)[1], 1 / 3)
    assert retrieval.likeness(known, 1).argmax(1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(np.diag(retrieval.likeness(known, 1)), 1, rtol=1e-5)


def test_the_right_one_among_equals_is_found_by_chance(chatbot):
    scores = np.array([[[3.0, 1, 2], [5, 5, 5], [1, 2, 0]]])
    assert chatbot.among(scores, 1) == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert chatbot.among(scores, 2) == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert chatbot.among(scores, 3) == 1


def test_blocks_have_no_reply_twice(chatbot, monkeypatch):
    monkeypatch.setattr(chatbot, "CANDIDATES", 3)
    replied = [f"reply {i % 8}" for i in range(40)]
    some = pairs(chatbot, [str(i) for i in range(40)], replied, [[1, 4, 2]] * 40)
    found = chatbot.blocks(some, 5)
    assert [len(set(block.replied)) for block in found] == [3, 3]
    assert len({reply for block in found for reply in block.replied}) == 6
    assert len(chatbot.blocks(some, 1)) == 1
