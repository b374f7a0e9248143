"""The tests run as strictly as a user may: no implicit promotion of dtypes or ranks."""

import argparse
import contextlib
import functools
import gc
import os

import hypothesis
import jax
import pytest

# Most of their time is compilation, for programs that run once: XLA compiles them quickly unless XLA_FLAGS is set.
# The processes that tests start compile as a user's do.
if "XLA_FLAGS" not in os.environ:
    flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
    if jax.__version_info__ < (0, 11):  # later ones have nothing else
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(flags)
    jax.devices()
    del os.environ["XLA_FLAGS"]

# JAX makes an MLIR context for each program, and loads its dialects: a quarter of the tests' time. One serves all.
with contextlib.suppress(ImportError, AttributeError):
    from jax._src.interpreters import mlir

    mlir.make_ir_context = functools.cache(mlir.make_ir_context)

gc.set_threshold(50_000, 20, 100)  # tracing makes many objects: looking for cycles takes a twentieth of the time

hypothesis.settings.register_profile("jaxnet", deadline=None, derandomize=True, database=None)  # tests never time
hypothesis.settings.load_profile("jaxnet")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def part(text):
    k, slash, n = text.partition("/")
    if not (slash and k.isdecimal() and n.isdecimal() and int(k) < int(n)):
        raise argparse.ArgumentTypeError(f"wanted k/n with 0 ≤ k < n, such as 0/4; got {text!r}")
    return int(k), int(n)


def pytest_addoption(parser):
    parser.addoption("--part", type=part, default=(0, 1), metavar="k/n", help="every n-th test from the k-th on")


@pytest.hookimpl(trylast=True)  # after the choice by -m and -k
def pytest_collection_modifyitems(config, items):
    k, n = config.getoption("part")
    config.hook.pytest_deselected(items=[item for i, item in enumerate(items) if i % n != k])
    items[:] = items[k::n]


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield
