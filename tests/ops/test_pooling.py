"""The chain of checks of max and average pooling, each link for one reason."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import ops, verify
from jaxnet.ops import global_pooling, pooling
from jaxnet.ops.windows import windows_of

# shape, window, stride, padding: one to three axes, with and without overlap, sizes of 1, primes, an empty batch.
WINDOWS = [
    ((2, 7, 3), 2, None, "VALID"),
    ((2, 8, 6, 3), 2, None, "VALID"),
    ((2, 9, 7, 2), 3, 2, "SAME"),
    ((2, 8, 8, 2), 3, 2, "SAME"),
    ((2, 5, 7, 1), (3, 2), 1, [(1, 1), (0, 1)]),
    ((1, 11, 5, 2), 2, 3, "VALID"),
    ((1, 13, 2), 5, 2, [(3, 4)]),
    ((1, 5, 4, 6, 2), 2, (2, 1, 2), "SAME"),
    ((1, 1, 1, 1), 1, None, "VALID"),
    ((1, 6, 5, 2), 3, 2, 1),
    ((1, 6, 5, 2), 3, 1, (2, 1)),
    ((0, 4, 4, 2), 2, None, "VALID"),
]
every_window = pytest.mark.parametrize(("shape", "window", "stride", "padding"), WINDOWS, ids=str)


def draw(*shape, seed=0, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(found, expected, rtol=1e-9, atol=1e-12):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


def check_backward(reference, forward, backward, x):
    @jax.jit
    def both(x, dy):
        y, residuals = forward(x)
        expected, pullback = jax.vjp(reference, x)
        return (y, backward(residuals, dy)), (expected, pullback(dy))

    close(*both(x, draw(*jax.eval_shape(reference, x).shape, seed=9)))


# ------------------------------------------------------------------- link 1: backward against the reference


@pytest.mark.parametrize(
    ("shape", "window", "stride", "padding", "dilation"),
    [
        *((*case, 1) for case in WINDOWS),
        ((2, 9, 7, 2), 3, 2, "SAME", 2),
        ((1, 13, 2), 3, 2, [(3, 4)], 3),
        ((1, 5, 4, 6, 2), (2, 1, 2), 1, "VALID", (1, 2, 3)),
    ],
    ids=str,
)
def test_max_pool_backward(x64, shape, window, stride, padding, dilation):
    x = draw(*shape)
    windows = windows_of("max_pool", x, window, stride, padding, dilation)
    functions = pooling.max_reference, pooling.max_forward, pooling.max_backward
    check_backward(*(partial(f, windows) for f in functions), x)


@every_window
@pytest.mark.parametrize("count_include_pad", [True, False])
def test_avg_pool_backward(x64, shape, window, stride, padding, count_include_pad):
    x = draw(*shape)
    average = pooling._Average(windows_of("avg_pool", x, window, stride, padding), count_include_pad)
    functions = pooling.avg_reference, pooling.avg_forward, pooling.avg_backward
    check_backward(*(partial(f, average) for f in functions), x)


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 3, 4, 2), (0, 3, 3, 2), (1, 1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_global_pool_backward(x64, shape, kind):
    reference, forward, backward = (
        getattr(global_pooling, f"{kind}_{f}") for f in ("reference", "forward", "backward")
    )
    check_backward(reference, partial(forward, shape[1:-1]), partial(backward, shape[1:-1]), draw(*shape))


# ------------------------------------------------------------------------------------- link 2: four roads

OPS = {
    "max": partial(ops.max_pool, window=2),
    "overlapping max": partial(ops.max_pool, window=3, stride=2, padding="SAME"),
    "average": partial(ops.avg_pool, window=3, stride=2, padding="SAME", count_include_pad=False),
    "global max": ops.global_max_pool,
    "global average": ops.global_avg_pool,
}
VJPS = {
    "max": partial(ops.max_pool_vjp, window=2),
    "overlapping max": partial(ops.max_pool_vjp, window=3, stride=2, padding="SAME"),
    "average": partial(ops.avg_pool_vjp, window=3, stride=2, padding="SAME", count_include_pad=False),
    "global max": ops.global_max_pool_vjp,
    "global average": ops.global_avg_pool_vjp,
}
each = pytest.mark.parametrize("name", OPS)


@pytest.mark.parametrize("name", ["overlapping max", "average"])
def test_four_roads(x64, name):
    x = draw(2, 4, 5, 2)
    dy = draw(*jax.eval_shape(OPS[name], x).shape, seed=9)
    verify.assert_gradients(
        lambda x: (dy * OPS[name](x)).sum(), x, hand_written=lambda x: tuple(VJPS[name](x)[1](dy))
    )


def test_values_against_numpy(x64):
    x = np.asarray(draw(2, 6, 4, 3))
    blocks = x.reshape(2, 3, 2, 2, 2, 3)
    close(ops.max_pool(jnp.asarray(x), 2), blocks.max((2, 4)))
    close(ops.avg_pool(jnp.asarray(x), 2), blocks.mean((2, 4)))
    close(ops.global_max_pool(jnp.asarray(x)), x.max((1, 2)))
    close(ops.global_avg_pool(jnp.asarray(x)), x.mean((1, 2)))


# ------------------------------------------------------------- link 3: the public functions, dtypes, ties, NaN


@each
def test_public_op_in_value_and_gradient(x64, name):
    @jax.jit
    def roads(x, dy):
        y, pullback = jax.vjp(OPS[name], x)
        hand_y, hand = VJPS[name](x)
        return (y, *pullback(dy)), (hand_y, *hand(dy))

    x = draw(2, 5, 4, 3)
    dy = draw(*jax.eval_shape(OPS[name], x).shape, seed=9)
    found = roads(x, dy)
    close(*found)
    # <dy, J u> = <Jᵀ dy, u>; a pooling is linear between its kinks.
    u = 1e-6 * draw(2, 5, 4, 3, seed=3)
    close((dy * (OPS[name](x + u) - OPS[name](x - u))).sum(), 2 * (found[0][1] * u).sum(), rtol=1e-7)


@each
@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_half_precision_is_rounded_once(name, dtype):
    x = draw(2, 5, 4, 3, dtype=dtype)
    dy = draw(*jax.eval_shape(OPS[name], x).shape, seed=9, dtype=dtype)

    @jax.jit
    def road(x, dy):
        y, pullback = VJPS[name](x)
        return y, *pullback(dy)

    found, wide = road(x, dy), road(x.astype("float32"), dy.astype("float32"))
    assert {a.dtype for a in found} == {jnp.dtype(dtype)}
    # Once to eps of the dtype; the float32 sums of at most nine numbers of order one err by far less.
    close(
        *(jax.tree.map(lambda a: np.asarray(a, "f"), t) for t in (found, wide)), float(jnp.finfo(dtype).eps), 1e-5
    )


def test_of_equal_maxima_the_first_row_by_row_gets_the_gradient():
    x = jnp.zeros((1, 4, 4, 1))
    for pullback in (ops.max_pool_vjp(x, 2)[1], jax.vjp(partial(ops.max_pool, window=2), x)[1]):
        np.testing.assert_array_equal(
            pullback(jnp.ones((1, 2, 2, 1)))[0][0, :, :, 0].nonzero(), [[0, 0, 2, 2], [0, 2] * 2]
        )
    overlapping = ops.max_pool_vjp(x, 3, stride=1)[1](jnp.ones((1, 2, 2, 1)))[0]
    np.testing.assert_array_equal(overlapping[0, :, :, 0], np.pad(np.ones((2, 2)), (0, 2)))
    np.testing.assert_array_equal(ops.global_max_pool_vjp(x)[1](jnp.ones((1, 1)))[0].ravel(), np.eye(16)[0])


def test_nan_is_the_largest_and_infinity_a_number():
    x = jnp.asarray([[3.0, 1], [jnp.nan, jnp.inf], [-jnp.inf, jnp.nan], [jnp.inf, jnp.inf], [-jnp.inf, -jnp.inf]])
    x = x.reshape(1, 10, 1)
    y, pullback = ops.max_pool_vjp(x, 2)
    np.testing.assert_array_equal(y.ravel(), [3, np.nan, np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(pullback(jnp.ones_like(y))[0].ravel(), [1, 0, 1, 0, 0, 1, 1, 0, 1, 0])
    windows = windows_of("max_pool", x, 2, None, "VALID")
    close(pullback(y), jax.vjp(partial(pooling.max_reference, windows), x)[1](y))
    y, pullback = ops.global_max_pool_vjp(x)
    assert np.isnan(y).all()
    np.testing.assert_array_equal(pullback(jnp.ones_like(y))[0].ravel(), np.eye(10)[2])
    y = ops.avg_pool(x, 2).ravel()
    np.testing.assert_array_equal(y, [2, np.nan, np.nan, np.inf, -np.inf])


def test_places_that_need_more_than_a_byte(x64):
    x = draw(1, 20, 19, 2)
    windows = windows_of("max_pool", x, 2, 17, "VALID")
    assert pooling._codes(windows).dtype == np.int32
    check_backward(
        *(partial(f, windows) for f in (pooling.max_reference, pooling.max_forward, pooling.max_backward)), x
    )


# -------------------------------------------------------------------------------- link 5: transformations


@pytest.mark.parametrize("name", ["overlapping max", "average", "global max"])
def test_transformations(x64, name):
    def loss(x):
        return jnp.square(OPS[name](x)).sum()

    x = draw(3, 5, 4, 2)
    expected = jax.jit(jax.grad(loss))(x)
    close(jax.jit(jax.grad(jax.checkpoint(loss)))(x), expected)
    close(jax.jit(jax.vmap(jax.grad(lambda row: loss(row[None]))))(x), expected)
    scanned = jax.jit(lambda x: jax.lax.scan(lambda _, row: (None, jax.grad(loss)(row[None])[0]), None, x)[1])
    close(scanned(x), expected)


@each
def test_second_order(x64, name):
    # With ties: the second derivative too goes through the first maximum alone.
    x = jnp.round(draw(1, 4, 3, 1))
    windows = windows_of("max_pool", x, *((2, None, "VALID") if name == "max" else (3, 2, "SAME")))
    references = {
        "max": partial(pooling.max_reference, windows),
        "overlapping max": partial(pooling.max_reference, windows),
        "average": partial(pooling.avg_reference, pooling._Average(windows, False)),
        "global max": lambda x: jnp.take_along_axis(
            x.reshape(1, 12, 1), x.reshape(1, 12, 1).argmax(1, keepdims=True), 1
        ),
        "global average": global_pooling.avg_reference,
    }

    def hessian(f):
        return jax.jit(jax.jacrev(jax.grad(lambda x: (f(x) ** 3).sum())))

    close(hessian(OPS[name])(x), hessian(references[name])(x))


def test_a_pullback_leaves_jit_and_keeps_one_byte_for_an_output():
    x = draw(2, 4, 4, 3, dtype="float32")
    y, pullback = jax.jit(partial(ops.max_pool_vjp, window=2))(x)
    (place,) = jax.tree.leaves(pullback)
    assert (place.dtype, place.shape) == (jnp.uint8, y.shape)
    close(pullback(y), ops.max_pool_vjp(x, 2)[1](y))


def test_the_gradient_is_no_scatter():
    x = jnp.zeros((2, 8, 8, 4))
    for f in OPS.values():
        text = jax.jit(jax.grad(lambda x, f=f: f(x).sum())).lower(x).as_text()
        assert "scatter" not in text


# ---------------------------------------------------------------------------------------------- errors

X = jnp.zeros((2, 6, 5, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (X[0, 0], 2, None, "VALID"),
            "pool needs a floating-point x (N, one to three spatial axes, C); got float32 (5, 3)",
        ),
        ((X.astype(int), 2, None, "VALID"), "got int32 (2, 6, 5, 3)"),
        ((X, 0, None, "VALID"), "pool needs a window of whole numbers ≥ 1, one or 2; got 0"),
        ((X, (2, 2, 2), None, "VALID"), "one or 2; got (2, 2, 2)"),
        ((X, 2, 0, "VALID"), "pool needs a stride of whole numbers ≥ 1"),
        ((X, 2, None, "VALID", 0), "pool needs a dilation of whole numbers ≥ 1"),
        (
            (X, 2, None, "FULL"),
            'a padding of "SAME", "VALID", or whole numbers ≥ 0: one, or 2, or 2 pairs (before, after); got',
        ),
        ((X, 2, None, [(0, 1)]), "got [(0, 1)]"),
        (
            (X, 2, None, [(0, -1), (0, 0)]),
            "whole numbers ≥ 0: one, or 2, or 2 pairs (before, after); got [(0, -1), (0, 0)]",
        ),
        ((X, 2, None, [(0, 2), (0, 0)]), "padding narrower than its windows' extent (2, 2); got [(0, 2), (0, 0)]"),
        ((X, 6, None, "VALID"), "windows of extent (6, 6) don't fit x (2, 6, 5, 3), padding VALID"),
    ],
)
def test_errors_of_windows(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        windows_of("pool", *arguments)


@pytest.mark.parametrize("f", [*OPS.values(), *VJPS.values()])
def test_the_public_functions_check(f):
    with pytest.raises(ValueError, match="implementation must be None or one of 'xla'"):
        f(X, implementation="cuda")
    with pytest.raises(ValueError, match="pool has no implementation 'cpu'; it has 'xla'"):
        f(X, implementation="cpu")
    with pytest.raises(ValueError, match="pool needs a floating-point x"):
        f(X[0, 0])


@pytest.mark.parametrize("f", [ops.global_max_pool, ops.global_avg_pool])
def test_nothing_has_no_maximum_and_no_mean(f):
    with pytest.raises(ValueError, match="at least one element along each spatial axis"):
        f(X[:, :0])
