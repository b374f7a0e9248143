"""What `jaxnet verify` is asked to check: a file or a module, or one function of it."""

import importlib
import importlib.util
import os
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jaxnet.verify.cases import Case, cases_in, cases_of


class TargetError(ValueError):
    """A target that names nothing to check; the message says what to give instead."""


class Target(NamedTuple):
    """A module, what it was called, and its cases."""

    place: str
    module: ModuleType
    cases: list[Case]


def find(target: str) -> Target:
    """Import `FILE`, `MODULE`, `FILE:NAME` or `MODULE:NAME` and collect its cases.

    Raises:
        TargetError: no such file, module or function, or it has no case. What the import of the file
            itself raises comes through.
    """
    place, name = _split(target)
    module = _load_file(Path(place)) if _is_path(place) else _load_module(place)
    if name:
        value = _named(module, place, name)
        cases = cases_of(value, name)
        if not cases:
            raise TargetError(
                f"{name} in {place} has no case: mark it with @verify.case(arguments…) to say where to check it."
            )
    else:
        cases = [case for of_one in cases_in(module).values() for case in of_one]
        if not cases:
            raise TargetError(
                f"{place} has no case: mark a function that it defines with @verify.case(arguments…), or name "
                f"one that it imports, {place}:NAME."
            )
    return Target(place, module, cases)


def _split(target: str) -> tuple[str, str]:
    """FILE:NAME, or FILE::NAME as pytest has it, taken apart; the colon of a Windows drive is none."""
    place, colon, name = target.rpartition(":")
    if not colon or not name.isidentifier() or Path(target).exists():
        return target, ""
    return place.removesuffix(":"), name


def _is_path(place: str) -> bool:
    return place.endswith(".py") or os.sep in place or "/" in place or Path(place).exists()


def _named(module: ModuleType, place: str, name: str) -> Any:
    if not hasattr(module, name):
        known = ", ".join(cases_in(module)) or "none"
        raise TargetError(f"{place} has no {name}; the functions with cases there: {known}.")
    return getattr(module, name)


def _load_file(path: Path) -> ModuleType:
    """Import a file under the name that it has: in its package, if it lies in one."""
    if path.is_dir():
        raise TargetError(f"{path} is a folder; give files, such as {path}/*.py, or the name of a module.")
    if not path.exists():
        raise TargetError(f"there is no file {path}; give a Python file or the name of a module.")
    if path.suffix != ".py":
        raise TargetError(f"{path} is not a Python file; give one that ends in .py, or the name of a module.")
    path = path.resolve()
    folder, parts = path.parent, [path.stem]
    while (folder / "__init__.py").exists():
        folder, parts = folder.parent, [folder.name, *parts]
    if parts[-1] == "__init__":
        parts.pop()
    name = ".".join(parts)
    sys.path.insert(0, str(folder))  # as Python does for a script: what lies beside it can be imported
    if len(parts) > 1:
        importlib.import_module(name)
    if (module := sys.modules.get(name)) is not None:
        found = getattr(module, "__file__", None)
        if found is not None and path.samefile(found):
            return module
        if len(parts) > 1:
            raise TargetError(f"{path} would be {name}, but that is {found}; start where {name} is this file.")
        name += f"_{zlib.crc32(bytes(path)):x}"  # two files of one name, or that of a module imported already
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TargetError(f"{path} can't be loaded as a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there for the module of a class
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _load_module(name: str) -> ModuleType:
    """Import a module by its name, also one in the current folder, as `python -m` does."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise TargetError(f"{name!r} is neither a file nor the name of a module.")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise  # something that the module itself imports
        raise TargetError(
            f"there is no module {missing}; give a module that can be imported from here, or a Python file."
        ) from None
