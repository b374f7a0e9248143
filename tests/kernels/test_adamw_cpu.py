"""The compiled AdamW step: beside XLA's, threads, buffers, devices."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import child, output

from jaxnet.train.optimizer import adamw

# Leaves of less and of more than a block, whose sizes are no multiples of a vector's.
SIZES = (100_003, 1, 16_385, 7, 0, 40_000)
OPTIONS = {"weight_decay": 0.3, "nesterov": True}
OPTIMIZER = adamw(0.1, **OPTIONS, implementation="cpu")


@partial(jax.jit, static_argnums=0)
def three_steps(implementation="cpu"):
    optimizer = adamw(0.1, **OPTIONS, implementation=implementation)
    draw = lambda t: [jax.random.normal(jax.random.fold_in(jax.random.key(t), n), (n,)) for n in SIZES]  # noqa: E731
    params = draw(0)
    state = optimizer.init(params)
    for t in range(1, 4):
        params, state = optimizer.apply(draw(t), state, params)
    return params, state.mu, state.nu


@pytest.mark.long
@pytest.mark.isa
def test_three_steps_end_where_those_by_xla_end():
    # Each t-th step (5 t + 8) eps apart, see tests/train/test_optimizer.py; weights and updates are below 8.
    tolerance = 8 * sum(5 * t + 8 for t in (1, 2, 3)) * np.finfo(np.float32).eps
    for a, b in zip(*(jax.tree.leaves(three_steps(n)) for n in ("cpu", "xla")), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def test_instruction_set_unknown():
    done = child("from jaxnet.kernels import ffi", JAXNET_ISA="sse9")
    assert done.returncode != 0
    assert "JAXNET_ISA must be one of" in done.stderr
    assert "got 'sse9'" in done.stderr


def digest(arrays):
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(arrays))).hexdigest()


def test_same_bits_when_several_threads_share_the_pool():
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: digest(three_steps()), range(64)))) == 1


def compiled_apply(donate):
    params = {"w": jnp.ones((300, 70)), "b": jnp.ones(70)}
    step = jax.jit(
        lambda params, state, grads: OPTIMIZER.apply(grads, state, params),
        donate_argnums=(0, 1) if donate else (),
    )
    return step.lower(params, OPTIMIZER.init(params), params).compile().as_text()


def test_donated_buffers_are_updated_in_place():
    assert " copy(" not in compiled_apply(donate=True)
    assert " copy(" in compiled_apply(donate=False)  # the old values are still the caller's


def test_old_values_are_kept_if_not_donated():
    params = jnp.ones(1000)
    state = OPTIMIZER.init(params)
    jax.block_until_ready(jax.jit(OPTIMIZER.apply)(params, state, params))
    np.testing.assert_array_equal(params, 1)
    np.testing.assert_array_equal(state.mu, 0)


def test_donated_buffer_is_the_result():
    params = jnp.ones((1000, 100))
    state = OPTIMIZER.init(params)
    step = jax.jit(lambda params, state: OPTIMIZER.apply(params, state, params), donate_argnums=(0, 1))
    where = params.unsafe_buffer_pointer(), state.nu.unsafe_buffer_pointer()
    params, state = step(params, state)
    assert (params.unsafe_buffer_pointer(), state.nu.unsafe_buffer_pointer()) == where


def test_on_several_devices():
    """`shard_map` runs the kernel on each device's part; automatic sharding gives the same numbers."""
    printed = output(
        """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxnet.train.optimizer import adamw
mesh = jax.make_mesh((2,), ("data",))
params = {"w": jnp.linspace(-1, 1, 24).reshape(8, 3), "b": jnp.ones(4)}

def put(tree, spec):
    return jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), tree, spec)

def check(spec, implementation):
    optimizer = adamw(0.1, implementation=implementation)
    state = optimizer.init(params)
    state_spec = state._replace(count=P(), mu=spec, nu=spec)
    specs = {"in_specs": (spec, state_spec, spec), "out_specs": (spec, state_spec)}
    manual = jax.jit(jax.shard_map(optimizer.apply, mesh=mesh, **specs))
    args = put(params, spec), put(state, state_spec), put(params, spec)
    expected = optimizer.apply(params, state, params)
    for found in (manual(*args), jax.jit(optimizer.apply)(*args)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
    return "jaxnet_adamw" in manual.lower(*args).as_text()

print(check({"w": P("data"), "b": P("data")}, "cpu"))  # each device has a part
print(check({"w": P(), "b": P()}, "cpu"))  # each has all
print(check({"w": P("data"), "b": P()}, None))  # one call can't serve both
""",
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
    )
    assert printed.split() == ["True", "True", "False"]
