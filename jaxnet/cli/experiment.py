"""The frame around an experiment: options, run folder, interruption."""

import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import click
import jax
from click.core import ParameterSource
from rich.console import Console

from jaxnet import train
from jaxnet.cli.errors import guarded
from jaxnet.cli.machine import OPS, chosen, facts

_FREE_ON_RESUME = {"run", "resume", "epochs", "data"}


def option(default: Any, help: str, type: Any = None, *, free: bool = False) -> Any:
    """A field of an experiment's configuration: its default, `--help` line, and click type if it has limits.

    One that is `free` doesn't change what is trained, and may be another on `--resume`.
    """
    return field(default=default, metadata={"help": help, "type": type, "free": free})


_LARGEST = 2**24  # XLA dies of an array whose bytes 64 bits can't count; one that is only too large, it refuses


class WholeNumbers(click.ParamType):
    """A list such as 128,64; empty is none."""

    name = "whole numbers"

    def convert(self, value: Any, parameter: Any, context: Any) -> tuple[int, ...]:
        """Parses it."""
        if isinstance(value, (tuple, list)):
            return tuple(value)
        try:
            numbers = tuple(int(part) for part in (value.split(",") if value.strip() else ()))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 128,64.", parameter, context)
        if not all(0 < number <= _LARGEST for number in numbers):
            self.fail(f"{value!r} is not a list of whole numbers from 1 to {_LARGEST}.", parameter, context)
        return numbers


POSITIVE, NOT_NEGATIVE = click.IntRange(min=1), click.IntRange(min=0)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options that every experiment has."""

    run: str = option("", "Name of the run, in runs/; by default the script's, numbered if it is taken.")
    resume: bool = option(
        False, "Go on with --run, or the script's latest run, with the options it was started with."
    )
    seed: int = option(
        0, "Seed of the split, the parameters, the order of the data and dropout.", click.IntRange(0, 2**32 - 1)
    )


def experiment(body: Callable[[Any, Path], None], options: type[RunOptions]) -> None:
    """Runs `body(config, folder)` as a script: parses `options`, opens the run folder, reports errors.

    `folder` is a new one, or with `--resume` an old one, whose `config.json` then gives the options; one that
    is set again must have the same value, unless it is among those that don't change the run's result.
    """
    script = Path(sys.argv[0])

    def run(**values: Any) -> None:
        config = options(**values)
        folder = _folder(config, script.stem)
        new = not folder.exists()
        _cache_compilations()
        console = Console()
        for name, value in facts().items():
            console.print(f"{name:<10} {value}", highlight=False, soft_wrap=True)
        console.print(f"{'chosen':<10} " + ", ".join(f"{op}: {chosen(op)}" for op in OPS), highlight=False)
        console.print(f"{'run':<10} {folder}\n", highlight=False, soft_wrap=True)
        try:
            body(config, folder)
        except train.Interrupted as stop:
            again = ["python", str(script), "--resume", "--run", folder.name, *_changed_on_resume(values)]
            raise train.Interrupted(f"{stop}. Go on with: {shlex.join(again)}") from None
        except FileNotFoundError:  # of the data
            if new:
                _remove_unbegun(folder, config)
            raise

    parameters: list[click.Parameter] = [_parameter(f) for f in fields(options)]
    command = click.Command(
        script.name,
        callback=run,
        params=parameters,
        help=options.__doc__,
        context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    )
    sys.exit(guarded(lambda: _main(command, options, script.stem)))


def _main(command: click.Command, options: type[RunOptions], name: str) -> Any:
    with command.make_context(command.name, sys.argv[1:]) as context:
        if context.params["resume"]:
            _take_up(context, options, name)
        return command.invoke(context)


def _take_up(context: click.Context, options: type[RunOptions], name: str) -> None:
    """On `--resume`, replaces the options that weren't given by those that the run was started with."""
    run = context.params["run"] or _latest(name)
    config = Path("runs", run, "config.json")
    if not config.exists():
        raise FileNotFoundError(f"there is no run to resume in {config.parent}")
    try:
        stored = json.loads(config.read_text(encoding="utf-8"))["options"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{config} is not as an experiment wrote it: it has no options in JSON") from None
    context.params["run"] = run
    free = _FREE_ON_RESUME | {f.name for f in fields(options) if f.metadata["free"]}
    for key, value in stored.items():
        if key in ("run", "resume") or key not in context.params:
            continue
        value = tuple(value) if isinstance(value, list) else value
        given = context.get_parameter_source(key) != ParameterSource.DEFAULT
        if given and key not in free and context.params[key] != value:
            flag = key.replace("_", "-")
            raise ValueError(
                f"--{flag} is {context.params[key]} now, but {config.parent} was started with {value}; "
                "resume with the same options, or start another run"
            )
        if not given:
            context.params[key] = value


def _changed_on_resume(values: dict[str, Any]) -> list[str]:
    """The options of a resumed run that its `config.json` hasn't, as they were given."""
    source = click.get_current_context().get_parameter_source
    given = [name for name in ("epochs", "data") if name in values and source(name) == ParameterSource.COMMANDLINE]
    return [f"--{name}={values[name]}" for name in given] if values["resume"] else []


def _folder(config: RunOptions, name: str) -> Path:
    runs = Path("runs")
    if config.run in (".", "..") or "/" in config.run or os.sep in config.run:
        raise ValueError(f"--run is a name in runs/, not a path; got {config.run!r}")
    if config.run:
        if not config.resume and (runs / config.run / "config.json").exists():
            raise FileExistsError(
                f"runs/{config.run} is there already: go on with it by --resume, or name another --run"
            )
        return runs / config.run
    number = 1
    while (runs / _numbered(name, number)).exists():
        number += 1
    return runs / _numbered(name, number)


def _remove_unbegun(folder: Path, config: RunOptions) -> None:
    """Removes the folder of a run if it holds nothing but the options that this start wrote."""
    written = folder / "config.json"
    if sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) != ["checkpoints", "config.json"]:
        return
    if json.loads(written.read_text(encoding="utf-8"))["options"] == json.loads(json.dumps(configuration(config))):
        (folder / "checkpoints").rmdir()
        written.unlink()
        folder.rmdir()


def _latest(name: str) -> str:
    number = 1
    while Path("runs", _numbered(name, number + 1)).exists():
        number += 1
    return _numbered(name, number)


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _parameter(f: Any) -> click.Option:
    flag = f"--{f.name.replace('_', '-')}"
    default = f.default if f.default is not MISSING else None
    if isinstance(default, bool):
        return click.Option([flag], is_flag=True, default=default, help=f.metadata["help"])
    kind = f.metadata["type"] or (WholeNumbers() if isinstance(default, tuple) else type(default))
    default = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return click.Option([flag], type=kind, default=default, show_default=default != "", help=f.metadata["help"])


def configuration(config: RunOptions) -> dict[str, Any]:
    """What `config.json` records of the options."""
    return asdict(config)


def _cache_compilations() -> None:
    """A second start doesn't compile again."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "jaxnet"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # Where it can't be written, the disk being full, say, there is simply none.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
