"""Dialogues, each a list of what was said in turn: DailyDialog and the corpus of ChatterBot."""

import io
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import yaml

from jaxnet.data.archive import find, lines, members, text, unzipped

Dialogue = list[str]


class Dialogues(NamedTuple):
    """Dialogues, split by the source into training, validation and test data."""

    name: str
    train: list[Dialogue]
    validation: list[Dialogue]
    test: list[Dialogue]
    source: str


def daily_dialog(folder: str | Path | None = None, *, drop_known: bool = True) -> Dialogues:
    """DailyDialog: 13,118 dialogues of everyday life in English.

    Reads `dialogues_SPLIT.txt`, a dialogue on each line with `__eou__` after each utterance, from `train.zip`,
    `validation.zip` and `test.zip` in `folder` or its subfolder `dialogue/dailydialog`; not the labels.

    Args:
        folder: where they lie.
        drop_known: whether training dialogues that are also in the validation or test data are left out: the
            release has them in both, and to know them would be rewarded.

    Raises:
        FileNotFoundError: if a file isn't there; the message has the public source.
        ValueError: if one is damaged; the message names it.

    Reference: Li et al., "DailyDialog: a manually labelled multi-turn dialogue dataset" (2017).
    """
    names = ("train", "validation", "test")
    source = "http://yanran.li/dailydialog"
    paths = find(folder, "dialogue/dailydialog", [f"{name}.zip" for name in names], source)
    train, validation, test = (_spoken(path, name) for path, name in zip(paths, names, strict=True))
    if drop_known:
        known = {tuple(dialogue) for dialogue in validation + test}
        train = [dialogue for dialogue in train if tuple(dialogue) not in known]
    return Dialogues("DailyDialog", train, validation, test, "Li et al., 2017")


def _spoken(path: Path, split: str) -> list[Dialogue]:
    try:
        with zipfile.ZipFile(io.BytesIO(unzipped(path))) as archive:
            content = archive.read(f"{split}/dialogues_{split}.txt")
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged archive: {error}") from error
    found = []
    for number, line in enumerate(lines(path, content), 1):
        *said, rest = line.split("__eou__")
        if rest or not said:
            raise ValueError(f"{path}, line {number}: __eou__ doesn't end the dialogue {line[:60]!r}")
        found.append([utterance.strip() for utterance in said])
    return found


def chatterbot(folder: str | Path | None = None) -> list[Dialogue]:
    """The English corpus of ChatterBot: some 2,000 short conversations, most a question and its answer.

    Reads `chatterbot_corpus/data/english/*.yml` from `chatterbot-corpus-english.tar.gz` or the folder
    `chatterbot_corpus`, in `folder` or its subfolder `dialogue`. It isn't split. What isn't a list of utterances
    (one question of the release runs into its answer) is left out.

    Raises:
        FileNotFoundError: if it isn't there; the message has the public source.
        ValueError: for a damaged file; the message names it.

    Reference: Cox, "ChatterBot language training corpus", https://github.com/gunthercox/chatterbot-corpus.
    """
    source = "https://github.com/gunthercox/chatterbot-corpus (packed as chatterbot-corpus-english.tar.gz)"
    archive = "chatterbot-corpus-english.tar.gz"
    found: list[Dialogue] = []
    for name, content in members(folder, "dialogue", "chatterbot_corpus", archive, source):
        path = Path(name)
        if path.suffix == ".yml" and path.parent.name == "english":
            try:
                # Everything as text, also `yes` and `1`.
                conversations = yaml.load(text(name, content), yaml.BaseLoader)["conversations"]
                found += [[said.strip() for said in turns] for turns in conversations if isinstance(turns, list)]
            except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{name} is not a corpus of ChatterBot: {error}") from error
    if not found:
        raise ValueError(f"{archive} has no file chatterbot_corpus/data/english/*.yml")
    return found


def replies(dialogues: list[Dialogue]) -> tuple[list[str], list[str]]:
    """Each utterance that is answered, and its answer.

    Example:
        >>> data.replies([["Hello", "Hi", "How are you?"]])
        (['Hello', 'Hi'], ['Hi', 'How are you?'])
    """
    said = [utterance for dialogue in dialogues for utterance in dialogue[:-1]]
    answers = [utterance for dialogue in dialogues for utterance in dialogue[1:]]
    return said, answers
