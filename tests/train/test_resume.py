"""A run stopped anywhere and resumed ends with the same bits, and with every line of its metrics once."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import small_run
from small_run import PER_EPOCH, before_each_call

from jaxnet import train

EPOCHS, STEPS = 20, 20 * PER_EPOCH  # of small_run.py


# ------------------------------------------------------------------------------------- in one process


@pytest.mark.parametrize("given", ["batches", "sequence"])
def test_resumed_from_what_was_on_disk_before_each_call(problem, given, tmp_path, same_bits, rows):
    batches = problem.batches
    if given == "sequence":  # of whole batches, as steps=3 needs them
        batches = [batch for batch in batches.epoch(0) if len(batch[0]) == 5]
    run, stopped = tmp_path / "run", []

    def keep_what_is_on_disk():
        stopped.append(tmp_path / f"stopped-{len(stopped)}")
        shutil.copytree(run, stopped[-1])

    def fit(step, run, **options):
        return train.fit(problem.state(), step, batches, epochs=2, run=run, evaluate=problem.evaluate, **options)

    watched = before_each_call(problem.step, keep_what_is_on_disk)
    expected = fit(watched, run, checkpoint_every=1)
    assert len(stopped) == 2 * len([*range(0, 4, problem.step.steps or 1)]) + 2 * (given == "batches")
    for folder in stopped:
        same_bits(fit(problem.step, folder, resume=True), expected)
        assert rows(folder) == rows(run)


def test_a_line_without_its_checkpoint_is_cut(single, tmp_path, rows):
    """A kill between the two files: the metrics are written first."""
    run = tmp_path / "run"
    train.fit(single.state(), single.step, single.batches, epochs=2, run=run)
    expected = rows(run)
    shutil.rmtree(run / "checkpoints/10")
    (run / "checkpoints/10.sha256").unlink()
    train.fit(single.state(), single.step, single.batches, epochs=2, run=run, resume=True)
    assert rows(run) == expected


def test_what_a_killed_writer_left_is_removed(single, tmp_path, same_bits):
    run = tmp_path / "run"
    expected = train.fit(single.state(), single.step, single.batches, epochs=2, run=run)
    checkpoints = run / "checkpoints"
    (checkpoints / "10.sha256").unlink()  # written last: without it the checkpoint is half done
    shutil.copytree(checkpoints / "5", checkpoints / "11.orbax-checkpoint-tmp")
    left = [run / ".metrics.csv.123.tmp", run / ".config.json.9.tmp", checkpoints / ".10.sha256.7.tmp"]
    for path in left:
        path.write_text("half a li")
    resumed = train.fit(single.state(), single.step, single.batches, epochs=2, run=run, resume=True)
    same_bits(resumed, expected)
    assert not any(path.exists() for path in left)
    assert sorted(p.name for p in checkpoints.iterdir()) == ["0", "0.sha256", "10", "10.sha256", "5", "5.sha256"]


def test_resumed_before_the_first_checkpoint(single, tmp_path, same_bits):
    """A kill after config.json."""
    run = tmp_path / "run"
    expected = train.fit(single.state(), single.step, single.batches, run=run)
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.csv").unlink()
    same_bits(train.fit(single.state(), single.step, single.batches, run=run, resume=True), expected)


def test_a_finished_run_is_resumed_to_itself_or_further(single, tmp_path, same_bits, rows):
    def fit(run, epochs, **options):
        return train.fit(single.state(), single.step, single.batches, epochs=epochs, run=run, **options)

    expected = fit(tmp_path / "long", 3)
    short = fit(tmp_path / "short", 2)
    same_bits(fit(tmp_path / "short", 2, resume=True), short)
    same_bits(fit(tmp_path / "short", 3, resume=True, config={"epochs": 3}), expected)
    assert rows(tmp_path / "short") == rows(tmp_path / "long")
    assert json.loads((tmp_path / "short/config.json").read_text())["options"] == {"epochs": 3}
    with pytest.raises(ValueError, match=r"short has 3 epochs behind it; resume it to more than epochs=1"):
        fit(tmp_path / "short", 1, resume=True)


# ---------------------------------------------------------------------------------- real processes


def wait_for_step(process, run, step):
    """Waits until the run in another process has a checkpoint of `step` or later."""
    while process.poll() is None:
        if any(int(path.stem) >= step for path in run.glob("checkpoints/[0-9]*.sha256")):
            return
        time.sleep(0.002)
    pytest.fail(f"ended before step {step}: {process.communicate()}")


def finish(process):
    """Waits for its end and returns its exit code and what it wrote to stderr."""
    _, errors = process.communicate()
    return process.returncode, errors


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "kills"), [(0, 2), pytest.param(1, 6, marks=pytest.mark.long)])
def test_killed_again_and_again(start, uninterrupted, equal_runs, tmp_path, seed, kills):
    draw, run = random.Random(seed), tmp_path / "runs/a"
    process = start(["--run", "a"], tmp_path)
    for step in sorted(draw.sample(range(STEPS - 20), kills)):
        wait_for_step(process, run, step)
        time.sleep(draw.uniform(0, 0.06))  # anywhere between two checkpoints, or while one is written
        process.send_signal(signal.SIGKILL)
        assert finish(process)[0] == -signal.SIGKILL
        process = start(["--run", "a", "--resume"], tmp_path)
    assert finish(process) == (0, "")
    equal_runs(run, uninterrupted)
    assert not [*run.rglob("*tmp*")]


@pytest.mark.slow
@pytest.mark.long
def test_killed_while_it_starts(start, uninterrupted, equal_runs, tmp_path):
    run = tmp_path / "runs/a"
    process = start(["--run", "a"], tmp_path)
    while not run.exists():
        time.sleep(0.001)
    process.kill()
    finish(process)
    again = ["--run", "a", "--resume"] if (run / "config.json").exists() else ["--run", "a"]
    assert finish(start(again, tmp_path)) == (0, "")
    equal_runs(run, uninterrupted)


@pytest.mark.long
@pytest.mark.slow
def test_signals_name_the_command_that_goes_on(start, uninterrupted, equal_runs, tmp_path):
    run = tmp_path / "runs/a"
    assert finish(start(["--run", "a", "--epochs", "2"], tmp_path)) == (0, "")
    process = start(["--run", "a", "--resume", "--epochs", str(EPOCHS)], tmp_path)
    for number, step in ((signal.SIGINT, 20), (signal.SIGTERM, 50)):
        wait_for_step(process, run, step)
        process.send_signal(number)
        code, errors = finish(process)
        assert code == 130
        (line,) = errors.strip().splitlines()
        said, command = line.split(". Go on with: ")
        stopped = int(said.split(f" of {STEPS}, saved in runs/a")[0].removeprefix("stopped after step "))
        assert stopped >= step
        process = start(f"exec {command}", tmp_path)
    assert finish(process) == (0, "")
    equal_runs(run, uninterrupted)


@pytest.mark.slow
@pytest.mark.long
def test_two_interruptions_stop_at_once(start, uninterrupted, equal_runs, tmp_path):
    process = start(["--run", "a"], tmp_path, SLOW="1")
    for line in process.stdout:
        if line == "evaluating\n":
            break
    process.send_signal(signal.SIGINT)  # waits for the evaluation, which never ends; the second doesn't
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, errors = finish(process)
    assert (code, errors.strip()) == (130, "interrupted")
    assert finish(start(["--run", "a", "--resume"], tmp_path)) == (0, "")
    equal_runs(tmp_path / "runs/a", uninterrupted)


# ---------------------------------------------------------------------------------------- a full disk


def one_line(errors):
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    return line


def whole_checkpoints(run):
    checkpoints = [path.with_suffix("") for path in (run / "checkpoints").glob("[0-9]*.sha256")]
    for path in checkpoints:
        subprocess.run(["sha256sum", "--check", "--quiet", f"{path}.sha256"], cwd=path.parent, check=True)
    return {int(path.name) for path in checkpoints}


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the limit stops a file, not the disk")
def test_a_file_that_may_not_grow(start, uninterrupted, equal_runs, tmp_path):
    run = tmp_path / "runs/a"
    assert finish(start(["--run", "a", "--epochs", "2"], tmp_path)) == (0, "")
    (tmp_path / "limited.py").write_text(LIMITED)
    limited = [sys.executable, "limited.py", "20000", small_run.__file__, "--run", "a", "--resume"]
    for _ in range(2):
        code, errors = finish(start(" ".join([*limited, "--epochs", str(EPOCHS)]), tmp_path))
        assert code == 2
        assert f"wasn't written: {os.strerror(errno.EFBIG)}" in one_line(errors)
        assert 2 * PER_EPOCH in whole_checkpoints(run)
    assert finish(start(["--run", "a", "--resume", "--epochs", str(EPOCHS)], tmp_path)) == (0, "")
    equal_runs(run, uninterrupted)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 400 KiB, and a function that makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root on Linux may mount a small disk")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=40m", str(folder)], check=True)
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.long
def test_a_full_disk(start, uninterrupted, equal_runs, small_disk, tmp_path):
    disk, enlarge = small_disk
    run = disk / "runs/a"
    code, errors = finish(start(["--run", "a"], disk))
    for _ in range(2):
        assert code == 2
        assert f"wasn't written: {os.strerror(errno.ENOSPC)}" in one_line(errors)
        assert whole_checkpoints(run)
        code, errors = finish(start(["--run", "a", "--resume"], disk))
    enlarge()
    assert finish(start(["--run", "a", "--resume"], disk)) == (0, "")
    equal_runs(run, uninterrupted)
