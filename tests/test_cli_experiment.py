"""The frame around an experiment: a run whose data weren't found leaves nothing behind."""

import importlib
import json
import sys
from dataclasses import dataclass

import pytest

from jaxnet import cli, train
from jaxnet.cli import option

frame = importlib.import_module("jaxnet.cli.experiment")


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunOptions):
    """Looks for data."""

    hidden: tuple[int, ...] = option((2, 3), "Widths.")


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """Starts a script in this process that configures its run, then doesn't find its data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(frame, "_cache_compilations", lambda: None)
    monkeypatch.setattr(frame, "OPS", ())  # whose choice is shown

    def start(*options, meanwhile=lambda folder: None, error=FileNotFoundError):
        def main(config, folder):
            train.RunFolder(folder, resume=config.resume).configure(cli.configuration(config))
            meanwhile(folder)
            raise error("no data")

        monkeypatch.setattr(sys, "argv", ["script.py", *options])
        with pytest.raises(SystemExit) as stop:
            cli.experiment(main, Config)
        assert (stop.value.code, capsys.readouterr().err) == (2, "error: no data\n")
        return sorted(path.relative_to(tmp_path / "runs").as_posix() for path in (tmp_path / "runs").rglob("*"))

    return start


@pytest.mark.parametrize("options", [(), ("--run", "named"), ("--hidden", "5")])
def test_nothing_is_left(start, options):
    assert start(*options) == []


def test_what_more_was_written_stays(start):
    kept = ["script", "script/checkpoints", "script/checkpoints/0", "script/config.json"]
    assert start(meanwhile=lambda folder: (folder / "checkpoints/0").touch()) == kept


def test_a_folder_that_was_there_stays(start, tmp_path):
    (tmp_path / "runs/mine").mkdir(parents=True)
    kept = ["mine", "mine/checkpoints", "mine/config.json"]
    assert start("--run", "mine") == kept
    assert start("--run", "mine", "--resume") == kept


def test_the_run_of_another_start_stays(start):
    """Which has taken the same name, since there was no such folder yet."""

    def meanwhile(folder):
        (folder / "config.json").write_text(json.dumps({"options": {"hidden": [5]}}))

    assert start(meanwhile=meanwhile) == ["script", "script/checkpoints", "script/config.json"]


def test_other_errors_leave_it(start):
    assert start(error=ValueError) == ["script", "script/checkpoints", "script/config.json"]
