"""Tokenizers: texts as numbers and back, by characters, by words, or by parts of words learnt from a text."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


class CharacterTokenizer:
    """Each character a number, in the order of Unicode.

    Args:
        text: its characters are those that are known.
        unknown: whether a last number stands for all others; else encoding them is an error.

    Example:
        >>> tokenizer = data.CharacterTokenizer("hello")
        >>> tokenizer.encode("hole"), len(tokenizer)
        (array([1, 3, 2, 0], dtype=int32), 4)
    """

    def __init__(self, text: str, *, unknown: bool = False) -> None:
        """See the class."""
        if not text:
            raise ValueError("CharacterTokenizer needs a text with at least one character; got an empty one")
        self.characters = "".join(sorted(set(text)))
        self.unknown = len(self.characters) if unknown else None
        self._codes = _codes(self.characters)

    def __len__(self) -> int:
        """How many numbers there are."""
        return len(self.characters) + (self.unknown is not None)

    def encode(self, text: str) -> np.ndarray:
        """Returns the numbers (t,), int32.

        Raises:
            ValueError: for a character that isn't known, unless there is a number for those.
        """
        codes = _codes(text)
        ids = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        others = self._codes[ids] != codes
        if others.any():
            if self.unknown is None:
                first = int(others.argmax())
                raise ValueError(
                    f"character {first} of the text, {text[first]!r}, is not one of the {len(self.characters)} "
                    "known ones; make the tokenizer of a text that has it, or with unknown=True"
                )
            ids[others] = self.unknown
        return ids.astype(np.int32)

    def decode(self, ids: Any) -> str:
        """Returns the text; "\N{REPLACEMENT CHARACTER}" for what wasn't known.

        Raises:
            ValueError: for a number out of range.
        """
        ids = _checked(ids, len(self))
        characters = self.characters + ("\N{REPLACEMENT CHARACTER}" if self.unknown is not None else "")
        return "".join(characters[i] for i in ids)

    def save(self, path: str | Path) -> None:
        """Writes it as JSON."""
        content = {"type": "characters", "characters": self.characters, "unknown": self.unknown is not None}
        Path(path).write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "CharacterTokenizer":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is another one, or damaged; the message names it.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["type"] != "characters":
                raise ValueError(f"its type is {content['type']!r}")
            return cls(content["characters"], unknown=content["unknown"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a saved CharacterTokenizer: {error}") from error


class WordTokenizer:
    """Frequent words, marks of punctuation and ends of line, each a number, the most frequent first from 1 on.

    0, `unknown`, stands for all others. Blanks aren't kept: `decode` puts them where a text has them.

    Args:
        text: its words are counted; of equally frequent ones those come first that do so in the text.
        size: how many numbers there are at most, `unknown` included.
        least: how often a word must occur to be known.

    Raises:
        ValueError: for size or least < 1, or a text without such words.

    Example:
        >>> tokenizer = data.WordTokenizer("To be, or not to be.", 100, least=1)
        >>> tokenizer.encode("Not to be."), len(tokenizer)
        (array([0, 6, 1, 7], dtype=int32), 8)
    """

    unknown = 0
    _token = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]|\n")

    def __init__(self, text: str, size: int, *, least: int = 2) -> None:
        """See the class."""
        if min(size, least) < 1:
            raise ValueError(f"WordTokenizer needs size and least ≥ 1; got {size} and {least}")
        counts = Counter(self._token.findall(text)).most_common(size - 1)
        self.words = ("<unk>", *(word for word, count in counts if count >= least))
        if len(self.words) == 1:
            raise ValueError(f"WordTokenizer of size={size} needs a text with words that occur {least} times")
        self._numbers = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        """How many numbers there are."""
        return len(self.words)

    def encode(self, text: str) -> np.ndarray:
        """Returns the numbers (t,), int32, `unknown` for what isn't known."""
        found = (self._numbers.get(token, self.unknown) for token in self._token.findall(text))
        return np.fromiter(found, np.int32)

    def decode(self, ids: Any) -> str:
        """Returns the text: a blank between two words and after marks of punctuation; `<unk>` for `unknown`.

        Raises:
            ValueError: for a number out of range.
        """
        text = " ".join(self.words[i] for i in _checked(ids, len(self)))
        return re.sub(r" (?=[.,;:!?)\]}…\n])|(?<=[(\[{\n]) ", "", text)


class BytePairTokenizer:
    """Frequent parts of words, each a number: byte-pair encoding. Made by `train` or `load`.

    Starting from single characters, the pair of neighbours that occurs most often becomes one part, again and
    again. A blank belongs to the word after it, so that `decode(encode(text)) == text` for known characters (in
    the normal form NFC of Unicode, and but for a blank at the beginning). Four numbers are special: `padding` 0,
    `beginning` 1, `end` 2 and `unknown` 3.

    Reference: Sennrich, Haddow and Birch, "Neural machine translation of rare words with subword units" (2016);
    trained and applied by the library tokenizers of Hugging Face.
    """

    special = ("<pad>", "<s>", "</s>", "<unk>")
    padding, beginning, end, unknown = range(4)

    def __init__(self, tokenizer: Any) -> None:
        """Takes a `tokenizers.Tokenizer` whose first tokens are `special`; see `train` and `load`."""
        found = tuple(tokenizer.id_to_token(i) for i in range(len(self.special)))
        if found != self.special:
            raise ValueError(f"the first tokens must be {self.special}; got {found}")
        tokenizer.encode_special_tokens = True  # "</s>" in a text is a text
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, sentences: Iterable[str], size: int, *, least: int = 2) -> "BytePairTokenizer":
        """Learns the parts from sentences.

        Args:
            sentences: texts; the result is a function of them and the numbers alone.
            size: how many numbers there are at most, the four special ones and all characters included.
            least: how often a pair must occur to become a part.

        Raises:
            ValueError: if size has no room for the characters, or there is no text.
        """
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE(unk_token=cls.special[cls.unknown], fuse_unk=True))
        tokenizer.normalizer = normalizers.NFC()
        words = [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
        tokenizer.decoder = decoders.Metaspace()
        special = list(cls.special)
        trainer = trainers.BpeTrainer(
            vocab_size=size, min_frequency=least, special_tokens=special, show_progress=False
        )
        tokenizer.train_from_iterator(sentences, trainer)
        found = tokenizer.get_vocab_size()
        if not len(cls.special) < found <= size:
            raise ValueError(
                f"a BytePairTokenizer of size={size} has no room for its {found} characters, or no text"
            )
        return cls(tokenizer)

    def __len__(self) -> int:
        """How many numbers there are."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str, *, ends: bool = False) -> np.ndarray:
        """Returns the numbers (t,), int32; with `ends`, between `beginning` and `end`."""
        ids = self._tokenizer.encode(text).ids
        return np.array([self.beginning, *ids, self.end] if ends else ids, np.int32)

    def decode(self, ids: Any) -> str:
        """Returns the text up to the first `end`, without beginning and padding; `<unk>` for what wasn't known.

        Raises:
            ValueError: for a number out of range.
        """
        ids = _checked(ids, len(self)).tolist()
        ids = ids[: ids.index(self.end)] if self.end in ids else ids
        kept = [i for i in ids if i not in (self.padding, self.beginning)]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def tokens(self, text: str) -> list[str]:
        """Returns the parts themselves, "▁" for a blank."""
        return self._tokenizer.encode(text).tokens

    def save(self, path: str | Path) -> None:
        """Writes it as JSON, in the format of `tokenizers.Tokenizer`."""
        Path(path).write_text(self._tokenizer.to_str(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "BytePairTokenizer":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is another one, or damaged; the message names it.
        """
        from tokenizers import Tokenizer

        content = Path(path).read_text(encoding="utf-8")
        try:
            return cls(Tokenizer.from_str(content))
        except Exception as error:  # the library raises nothing more special
            raise ValueError(f"{path} is not a saved BytePairTokenizer: {error}") from error


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _checked(ids: Any, size: int) -> np.ndarray:
    found = np.asarray(ids).reshape(-1)
    if found.size and (found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= size):
        raise ValueError(f"decode needs whole numbers from 0 to {size - 1}; got {found.dtype} {found[:8]}")
    return found
