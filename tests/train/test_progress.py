"""What a run shows: a bar in a terminal, a line elsewhere, nothing if it shall be silent."""

import pytest

from jaxnet.train.progress import TrainingProgress


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def show(*, enabled=True):
    with TrainingProgress(20, 10, enabled=enabled) as progress:
        progress.update(1, 2, 15, 320, {"loss": 0.5})
        progress.update(2, 2, 20, 320, {"accuracy": 0.75, "loss": 0.25})


def test_the_last_step_has_a_line(capsys):
    show()
    out, errors = capsys.readouterr()
    line = out.splitlines()[-1]
    assert line.startswith("epoch 2/2  accuracy 0.7500  loss 0.2500  ")
    assert line.endswith(" examples/s")
    assert "\x1b" not in out
    assert errors == ""


def test_a_bar_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    show()
    out, _ = capsys.readouterr()
    assert "epoch 2/2" in out
    assert "100 %  accuracy 0.7500  loss 0.2500" in out


def test_silence(capsys):
    show(enabled=False)
    assert capsys.readouterr() == ("", "")


def test_fit_shows_it_or_not(capsys, single):
    from jaxnet import train

    for progress, shown in ((True, True), (False, False)):
        train.fit(single.state(), single.step, single.batches, progress=progress)
        assert ("epoch 1/1  accuracy" in capsys.readouterr().out) == shown
