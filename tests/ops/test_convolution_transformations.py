"""`conv` and `conv_transpose` under transformations, on several devices, with NaN and infinity."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolutions import arguments, close, draw, geometry_of
from jax import lax

from jaxnet import ops
from jaxnet.ops import convolution, transposed_convolution

OPTIONS = {
    "conv": partial(ops.conv, stride=2),
    "few channels": partial(ops.conv, stride=2),
    "depthwise": partial(ops.conv, groups=4),
    "transposed": partial(ops.conv_transpose, stride=2),
}
CHANNELS = {"few channels": (1, 6)}


every_op = pytest.mark.parametrize("op", OPTIONS)


def small(op, batch=3, dtype=jnp.float64):
    channels = CHANNELS.get(op, (4, 4))
    return arguments((3, 4), (2, 3), channels, 4 if op == "depthwise" else 1, batch, dtype=dtype)


def loss(op, x, weight, bias):
    return jnp.square(jnp.tanh(OPTIONS[op](x, weight, bias))).sum()


@every_op
def test_jit_vmap_remat_and_grad_of_vmap(op, x64):
    args = small(op)
    f = partial(loss, op)
    expected = jax.jit(jax.grad(f, (0, 1, 2)))(*args)
    close(jax.jit(jax.grad(jax.checkpoint(f), (0, 1, 2)))(*args), expected)
    by_image = jax.vmap(lambda x, *rest: f(x[None], *rest), (0, None, None))
    close(jax.jit(jax.grad(lambda *args: by_image(*args).sum(), (0, 1, 2)))(*args), expected)
    images = jax.jit(jax.vmap(jax.grad(lambda x, *rest: f(x[None], *rest), (0, 1, 2)), (0, None, None)))(*args)
    close((images[0], images[1].sum(0), images[2].sum(0)), expected)
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), args)  # a weight for each
    close(jax.jit(jax.vmap(jax.grad(f, (0, 1, 2))))(*stacked)[1][0], expected[1])


@pytest.mark.parametrize("op", sorted(OPTIONS.keys() - CHANNELS))
def test_scan(op, x64):
    x, weight, _ = small(op)
    f = partial(ops.conv_transpose if op == "transposed" else ops.conv, groups=4 if op == "depthwise" else 1)
    weights = jnp.stack([weight, 0.5 * weight, -weight])

    def scanned(x, weights):
        return lax.scan(lambda x, w: (jnp.tanh(f(x, w)), None), x, weights)[0].sum()

    def plain(x, weights):
        for w in weights:
            x = jnp.tanh(f(x, w))
        return x.sum()

    close(jax.jit(jax.grad(scanned, (0, 1)))(x, weights), jax.jit(jax.grad(plain, (0, 1)))(x, weights))


@every_op
def test_second_and_third_order(op, x64):
    args = small(op, 2)
    f = OPTIONS[op]
    if op == "transposed":
        geometry = transposed_convolution._geometry(*args, 2, "SAME", 1, 0, 1, "dilated")
        reference = partial(transposed_convolution.reference, geometry, "dilated")
    else:
        reference = partial(convolution.reference, geometry_of(args, **f.keywords))

    def penalty(f, *args):
        slopes = jax.grad(lambda *args: jnp.tanh(f(*args)).sum(), (0, 1, 2))(*args)
        return sum(jnp.square(s).sum() for s in slopes)

    def third(f, *args):
        return sum(s.sum() for s in jax.grad(lambda *args: penalty(f, *args), (0, 1))(*args))

    for order in penalty, third:
        found, expected = (jax.jit(jax.grad(partial(order, g), (0, 1, 2)))(*args) for g in (f, reference))
        close(found, expected)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from functools import partial
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxnet import ops

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
CASES = {
    "conv": (ops.conv, ops.conv_vjp, {"stride": 2}, (3, 2, 4, 4)),
    "few channels": (ops.conv, ops.conv_vjp, {"stride": 2}, (3, 1, 4, 12)),
    "one tap": (ops.conv, ops.conv_vjp, {}, (1, 1, 4, 4)),
    "depthwise": (ops.conv, ops.conv_vjp, {"groups": 4}, (3, 2, 1, 4)),
    "transposed": (ops.conv_transpose, ops.conv_transpose_vjp, {"stride": 2}, (3, 2, 4, 4)),
}
for name, (f, vjp, options, shape) in CASES.items():
    args = [jnp.asarray(rng.normal(size=size)) for size in ((8, 5, 4, 4), shape, shape[-1:])]
    dy = jnp.asarray(rng.normal(size=f(*args, **options).shape))

    def by_autodiff(dy, *args):
        return jax.vjp(lambda *args: f(*args, **options), *args)[1](dy)

    def by_hand(dy, *args):
        return vjp(*args, **options)[1](dy)

    for kind in KINDS:
        mesh = jax.make_mesh((4,), ("batch",), axis_types=(kind,))
        specs = P("batch"), P("batch"), P(), P()
        for gradient in (by_autodiff,) if kind == AxisType.Auto else (by_hand,):
            expected = jax.jit(gradient)(dy, *args)
            mapped = jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=specs[1:])
            with jax.set_mesh(mesh):
                shards = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip((dy, *args), specs)]
                for g in gradient, mapped:
                    found = jax.jit(g)(*shards)
                    assert len(found[0].sharding.device_set) == 4
                    for a, b in zip(found, expected, strict=True):
                        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-9, atol=1e-12)
                    print(name, kind, gradient.__name__, g is mapped)
"""


def test_sharded_over_the_batch():
    # Four devices of one CPU: only a process of its own can have them.
    flags = ["--xla_force_host_platform_device_count=4", "--xla_backend_optimization_level=0"]
    flags += ["--xla_cpu_parallel_codegen_split_count=1"]
    environment = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    program = SHARDED.replace("KINDS", "AxisType.Auto, AxisType.Explicit")
    child = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert len(child.stdout.splitlines()) == 5 * 4


def test_a_second_call_does_not_recompile():
    traced = []

    @jax.jit
    def step(x, weight, bias):
        traced.append(x.shape)
        return jax.grad(partial(loss, "depthwise"), (0, 1, 2))(x, weight, bias)

    for _ in range(3):
        step(*small("depthwise", dtype="float32"))
    assert traced == [(3, 3, 4, 4)]


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
@every_op
def test_nan_and_infinity_reach_what_the_reference_lets_them_reach(op, value, x64):
    f = OPTIONS[op]
    x, weight, bias = small(op)
    dy = draw(*jax.eval_shape(f, x, weight, bias).shape, seed=9)

    @jax.jit
    def everything(x, dy):
        y, pullback = jax.vjp(f, x, weight, bias)
        return y, *pullback(dy)[:2]

    def touched(by):
        x_there, dy_there = x.at[1, 2, 1, 0], dy.at[0, 1, 1, 1]
        y, _, dweight = everything(getattr(x_there, by)(step), dy)
        return y, dweight, everything(x, getattr(dy_there, by)(step))[1]

    y, dx, dweight = everything(x, dy)
    step = 1.0
    moved = touched("add")
    step = value
    for found, before, after in zip(touched("set"), (y, dweight, dx), moved, strict=True):
        np.testing.assert_array_equal(np.isfinite(found), np.abs(np.asarray(after - before)) < 1e-12)
