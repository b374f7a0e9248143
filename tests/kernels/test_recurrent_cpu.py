"""The compiled loops over time: against XLA's for every option, transformations, threads, instruction sets."""

import hashlib
import os
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import importing, needs, output

from jaxnet import losses, networks, ops, train
from jaxnet.ops import using

# The op, its options, its gates.
CELLS = {
    "tanh": ("rnn", {"activation": "tanh"}, 1),
    "relu": ("rnn", {"activation": "relu"}, 1),
    "lstm": ("lstm", {}, 4),
    "gru after": ("gru", {"reset_after": True}, 3),
    "gru before": ("gru", {"reset_after": False}, 3),
}
each = pytest.mark.parametrize("name", CELLS)
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def arguments(name, batch, steps, inputs, hidden, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape, scale=1.0):
        return jnp.asarray(rng.normal(size=shape) * scale, dtype)

    op, options, gates = CELLS[name]
    scale = hidden**-0.5
    weights = [draw(n, gates * hidden, scale=scale) for n in (inputs, hidden)] + [draw(gates * hidden)]
    if op == "gru":
        weights.append(draw(hidden) if options["reset_after"] else None)
    state = (draw(batch, hidden), draw(batch, hidden)) if op == "lstm" else draw(batch, hidden)
    return draw(batch, steps, inputs), *weights, state


def road(name, implementation, **more):
    """All results and all gradients, under cotangents that differ everywhere."""
    op, options, _ = CELLS[name]
    f = partial(getattr(ops, f"{op}_vjp"), **options, **more, implementation=implementation)

    @jax.jit
    def both(*args):
        outputs, pullback = f(*args)
        cotangents = jax.tree.map(lambda y: jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape), outputs)
        return outputs, pullback(cotangents)

    return both


def close(found, expected, dtype="float64", steps=1):
    """Each step rounds, and its derivative carries what was rounded on; gradients sum over all steps and rows."""
    eps = float(jnp.finfo(dtype).eps)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if b.size:
            size = max(1, float(np.abs(b).max()))
            np.testing.assert_allclose(a, b, rtol=0, atol=(50 + 10 * steps) * eps * size)


# Around a tile's rows (14 or 6), a block's (56 or 24), a vector (4 to 16) and a panel (8 to 32) of units; from
# enough rows for all threads to one row, whose units they share.
SIZES = [
    *((b, 3, 2, 5) for b in (1, 2, 5, 6, 7, 13, 14, 15, 29, 57, 113)),
    *((3, 4, 3, h) for h in (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 67)),
    *((2, t, 2, 3) for t in (0, 1, 2, 19)),
    (0, 2, 3, 4),
    (1, 3, 5, 200),
    (2, 3, 5, 161),
]


@pytest.mark.long
@both_dtypes
@each
def test_sizes(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        for i, size in enumerate(SIZES):
            lengths = jnp.arange(size[0]) % (size[1] + 1) if i % 2 else None
            args = arguments(name, *size, dtype)
            found, expected = (road(name, n, reverse=i % 3 == 0, lengths=lengths)(*args) for n in ("cpu", "xla"))
            close(found, expected, dtype, size[1])


@each
@both_dtypes
def test_options_and_both_ways_to_cut_the_work(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        check_options(name, dtype)


def check_options(name, dtype):
    for size in ((1, 3, 2, 163), (17, 4, 3, 21)):
        args = arguments(name, *size, dtype)
        lengths = jnp.arange(size[0])[::-1] % (size[1] + 1)
        for options in ({}, {"reverse": True, "lengths": lengths}):
            found, expected = (road(name, n, **options)(*args) for n in ("cpu", "xla"))
            close(found, expected, dtype, size[1])


@pytest.mark.parametrize("name", ["relu", "lstm", "gru before"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_go_through_as_by_xla(name, value):
    x, *rest = arguments(name, 3, 4, 2, 9, "float32")
    x = x.at[1, 2, 0].set(value)
    found, expected = (road(name, n)(x, *rest) for n in ("cpu", "xla"))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


def test_the_padding_is_not_read():
    x, *rest = arguments("lstm", 3, 4, 2, 9, "float32")
    lengths = jnp.asarray([0, 2, 4])
    inside = (jnp.arange(4)[None] < lengths[:, None])[..., None]
    f = road("lstm", "cpu", lengths=lengths)
    close(f(jnp.where(inside, x, jnp.nan), *rest), f(x, *rest), "float32")


# ---------------------------------------------------------------------------------------- transformations


def loss(name, implementation, lengths, *args):
    op, options, _ = CELLS[name]
    y, state = getattr(ops, op)(*args, **options, lengths=lengths, implementation=implementation)
    return (y**2).sum() + sum((s**3).sum() for s in jax.tree.leaves(state))


def gradient(name, implementation):
    return jax.grad(partial(loss, name, implementation), (1, 2, 3))


LENGTHS = jnp.asarray([2, 0, 3])


@pytest.mark.parametrize("name", ["lstm", "gru after"])
def test_vmap_scan_and_remat(name, x64):
    args = arguments(name, 3, 3, 2, 5)
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), args)
    lengths = jnp.stack([LENGTHS, LENGTHS[::-1]])

    def scanned(f):
        return jax.jit(lambda n, *a: jax.lax.scan(lambda _, at: (None, f(at[0], *at[1])), None, (n, a))[1])

    expected = jax.jit(jax.vmap(gradient(name, "xla")))(lengths, *stacked)
    by_cpu = gradient(name, "cpu")
    close(jax.jit(jax.vmap(by_cpu))(lengths, *stacked), expected)
    close(scanned(by_cpu)(lengths, *stacked), expected)
    remat = jax.grad(jax.checkpoint(partial(loss, name, "cpu")), (1, 2, 3))
    close(scanned(remat)(lengths, *stacked), expected)


@each
def test_second_order(name, x64):
    args = arguments(name, 3, 3, 2, 4)

    def slope(implementation, *args):
        return sum(jnp.sin(g).sum() for g in gradient(name, implementation)(LENGTHS, *args))

    found, expected = (jax.jit(jax.grad(partial(slope, n), (0, 1, 2)))(*args) for n in ("cpu", "xla"))
    close(found, expected, steps=9)


@pytest.mark.parametrize("name", ["tanh", "lstm", "gru before"])
def test_half_precision_goes_through_in_the_dtype_of_its_sums(name):
    args = arguments(name, 3, 4, 2, 9, "bfloat16")
    found, expected = (road(name, n, lengths=LENGTHS)(*args) for n in ("cpu", "xla"))
    assert {a.dtype for a in jax.tree.leaves(found)} == {jnp.dtype("bfloat16")}
    wide = partial(jax.tree.map, lambda a: np.asarray(a, "float32"))
    close(wide(found), wide(expected), "bfloat16")


# -------------------------------------------------------------------------------------- which is chosen


def lowered(f, *args):
    return jax.jit(f).lower(*args).as_text()


@pytest.mark.parametrize(("implementation", "kernel"), [(None, True), ("cpu", True), ("xla", False)])
def test_which_is_lowered(implementation, kernel):
    args = arguments("lstm", 3, 3, 2, 5, "float32")
    f = partial(loss, "lstm", implementation, LENGTHS)
    assert ("@jaxnet_lstm(" in lowered(f, *args)) == kernel
    assert ("@jaxnet_lstm_backward(" in lowered(jax.grad(f), *args)) == kernel


@pytest.mark.parametrize("size", [(3, 1, 2, 5), (8, 4, 2, 300)], ids=str)
def test_few_steps_are_left_to_xla_unless_asked_for(size):
    args = arguments("lstm", *size, "float32")
    assert "@jaxnet_lstm(" not in lowered(ops.lstm, *args)
    assert "@jaxnet_lstm(" in lowered(partial(ops.lstm, implementation="cpu"), *args)


def test_a_block_holds_for_a_pullback_called_outside():
    args = arguments("gru after", 3, 3, 2, 5, "float32")
    with using("xla"):
        outputs, pullback = ops.gru_vjp(*args)
    assert "jaxnet" not in lowered(pullback, outputs)


def test_what_is_only_for_a_backward_pass_is_not_written_without():
    args = arguments("lstm", 3, 3, 2, 5, "float32")
    found = re.findall(
        r'custom_call_target="jaxnet_lstm"',
        jax.jit(partial(loss, "lstm", "cpu", None)).lower(*args).compile().as_text(),
    )
    assert len(found) == 1
    (call,) = (
        line for line in lowered(partial(loss, "lstm", "cpu", None), *args).splitlines() if "@jaxnet_lstm(" in line
    )
    assert call.split("->")[-1].count("tensor<") == 3  # y, h and c


# ------------------------------------------------------------------- instruction sets, threads, devices


HERE = importing(__file__)


@pytest.mark.long
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa):
    needs(isa)
    code = HERE + "from jaxnet.kernels import ffi; t.test_sizes('lstm', 'float32'); "
    code += "[t.check_options(n, 'float32') for n in t.CELLS]; print(ffi.isa())"
    assert output(code, JAXNET_ISA=isa, XLA_FLAGS="--xla_backend_optimization_level=0") == isa


def digest():
    found = hashlib.sha256()
    for name in CELLS:
        for size in ((1, 9, 4, 300), (3, 5, 4, 161), (40, 6, 7, 96), (130, 4, 5, 33)):
            for leaf in jax.tree.leaves(road(name, "cpu")(*arguments(name, *size, "float32"))):
                found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


@pytest.mark.long
def test_same_bits_for_any_number_of_threads():
    # NPROC sets the size of XLA's pool.
    assert len({output(HERE + "print(t.digest())", NPROC=n) for n in ("1", "2", "5")}) == 1


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_several_threads_on_one_core():
    code = HERE + "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); print(t.digest())"
    assert output(code, NPROC="5") == digest()


SHARDED = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
x, *rest, _ = t.arguments("lstm", 6, 3, 2, 5, "float32")
mesh = jax.make_mesh((DEVICES,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
specs = P("batch"), P(), P(), P()
args = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip((x, *rest), specs)]

def gradients(*args):
    return jax.grad(lambda *a: (t.ops.lstm(*a, implementation="cpu")[0] ** 2).sum(), (0, 1, 2, 3))(*args)

expected = gradients(x, *rest)
for f in gradients, jax.shard_map(gradients, mesh=mesh, in_specs=specs, out_specs=specs):
    assert "jaxnet_lstm_backward" in jax.jit(f).lower(*args).as_text()
    t.close(jax.jit(f)(*args), expected, "float32")
print("served")
"""


@pytest.mark.parametrize("devices", [1, 2])
def test_sharded_over_the_batch(devices):
    code = HERE + SHARDED.replace("DEVICES", str(devices))
    assert output(code, XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}") == "served"


def test_a_hundred_steps_end_where_those_by_xla_end():
    net = networks.lstm(16, 3)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(24, 10, 4)), "float32")
    y = (x.sum((1, 2)) > 0).astype("int32") + (x[:, 0, 0] > 0).astype("int32")
    ends = []
    for implementation in ("cpu", "xla"):
        with using(implementation):
            optimizer = train.adamw(1e-2)
            state = train.init(net, optimizer, jax.random.key(0), x[:1])
            step = train.make_step(net, losses.cross_entropy, optimizer)
            for _ in range(100):
                state, metrics = step(state, (x, y))
        ends.append(float(metrics["loss"]))
    assert ends[0] < 0.2
    assert abs(ends[0] - ends[1]) < 1e-3 * ends[1]
