"""Files of a data set, from a folder or a tar archive, and the decoding of texts and images."""

import gzip
import io
import os
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError


def root_of(folder: str | Path | None, name: str, what: str, source: str) -> Path:
    """The data folder given, or named by `JAXNET_DATA`.

    Raises:
        FileNotFoundError: if none is given, or it isn't there; the message has the public source.
    """
    given = folder if folder is not None else os.environ.get("JAXNET_DATA")
    if given is None:
        raise FileNotFoundError(
            f"no folder for {name} was given: put {what}, from {source}, into a folder, "
            "and name it by --data DIR or the environment variable JAXNET_DATA"
        )
    root = Path(given).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"the data folder {root} isn't there (--data DIR or JAXNET_DATA)")
    return root


def find(folder: str | Path | None, name: str, files: list[str], source: str) -> list[Path]:
    """Returns the path of each file, plain or with `.gz`, in the folder or its subfolder `name`.

    Raises:
        FileNotFoundError: if one isn't there; the message names it and the public source.
    """
    root = root_of(folder, name, f"{', '.join(files)} (or .gz)", source)
    found = []
    for file in files:
        places = [place / (file + end) for place in (root, root / name) for end in ("", ".gz")]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"{root} has no {file} or {file}.gz, nor has {root / name}; get it from {source}"
            )
        found.append(path)
    return found


def unzipped(path: Path) -> bytes:
    """The content of a file, gzipped or not.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged; the message names it.
    """
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged gzip file: {error}") from error


def text(name: str | Path, content: bytes) -> str:
    """The characters of a file in UTF-8.

    Raises:
        ValueError: if it is in another encoding or damaged; the message names it and the place.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not a text in UTF-8: byte {error.start} is {error.reason}") from error


def lines(name: str | Path, content: bytes) -> list[str]:
    """The lines of a file in UTF-8, without the blanks around them; only a line feed ends a line."""
    found = text(name, content).split("\n")  # str.splitlines also splits at U+0085 or U+2028, inside a sentence
    return [line.strip() for line in (found if found[-1] else found[:-1])]


Files = Iterator[tuple[str, bytes]]  # name and content


def members(folder: str | Path | None, name: str, top: str, archive: str, source: str) -> Files:
    """Name and content of each file below the folder `top`, or in the archive, in sorted order.

    Either lies in `folder` or its subfolder `name`; names are relative to `top`'s parent.

    Raises:
        FileNotFoundError: if neither is there.
        ValueError: if the archive is damaged.
    """
    root = root_of(folder, name, f"{archive}, or what it holds", source)
    for place in (root, root / name):
        if (place / top).is_dir():
            for path in sorted((place / top).rglob("*")):
                if path.is_file():
                    yield str(path.relative_to(place)), path.read_bytes()
            return
        if (place / archive).is_file():
            yield from _of_tar(place / archive)
            return
    raise FileNotFoundError(
        f"{root} has neither {archive} nor the folder {top}, nor has {root / name}; get it from {source}"
    )


def _of_tar(path: Path) -> Files:
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield member.name, file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged archive: {error}") from error


def picture(name: str, content: bytes, mode: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """A JPEG, PNG, PGM, … as bytes: (h, w, 3) for mode "RGB", (h, w) for "L".

    Raises:
        ValueError: if the file is damaged or cut short, or hasn't the size (h, w); the message names it.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            found = np.asarray(image.convert(mode))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{name} is a damaged image: {error}") from error
    if size is not None and found.shape[:2] != size:
        raise ValueError(f"{name} has {found.shape[1]}×{found.shape[0]} pixels instead of {size[1]}×{size[0]}")
    return found


def checked(damaged: str, size: tuple[int, int] | None = None) -> Callable[[str, bytes, str], np.ndarray | None]:
    """`picture`, but a damaged file is skipped with a warning (None) if `damaged` is "skip".

    Raises:
        ValueError: if it is neither "raise" nor "skip".
    """
    if damaged not in ("raise", "skip"):
        raise ValueError(f"damaged must be 'raise' or 'skip'; got {damaged!r}")

    def read(name: str, content: bytes, mode: str) -> np.ndarray | None:
        try:
            return picture(name, content, mode, size)
        except ValueError as error:
            if damaged == "raise":
                raise
            warnings.warn(f"skipped: {error}", stacklevel=2)
            return None

    return read
