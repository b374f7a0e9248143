"""The pytest plug-in, in a project of its own."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.slow

PYPROJECT = """
[tool.pytest.ini_options]
addopts = "--strict-markers --strict-config"
filterwarnings = ["error"]
markers = ["kernel: a mark of the project"]
"""

KERNELS = """
import jax
import jax.numpy as jnp
from jaxnet import verify

@verify.case(lambda: jnp.arange(3.0), name="counted")
@verify.case(lambda seed: jax.random.normal(jax.random.key(seed), (2, 2)))
@jax.custom_vjp
def cube(x):
    return x**3

cube.defvjp(lambda x: (x**3, x), lambda x, dy: (3 * x**2 * dy,))
"""

TESTS = """
import functools
import jax
import jax.numpy as jnp
import pytest
from jaxnet import verify
from kernels import cube
from kernels import cube as test_cube

@verify.case(lambda: jnp.arange(3.0))
@jax.custom_vjp
def wrong(x):
    return x**2

wrong.defvjp(lambda x: (x**2, x), lambda x, dy: (x * dy,))

@pytest.mark.kernel
@verify.case(lambda: jnp.ones(2), name="ones")
def right(x):
    return seen * (x**2).sum()

@pytest.mark.skip(reason="not now")
@verify.case(lambda: jnp.ones(2))
def skipped(x):
    return 1 / 0

@verify.case(lambda: jnp.ones(2))
def raises(x):
    return 1 / 0

test_partial = verify.case(lambda: jnp.ones(2))(functools.partial(jnp.multiply, 2.0))

@pytest.fixture(autouse=True)
def fixture():
    global seen
    seen = 1.0

def test_fixture(assert_gradients):
    assert assert_gradients(cube, jnp.ones(3), seed=1).ok

def test_fixture_wrong(assert_gradients):
    assert_gradients(wrong, jnp.ones(3))
"""

OUTCOMES = {
    "test_cube[counted]": "passed",
    "test_cube[1]": "passed",
    "wrong[0]": "failure",
    "right[ones]": "passed",
    "skipped[0]": "skipped",
    "raises[0]": "failure",
    "test_partial[0]": "passed",
    "test_fixture": "passed",
    "test_fixture_wrong": "failure",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "tests").mkdir()
    for name, text in (
        ("pyproject.toml", PYPROJECT),
        ("kernels.py", KERNELS),
        ("tests/test_kernels.py", TESTS),
        ("tests/test_unused.py", "import sys\ndef test_no_jax():\n    assert 'jax' not in sys.modules\n"),
    ):
        (folder / name).write_text(text)
    return folder


def run(project: Path, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, done.stdout


def outcomes(path: Path) -> dict[str, str]:
    cases = ElementTree.parse(path).getroot().iter("testcase")
    return {case.attrib["name"]: next((child.tag for child in case), "passed") for case in cases}


@pytest.mark.parametrize(
    "workers",
    [pytest.param([], id="one process"), pytest.param(["-n", "1"], id="xdist", marks=pytest.mark.long)],
)
def test_cases_and_fixture(project: Path, tmp_path: Path, workers: list[str]) -> None:
    code, out = run(project, "tests/test_kernels.py", f"--junit-xml={tmp_path}/junit.xml", *workers)
    assert outcomes(tmp_path / "junit.xml") == OUTCOMES
    assert code == 1
    assert re.search(r"_ wrong\[0\] _+\s+(\[gw0\].*\s+)?FAIL  wrong\[0\] ", out), (
        out
    )  # the report and nothing else
    assert re.search(r"GradientError: *\nE +FAIL  wrong ", out), out
    assert "check_gradients(" not in out  # no frame of the prover
    assert "return 1 / 0" in out


@pytest.mark.long
def test_chosen_by_name_and_by_mark(project: Path) -> None:
    code, out = run(project, "-q", "--collect-only", "-m", "kernel or skip")
    assert code == 0
    assert out.splitlines()[:2] == ["tests/test_kernels.py::right[ones]", "tests/test_kernels.py::skipped[0]"]
    code, out = run(project, "tests/test_kernels.py::right[ones]")
    assert code == 0, out
    assert "1 passed" in out


def test_nothing_is_imported_where_it_is_not_used(project: Path) -> None:
    code, out = run(project, "tests/test_unused.py")
    assert code == 0, out
    assert "1 passed" in out


def test_without_the_plugin(project: Path) -> None:
    code, out = run(
        project, "-p", "no:jaxnet", "-q", "--collect-only", "-W", "ignore::pytest.PytestCollectionWarning"
    )
    assert code == 0, out
    names = [line.partition("::")[2] for line in out.splitlines() if "::" in line]
    assert {"test_fixture", "test_fixture_wrong", "test_no_jax"} <= set(names)
    assert "[" not in "".join(names)
