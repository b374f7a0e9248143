"""The chain of checks of `linear`, each link for one reason."""

import os
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import activations, ops, verify
from jaxnet.ops.linear import _check, backward, forward, linear, linear_vjp, reference

ACTIVATIONS = [None, *sorted(activations._NAMES), partial(activations.leaky_relu, negative_slope=0.2)]
ACTIVATIONS += [partial(activations.elu, alpha=1.5), partial(activations.gelu, approximate=False)]
every_activation = pytest.mark.parametrize(
    "activation", ACTIVATIONS, ids=lambda a: f"{a.func.__name__}{a.keywords}" if isinstance(a, partial) else str(a)
)
every_shape = pytest.mark.parametrize(
    ("leading", "features", "out"),
    [((), 3, 2), ((5,), 3, 4), ((2, 3), 7, 5), ((1,), 1, 1), ((13,), 17, 1), ((0,), 3, 2), ((2, 0), 3, 2)],
    ids=str,
)


def arguments(leading=(5,), features=3, out=4, bias=True, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(*leading, features), (features, out), (out,)]
    x, weight, b = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    return x, weight, b if bias else None


def cotangent(leading=(5,), out=4, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(9).normal(size=(*leading, out)), dtype)


def close(found, expected, rtol=1e-9, atol=1e-12):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


def named(activation):
    return None if activation is None else activations.get(activation)


# ------------------------------------------------------------------- link 1: backward against the reference


def check_backward(activation, bias, leading, features, out):
    args = arguments(leading, features, out, bias, jnp.float64)
    dy = cotangent(leading, out, jnp.float64)
    expected_y, pullback = jax.vjp(partial(reference, named(activation)), *args)
    y, residuals = forward(named(activation), *args)
    close(y, expected_y)
    close(backward(named(activation), residuals, dy), pullback(dy))


@pytest.mark.parametrize("bias", [True, False])
@every_activation
def test_backward_for_every_activation(activation, bias, x64):
    check_backward(activation, bias, (2, 3), 7, 5)


@pytest.mark.parametrize("bias", [True, False])
@every_shape
def test_backward_for_every_shape(leading, features, out, bias, x64):
    check_backward("tanh", bias, leading, features, out)


# -------------------------------------------------------- link 2: finite differences, and the formula in NumPy


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "softmax"])
def test_four_roads(activation, bias, x64):
    x, weight, b = arguments(bias=bias, dtype=jnp.float64)
    dy = cotangent(dtype=jnp.float64)
    trees = (x, weight, b) if bias else (x, weight)

    def total(*args):
        return (dy * linear(*args, activation=activation)).sum()

    def hand_written(*args):
        return linear_vjp(*args, activation=activation)[1](dy)[: len(args)]

    verify.assert_gradients(total, *trees, hand_written=hand_written)


@every_shape
def test_value_against_numpy(leading, features, out, x64):
    x, weight, b = map(np.asarray, arguments(leading, features, out, dtype=jnp.float64))
    expected = np.tanh(np.einsum("...i,io->...o", x, weight) + b)
    close(linear(*map(jnp.asarray, (x, weight, b)), activation="tanh"), expected)


# ------------------------------------------------------------------------------ link 3: the public function


@pytest.mark.parametrize("bias", [True, False])
@every_activation
def test_public_op_in_value_and_gradient(activation, bias, x64):
    args = arguments((2, 3), 7, 5, bias, jnp.float64)
    dy = cotangent((2, 3), 5, jnp.float64)
    expected_y, reference_pullback = jax.vjp(partial(reference, named(activation)), *args)
    y, pullback = jax.vjp(partial(linear, activation=activation, implementation="xla"), *args)
    close((y, pullback(dy)), (expected_y, reference_pullback(dy)))
    y, pullback = linear_vjp(*args, activation=activation)
    close((y, pullback(dy)), (expected_y, reference_pullback(dy)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("size", [31, 257])
def test_precision_of_each_dtype(dtype, size):
    # A sum of n products, each rounded to float32's eps₃₂ in the running sum, errs by about √n · eps₃₂ · √n, in
    # units of the products' size (a random walk of n steps through partial sums of size ≤ √n): n · eps₃₂.
    # The result is rounded once to eps of its dtype. Through tanh, |f′|, |f″| ≤ 1, dz inherits the error of z,
    # so the sums of the backward pass carry it once more: 2n · eps₃₂, and a factor 4 for the tails.
    args = arguments((size,), size, size, dtype=dtype)
    dy = cotangent((size,), size, dtype)
    wide_args = [np.asarray(a, np.float64) for a in args]
    with jax.enable_x64(True):
        y, pullback = jax.vjp(partial(reference, activations.tanh), *map(jnp.asarray, wide_args))
        expected = [np.asarray(a) for a in (y, *pullback(jnp.asarray(np.asarray(dy, np.float64))))]
    y, pullback = linear_vjp(*args, activation="tanh")
    for found, exact in zip((y, *pullback(dy)), expected, strict=True):
        assert found.dtype == dtype
        rounding = float(jnp.finfo(dtype).eps) * np.abs(exact)
        error = np.abs(np.asarray(found, np.float64) - exact)
        assert np.all(error <= rounding + 8 * size * np.finfo(np.float32).eps)


# -------------------------------------------------------------------------------- link 5: transformations


def loss(x, weight, b):
    return jnp.square(linear(x, weight, b, activation="tanh")).sum()


def test_jit_vmap_remat_and_grad_of_vmap(x64):
    args = arguments(dtype=jnp.float64)
    expected = jax.grad(loss, (0, 1, 2))(*args)
    close(jax.jit(jax.grad(loss, (0, 1, 2)))(*args), expected)
    close(jax.grad(jax.checkpoint(loss), (0, 1, 2))(*args), expected)
    by_row = jax.vmap(partial(linear, activation="tanh"), (0, None, None))
    close(by_row(*args), linear(*args, activation="tanh"))
    close(jax.grad(lambda *args: jnp.square(by_row(*args)).sum(), (0, 1, 2))(*args), expected)
    rows = jax.vmap(jax.grad(loss, (0, 1, 2)), (0, None, None))(*args)
    close((rows[0], rows[1].sum(0), rows[2].sum(0)), expected)
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), args)  # a weight for each
    close(jax.vmap(jax.grad(loss, (0, 1, 2)))(*stacked)[1][0], expected[1])


def test_scan(x64):
    x, weight, _ = arguments((5,), 4, 4, dtype=jnp.float64)
    weights = jnp.stack([weight, 0.5 * weight, -weight])

    def scanned(x, weights):
        return jax.lax.scan(lambda x, w: (linear(x, w, activation="tanh"), None), x, weights)[0].sum()

    def plain(x, weights):
        for w in weights:
            x = jnp.tanh(x @ w)
        return x.sum()

    close(jax.grad(scanned, (0, 1))(x, weights), jax.grad(plain, (0, 1))(x, weights))


@pytest.mark.parametrize("activation", [None, "tanh", "gelu", "softmax"])
def test_second_order(activation, x64):
    args = arguments((2,), 3, 2, dtype=jnp.float64)

    def hessian_of(f):
        squared = lambda *args: jnp.square(f(*args)).sum()  # noqa: E731
        return jax.jacrev(jax.grad(squared, (0, 1, 2)), (0, 1, 2))(*args)

    plain = partial(reference, named(activation))
    close(hessian_of(partial(linear, activation=activation)), hessian_of(plain))


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxnet.ops import linear, linear_vjp

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
args = [jnp.asarray(rng.normal(size=shape)) for shape in ((8, 2, 3), (3, 5), (5,))]
dy = jnp.asarray(rng.normal(size=(8, 2, 5)))

def by_autodiff(dy, *args):
    return jax.vjp(lambda *args: linear(*args, activation="tanh"), *args)[1](dy)

def by_hand(dy, *args):
    return linear_vjp(*args, activation="tanh")[1](dy)

for kind in AxisType.Auto, AxisType.Explicit:
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(kind,))
    specs = P("batch"), P("batch"), P(), P()
    for gradient in by_autodiff, by_hand:
        expected = gradient(dy, *args)
        mapped = jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=specs[1:])
        with jax.set_mesh(mesh):
            shards = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip((dy, *args), specs)]
            for f in gradient, mapped:
                found = jax.jit(f)(*shards)
                assert len(found[0].sharding.device_set) == 4
                for a, b in zip(found, expected, strict=True):
                    np.testing.assert_allclose(np.asarray(a), b, rtol=1e-9, atol=1e-12)
                print(kind, gradient.__name__, f is mapped)
"""


def test_sharded_over_the_batch():
    # Four devices of one CPU: only a process of its own can have them.
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    child = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert len(child.stdout.splitlines()) == 8


def test_a_second_call_does_not_recompile():
    traced = []

    @jax.jit
    def step(x, weight, b):
        traced.append(x.shape)
        return jax.grad(loss, (0, 1, 2))(x, weight, b)

    for seed in range(3):
        step(*arguments(seed=seed))
    assert traced == [(5, 3)]


def test_a_pullback_leaves_jit_and_is_a_pytree():
    args, dy = arguments(), cotangent()
    y, pullback = jax.jit(partial(linear_vjp, activation="tanh"))(*args)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(pullback))
    plain_y, plain_pullback = linear_vjp(*args, activation="tanh")
    close((y, pullback(dy)), (plain_y, plain_pullback(dy)), rtol=1e-5, atol=1e-6)


def test_without_an_activation_nothing_is_kept():
    assert forward(None, *arguments())[1].saved is None


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_nan_and_infinity_pass_as_in_the_reference(value):
    x, weight, b = arguments()
    x = x.at[1, 2].set(value)
    dy = cotangent().at[3, 0].set(value)
    y, pullback = linear_vjp(x, weight, b)
    expected_y, expected = jax.vjp(partial(reference, None), x, weight, b)
    close((y, pullback(dy)), (expected_y, expected(dy)), rtol=1e-5, atol=1e-6)
    assert not np.isfinite(y[1]).any()
    assert np.isfinite(np.delete(y, 1, 0)).all()


# ---------------------------------------------------------------------------------------------- errors

X, W, B = arguments()


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((X, W[0]), {}, "linear needs a weight (I, O); got shape (4,)"),
        ((X, W[:2]), {}, "linear needs x (…, 2) for a weight (2, 4); got (5, 3)"),
        ((X[0, 0], W), {}, "linear needs x (…, 3) for a weight (3, 4); got ()"),
        ((X, W, B[:3]), {}, "linear needs a bias (4,) for a weight (3, 4); got (3,)"),
        ((X, W, B[None]), {}, "linear needs a bias (4,) for a weight (3, 4); got (1, 4)"),
        ((X.astype(int), W), {}, "of one floating-point dtype; got x of int32"),
        ((X, W.astype("bfloat16")), {}, "got weight of bfloat16 beside x of float32"),
        ((X, W, B.astype("float16")), {}, "got bias of float16 beside x of float32"),
        ((X, W), {"activation": "tahn"}, "unknown activation 'tahn': did you mean 'tanh'?"),
        ((X, W), {"activation": jnp.sin}, "a function with a derivative written beside it"),
    ],
)
def test_errors(args, options, message):
    # Of the checks alone: under the types that are checked in tests, some never reach them.
    with pytest.raises(ValueError, match=re.escape(message)):
        _check(*args, *[None] * (3 - len(args)), options.get("activation"))


@pytest.mark.parametrize("f", [ops.linear, ops.linear_vjp])
def test_the_public_functions_check(f):
    for options, message in (
        ({"activation": "tahn"}, "did you mean 'tanh'"),
        ({"implementation": "cuda"}, "implementation must be None or one of 'xla'"),
        ({"implementation": "cudnn"}, "linear has no implementation 'cudnn'; it has 'xla'"),
    ):
        with pytest.raises(ValueError, match=message):
            f(X, W, B, **options)
    with pytest.raises(ValueError, match="got weight of bfloat16 beside x of float32"):
        jax.jit(f)(X, W.astype("bfloat16"), B)
