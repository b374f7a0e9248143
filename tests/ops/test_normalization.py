"""The chain of checks of layer, RMS, group and batch normalisation, each link for one reason."""

import importlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import ops, verify
from jaxnet.ops import normalization

batch = importlib.import_module("jaxnet.ops.batch_norm")
EPS = 1e-3


def draw(*shape, seed=0, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(found, expected, rtol=1e-9, atol=1e-11):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


def random_like(tree):
    return jax.tree.map(lambda a: draw(*a.shape, seed=9, dtype=a.dtype), tree)


def check_backward(reference, forward, backward, *args):
    @jax.jit
    def both(args, dy):
        y, residuals = forward(*args)
        expected, pullback = jax.vjp(reference, *args)
        return (y, backward(residuals, dy)), (expected, pullback(dy))

    close(*both(args, random_like(jax.eval_shape(reference, *args))))


# ------------------------------------------------------------------- link 1: backward against the reference

FACTORS = [(True, True), (True, False), (False, True), (False, False)]
every_factor = pytest.mark.parametrize(("scale", "bias"), FACTORS)


def factors(scale, bias, *shape, dtype=jnp.float64):
    return (draw(*shape, seed=1, dtype=dtype) if s else None for s in (scale, bias))


@every_factor
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((5, 7), -1), ((2, 3, 5), (2, 0)), ((4,), 0), ((3, 1), -1), ((0, 3), -1), ((2, 3, 4, 5), (1, 2, 3))],
    ids=str,
)
def test_layer_norm_backward(x64, shape, axis, scale, bias):
    axes = (axis,) if isinstance(axis, int) else axis
    args = draw(*shape), *factors(scale, bias, *(shape[a] for a in sorted(a % len(shape) for a in axes)))
    norm = normalization._layer(*args, axis, EPS)
    functions = normalization.reference, normalization.forward, normalization.backward
    check_backward(*(partial(f, norm) for f in functions), *args)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize(
    ("shape", "axis"), [((5, 7), -1), ((2, 3, 5), (2, 0)), ((4,), 0), ((3, 1), -1), ((0, 3), -1)], ids=str
)
def test_rms_norm_backward(x64, shape, axis, scale):
    axes = (axis,) if isinstance(axis, int) else axis
    args = draw(*shape), *factors(scale, False, *(shape[a] for a in sorted(a % len(shape) for a in axes)))
    norm = normalization._layer(*args, axis, EPS, "rms_norm")
    functions = normalization.reference, normalization.forward, normalization.backward
    check_backward(*(partial(f, norm) for f in functions), *args)


@every_factor
@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 3, 5, 6), 3), ((2, 6), 2), ((1, 7, 1), 1), ((0, 2, 4), 4)], ids=str
)
def test_group_norm_backward(x64, shape, groups, scale, bias):
    args = draw(*shape), *factors(scale, bias, shape[-1])
    norm = normalization._group(*args, groups, EPS)
    functions = normalization.reference, normalization.forward, normalization.backward
    check_backward(*(partial(f, norm) for f in functions), *args)


@every_factor
@pytest.mark.parametrize("shape", [(7, 3), (3, 2, 5, 4), (1, 1)], ids=str)
def test_batch_norm_backward(x64, shape, scale, bias):
    args = draw(*shape), *factors(scale, bias, shape[-1])
    # The cotangents of the mean and the variance aren't zero.
    check_backward(*(partial(f, EPS) for f in (batch.reference, batch.forward, batch.backward)), *args)


@every_factor
@pytest.mark.parametrize("shape", [(7, 3), (0, 2, 4)], ids=str)
def test_batch_norm_inference_backward(x64, shape, scale, bias):
    channels = shape[-1]
    args = draw(*shape), draw(channels, seed=2), draw(channels, seed=3) ** 2, *factors(scale, bias, channels)
    functions = batch.inference_reference, batch.inference_forward, batch.inference_backward
    check_backward(*(partial(f, EPS) for f in functions), *args)


# ---------------------------------------------------- links 2, 3, 5: four roads, public functions, transformations


def outputs_of(f):
    """One array: y of a batch normalisation together with its statistics."""
    return lambda *args: jnp.concatenate([a.ravel() for a in jax.tree.leaves(f(*args))])


C = 4
OPS = {
    "layer": (ops.layer_norm, ops.layer_norm_vjp, {"eps": EPS}),
    "layer over two axes": (ops.layer_norm, ops.layer_norm_vjp, {"eps": EPS, "axis": (1, 2)}),
    "rms": (ops.rms_norm, ops.rms_norm_vjp, {"eps": EPS}),
    "group": (ops.group_norm, ops.group_norm_vjp, {"eps": EPS, "groups": 2}),
    "batch": (ops.batch_norm, ops.batch_norm_vjp, {"eps": EPS}),
    "inference": (ops.batch_norm_inference, ops.batch_norm_inference_vjp, {"eps": EPS}),
}
each = pytest.mark.parametrize("name", OPS)


def arguments(name, dtype=jnp.float64, rows=3):
    shape = (3, C) if name == "layer over two axes" else (C,)
    statistics = (
        (draw(C, seed=2, dtype=dtype), 1 + draw(C, seed=3, dtype=dtype) ** 2) if name == "inference" else ()
    )
    x = 2 + draw(rows, 3, C, dtype=dtype)
    return x, *statistics, *(draw(*shape, seed=s, dtype=dtype) for s in ((4,) if name == "rms" else (4, 5)))


@pytest.mark.parametrize("name", ["layer", "rms", "group", "batch"])
def test_four_roads(x64, name):
    op, op_vjp, options = OPS[name]
    args = arguments(name)
    dy = random_like(jax.eval_shape(partial(op, **options), *args))

    def total(*args):
        return sum(
            (w * y).sum() for w, y in zip(jax.tree.leaves(dy), jax.tree.leaves(op(*args, **options)), strict=True)
        )

    verify.assert_gradients(total, *args, hand_written=lambda *args: tuple(op_vjp(*args, **options)[1](dy)))


def test_values_against_numpy(x64):
    x, scale, bias = map(np.asarray, arguments("layer"))
    rows = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPS) * scale[None, None] + bias[
        None, None
    ]
    close(ops.layer_norm(*map(jnp.asarray, (x, scale, bias)), eps=EPS), rows)
    columns = (x - x.mean((0, 1))[None, None]) / np.sqrt(x.var((0, 1)) + EPS)[None, None]
    expected = columns * scale[None, None] + bias[None, None], x.mean((0, 1)), x.var((0, 1))
    close(ops.batch_norm(*map(jnp.asarray, (x, scale, bias)), eps=EPS), expected)
    squares = (x**2).mean(-1, keepdims=True)
    close(ops.rms_norm(*map(jnp.asarray, (x, scale)), eps=EPS), x / np.sqrt(squares + EPS) * scale[None, None])
    instance = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + EPS)
    close(ops.group_norm(jnp.asarray(x), groups=C, eps=EPS), instance)


@each
def test_transformations_and_second_order(x64, name):
    op, op_vjp, options = OPS[name]
    f, args = outputs_of(partial(op, **options)), arguments(name)
    weights = draw(*jax.eval_shape(f, *args).shape, seed=8)
    everything = tuple(range(len(args)))

    def loss(*args):
        return (weights * f(*args) ** 2).sum()

    expected = jax.jit(jax.grad(loss, everything))(*args)
    close(jax.jit(jax.grad(jax.checkpoint(loss), everything))(*args), expected)
    stacked = jax.tree.map(lambda a: jnp.stack([a, a + 1]), args)
    close(jax.tree.map(lambda g: g[0], jax.jit(jax.vmap(jax.grad(loss, everything)))(*stacked)), expected)
    _, scanned = jax.jit(lambda s: jax.lax.scan(lambda _, a: (None, jax.grad(loss, everything)(*a)), None, s))(
        stacked
    )
    close(jax.tree.map(lambda g: g[0], scanned), expected)

    references = {
        "batch": lambda x, *rest: batch.reference(EPS, x, *rest),
        "inference": lambda x, *rest: batch.inference_reference(EPS, x, *rest),
        "group": lambda *a: normalization.reference(normalization._group(*a, 2, EPS), *a),
        "rms": lambda *a: normalization.reference(normalization._layer(*a, None, -1, EPS, "rms_norm"), *a, None),
    }
    axis = options.get("axis", -1)
    plain = references.get(name, lambda *a: normalization.reference(normalization._layer(*a, axis, EPS), *a))
    directions = tuple(draw(*a.shape, seed=7) for a in args)

    def slope(f):
        def value(*args):
            return (weights * outputs_of(f)(*args) ** 2).sum()

        def along(*args):
            return sum((u * g).sum() for u, g in zip(directions, jax.grad(value, everything)(*args), strict=True))

        return jax.jit(jax.grad(along, everything))(*args)

    close(slope(partial(op, **options)), slope(plain), 1e-9, 1e-9)
    y, pullback = jax.jit(partial(op_vjp, **options))(*args)  # a pullback is a pytree: it leaves jit
    close(pullback(y), jax.vjp(partial(op, **options), *args)[1](y))


# ------------------------------------------------------------------------------------------- precision


@each
@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_half_precision_is_rounded_once(name, dtype):
    op, op_vjp, options = OPS[name]
    args = arguments(name, jnp.dtype(dtype))
    dy = random_like(jax.eval_shape(partial(op, **options), *args))
    y, *statistics = jax.tree.leaves(jax.eval_shape(partial(op, **options), *args))
    assert (y.dtype, {s.dtype for s in statistics}) == (
        jnp.dtype(dtype),
        {jnp.dtype("float32")} if statistics else set(),
    )

    @jax.jit
    def road(args, dy):
        y, pullback = op_vjp(*args, **options)
        return y, *pullback(dy)

    found = road(args, dy)
    assert all(g.dtype == a.dtype for g, a in zip(found[1:], args, strict=True))
    wide = road(*jax.tree.map(lambda a: a.astype("float32"), (args, dy)))
    # Once to eps of the dtype; sums in float32 of numbers of order one err by some of its eps.
    close(
        *(jax.tree.map(lambda a: np.asarray(a, "f"), t) for t in (found, wide)), float(jnp.finfo(dtype).eps), 1e-5
    )


@pytest.mark.parametrize("name", ["layer", "group", "batch"])
def test_the_variance_does_not_cancel(name):
    # In float32, at a mean of 3000: E[x²] − μ² would be wrong by 3000² · eps₃₂ ≈ 1, as much as the variance.
    op, _, options = OPS[name]
    x, *rest = arguments(name, jnp.float32, rows=50)
    x = (x + 3000).astype("float32")
    (found, *_), (expected, *_) = (
        jax.tree.leaves(partial(op, **options)(*jax.tree.map(f, (x, *rest)))) for f in (jnp.asarray, lambda a: a)
    )
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in (x, *rest)]
        expected = np.asarray(jax.tree.leaves(partial(op, **options)(*wide))[0])
    # The mean itself is rounded to 3000 · eps₃₂ / 2, and the differences from it are of order one.
    np.testing.assert_allclose(found, expected, atol=20 * 3000 * np.finfo("f").eps)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_nan_and_infinity_spoil_their_own_mean_alone(value):
    x = draw(3, 2, C, dtype="float32").at[1, 0, 2].set(value)
    bad = np.isnan(ops.layer_norm(x))
    assert bad[1, 0].all()
    assert bad.sum() == C
    assert not np.isfinite(np.asarray(ops.rms_norm(x))[1, 0, 2])
    assert np.isfinite(np.delete(np.asarray(ops.rms_norm(x)).reshape(6, C), 2, 0)).all()
    assert np.isnan(ops.group_norm(x, groups=2)).sum() == 4
    y, mean, variance = ops.batch_norm(x)
    assert np.isnan(y).sum() == 6
    assert not np.isfinite([mean[2], variance[2]]).any()
    dx = ops.layer_norm_vjp(x)[1](jnp.ones_like(x))[0]
    assert np.isnan(dx).sum() == C


# ---------------------------------------------------------------------------------------------- errors

X, S = jnp.ones((2, 3, 4)), jnp.ones(4)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: normalization._layer(X, None, None, 3, EPS), "different axes of x (2, 3, 4); got axis 3"),
        (
            lambda: normalization._layer(X, None, None, (1, -2), EPS),
            "different axes of x (2, 3, 4); got axis (1, -2)",
        ),
        (lambda: normalization._layer(X, None, None, (), EPS), "one or several different axes"),
        (
            lambda: normalization._layer(X, S[:3], None, -1, EPS),
            "layer_norm needs a scale (4,) of float32 for x (2, 3, 4); got (3,) of float32",
        ),
        (
            lambda: normalization._layer(X, S, S.astype("bfloat16"), -1, EPS),
            "a bias (4,) of float32 for x (2, 3, 4); got (4,) of bfloat16",
        ),
        (
            lambda: normalization._layer(X, X[0], None, -1, EPS, "rms_norm"),
            "rms_norm needs a scale (4,) of float32 for x (2, 3, 4); got (3, 4) of float32",
        ),
        (lambda: normalization._layer(X, S, S, -1, -1.0), "layer_norm needs eps ≥ 0; got -1.0"),
        (
            lambda: normalization._layer(X.astype(int), None, None, -1, EPS),
            "layer_norm needs a floating-point x; got int32",
        ),
        (
            lambda: normalization._group(X, None, None, 3, EPS),
            "group_norm needs groups ≥ 1 that divide the 4 channels of x; got 3",
        ),
        (lambda: normalization._group(S, None, None, 1, EPS), "group_norm needs x (N, S…, C); got (4,)"),
        (lambda: normalization._group(X, X, None, 2, EPS), "group_norm needs a scale (4,) of float32"),
        (lambda: batch._check("batch_norm", S, EPS), "batch_norm needs x (N…, C); got (4,)"),
        (lambda: batch._check("batch_norm", X, EPS, mean=S[:2]), "batch_norm needs a mean (4,) of float32"),
    ],
)
def test_errors(check, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check()


@each
def test_the_public_functions_check(name):
    args = arguments(name, jnp.float32)
    for f in OPS[name][:2]:
        with pytest.raises(ValueError, match="has no implementation 'cpu'; it has 'xla'"):
            f(*args, **OPS[name][2], implementation="cpu")
        with pytest.raises(ValueError, match="needs eps ≥ 0"):
            f(*args, **OPS[name][2] | {"eps": -1.0})
