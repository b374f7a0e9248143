"""The command line: what it prints, and that every mistake gets one line, exit code 2 and no traceback."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import pytest

import jaxnet
from jaxnet import train
from jaxnet.cli import errors

EXPERIMENT = Path(__file__).parent / "train/small_run.py"
COMMAND = Path(sys.executable).with_name("jaxnet")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")), "COLUMNS": "100"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, environment):
    """Where the runs `a`, of two epochs, and `damaged`, without options, are."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, EXPERIMENT, "--run", "a", "--epochs", "2"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for name, text in (("damaged", '{"opt'), ("other", "[1, 2]")):
        (folder / "runs" / name).mkdir()
        (folder / "runs" / name / "config.json").write_text(text)
    return folder


@pytest.fixture
def run(folder, environment):
    def run(*command):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    return run


def only_error(result):
    code, _, errors = result
    assert code == 2
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


# ----------------------------------------------------------------------------------------- jaxnet


def test_version(run):
    assert run(COMMAND, "--version") == (0, f"jaxnet, version {jaxnet.__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help(run, arguments):
    code, out, errors = run(COMMAND, *arguments)
    assert (code, errors) == (0, "")
    assert out.startswith("Usage: jaxnet ")
    assert re.search(r"^  info  +Show what jaxnet runs on", out, re.MULTILINE)


def test_info(run):
    code, out, errors = run(COMMAND, "info")
    assert (code, errors) == (0, "")
    assert f"jaxnet     {jaxnet.__version__} on Python {sys.version.split()[0]}, jax {jax.__version__}" in out
    assert f"platform   {jax.default_backend()} " in out
    for op in ("linear", "lstm", "adamw"):
        assert re.search(rf"{op} +│ xla", out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nfo"], "No such command 'nfo'. Did you mean 'info'?"),
        (["--verison"], "No such option '--verison'. Did you mean '--version'?"),
        (["info", "more"], "Got unexpected extra argument (more)"),
    ],
)
def test_mistakes(run, arguments, message):
    assert only_error(run(COMMAND, *arguments)) == message


# ----------------------------------------------------------------------------------- an experiment


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--epoch 1", "No such option '--epoch'. Did you mean '--epochs'?"),
        ("more", "Got unexpected extra argument (more)"),
        ("--epochs", "Option '--epochs' requires an argument."),
        ("--epochs many", "Invalid value for '--epochs': 'many' is not a valid integer range."),
        ("--epochs 2.5", "Invalid value for '--epochs': '2.5' is not a valid integer range."),
        ("--epochs 0", "Invalid value for '--epochs': 0 is not in the range x>=1."),
        ("--seed -1", "Invalid value for '--seed': -1 is not in the range 0<=x<=4294967295."),
        ("--hidden 4,x", "Invalid value for '--hidden': '4,x' is not a list of whole numbers such as 128,64."),
        ("--hidden ,", "Invalid value for '--hidden': ',' is not a list of whole numbers such as 128,64."),
        ("--hidden 0", "Invalid value for '--hidden': '0' is not a list of whole numbers from 1 to 16777216."),
        (
            "--hidden 99999999999",
            "Invalid value for '--hidden': '99999999999' is not a list of whole numbers from 1 to 16777216.",
        ),
        ("--run b/c", "--run is a name in runs/, not a path; got 'b/c'"),
        ("--run ..", "--run is a name in runs/, not a path; got '..'"),
        ("--run a", "runs/a is there already: go on with it by --resume, or name another --run"),
        ("--resume", "there is no run to resume in runs/small_run"),
        ("--resume --run b", "there is no run to resume in runs/b"),
        (
            "--resume --run a --hidden 5",
            "--hidden is (5,) now, but runs/a was started with (4, 2); "
            "resume with the same options, or start another run",
        ),
        (
            "--resume --run a --seed 1",
            "--seed is 1 now, but runs/a was started with 0; resume with the same options, or start another run",
        ),
        *(
            (
                f"--resume --run {name}",
                f"runs/{name}/config.json is not as an experiment wrote it: it has no options in JSON",
            )
            for name in ("damaged", "other")
        ),
    ],
)
def test_mistakes_in_the_options(folder, arguments, message, monkeypatch, capsys):
    before = sorted((folder / "runs").rglob("*"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(EXPERIMENT), *arguments.split()])
    with pytest.raises(SystemExit) as stop:  # without a process for each: importing takes most of their time
        runpy.run_path(str(EXPERIMENT), run_name="__main__")
    assert only_error((stop.value.code, *capsys.readouterr())) == message
    assert sorted((folder / "runs").rglob("*")) == before


@pytest.mark.long
def test_resume_takes_the_options_of_the_run(run, folder):
    code, _, errors = run(sys.executable, EXPERIMENT, "--resume", "--run", "a", "--hidden", "4,2")
    assert (code, errors) == (0, "")
    assert len(train.read_metrics(folder / "runs/a/metrics.csv")) == 2 * 5
    code, _, _ = run(sys.executable, EXPERIMENT, "--resume", "--run", "a", "--epochs", "3", "--note", "more")
    assert code == 0
    assert len(train.read_metrics(folder / "runs/a/metrics.csv")) == 3 * 5
    options = json.loads((folder / "runs/a/config.json").read_text())["options"]
    assert (options["hidden"], options["note"]) == ([4, 2], "more")


@pytest.mark.long
def test_the_latest_run_is_resumed(run, folder, tmp_path_factory, environment):
    cwd = tmp_path_factory.mktemp("numbered")
    for options in ([], [], ["--resume", "--epochs", "2"]):
        command = [sys.executable, EXPERIMENT, *(options or ["--epochs", "1"])]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    lengths = {path.parent.name: len(train.read_metrics(path)) for path in cwd.glob("runs/*/metrics.csv")}
    assert lengths == {"small_run": 5, "small_run-2": 10}


@pytest.mark.long
def test_without_a_cache_nothing_is_said(folder, environment):
    (folder / "file").write_text("")
    command = [sys.executable, EXPERIMENT, "--run", "uncached", "--epochs", "1"]
    nowhere = environment | {"JAX_COMPILATION_CACHE_DIR": str(folder / "file/cache")}
    done = subprocess.run(command, cwd=folder, env=nowhere, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------------------------- errors and codes


def raises(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("wanted\n  this"), 2, "error: wanted this"),
        (FileNotFoundError("no run"), 2, "error: no run"),
        (train.NonFiniteError("the loss became nan"), 2, "error: the loss became nan"),
        (MemoryError("8 GiB"), 2, "error: not enough memory: 8 GiB"),
        (KeyboardInterrupt(), 130, "\ninterrupted"),
        (click.Abort(), 130, "\ninterrupted"),
        (train.Interrupted("stopped after step 3"), 130, "\nstopped after step 3"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_exit_codes(capsys, error, code, line):
    assert errors.guarded(raises(error)) == code
    assert capsys.readouterr() == ("", f"{line}\n")


def test_a_network_too_large_for_the_memory(capsys):
    assert errors.guarded(lambda: jnp.zeros((2**24, 2**24))) == 2
    assert re.fullmatch("error: not enough memory: .+\n", capsys.readouterr().err)


@pytest.mark.parametrize("error", [KeyError("x"), jax.errors.JaxRuntimeError("INTERNAL: a bug")])
def test_a_bug_is_not_hidden(error):
    with pytest.raises(type(error)):
        errors.guarded(raises(error))
