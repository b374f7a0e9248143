"""The folder of a run, and files that are never half written."""

import os
import resource

import pytest

from jaxnet import train
from jaxnet.train.files import ensure_room, write_atomically


@pytest.fixture
def full_disk():
    """No file may have more than 2,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_new_folder_and_its_numbers(tmp_path, single):
    folder = train.RunFolder(tmp_path / "deep/run")
    folder.rows = [
        {"step": 1, "epoch": 0, "seconds": 0.12345, "loss": 1 / 3},
        {"step": 2, "epoch": 0, "seconds": 7.0, "loss": 1e-30, "test_loss": 0.1},
    ]
    folder.save(single.state())
    text = (tmp_path / "deep/run/metrics.csv").read_text()
    assert text == "step,epoch,seconds,loss,test_loss\n1,0,0.123,0.333333333,\n2,0,7.000,1e-30,0.1\n"
    assert train.read_metrics(tmp_path / "deep/run/metrics.csv") == [
        {"step": 1, "epoch": 0, "seconds": 0.123, "loss": 0.333333333, "test_loss": None},
        {"step": 2, "epoch": 0, "seconds": 7.0, "loss": 1e-30, "test_loss": 0.1},
    ]


def test_a_folder_in_which_nothing_was_written_yet_is_new(tmp_path):
    """A kill between the making of the folder and the first file."""
    train.RunFolder(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        train.RunFolder(tmp_path / "run", resume=True)
    train.RunFolder(tmp_path / "run").configure({})
    with pytest.raises(FileExistsError, match="already holds a run"):
        train.RunFolder(tmp_path / "run")


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(OSError, match="run"):
        train.RunFolder(tmp_path / "run")


def test_writes_atomically(tmp_path):
    path = tmp_path / "a"
    for text in ("one\n", "zwei ≠ 2\n"):
        write_atomically(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert [*tmp_path.iterdir()] == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, full_disk):
    path = tmp_path / "a"
    write_atomically(path, "old")
    with pytest.raises(OSError, match="a wasn't written: File too large"):
        write_atomically(path, "new" * 1000)
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    path = tmp_path / "a"
    write_atomically(path, "old")

    def fail(number):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_room_is_asked_for_before_anything_is_written(tmp_path, full_disk):
    ensure_room(tmp_path, 2000)
    with pytest.raises(OSError, match="File too large"):
        ensure_room(tmp_path, 2001)
    assert not [*tmp_path.iterdir()]


def test_a_checkpoint_without_room_says_so_and_leaves_the_others(tmp_path, single, request):
    checkpoints = train.Checkpoints(tmp_path)
    checkpoints.save(single.state())
    before = sorted(tmp_path.rglob("*"))
    later, _ = single.step(single.state(), next(single.batches.epoch(0)))
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match=r"checkpoint .*1 wasn't written: File too large"):
        checkpoints.save(later)
    assert sorted(tmp_path.rglob("*")) == before
