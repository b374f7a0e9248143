"""Writing files so that nobody ever sees half of one."""

import os
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
