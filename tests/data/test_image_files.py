"""Data sets of images and series, from small archives in their real layouts; the real ones if they are here."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from jaxnet import data


def encoded(shape, kind, seed=0):
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def annotation(*boxes):
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        "</object>"
        for name, a, b, c, d in boxes
    )
    return f"<annotation>{objects}</annotation>".encode()


CIFAR = {
    f"{split}/{label}/{n:04}.jpg": encoded((32, 32, 3), "JPEG", n)
    for split in ("train", "test")
    for label in ("cat", "ant")
    for n in range(2)
}
FACES = {f"orl_faces/s{i}/{j}.pgm": encoded((112, 92), "PPM", 10 * i + j) for i in range(1, 41) for j in (10, 9)}
CELLS = {
    "BCCD_Dataset/BCCD/ImageSets/Main/train.txt": b"a\n",
    "BCCD_Dataset/BCCD/ImageSets/Main/val.txt": b"b\n",
    "BCCD_Dataset/BCCD/ImageSets/Main/test.txt": b"a\nb\n",
    "BCCD_Dataset/BCCD/JPEGImages/a.jpg": encoded((48, 64, 3), "JPEG"),
    "BCCD_Dataset/BCCD/JPEGImages/b.jpg": encoded((48, 64, 3), "JPEG"),
    "BCCD_Dataset/BCCD/Annotations/a.xml": annotation(("WBC", 2, 4, 32, 24), ("RBC", 5, 5, 5, 9)),
    "BCCD_Dataset/BCCD/Annotations/b.xml": annotation(),
}
NAB = {
    "NAB/data/README.md": b"",
    "NAB/data/real/one.csv": b"timestamp,value\n"
    + b"".join(b"2014-04-%02d 00:00:00,%d.5\n" % (day, day) for day in range(1, 11)),
    "NAB/labels/combined_windows.json": json.dumps(
        {"real/one.csv": [["2014-04-03 00:00:00.000000", "2014-04-05 00:00:00.000000"]]}
    ).encode(),
}
ARCHIVES = {
    "cifar10": (data.cifar10, "cifar-10-jpeg.tar.gz", CIFAR),
    "faces": (data.faces, "orl_faces.tar.gz", FACES),
    "blood_cells": (data.blood_cells, "BCCD_Dataset.tar", CELLS),
    "nab": (data.nab, "nab.tar.gz", NAB),
}
every_set = pytest.mark.parametrize("name", ARCHIVES)


def packed(path, files):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@every_set
@pytest.mark.parametrize("as_folder", [False, True], ids=["archive", "folder"])
def test_read_from_an_archive_or_a_folder(name, as_folder, tmp_path):
    load, archive, files = ARCHIVES[name]
    if as_folder:
        top = tmp_path / "cifar-10-jpeg" if name == "cifar10" else tmp_path
        for file, content in files.items():
            (top / file).parent.mkdir(parents=True, exist_ok=True)
            (top / file).write_bytes(content)
    else:
        packed(tmp_path / archive, files)
    found = load(tmp_path)
    if name == "cifar10":
        assert found.classes == ("ant", "cat")
        x, y = found.train
        assert (x.shape, x.dtype, x.min() >= 0, x.max() <= 1) == ((4, 32, 32, 3), np.float32, True, True)
        assert sorted(y) == [0, 0, 1, 1]
    elif name == "faces":
        (x, y), (_, other) = found.train, found.test
        assert x.shape == (60, 112, 92, 1)
        assert (set(y), set(other)) == (set(range(30)), set(range(30, 40)))
        with Image.open(io.BytesIO(FACES["orl_faces/s1/9.pgm"])) as nine:
            np.testing.assert_allclose(x[0, ..., 0] * 255, np.asarray(nine), atol=1e-4)
    elif name == "blood_cells":
        assert [len(part.images) for part in (found.train, found.validation, found.test)] == [1, 1, 2]
        np.testing.assert_array_equal(found.train.boxes[0], [[20, 40, 320, 240]])  # scaled ×10; one had no area
        assert found.train.labels[0] == [found.classes.index("WBC")]
        assert found.validation.boxes[0].shape == (0, 4)
    else:
        (series,) = found
        np.testing.assert_array_equal(series.windows, [[2, 4]])
        assert series.values[0] == 1.5
        assert series.name == "real/one.csv"


@every_set
def test_what_is_not_there_names_its_public_source(name, tmp_path, monkeypatch):
    load, archive, _ = ARCHIVES[name]
    monkeypatch.delenv("JAXNET_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=rf"{archive}.*https://.*--data DIR"):
        load()
    with pytest.raises(FileNotFoundError, match=rf"has neither {archive} nor the folder .*https://"):
        load(tmp_path)


@every_set
def test_an_archive_cut_short(name, tmp_path):
    load, archive, files = ARCHIVES[name]
    packed(tmp_path / "whole" if not archive.endswith("gz") else tmp_path / "whole.gz", files)
    whole = next(tmp_path.iterdir())
    (tmp_path / archive).write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    with pytest.raises(ValueError, match=r"damaged|cut short|has no file|missing"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "train/cat/0001.jpg"),
        ("faces", "orl_faces/s3/9.pgm"),
        ("blood_cells", "BCCD_Dataset/BCCD/JPEGImages/b.jpg"),
    ],
)
def test_a_damaged_picture_is_named_and_skipped_by_choice(name, file, tmp_path):
    load, archive, files = ARCHIVES[name]
    packed(tmp_path / archive, files | {file: files[file][: len(files[file]) // 2]})
    short = file.rpartition("/")[2]
    with pytest.raises(ValueError, match=rf"{short} is a damaged image"):
        load(tmp_path)
    if name != "blood_cells":  # whose validation part would be empty
        with pytest.warns(UserWarning, match=rf"skipped: .*{short} is a damaged image"):
            found = load(tmp_path, damaged="skip")
        assert len(found.train[0]) == {"cifar10": 3, "faces": 59}[name]
    with pytest.raises(ValueError, match="damaged must be 'raise' or 'skip'; got 'ignore'"):
        load(tmp_path, damaged="ignore")


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("cifar10", "train/cat/0000.jpg", encoded((30, 32, 3), "JPEG"), "32×30 pixels instead of 32×32"),
        ("faces", "orl_faces/s1/9.pgm", encoded((92, 112), "PPM"), "112×92 pixels instead of 92×112"),
    ],
)
def test_a_picture_of_another_size(name, file, content, message, tmp_path):
    load, archive, files = ARCHIVES[name]
    packed(tmp_path / archive, files | {file: content})
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    with pytest.warns(UserWarning, match=f"skipped: .*{message}"):
        found = load(tmp_path, damaged="skip")
    assert len(found.train[0]) == {"cifar10": 3, "faces": 59}[name]


def test_a_damaged_annotation(tmp_path):
    for content in (b"<annotation>", annotation(("Unknown", 1, 1, 2, 2))):
        packed(tmp_path / "BCCD_Dataset.tar", CELLS | {"BCCD_Dataset/BCCD/Annotations/a.xml": content})
        with pytest.raises(
            ValueError, match=r"a\.xml is not the annotation of a picture with RBC, WBC, Platelets"
        ):
            data.blood_cells(tmp_path)


def test_strangers():
    with pytest.raises(ValueError, match="needs strangers from 1 to 39 of 40 people; got 40"):
        data.faces(strangers=40)


@pytest.mark.long
def test_the_real_ones(real_data):
    folder = real_data("nab", "bccd", "faces", "cifar10")
    series, cells = data.nab(folder), data.blood_cells(folder)
    assert (len(series), sum(len(s.windows) for s in series), sum(len(s.values) for s in series)) == (
        58,
        116,
        365558,
    )
    parts = cells.train, cells.validation, cells.test
    assert [len(part.images) for part in parts] == [205, 87, 72]
    assert sum(len(boxes) for part in parts for boxes in part.boxes) == 4155 + 372 + 361 - 2
    people, pictures = data.faces(folder), data.cifar10(folder)
    sizes = [len(y) for _, y in (people.train, people.test, pictures.train, pictures.test)]
    assert sizes == [300, 100, 50000, 10000]
    np.testing.assert_array_equal(np.bincount(pictures.test[1]), [1000] * 10)
