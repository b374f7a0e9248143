"""Checkpoints: the whole `TrainState`, written by orbax, with a checksum of every file beside it."""

import hashlib
import logging
import shutil
from pathlib import Path

import jax
import numpy as np

from jaxnet.train.files import ensure_room, remove_temporaries, write_atomically
from jaxnet.train.state import TrainState

_log = logging.getLogger("jaxnet")
_KEPT = 3
_BYTES_BESIDE = 16 * 1024  # what orbax writes beside an array, and more


class Checkpoints:
    """The checkpoints of a run, the newest three.

    Each is a folder named by its step, and beside it `<step>.sha256`, which `sha256sum -c` can read. That
    file is written last: a checkpoint is whole if it has one that its files agree with.
    """

    def __init__(self, folder: Path) -> None:
        """Opens `folder`; what a killed writer left half done is removed."""
        import orbax.checkpoint as ocp  # a quarter of a second to import

        self._folder, self._orbax = folder.resolve(), ocp.PyTreeCheckpointer()
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            ours = path.name.split(".")[0].isdecimal() and path.suffix != ".damaged"  # not what someone put there
            if path.is_dir() and ours and not self._checksums(path).exists():
                shutil.rmtree(path)
        remove_temporaries(self._folder)

    def steps(self) -> list[int]:
        """The steps that there is a checkpoint of, oldest first."""
        return sorted(int(path.stem) for path in self._folder.glob("*.sha256") if path.stem.isdecimal())

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint, then removes the oldest of more than three.

        Raises:
            OSError: if it can't be written, because the disk is full, say; those before it are untouched.
        """
        path = self._folder / str(int(state.step))
        if self._checksums(path).exists():
            return  # a run is a function of its configuration: this is the same state
        arrays = {name: array for name, array in _arrays(state).items() if array.size}  # orbax refuses empty ones
        try:
            ensure_room(self._folder, sum(_BYTES_BESIDE + a.nbytes for a in arrays.values()))
            self._orbax.save(path, arrays, force=True)
            write_atomically(self._checksums(path), _digests(path))
        except Exception as error:  # orbax and tensorstore raise many types: here they are one thing
            raise OSError(f"the checkpoint {path} wasn't written: {_line(error)}") from error
        for old in self.steps()[:-_KEPT]:
            self._checksums(self._folder / str(old)).unlink()
            shutil.rmtree(self._folder / str(old))

    def restore(self, template: TrainState) -> TrainState | None:
        """Returns the newest checkpoint that is whole, or None if there is none.

        A damaged one is named in a warning and put aside as `<step>.damaged`, and the one before it taken.

        Raises:
            ValueError: if a whole checkpoint holds another network's parameters or another optimizer's state.
        """
        for step in reversed(self.steps()):
            path = self._folder / str(step)
            damage = _damage(path, self._checksums(path).read_text(errors="replace"))
            if not damage:
                return _state(self._orbax.restore(path), template, path)
            _log.warning("the checkpoint %s is damaged (%s): taking the one before it", path, damage)
            self._checksums(path).unlink()
            aside = path.with_name(f"{step}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            if path.exists():
                path.rename(aside)
        return None

    @staticmethod
    def _checksums(path: Path) -> Path:
        return path.with_name(f"{path.name}.sha256")


def _digests(folder: Path) -> str:
    """A line for each file, as `sha256sum` prints it."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(folder.parent)}\n")
    return "".join(lines)


def _damage(folder: Path, expected: str) -> str:
    """Names the first file that isn't as it was written; empty if all are."""
    found, written = (
        {line[66:]: line[:64] for line in text.splitlines()} for text in (_digests(folder), expected)
    )
    if not written:
        return "its checksums are empty"
    wrong = sorted(name for name in found | written if found.get(name) != written.get(name))
    return f"{wrong[0]} has changed" if wrong else ""


def _arrays(state: TrainState) -> dict[str, np.ndarray]:
    """The leaves by their paths; a random key by its bits."""
    plain = state._replace(key=jax.random.key_data(state.key))
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(plain))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _state(arrays: dict[str, np.ndarray], template: TrainState, path: Path) -> TrainState:
    wanted = _arrays(template)
    arrays = arrays | {name: array for name, array in wanted.items() if not array.size}
    expected = {name: (leaf.shape, leaf.dtype) for name, leaf in wanted.items()}
    found = {name: (leaf.shape, leaf.dtype) for name, leaf in arrays.items()}
    if found != expected:
        name = sorted(name for name in expected | found if expected.get(name) != found.get(name))[0]
        raise ValueError(
            f"{path} is of another network or optimizer: its {name} is {_describe(found.get(name))}, "
            f"where this run has {_describe(expected.get(name))}"
        )
    leaves = [jax.numpy.asarray(arrays[name]) for name in expected]
    state = jax.tree.unflatten(jax.tree.structure(template), leaves)
    return state._replace(key=jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(template.key)))


def _describe(leaf: tuple[tuple[int, ...], np.dtype] | None) -> str:
    return "missing" if leaf is None else f"{leaf[1]} {leaf[0]}"


def _line(error: Exception) -> str:
    """The first words of an error, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
