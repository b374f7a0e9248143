"""Processes of their own, compiling as a user's do: for instruction sets, numbers of threads and of devices."""

import os
import re
import subprocess
import sys

import pytest


def child(code, **environment):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def output(code, **environment):
    done = child(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def importing(path):
    """The code that makes the test file `path` the module `t`."""
    folder, name = os.path.split(path)
    return f"import sys; sys.path.insert(0, {folder!r}); import {name.removesuffix('.py')} as t; "


def supported():
    """The instruction sets that this CPU runs."""
    error = child("import jaxnet.kernels.ffi", JAXNET_ISA="none of them").stderr
    return re.findall(r"this CPU supports \((.*)\)", error)[-1].split(", ")


def needs(isa):
    if isa not in supported():
        pytest.skip(f"this CPU doesn't run {isa} code")
