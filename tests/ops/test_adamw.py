"""The op alone: what runs, what it refuses, and an oracle besides optax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet.ops import using
from jaxnet.ops.adamw import adamw

COUNT = jnp.asarray(3, jnp.int32)


def leaves(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.random(shape), dtype) for shape in [(3, 4), (), (17,)]]


def step(implementation=None, dtype=jnp.float32, **options):
    options = {"learning_rate": 0.1, "weight_decay": 0.3, "decayed": [True, False, True]} | options
    return adamw(*(leaves(i, dtype) for i in range(4)), COUNT, **options, implementation=implementation)


@pytest.mark.parametrize("implementation", ["xla", "cpu"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("apply", [False, True])
def test_equals_the_formula_in_numpy(implementation, nesterov, apply):
    with jax.enable_x64(True):
        found = step(implementation, jnp.float64, nesterov=nesterov, apply=apply, eps=1e-3, eps_root=0.1)
        t, b1, b2 = 3, 0.9, 0.999
        for i, (g, m, v, w) in enumerate(zip(*(leaves(s, jnp.float64) for s in range(4)), strict=True)):
            g, m, v, w = (np.asarray(x) for x in (g, m, v, w))
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            m_hat = m / (1 - b1**t)
            if nesterov:
                m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
            u = -0.1 * (m_hat / (np.sqrt(v / (1 - b2**t) + 0.1) + 1e-3) + 0.3 * w * (i != 1))
            for x, expected in zip(found, (w + u if apply else u, m, v), strict=True):
                np.testing.assert_allclose(x[i], expected, rtol=1e-12)


def lowered(implementation):
    return jax.jit(lambda: step(implementation)).lower().as_text()


def test_the_kernel_is_in_the_program():
    assert "jaxnet_adamw" in lowered("cpu")
    assert "jaxnet_adamw" not in lowered("xla")
    if jax.default_backend() == "cpu":
        assert "jaxnet_adamw" in lowered(None)
    with using("xla"):
        assert "jaxnet_adamw" not in lowered(None)


def test_lowered_for_another_platform_it_has_no_kernel():
    exported = jax.export.export(jax.jit(lambda: step()), platforms=["cuda"])()
    assert "jaxnet_adamw" not in exported.mlir_module()


def test_kernel_refuses_other_dtypes_by_name():
    with pytest.raises(ValueError, match="all float32 or all float64; those of leaf 0 are bfloat16"):
        step("cpu", jnp.bfloat16)
    found, _, _ = step(None, jnp.bfloat16)
    assert {x.dtype for x in found} == {jnp.dtype("bfloat16")}


def test_implementation_that_is_not_there():
    with pytest.raises(ValueError, match="adamw has no implementation 'cudnn'"):
        step("cudnn")


@pytest.mark.parametrize("options", [{"apply": True, "decayed": [False]}, {"decayed": [True]}])
def test_parameters_missing(options):
    with pytest.raises(ValueError, match="params must be given"):
        adamw([jnp.ones(2)], [jnp.ones(2)], [jnp.ones(2)], None, COUNT, learning_rate=0.1, **options)


@pytest.mark.parametrize("wrong", [1, 2, 3])
def test_shapes_must_agree(wrong):
    args = [[jnp.ones((2, 3))] for _ in range(4)]
    args[wrong] = [jnp.ones((3, 2))]
    name = ("grads", "mu", "nu", "params")[wrong]
    with pytest.raises(ValueError, match=rf"{name} must have the shapes of grads, \[\(2, 3\)\]; got \[\(3, 2\)\]"):
        adamw(*args, COUNT, learning_rate=0.1, decayed=[True])
