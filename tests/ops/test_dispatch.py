"""How an implementation is chosen: by keyword, by block, by platform; never replaced in silence."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import ops
from jaxnet.ops import dispatch
from jaxnet.ops.dispatch import Kernel, choose, using

X = jnp.zeros(3)


def xla(x):
    return x + 1


def cpu(x):
    return x + 2


def tpu(x):
    return x + 3


KERNELS = {"cpu": Kernel(cpu, None), "tpu": Kernel(tpu, None), "gpu": Kernel(cpu, "it needs a Hopper")}


def served(implementation=None, kernels=KERNELS):
    """1 if it was the plain one, 2 the CPU's."""
    return float(choose("op", implementation, xla, kernels)(X)[0])


def test_each_name_is_one_path():
    assert choose("op", "xla", xla, KERNELS) is xla
    assert choose("op", "cpu", xla, KERNELS) is cpu
    assert choose("op", "tpu", xla, KERNELS) is tpu
    assert choose("op", None, xla, {}) is xla


def test_none_takes_that_of_the_platform_lowered_for():
    run = jax.jit(lambda x: choose("op", None, xla, KERNELS)(x))
    added = {"cpu": "2.0", "tpu": "3.0", "cuda": "1.0"}  # the GPU's can't serve: the plain one
    for platform, constant in added.items():
        module = jax.export.export(run, platforms=[platform])(X).mlir_module()
        assert f"dense<{constant}00000e+00>" in module
        assert sum(f"dense<{c}00000e+00>" in module for c in added.values()) == 1
    assert served(None, {"tpu": KERNELS["tpu"]}) == 1 or jax.default_backend() == "tpu"


def test_none_leaves_out_what_cannot_serve():
    assert choose("op", None, xla, {"cpu": Kernel(cpu, "too small")}) is xla


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "implementation 'gpu' can't serve op: it needs a Hopper"),
        ("cudnn", "op has no implementation 'cudnn'; it has 'xla', 'cpu', 'tpu', 'gpu'"),
        ("cuda", "implementation must be None or one of 'xla', 'cpu', 'gpu', 'tpu', 'cudnn'; got 'cuda'"),
    ],
)
def test_asked_for_by_name_it_serves_or_raises(name, message):
    with pytest.raises(ValueError, match=message):
        choose("op", name, xla, KERNELS)
    with pytest.raises(ValueError, match=message), using(name):
        choose("op", None, xla, KERNELS)


def test_blocks_nest_and_a_keyword_is_stronger():
    with using("xla"):
        assert served() == 1
        with using("cpu"):
            assert (served(), served("xla")) == (2, 1)
            with using(None):
                assert choose("op", None, xla, KERNELS) is not cpu
        assert (served(), served("cpu")) == (1, 2)
    with pytest.raises(RuntimeError), using("xla"):
        raise RuntimeError
    assert dispatch._in_use.value is None


def test_an_unknown_name_is_refused_at_the_block():
    with pytest.raises(ValueError, match="got 'xal'"):
        using("xal")
    with pytest.raises(ValueError, match="got ''"):
        using("")


@pytest.mark.parametrize(
    "transform", [jax.jit, lambda f: jax.jit(jax.vmap(f)), lambda f: jax.jit(jax.checkpoint(f))]
)
def test_a_function_jitted_outside_is_traced_anew_inside(transform):
    f = transform(lambda x: choose("op", None, xla, KERNELS)(x))
    with using("xla"):
        assert f(X)[0] == 1
    with using("cpu"):
        assert f(X)[0] == 2
    with using("xla"):
        assert f(X)[0] == 1


def test_another_thread_is_not_in_the_block():
    found, inside, leave = {}, threading.Event(), threading.Event()

    def other():
        with using("cpu"):
            inside.set()
            found["within"] = leave.wait(10) and served()
        found["after"] = dispatch._in_use.value

    with using("xla"):
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(10)
        assert served() == 1
        leave.set()
        thread.join(10)
    fresh = threading.Thread(target=lambda: found.update(fresh=dispatch._in_use.value))
    with using("cpu"):
        fresh.start()
        fresh.join(10)
    assert found == {"within": 2, "after": None, "fresh": None}


def test_a_block_reaches_the_ops():
    args = jnp.ones((2, 3)), jnp.ones((3, 4))
    with using("xla"):
        np.testing.assert_array_equal(ops.linear(*args), 3 * jnp.ones((2, 4)))
    gradient = jax.grad(lambda x, w: ops.linear(x, w).sum())
    for f in (ops.linear, ops.linear_vjp, gradient):
        with using("tpu"), pytest.raises(ValueError, match="linear has no implementation 'tpu'"):
            f(*args)


def test_implementations_of_an_op():
    assert dispatch.implementations("no such op") == {"xla": None}
    assert list(dispatch.implementations("linear")) == list(dispatch.implementations("adamw")) == ["xla", "cpu"]
    assert dispatch.isa() in ("avx512", "avx2", "baseline", "none")


def test_an_implementation_that_was_not_built_has_its_reason(monkeypatch):
    monkeypatch.setattr(dispatch.ffi, "unavailable", lambda: "no compiler")
    assert dispatch.implementations("adamw") == {"xla": None, "cpu": "no compiler"}
