"""The chain of checks of `linear_cross_entropy`, in small chunks, so that there are several."""

import importlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxnet import losses, ops, verify

op = importlib.import_module("jaxnet.ops.linear_cross_entropy")
CHUNK = 4


def draw(*shape, seed=0, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def arguments(leading=(5,), features=3, classes=9, bias=True, dtype=jnp.float64):
    x, weight = draw(*leading, features, dtype=dtype), draw(features, classes, seed=1, dtype=dtype)
    labels = jnp.asarray(np.random.default_rng(2).integers(0, classes, leading))
    return x, weight, labels, draw(classes, seed=3, dtype=dtype) if bias else None


def close(found, expected, rtol=1e-9, atol=1e-12):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


# ------------------------------------------------------------------- link 1: backward against the reference


def check_backward(args, label_smoothing=0.0, ignore_label=None):
    options = op.Options(label_smoothing, ignore_label, CHUNK)
    x, weight, labels, bias = args

    @jax.jit
    def both(x, weight, bias, dloss):
        expected, pullback = jax.vjp(lambda x, w, b: op.reference(options, x, w, labels, b), x, weight, bias)
        loss, residuals = op.forward(options, x, weight, labels, bias)
        dx, dweight, _, dbias = op.backward(options, residuals, dloss)
        return (loss, (dx, dweight, dbias)), (expected, pullback(dloss))

    close(*both(x, weight, bias, draw(*labels.shape, seed=9)))


@pytest.mark.parametrize(
    ("smoothing", "ignored", "bias"), [(0.0, None, True), (0.3, None, False), (0.0, 4, False), (0.2, -1, True)]
)
def test_backward_for_every_option(x64, smoothing, ignored, bias):
    x, weight, labels, b = arguments((2, 3), bias=bias)
    labels = labels if ignored is None else labels.at[0, 1].set(ignored)
    check_backward((x, weight, labels, b), smoothing, ignored)


@pytest.mark.parametrize(
    ("leading", "features", "classes"),
    [((), 3, CHUNK), ((5,), 1, CHUNK + 1), ((2, 1), 2, CHUNK - 1), ((0,), 3, 13), ((2,), 0, 6), ((1,), 1, 1)],
    ids=str,
)
def test_backward_for_every_size(x64, leading, features, classes):
    check_backward(arguments(leading, features, classes), 0.1)


# -------------------------------------------- links 2, 3, 5: four roads, the two ops that it is, transformations


def test_four_roads(x64):
    x, weight, labels, bias = arguments((2,), classes=5)
    dloss, options = draw(2, seed=9), {"label_smoothing": 0.2, "chunk": 2}

    def total(x, weight, bias):
        return (dloss * ops.linear_cross_entropy(x, weight, labels, bias=bias, **options)).sum()

    def hand_written(x, weight, bias):
        return ops.linear_cross_entropy_vjp(x, weight, labels, bias=bias, **options)[1](dloss)

    verify.assert_gradients(total, x, weight, bias, hand_written=hand_written)


def test_it_is_linear_and_cross_entropy(x64):
    x, weight, labels, bias = arguments((2, 3))
    labels = labels.at[0].set(-100)
    options = {"label_smoothing": 0.1, "ignore_label": -100}

    def apart(x, weight, bias):
        return losses.cross_entropy(ops.linear(x, weight, bias), labels, **options)

    def together(x, weight, bias):
        return losses.linear_cross_entropy(x, weight, labels, bias=bias, chunk=2, **options)

    @jax.jit
    def both(dloss, *args):
        (a, f), (b, g) = (jax.vjp(h, *args) for h in (apart, together))
        return (b, g(dloss)), (a, f(dloss))

    found, expected = both(draw(2, 3, seed=9), x, weight, bias)
    close(found, expected)
    assert not np.asarray(found[0][0]).any()


def test_transformations_and_second_order(x64):
    x, weight, labels, bias = arguments((4,), 2, 5)
    options = op.Options(0.1, None, 2)

    def loss(f, x, weight, bias):
        return jnp.square(f(options, x, weight, labels, bias)).sum()

    ours = partial(loss, op._linear_cross_entropy)
    gradient = jax.grad(ours, (0, 1, 2))
    args = x, weight, bias
    expected = jax.jit(gradient)(*args)
    close(jax.jit(jax.grad(jax.checkpoint(ours), (0, 1, 2)))(*args), expected)
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), args)
    mapped, scanned = jax.jit(
        lambda s: (jax.vmap(gradient)(*s), jax.lax.scan(lambda _, a: (None, gradient(*a)), None, s)[1])
    )(stacked)
    close(mapped, scanned)
    close(jax.tree.map(lambda g: g[0], mapped), expected)

    directions = [draw(*a.shape, seed=7) for a in args]

    def slope(f):
        def along(*args):
            gradients = jax.grad(partial(loss, f), (0, 1, 2))(*args)
            return sum((u * g).sum() for u, g in zip(directions, gradients, strict=True))

        return jax.jit(jax.grad(along, (0, 1, 2)))(*args)

    close(slope(op._linear_cross_entropy), slope(op.reference))

    rows, whole = PartitionSpec("batch"), PartitionSpec()
    sharded = jax.shard_map(
        lambda x, w, labels, b: ops.linear_cross_entropy_vjp(x, w, labels, bias=b, chunk=2)[1](x[:, 0]),
        mesh=jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=(rows, whole, rows, whole),
        out_specs=(rows, whole, whole),
    )
    _, pullback = jax.jit(partial(ops.linear_cross_entropy_vjp, chunk=3))(x, weight, labels, bias=bias)
    close(jax.jit(sharded)(x, weight, labels, bias), pullback(x[:, 0]))


# ------------------------------------------------------------------------------------ what is claimed in words


def sizes_in(jaxpr):
    """Of every array of a program, also inside its loops and calls."""
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from sizes_in(inner)


def test_the_logits_are_never_stored():
    rows, classes = 4096, 50_000
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((rows, 8), (8, classes))]
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)
    gradient = jax.grad(lambda x, w, labels: ops.linear_cross_entropy(x, w, labels).sum(), (0, 1))
    assert max(sizes_in(jax.make_jaxpr(gradient)(*args, labels).jaxpr)) <= rows * op.CHUNK < rows * classes / 48


def test_half_precision_is_calculated_in_float32():
    x, weight, labels, bias = arguments((50,), 20, 30, dtype=jnp.bfloat16)

    @jax.jit
    def road(x, weight, bias):
        loss, pullback = ops.linear_cross_entropy_vjp(x, weight, labels, bias=bias, chunk=8)
        return loss, *pullback(jnp.ones_like(loss))

    found = road(x, weight, bias)
    assert {g.dtype for g in found} == {jnp.dtype("bfloat16")}
    wide = road(*(a.astype("float32") for a in (x, weight, bias)))
    # Rounded once to eps of the dtype; sums in float32 of numbers of order one err by some of its eps.
    close([np.asarray(g, "f") for g in found], list(wide), float(jnp.finfo("bfloat16").eps), 1e-5)


def test_large_logits_do_not_overflow():
    x, weight, labels, _ = arguments(dtype=jnp.float32)
    loss, pullback = ops.linear_cross_entropy_vjp(1e4 * x, 1e4 * weight, labels, chunk=2)
    assert all(np.isfinite(a).all() for a in (loss, *pullback(loss)[:2]))


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_nan_and_infinity_spoil_their_own_example(value):
    x, weight, labels, bias = arguments(dtype=jnp.float32)
    bad = x.at[1, 2].set(value)
    loss, pullback = ops.linear_cross_entropy_vjp(bad, weight, labels, bias=bias, chunk=4)
    dx, dweight, _ = pullback(jnp.ones_like(loss))
    for a in (loss, dx):
        assert not np.isfinite(a[1]).any()
        assert np.isfinite(np.delete(a, 1, 0)).all()
    assert np.isnan(dweight).all()
    # Unless it is to be ignored.
    options = {"bias": bias, "ignore_label": -1, "chunk": 4}
    loss, pullback = ops.linear_cross_entropy_vjp(bad, weight, labels.at[1].set(-1), **options)
    dx, _, dbias = pullback(jnp.ones_like(loss))
    assert (float(loss[1]), float(jnp.abs(dx[1]).max())) == (0, 0)
    assert np.isfinite(dbias).all()


def test_labels_out_of_range_inside_jit():
    x, weight, labels, _ = arguments(dtype=jnp.float32)
    for label in (-1, 9):
        loss = jax.jit(partial(ops.linear_cross_entropy, chunk=4))(x, weight, labels.at[3].set(label))
        np.testing.assert_array_equal(np.isnan(loss), np.arange(5) == 3)


X, W, LABELS, B = arguments(dtype=jnp.float32)
PLAIN = op.Options(0.0, None, 4)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((X, W[0], LABELS, None), PLAIN, "needs x (…, I) and a weight (I, V), V ≥ 1; got (5, 3) and (9,)"),
        ((X, W[:2], LABELS, None), PLAIN, "got (5, 3) and (2, 9)"),
        ((X, W[:, :0], LABELS, None), PLAIN, "V ≥ 1; got (5, 3) and (3, 0)"),
        ((X, W, LABELS, B[:2]), PLAIN, "needs a bias (9,); got (2,)"),
        ((X.astype(int), W, LABELS, None), PLAIN, "of one floating-point dtype; got x of int32"),
        ((X, W.astype("float16"), LABELS, None), PLAIN, "got weight of float16 beside x of float32"),
        ((X, W, LABELS[:4], None), PLAIN, "needs labels (5,) for x (5, 3); got (4,)"),
        ((X, W, LABELS, None), op.Options(1.0, None, 4), "needs 0 ≤ label_smoothing < 1; got 1.0"),
        ((X, W, LABELS, None), op.Options(0.0, None, 0), "needs a whole number chunk ≥ 1; got 0"),
        ((X, W, X[:, 0], None), PLAIN, "linear_cross_entropy's labels must be integers; got float32"),
        ((X, W, LABELS + 9, None), PLAIN, "linear_cross_entropy's labels must be 0 to 8; got"),
        ((X, W, LABELS - 9, None), op.Options(0.0, -9, 4), "labels must be 0 to 8 or -9; got"),
    ],
)
def test_errors(args, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        op._check(*args, options)


def test_the_public_functions_check():
    for f in (ops.linear_cross_entropy, ops.linear_cross_entropy_vjp):
        with pytest.raises(ValueError, match="needs 0 ≤ label_smoothing < 1"):
            f(X, W, LABELS, label_smoothing=-1.0)
        with pytest.raises(ValueError, match="linear_cross_entropy has no implementation 'cpu'"):
            f(X, W, LABELS, implementation="cpu")
