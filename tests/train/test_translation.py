"""Translations: written for each sentence, measured as sacreBLEU does."""

import builtins

import jax
import numpy as np
import pytest

from jaxnet import data, networks, train

SENTENCES = ["one two", "three", "two three one two three one", "one"]


@pytest.fixture(scope="module")
def tokenizers():
    return tuple(data.BytePairTokenizer.train(part, 60) for part in (SENTENCES, ["eins zwei", "drei eins zwei"]))


@pytest.fixture(scope="module")
def net(tokenizers):
    return networks.sequence_to_sequence(tuple(map(len, tokenizers)), 8)


@pytest.fixture(scope="module")
def params(net, tokenizers):
    x = (np.ones((1, 3), np.int32), np.array([3], np.int32)), np.ones((1, 2), np.int32)
    return net.init(jax.random.key(0), x)


def test_each_sentence_has_its_own_translation_in_its_place(net, params, tokenizers):
    together = train.translate(net, params, tokenizers, SENTENCES, beams=2, batch_size=3)
    assert len(together) == 4
    source, target = tokenizers
    for sentence, found in zip(SENTENCES[::2], together[::2], strict=True):
        x, lengths = data.padded([source.encode(sentence, ends=True)])
        prompt = (x, lengths), np.full((1, 1), target.beginning)
        # Equal up to the end that a batch sets: this network doesn't stop.
        written = networks.generate(net, params, prompt, 12, beams=2, stop=target.end)
        assert target.decode(written.ids[0])[:4] == found[:4]


def test_alignments_have_the_words_of_both(net, params, tokenizers):
    found = train.alignments(net, params, tokenizers, SENTENCES[:2], ["zwei eins", "drei"])
    for one, sentence, translation in zip(found, SENTENCES, ["zwei eins", "drei"], strict=False):
        assert one.source[0] == "<s>"
        assert one.source[-1] == one.target[-1] == "</s>"
        assert "".join(one.source[1:-1]).replace("▁", "") == sentence.replace(" ", "")
        assert "".join(one.target[:-1]).replace("▁", "") == translation.replace(" ", "")
        assert one.p.shape == (1, 1, len(one.target), len(one.source))
        np.testing.assert_allclose(one.p.sum(-1), 1, atol=1e-5)


def test_bleu_is_cased_and_of_the_whole_corpus():
    references = ["Ein Mann schläft auf einer Bank.", "Zwei Hunde laufen im Schnee."]
    assert train.bleu(references, references).score == pytest.approx(100)
    lower = train.bleu([line.lower() for line in references], references)
    assert 0 < lower.score < 80
    # By hand: of 6 tokens 5, 4, 3, 2 n-grams of 5, 4, 3 are right, no brevity penalty.
    one = train.bleu(["a b c d e f"], ["a b c d e g"])
    assert one.score == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)
    assert {"nrefs:1", "case:mixed", "tok:13a"} <= set(one.signature.split("|"))
    with pytest.raises(ValueError, match="got 1 translations and 2"):
        train.bleu(["a"], ["a", "b"])


def test_without_sacrebleu_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest):
        if name.startswith("sacrebleu"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ValueError, match="pip install sacrebleu"):
        train.bleu(["a"], ["a"])
