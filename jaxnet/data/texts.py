"""Texts: one long one, sentences with a class, sentences with their translation."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxnet.data.archive import find, lines, text, unzipped


class Text(NamedTuple):
    """One long text; the last part of it is for the validation."""

    name: str
    train: str
    validation: str
    source: str


class Sentences(NamedTuple):
    """Sentences, each with the number of its class, int32 (n,)."""

    name: str
    train: tuple[list[str], np.ndarray]
    validation: tuple[list[str], np.ndarray]
    test: tuple[list[str], np.ndarray]
    classes: tuple[str, ...]
    source: str


class Translations(NamedTuple):
    """Sentences in one language and the same in another, in this order, with the names of both."""

    name: str
    train: tuple[list[str], list[str]]
    validation: tuple[list[str], list[str]]
    test: tuple[list[str], list[str]]
    languages: tuple[str, str]
    source: str


def characters(path: str | Path, *, share: float = 0.9) -> Text:
    """Any text file in UTF-8, gzipped or not: its first `share` to train on, the rest for the validation.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, not UTF-8 or too short for two parts, or `share` isn't between 0 and 1.
    """
    path = Path(path).expanduser()
    if not 0 < share < 1:
        raise ValueError(f"characters needs a share between 0 and 1; got {share}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no text file {path}")
    whole = text(path, unzipped(path))
    end = int(share * len(whole))
    if not 0 < end < len(whole):
        raise ValueError(f"{path} has {len(whole)} characters, too few for two parts")
    return Text(path.name, whole[:end], whole[end:], str(path))


def small_text() -> Text:
    """400 lines of a few words over and over, made here: what learns a text learns them in seconds."""
    rng = np.random.default_rng(0)
    people, does, what = ("Anne", "Ben", "Carl"), ("sees", "hears", "finds"), ("a cat.", "a dog.", "the sea.")
    made = [" ".join(rng.choice(words) for words in (people, does, what)) for _ in range(400)]
    return Text("a few sentences", "\n".join(made[:350]) + "\n", "\n".join(made[350:]) + "\n", "made here")


def shakespeare(folder: str | Path | None = None) -> Text:
    """Tiny Shakespeare, 1,115,394 characters of his plays; the last tenth is for the validation.

    Reads `input.txt` from `folder` or its subfolder `shakespeare`.

    Raises:
        FileNotFoundError: if it isn't there; the message has the public source.
        ValueError: if it is damaged.

    Reference: Karpathy, "The unreasonable effectiveness of recurrent neural networks" (2015).
    """
    source = "https://github.com/karpathy/char-rnn (data/tinyshakespeare/input.txt)"
    (path,) = find(folder, "shakespeare", ["input.txt"], source)
    return characters(path)._replace(name="Tiny Shakespeare", source="Shakespeare; Karpathy, char-rnn, 2015")


def multi30k(folder: str | Path | None = None, source: str = "en", target: str = "de") -> Translations:
    """Multi30K: 29,000 sentences on pictures in two languages, 1,014 for the validation, 1,000 as test.

    Reads `train`, `val` and `test_2016_flickr`, each with the languages as endings (`train.en`, gzipped or not),
    from `folder` or its subfolder `multi30k`.

    Args:
        folder: where they lie.
        source: the language to translate from: "en", "de", "fr" or "cs".
        target: the one to translate into.

    Raises:
        FileNotFoundError: if a file isn't there; the message has the public source.
        ValueError: if one is damaged, both aren't of the same length, or the languages are one.

    Reference: Elliott et al., "Multi30K: multilingual English-German image descriptions" (2016).
    """
    if source == target:
        raise ValueError(f"multi30k translates from one language into another; got {source!r} for both")
    public = "https://github.com/multi30k/dataset (data/task1/raw)"
    names = [f"{part}.{end}" for part in ("train", "val", "test_2016_flickr") for end in (source, target)]
    paths = find(folder, "multi30k", names, public)
    found = [lines(path, unzipped(path)) for path in paths]
    for i in range(0, len(found), 2):
        if len(found[i]) != len(found[i + 1]) or not found[i]:
            raise ValueError(
                f"{paths[i]} and {paths[i + 1].name} aren't translations of each other: {len(found[i])} and "
                f"{len(found[i + 1])} sentences"
            )
    train, validation, test = zip(found[::2], found[1::2], strict=True)
    return Translations("Multi30K", train, validation, test, (source, target), "Elliott et al., 2016")


def numerals(most: int = 999) -> Translations:
    """The numbers from 1 on in English words and in German ones; a tenth each for the validation and as test.

    A language pair that needs no files: "twenty-one" is "einundzwanzig".

    Args:
        most: the last number, from 10 to 999.
    """
    if not 10 <= most <= 999:
        raise ValueError(f"numerals needs 10 ≤ most ≤ 999; got {most}")
    numbers = np.random.default_rng(0).permutation(np.arange(1, most + 1))
    pairs = [(_english(int(n)), _german(int(n))) for n in numbers]
    tenth = most // 10
    parts = pairs[2 * tenth :], pairs[:tenth], pairs[tenth : 2 * tenth]
    train, validation, test = (([e for e, _ in part], [g for _, g in part]) for part in parts)
    return Translations("Numerals", train, validation, test, ("en", "de"), "made here")


_WORDS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen
    ten twenty thirty forty fifty sixty seventy eighty ninety
    null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn
    siebzehn achtzehn neunzehn
    zehn zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig
"""
_ALL = _WORDS.split()
_ONES, _TENS, _EINER, _ZEHNER = _ALL[:20], _ALL[20:29], _ALL[29:49], _ALL[49:]


def _english(n: int) -> str:
    if n < 20:
        return _ONES[n]
    if n < 100:
        return _TENS[n // 10 - 1] + (f"-{_ONES[n % 10]}" if n % 10 else "")
    return f"{_ONES[n // 100]} hundred" + (f" and {_english(n % 100)}" if n % 100 else "")


def _german(n: int) -> str:
    if n < 20:
        return _EINER[n]
    if n < 100:
        return (f"{_EINER[n % 10].removesuffix('s' * (n % 10 == 1))}und" if n % 10 else "") + _ZEHNER[n // 10 - 1]
    return f"{_EINER[n // 100].removesuffix('s' * (n < 200))}hundert" + (_german(n % 100) if n % 100 else "")


def nearest(known: Sequence[str], asked: Sequence[str]) -> np.ndarray:
    """Returns the number of the text in `known` that is most like each in `asked`, int (len(asked),).

    They are compared by the cosine of their words and pairs of words, each counted as 1 + ln n and weighted by the
    logarithm of how rare it is in `known` (TF-IDF).

    Reference: Salton and Buckley, "Term-weighting approaches in automatic text retrieval" (1988).
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # scikit-learn takes a second to import

    if not len(known) or not len(asked):
        raise ValueError(f"nearest needs texts; got {len(known)} known and {len(asked)} asked ones")
    weights = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
    columns = weights.fit_transform(known).T.tocsc()
    rows = weights.transform(asked)
    parts = (rows[i : i + 100] @ columns for i in range(0, len(asked), 100))
    return np.concatenate([np.asarray(part.argmax(1)).ravel() for part in parts])


def sst2(folder: str | Path | None = None) -> Sentences:
    """SST-2: whole sentences of film reviews, 6,920 to train on, 872 and 1,821; negative 0, positive 1.

    Reads `train.tsv`, `dev.tsv` and `test.tsv`, lines of a sentence, a tabulator and 0 or 1, from `folder` or its
    subfolder `sst2`. The GLUE benchmark trains on 67,000 phrases instead: its results are others.

    Raises:
        FileNotFoundError: if a file isn't there; the message has the public source.
        ValueError: if one is damaged; the message names it and the line.

    Reference: Socher et al., "Recursive deep models for semantic compositionality over a sentiment treebank"
    (2013).
    """
    source = "https://github.com/clairett/pytorch-sentiment-classification (data/SST2)"
    paths = find(folder, "sst2", ["train.tsv", "dev.tsv", "test.tsv"], source)
    train, validation, test = map(_labelled, paths)
    return Sentences("SST-2", train, validation, test, ("negative", "positive"), "Socher et al., 2013")


def _labelled(path: Path) -> tuple[list[str], np.ndarray]:
    sentences, labels = [], []
    for number, line in enumerate(lines(path, unzipped(path)), 1):
        sentence, _, label = line.rpartition("\t")
        if label not in ("0", "1") or not sentence:
            raise ValueError(f"{path}, line {number}: not a sentence, a tabulator and 0 or 1, but {line[:60]!r}")
        sentences.append(sentence)
        labels.append(int(label))
    if not sentences:
        raise ValueError(f"{path} is empty")
    return sentences, np.array(labels, np.int32)
