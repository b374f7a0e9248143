"""What a user gets: the wheel, installed in an empty environment and used from another folder."""

import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long]
ROOT = Path(__file__).parents[1]

STEP = """
import jax, jax.numpy as jnp
import jaxnet
from jaxnet.kernels import ffi
from jaxnet.train.optimizer import adamw

def step(implementation):
    optimizer = adamw(0.1, implementation=implementation)
    params = jnp.ones(3)
    return optimizer.apply(params, optimizer.init(params), params)[0]

print(jaxnet.__file__)
print(ffi.unavailable())
print(step(None).tolist() == step("xla").tolist())
try:
    step("cpu")
    print("served")
except ValueError as error:
    print(error)
"""


def build(folder, **environment):
    """Builds the wheel; in this environment if it has the build's requirements."""
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("scikit_build_core") else []
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", *isolation, "--wheel-dir", folder, ROOT]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = Path(folder).glob("jaxnet-*.whl")
    return wheel


def use(wheel, folder):
    """Installs the wheel alone, lends it this environment's dependencies, and takes a step; the lines printed."""
    home = folder / "environment"
    venv.create(home)
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel], check=True)
    (site,) = home.glob("**/site-packages")
    # A line of a .pth file adds a folder without reading the .pth files there, such as an editable install's.
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": ""}
    done = subprocess.run(
        [python, "-c", STEP], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    where, *lines = done.stdout.splitlines()
    assert Path(where).is_relative_to(home)
    return lines


def test_wheel(tmp_path):
    wheel = build(tmp_path)
    assert wheel.name.startswith("jaxnet-")
    assert "-py3-none-" in wheel.name  # for any Python, since the library is loaded by ctypes
    assert use(wheel, tmp_path) == ["None", "True", "served"]


def test_wheel_built_without_a_compiler(tmp_path):
    wheel = build(tmp_path, CXX=str(tmp_path / "nonexistent"))
    unavailable, same, error = use(wheel, tmp_path)
    assert "without a C++ compiler" in unavailable
    assert same == "True"
    assert error == f"implementation 'cpu' can't serve adamw: {unavailable}"
