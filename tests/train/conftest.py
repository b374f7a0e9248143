"""What the tests of training share: a small problem, and processes that train it."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import small_run

from jaxnet import train


@pytest.fixture(scope="session", params=[None, 3], ids=["single", "scanned"])
def problem(request):
    """Compiled once for all tests; one step a call, and three."""
    return small_run.problem(steps=request.param)


@pytest.fixture(scope="session")
def single():
    return small_run.problem()


@pytest.fixture(scope="session")
def same_bits():
    def compare(found, expected):
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        named = jax.tree_util.tree_leaves_with_path(_plain(found))
        for (path, a), b in zip(named, jax.tree.leaves(_plain(expected)), strict=True):
            assert a.dtype == b.dtype
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), jax.tree_util.keystr(path)

    return compare


def _plain(state):
    """Random keys as their bits."""
    return jax.tree.map(
        lambda a: jax.random.key_data(a) if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else a, state
    )


@pytest.fixture(scope="session")
def rows():
    """The rows of a run's `metrics.csv`, without the seconds that they took."""

    def read(run):
        return [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in train.read_metrics(run / "metrics.csv")
        ]

    return read


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Starts `small_run.py` as a process of its own; all of them share what they compiled."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
    }

    def run(command, cwd, **more):
        """`command`: the options of `small_run.py`, or a whole shell command."""
        whole = isinstance(command, str)
        return subprocess.Popen(
            command if whole else [sys.executable, small_run.__file__, *command],
            shell=whole,
            cwd=cwd,
            env=environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


@pytest.fixture(scope="session")
def uninterrupted(start, tmp_path_factory):
    """The folder of a run by a process that nobody disturbed."""
    cwd = tmp_path_factory.mktemp("uninterrupted")
    process = start(["--run", "a"], cwd)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    return cwd / "runs/a"


@pytest.fixture(scope="session")
def equal_runs(same_bits, rows, single):
    """Compares the last checkpoint, bit by bit, and the metrics of two runs."""

    def compare(found, expected):
        assert rows(found) == rows(expected)
        last = [train.Checkpoints(run / "checkpoints").restore(single.state()) for run in (found, expected)]
        assert int(last[0].step) == len(rows(found))
        same_bits(*last)

    return compare
