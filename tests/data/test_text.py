"""Texts and the series of ETT, from small files in their real formats; the real ones if they are here."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest

from jaxnet import data

PARTS = ("train", "val", "test_2016_flickr")
MULTI30K = {
    f"{part}.{language}.gz": gzip.compress(f"{language} one.\n{language} two\u2028, still. \n".encode())
    for part in PARTS
    for language in ("en", "de")
}
SST2 = {f"{part}.tsv": b"a \"good film\t1\nit 's bad , too\t0\n" for part in ("train", "dev", "test")}
SPOKEN = {
    "train": "Hi . __eou__ Hello ! __eou__\nBye . __eou__ See you . __eou__ Soon . __eou__\n"
    "Hi . __eou__ Who ? __eou__\n",
    "validation": "Bye . __eou__ See you . __eou__ Soon . __eou__\n",
    "test": "Hi .  __eou__  Who ? __eou__\n",
}
CORPUS = """categories:
- talk
conversations:
- - Is it 1 or 2?
  - 1
- - "Yes: or no?"
  - no
  - ''
- In a game of bingo, what is 22?
  - two little ducks
"""
COLUMNS = "date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT"


def zipped(split, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{split}/dialogues_{split}.txt", content)
        archive.writestr(f"{split}/dialogues_act_{split}.txt", "1 2")
    return buffer.getvalue()


def packed(content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in (("chatterbot_corpus/data/english/ai.yml", content), ("license.md", "BSD")):
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def table(rows, seed=0):
    values = np.random.default_rng(seed).normal(5, 2, (rows, 7))
    return "\n".join([COLUMNS, *(f"2016-07-01 00:00:00,{','.join(map(str, row))}" for row in values)]).encode()


ETT = table(20 * 30 * 24 + 10)
SETS = {
    "shakespeare": (data.shakespeare, "shakespeare", {"input.txt": "First:\nSpeak, ô sea!".encode()}),
    "multi30k": (data.multi30k, "multi30k", MULTI30K),
    "sst2": (data.sst2, "sst2", SST2),
    "daily_dialog": (
        data.daily_dialog,
        "dialogue/dailydialog",
        {f"{split}.zip": zipped(split, text) for split, text in SPOKEN.items()},
    ),
    "chatterbot": (data.chatterbot, "dialogue", {"chatterbot-corpus-english.tar.gz": packed(CORPUS)}),
    "ett": (data.ett, "ett", {"ETTh1.csv": ETT}),
}
every_set = pytest.mark.parametrize("name", SETS)


def written(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@every_set
def test_what_is_not_there_names_its_public_source(name, tmp_path, monkeypatch):
    load, _, files = SETS[name]
    first = next(iter(files)).removesuffix(".gz").replace(".", r"\.")
    monkeypatch.delenv("JAXNET_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=rf"{first}.*https?://.*--data DIR.*JAXNET_DATA"):
        load()
    with pytest.raises(FileNotFoundError, match=rf"has n.*{first}.*https?://"):
        load(tmp_path)


@every_set
def test_found_in_the_folder_or_its_subfolder(name, tmp_path, monkeypatch):
    load, subfolder, files = SETS[name]
    folder = written(tmp_path / subfolder, files)
    monkeypatch.setenv("JAXNET_DATA", str(tmp_path))
    assert str(load()) == str(load(folder))


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("shakespeare", "input.txt", b"caf\xe9 au lait", r"input\.txt is not a text in UTF-8: byte 3 is"),
        ("shakespeare", "input.txt", b"a", r"input\.txt has 1 characters, too few"),
        ("multi30k", "val.de.gz", MULTI30K["val.de.gz"][:-9], r"val\.de\.gz is a damaged gzip file"),
        (
            "multi30k",
            "train.en.gz",
            gzip.compress(b"one\n"),
            r"train\.en\.gz and train\.de\.gz aren't .*: 1 and 2",
        ),
        ("multi30k", "train.en.gz", gzip.compress(b""), "0 and 2 sentences"),
        ("multi30k", "train.en.gz", gzip.compress(b"\xff\n\n"), r"train\.en\.gz is not a text in UTF-8: byte 0"),
        ("sst2", "dev.tsv", b"sentence\tlabel\na\t1\n", r"dev\.tsv, line 1: not a sentence.*'sentence\\tlabel'"),
        ("sst2", "test.tsv", b"a good film\t1\nb", r"test\.tsv, line 2"),
        ("sst2", "train.tsv", b"", r"train\.tsv is empty"),
        ("daily_dialog", "train.zip", b"PK nothing", r"train\.zip is a damaged archive"),
        (
            "daily_dialog",
            "test.zip",
            zipped("train", "a __eou__"),
            r"test\.zip is a damaged .*dialogues_test\.txt",
        ),
        ("daily_dialog", "test.zip", zipped("test", "Hi __eou__\nHo"), r"test\.zip, line 2: __eou__ doesn't end"),
        ("chatterbot", "chatterbot-corpus-english.tar.gz", packed(CORPUS)[:90], "is a damaged archive"),
        ("chatterbot", "chatterbot-corpus-english.tar.gz", packed("a: [b"), r"ai\.yml is not a corpus"),
        ("chatterbot", "chatterbot-corpus-english.tar.gz", packed("talk:\n"), r"ai\.yml is not a corpus"),
        ("chatterbot", "chatterbot-corpus-english.tar.gz", packed("- a\n"), r"ai\.yml is not a corpus"),
        (
            "chatterbot",
            "chatterbot-corpus-english.tar.gz",
            packed("conversations:\n- - a: b\n"),
            "is not a corpus",
        ),
        ("ett", "ETTh1.csv", ETT[:100_000], r"ETTh1\.csv is not the whole ETTh1: it needs 14400 rows"),
        ("ett", "ETTh1.csv", b"", r"ETTh1\.csv is not the whole ETTh1.*0 below ''"),
        ("ett", "ETTh1.csv", ETT.replace(b"OT", b"OP", 1), "rows below date,HUFL.*LULL,OP'"),
        ("ett", "ETTh1.csv", ETT.replace(b".", b"x", 1), r"ETTh1\.csv has a damaged row: .*x"),
        ("ett", "ETTh1.csv", ETT.replace(b",5.", b",nan,5.", 1), r"ETTh1\.csv has a row without a number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # a packed file has the time in it
)
def test_a_damaged_file_is_named(name, file, content, message, tmp_path):
    load, _, files = SETS[name]
    with pytest.raises(ValueError, match=message):
        load(written(tmp_path, files | {file: content}))


def test_any_text_is_split_in_order(tmp_path):
    path = tmp_path / "tale.txt"
    whole = "".join(f"line {i} é\r\n" for i in range(20))
    path.write_bytes(whole.encode())
    text, half = data.characters(path), data.characters(path, share=0.5)
    assert text.train + text.validation == half.train + half.validation == whole
    assert (len(text.train), len(half.train)) == (int(0.9 * len(whole)), len(whole) // 2)
    assert text.name == "tale.txt"
    path.write_bytes(gzip.compress(whole.encode()))
    assert data.characters(path) == text
    with pytest.raises(FileNotFoundError, match=r"there is no text file .*no\.txt"):
        data.characters(tmp_path / "no.txt")
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"share between 0 and 1; got {share}"):
            data.characters(path, share=share)


def test_a_small_text_is_the_same_each_time():
    text = data.small_text()
    assert text == data.small_text()
    parts = text.train, text.validation
    assert [part.count("\n") for part in parts] == [350, 50]
    assert all(part.endswith(".\n") for part in parts)
    assert set(text.validation.split()) <= set(text.train.split())


def test_translations(tmp_path):
    files = MULTI30K | {"val.de": gzip.decompress(MULTI30K["val.de.gz"]), "val.en": b"x\ny"}
    del files["val.de.gz"]
    there = data.multi30k(written(tmp_path, files), "de", "en")
    assert there.languages == ("de", "en")
    assert there.train == (["de one.", "de two\u2028, still."], ["en one.", "en two\u2028, still."])
    assert there.validation[1] == ["x", "y"]  # plain before gzipped
    with pytest.raises(FileNotFoundError, match=r"no train\.cs or train\.cs\.gz"):
        data.multi30k(tmp_path, target="cs")
    with pytest.raises(ValueError, match="got 'de' for both"):
        data.multi30k(tmp_path, "de")


def test_numerals():
    found = data.numerals()
    assert [len(part[0]) for part in (found.train, found.validation, found.test)] == [801, 99, 99]
    pairs = dict(pair for part in found[1:4] for pair in zip(*part, strict=True))
    assert len(pairs) == len(set(pairs.values())) == 999
    known = {
        "one": "eins",
        "eleven": "elf",
        "seventeen": "siebzehn",
        "twenty": "zwanzig",
        "twenty-one": "einundzwanzig",
        "thirty-six": "sechsunddreißig",
        "one hundred": "einhundert",
        "one hundred and one": "einhunderteins",
        "nine hundred and ninety-nine": "neunhundertneunundneunzig",
    }
    assert {english: pairs[english] for english in known} == known
    assert data.numerals() == found
    with pytest.raises(ValueError, match="got 1000"):
        data.numerals(1000)


def test_the_nearest_text_has_the_rarest_words_in_common():
    known = ["a man in a hat", "a dog in the snow", "A hat in the snow", "a man with a dog"]
    found = data.nearest(known, ["a dog and a man", "the snow, a DOG", "in a hat", "zebra"])
    np.testing.assert_array_equal(found[:3], [3, 1, 0])
    assert found.shape == (4,)
    with pytest.raises(ValueError, match="got 4 known and 0 asked"):
        data.nearest(known, [])


def test_sentences_with_a_class(tmp_path):
    found = data.sst2(written(tmp_path, SST2))
    assert found.train[0] == ['a "good film', "it 's bad , too"]
    np.testing.assert_array_equal(found.test[1], [1, 0])
    assert (found.train[1].dtype, found.classes) == (np.int32, ("negative", "positive"))


def test_dialogues_known_from_the_test_are_dropped(tmp_path):
    folder = written(tmp_path, SETS["daily_dialog"][2])
    found, whole = data.daily_dialog(folder), data.daily_dialog(folder, drop_known=False)
    assert found.train == [["Hi .", "Hello !"]]
    assert [len(part) for part in (whole.train, whole.validation, whole.test)] == [3, 1, 1]
    assert whole.test == found.test == [["Hi .", "Who ?"]]


def test_conversations_are_texts_whatever_yaml_makes_of_them(tmp_path):
    found = data.chatterbot(written(tmp_path, SETS["chatterbot"][2]))
    assert found == [["Is it 1 or 2?", "1"], ["Yes: or no?", "no", ""]]
    assert data.replies(found) == (["Is it 1 or 2?", "Yes: or no?", "no"], ["1", "no", ""])
    assert data.replies([["alone"], []]) == ([], [])
    (tmp_path / "chatterbot-corpus-english.tar.gz").unlink()
    (tmp_path / "chatterbot_corpus").mkdir()
    with pytest.raises(ValueError, match=r"no file chatterbot_corpus/data/english/\*\.yml"):
        data.chatterbot(tmp_path)


def test_a_series_to_be_forecast(tmp_path):
    written(tmp_path, {"ETTh1.csv": ETT, "ETTm2.csv": b""})
    series, longer = data.ett(tmp_path), data.ett(tmp_path, history=96)
    assert [part.shape for part in (series.train, series.validation, series.test)] == [(8640, 7)] + 2 * [(2880, 7)]
    np.testing.assert_allclose(series.train.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(series.train.std(0), 1, atol=1e-5)
    raw = np.loadtxt(ETT.decode().split("\n")[1:], delimiter=",", usecols=range(1, 8))
    np.testing.assert_allclose(
        series.test * series.deviation + series.mean, raw[11520:14400], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(longer.validation, np.concatenate([series.train[-96:], series.validation]))
    np.testing.assert_array_equal(longer.test, np.concatenate([series.validation[-96:], series.test]))
    x, y = data.windows(longer.test, 96, 24)
    assert (x.dtype, x.shape, y.shape) == (np.float32, (2857, 96, 7), (2857, 24, 7))
    np.testing.assert_array_equal(y[0], series.test[:24])
    with pytest.raises(ValueError, match=r"ETTm2\.csv is not the whole ETTm2: it needs 57600 rows"):
        data.ett(tmp_path, "ETTm2")
    with pytest.raises(ValueError, match="got 'ETTx'"):
        data.ett(tmp_path, "ETTx")
    with pytest.raises(ValueError, match="history from 0 to 2880 steps; got 2881"):
        data.ett(tmp_path, history=2881)


def test_the_real_ones(real_data):
    folder = real_data("shakespeare", "multi30k", "sst2", "dialogue", "ett")
    text = data.shakespeare(folder)
    assert (len(text.train), len(text.validation)) == (1003854, 111540)
    assert len(data.CharacterTokenizer(text.train)) == 65
    assert text.train.startswith("First Citizen:\n")
    pairs = data.multi30k(folder, target="fr")
    parts = pairs.train, pairs.validation, pairs.test
    assert [(len(x), len(y)) for x, y in parts] == [(29000, 29000), (1014, 1014), (1000, 1000)]
    films = data.sst2(folder)
    counts = [list(np.bincount(y)) for _, y in (films.train, films.validation, films.test)]
    assert counts == [[3310, 3610], [428, 444], [912, 909]]
    clean, whole = data.daily_dialog(folder), data.daily_dialog(folder, drop_known=False)
    parts = whole.train, whole.validation, whole.test
    assert [(len(part), sum(map(len, part))) for part in parts] == [(11118, 87171), (1000, 8069), (1000, 7740)]
    assert len(clean.train) == 10946
    talks = data.chatterbot(folder)
    assert len(talks) == 2025
    assert min(map(len, talks)) == 2
    for name, rows in (("ETTh1", 2880), ("ETTm1", 11520)):
        series = data.ett(folder, name)
        assert [len(part) for part in (series.train, series.validation, series.test)] == [3 * rows, rows, rows]
    assert data.ett(folder).mean[-1] == pytest.approx(17.128262)
