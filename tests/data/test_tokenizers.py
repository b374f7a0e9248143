"""Tokenizers: what is encoded is decoded again, the unknown by choice, saved and loaded."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnet import data

SENTENCES = [
    "A man, a plan, a canal.",
    "The man's dog runs after a ball.",
    "Zwei junge weiße Männer sind im Freien.",
    "“Really?” she said – and left…",
] * 3


@given(st.text(min_size=1))
def test_characters_come_back(text):
    tokenizer = data.CharacterTokenizer(text)
    ids = tokenizer.encode(text)
    assert (ids.dtype, ids.shape) == (np.int32, (len(text),))
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == len(set(text)) == ids.max() + 1


def test_unknown_characters_are_an_error_or_a_number():
    strict, lenient = data.CharacterTokenizer("abc"), data.CharacterTokenizer("abc", unknown=True)
    with pytest.raises(ValueError, match=r"character 1 of the text, 'ß', is not one of the 3 known.*unknown=True"):
        strict.encode("aßb")
    np.testing.assert_array_equal(lenient.encode("aßbz"), [0, 3, 1, 3])
    assert lenient.decode([0, 3, 1]) == "a\N{REPLACEMENT CHARACTER}b"
    assert (len(strict), len(lenient), lenient.unknown, strict.unknown) == (3, 4, 3, None)
    assert len(strict.encode("")) == 0
    assert strict.decode([]) == ""
    for ids in ([3], [-1], [0.5]):
        with pytest.raises(ValueError, match="decode needs whole numbers from 0 to 2"):
            strict.decode(ids)
    with pytest.raises(ValueError, match="at least one character"):
        data.CharacterTokenizer("")


@pytest.mark.parametrize("unknown", [False, True])
def test_characters_saved_and_loaded(unknown, tmp_path):
    tokenizer = data.CharacterTokenizer("aä\n\u2028😀", unknown=unknown)
    tokenizer.save(tmp_path / "it.json")
    loaded = data.CharacterTokenizer.load(tmp_path / "it.json")
    assert (loaded.characters, loaded.unknown) == (tokenizer.characters, tokenizer.unknown)


def test_words_by_frequency():
    tokenizer = data.WordTokenizer("b a b, it's b-c it's\n \n b a x", 6)
    assert tokenizer.words == ("<unk>", "b", "a", "it's", "\n")
    assert len(tokenizer) == 5
    ids = tokenizer.encode("a new b: it's\n")
    np.testing.assert_array_equal(ids, [2, 0, 1, 0, 3, 4])
    assert (ids.dtype, len(tokenizer.encode(""))) == (np.int32, 0)
    assert tokenizer.decode(ids) == "a <unk> b <unk> it's\n"
    assert data.WordTokenizer("b a b, it's b-c it's\n \n b a x", 3).words == ("<unk>", "b", "a")
    assert len(data.WordTokenizer("b a b", 9, least=1)) == 3


@pytest.mark.parametrize(
    "text", ["ROMEO:\nO, (what a day)!\n\nWell? It's o'er; go.", "weiße Männer: “ja …", "e-mail 3\n"]
)
def test_words_come_back_with_blanks_where_a_text_has_them(text):
    tokenizer = data.WordTokenizer(text, 100, least=1)
    assert tokenizer.unknown not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("“", "“ ").replace(" …", "…")


def test_words_refused():
    for size, least in ((0, 1), (5, 0)):
        with pytest.raises(ValueError, match=f"size and least ≥ 1; got {size} and {least}"):
            data.WordTokenizer("a a", size, least=least)
    for text, size in (("a b c", 9), ("a a", 1), ("", 9)):
        with pytest.raises(ValueError, match=f"size={size} needs a text with words that occur 2 times"):
            data.WordTokenizer(text, size)
    with pytest.raises(ValueError, match="decode needs whole numbers from 0 to 1"):
        data.WordTokenizer("a a", 9).decode([2])


@pytest.fixture(scope="module")
def pairs():
    return data.BytePairTokenizer.train(SENTENCES, 120)


def test_byte_pairs_come_back(pairs):
    for sentence in SENTENCES:
        ids = pairs.encode(sentence)
        assert ids.dtype == np.int32
        assert pairs.decode(ids) == sentence
        assert len(ids) < len(sentence)
        assert ids.min() >= len(pairs.special)
    assert len(pairs) <= 120
    assert pairs.tokens("a man")[-1] == "▁man"  # learnt


def test_special_tokens(pairs):
    assert (pairs.padding, pairs.beginning, pairs.end, pairs.unknown) == (0, 1, 2, 3)
    ids = pairs.encode("a man", ends=True)
    assert (ids[0], ids[-1]) == (pairs.beginning, pairs.end)
    np.testing.assert_array_equal(ids[1:-1], pairs.encode("a man"))
    array, lengths = data.padded([ids, pairs.encode("The man's dog", ends=True)], value=pairs.padding)
    assert [pairs.decode(row) for row in array] == ["a man", "The man's dog"]
    assert lengths[0] == len(ids)
    assert pairs.decode([*ids, *ids]) == "a man"  # nothing after the end
    assert pairs.unknown in pairs.encode("Ж man")
    assert pairs.decode(pairs.encode("Ж man")) == "<unk> man"
    assert pairs.end not in pairs.encode("a </s> man")  # a text, not a token
    assert pairs.decode(pairs.encode("")) == pairs.decode([]) == ""
    with pytest.raises(ValueError, match=f"from 0 to {len(pairs) - 1}"):
        pairs.decode([len(pairs)])


def test_training_is_a_function_of_the_sentences(pairs, tmp_path):
    again = data.BytePairTokenizer.train(iter(SENTENCES), 120)
    pairs.save(tmp_path / "one.json")
    again.save(tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    loaded = data.BytePairTokenizer.load(tmp_path / "one.json")
    for sentence in [*SENTENCES, "a </s> man"]:
        np.testing.assert_array_equal(loaded.encode(sentence), pairs.encode(sentence))


@pytest.mark.parametrize(("sentences", "size"), [(SENTENCES, 10), ([], 100), (["", ""], 100)])
def test_what_cannot_be_trained(sentences, size):
    with pytest.raises(ValueError, match=f"size={size} has no room for its .* characters, or no text"):
        data.BytePairTokenizer.train(sentences, size)


@pytest.mark.parametrize("kind", [data.CharacterTokenizer, data.BytePairTokenizer])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"type": "words"}', '{"type": "characters"}'])
def test_a_damaged_file_is_named(kind, content, tmp_path):
    path = tmp_path / "it.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"it\.json is not a saved {kind.__name__}"):
        kind.load(path)
    with pytest.raises(FileNotFoundError):
        kind.load(tmp_path / "no.json")


def test_tokens_of_others_are_refused(pairs, tmp_path):
    pairs.save(tmp_path / "it.json")
    content = json.loads((tmp_path / "it.json").read_text(encoding="utf-8"))
    content["added_tokens"] = []
    content["model"]["vocab"] = {"a": 0}
    content["model"]["merges"] = []
    (tmp_path / "it.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"the first tokens must be \('<pad>'"):
        data.BytePairTokenizer.load(tmp_path / "it.json")


def test_the_library_is_imported_when_it_is_needed():
    code = "import sys, jaxnet.data; sys.exit('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
