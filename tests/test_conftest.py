"""The option `--part`."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("number", range(5))
def test_number(number):
    """What the next test counts."""


def collected(part):
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-n", "0", "-k", "test_number", __file__]
    done = subprocess.run([*command, "--part", part], capture_output=True, text=True, check=False)
    return done.returncode, [line[-2] for line in done.stdout.splitlines() if "::" in line], done.stderr


@pytest.mark.slow
def test_a_part():
    assert collected("1/2")[:2] == (0, ["1", "3"])


@pytest.mark.slow
def test_no_part():
    code, numbers, errors = collected("2/2")
    assert (code, numbers) == (4, [])
    assert "argument --part: wanted k/n with 0 ≤ k < n, such as 0/4; got '2/2'\n" in errors


@pytest.mark.parametrize("text", ["-1/2", "1", "1/", "/2", "a/b", "0/0", "1/2/3", ""])
def test_what_is_no_part(text, pytestconfig):
    conftest = pytestconfig.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))
    with pytest.raises(argparse.ArgumentTypeError, match=f"got {text!r}$"):
        conftest.part(text)
