"""The arithmetic of the chatbot and its baselines: texts as typed, retrieved replies, the choice of one."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from baselines.chatbot import Pairs, Retrieval, baselines, perplexity

from jaxnet import data, networks

PATH = Path(__file__).parents[2] / "experiments" / "lstm_chatbot.py"


@pytest.fixture(scope="module")
def chatbot():
    spec = importlib.util.spec_from_file_location("lstm_chatbot", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the names in annotations
    spec.loader.exec_module(module)
    return module


def pairs(said, replied, targets):
    return Pairs(said, replied, [np.array([1, 5, 2])] * len(said), [np.array(ids) for ids in targets])


@pytest.fixture
def known():
    said = ["where is the cat", "where is the dog", "hello"]
    return pairs(said, ["on the roof", "on the table", "hi"], [[4, 5, 2], [4, 6, 2], [7, 2]])


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
    texts = chatbot.without_known("some", [["a", "b", "c .", "d"], ["x", "y"], []], [["b", "c."]], [["x", "z"]])
    assert texts[1:4] == ([["a", "b"], ["d"], ["x", "y"]], [["b", "c."]], [["x", "z"]])
    assert texts.left_out == 1


class Words:
    """A tokenizer of single letters."""

    def encode(self, text):
        return np.array([10 + ord(letter) - ord("a") for letter in text], np.int32)


def test_a_reply_and_all_that_was_said_before(chatbot):
    found = chatbot.pairs(Words(), [["ab", "c", "d"], ["e"], ["f", ""]])
    assert (found.said, found.replied) == (["ab", "c", "f"], ["c", "d", ""])
    assert [ids.tolist() for ids in found.histories] == [[1, 10, 11, 2], [1, 10, 11, 2, 12, 2], [1, 15, 2]]
    assert [ids.tolist() for ids in found.targets] == [[12, 2], [13, 2], [2]]
    assert found.tokens().tolist() == [12, 2, 13, 2, 2]
    assert found.rows().tolist() == [0, 0, 1, 1, 2]
    assert found.at(np.array([2])).replied == [""]


def test_what_is_too_long_is_cut(chatbot, known):
    ids = np.arange(10)
    some = chatbot.cut(known._replace(histories=[ids], targets=[ids]), 4)
    np.testing.assert_array_equal(some.histories, [[6, 7, 8, 9]])
    np.testing.assert_array_equal(some.targets, [[0, 1, 2, 3]])


def test_the_likelihood_of_a_reply_is_the_product_of_its_tokens(chatbot):
    """Whatever the bucket; the history counts as what is known, and not itself."""
    net = networks.recurrent_decoder(20, 8)
    params = net.init(jax.random.key(0), jnp.ones((1, 1), int))
    histories, targets = [np.array([1, 5, 2]), np.array([1, 4, 4, 4, 4, 2])], [np.array([7, 2]), np.array([2])]
    expected = []
    for history, target in zip(histories, targets, strict=True):
        ids = jnp.asarray(np.concatenate([history, target]))
        ln_p = jax.nn.log_softmax(net.apply(params, ids[None]))[0]
        expected.append(sum(ln_p[len(history) - 1 + i, t] for i, t in enumerate(target)))
    for buckets in (1, 2):
        found = chatbot.log_likelihoods(net, params, histories, targets, buckets)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    some = Pairs(["a", "b"], ["c", "d"], histories, targets)
    assert chatbot.perplexity_of(net, params, some, 1) == pytest.approx(np.exp(-sum(expected) / 3), rel=1e-5)


def test_baselines_are_mixtures_no_worse_than_the_ngrams_alone(known):
    retrieval = Retrieval(known, 10)
    found = baselines(retrieval, known, known, known)
    alone = data.NGrams(known.tokens(), 10, 3).log_probabilities(known.tokens())
    assert found["unigrams"] == pytest.approx(np.exp(-alone[0].mean()))
    assert found["trigrams"] == pytest.approx(np.exp(-alone[2].mean()))
    mixed = [name for name in found if "retrieved" in name]
    assert [name.split(",")[0] for name in mixed] == ["unigrams", "trigrams"]
    assert all(found[name] < found[name.split(",")[0]] for name in mixed)
    assert perplexity(np.array([0.5, 0.125])) == pytest.approx(4)


def test_retrieved_replies(known):
    retrieval = Retrieval(known, 10)
    numbers, near = retrieval.nearest(["where is the dog", "nothing of it"])
    assert numbers[0].tolist() == [1, 0, 2]
    np.testing.assert_allclose(near[0, [0, 2]], [1, 0], atol=1e-6)
    weights = retrieval.weights((numbers, near), 2).toarray()
    np.testing.assert_allclose(weights.sum(1), 1)
    np.testing.assert_allclose(weights[0, 0] / weights[0, 1], near[0, 1], rtol=1e-4)
    np.testing.assert_allclose(weights[1].max(), 0.5, rtol=1e-6)
    asked = pairs(["where is the dog"], ["on the table"], [[4, 6, 2]])
    np.testing.assert_allclose(retrieval.chances(asked)[1], 1 / 3)
    assert retrieval.likeness(known, 1).argmax(1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(np.diag(retrieval.likeness(known, 1)), 1, rtol=1e-5)


def test_the_right_one_among_equals_is_found_by_chance(chatbot):
    scores = np.array([[[3.0, 1, 2], [5, 5, 5], [1, 2, 0]]])
    assert chatbot.among(scores, 1) == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert chatbot.among(scores, 2) == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert chatbot.among(scores, 3) == 1


def test_parts_have_no_reply_twice(chatbot, monkeypatch):
    monkeypatch.setattr(chatbot, "CANDIDATES", 3)
    replied = [f"reply {i % 8}" for i in range(40)]
    some = pairs([str(i) for i in range(40)], replied, [[4, 2]] * 40)
    found = chatbot.drawn(some, 5)
    assert [len(set(part.replied)) for part in found] == [3, 3]
    assert len({reply for part in found for reply in part.replied}) == 6
    assert len(chatbot.drawn(some, 1)) == 1
