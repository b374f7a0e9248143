"""Writing files so that nobody ever sees half of one."""

import errno
import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` to `path` (UTF-8): whoever looks, at any moment, finds the old file or the new one.

    Raises:
        OSError: if it can't be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"{path} wasn't written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Removes what a `write_atomically` that was killed left in `folder`."""
    for path in folder.glob(".*.tmp"):
        path.unlink()


def ensure_room(folder: Path, size: int) -> None:
    """Raises an `OSError` unless a file of `size` bytes can be written in `folder`.

    Asked before a library writes that has many files and threads, and in each a complaint, when the disk is full.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that can't say
                    raise
