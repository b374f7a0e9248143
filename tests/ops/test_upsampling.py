"""The chain of checks of upsampling."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import ops, verify
from jaxnet.ops.upsampling import METHODS, _check, backward, forward, reference

each = pytest.mark.parametrize("method", METHODS)


def draw(*shape, seed=0, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(found, expected, rtol=1e-9, atol=1e-12):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


@each
@pytest.mark.parametrize(
    ("shape", "factor"),
    [((2, 5, 3), 2), ((2, 4, 3, 2), 3), ((1, 3, 1, 2), (2, 5)), ((1, 2, 3, 2, 1), (2, 1, 4)), ((0, 2, 2, 1), 2)],
    ids=str,
)
def test_backward(x64, method, shape, factor):
    x = draw(*shape)
    scaling = _check(x, factor, method)

    @jax.jit
    def both(x, dy):
        y, residuals = forward(scaling, x)
        hand_y, hand = ops.upsample_vjp(x, factor, method=method)
        expected, pullback = jax.vjp(partial(reference, scaling), x)
        return [(y, backward(scaling, residuals, dy)), (hand_y, hand(dy))], [(expected, pullback(dy))] * 2

    found, expected = both(x, draw(*jax.eval_shape(partial(reference, scaling), x).shape, seed=9))
    # jax.image.resize divides the weights by their sum, which is 1 but for rounding in float32.
    close(found, expected, *((1e-5, 1e-5) if method == "bilinear" and factor != 2 else (1e-9, 1e-12)))


def test_a_line_by_hand(x64):
    x = jnp.asarray([0.0, 1, 3]).reshape(1, 3, 1)
    close(ops.upsample(x, 2, method="bilinear").ravel(), [0, 0.25, 0.75, 1.5, 2.5, 3])
    close(ops.upsample(x, 3, method="bilinear").ravel(), [0, 0, 1 / 3, 2 / 3, 1, 5 / 3, 7 / 3, 3, 3])
    close(ops.upsample(x, 2).ravel(), [0, 0, 1, 1, 3, 3])


@each
def test_four_roads_and_transformations(x64, method):
    x, f = draw(2, 3, 2, 2), partial(ops.upsample, factor=(3, 2), method=method)
    dy = draw(2, 9, 4, 2, seed=9)
    by_hand = partial(ops.upsample_vjp, factor=(3, 2), method=method)
    verify.assert_gradients(lambda x: (dy * f(x)).sum(), x, hand_written=lambda x: tuple(by_hand(x)[1](dy)))

    def loss(x):
        return (f(x) ** 3).sum()

    expected = jax.jit(jax.grad(loss))(x)
    close(jax.jit(jax.grad(jax.checkpoint(loss)))(x), expected)
    close(jax.jit(jax.vmap(jax.grad(lambda row: loss(row[None]))))(x), expected)
    plain = partial(reference, _check(x, (3, 2), method))
    second = [jax.jit(jax.jacrev(jax.grad(lambda x, g=g: (g(x) ** 3).sum())))(x) for g in (f, plain)]
    close(*second, 1e-5, 1e-5)


@each
def test_half_precision_is_rounded_once(method):
    x, dy = draw(2, 3, 2, 2, dtype="bfloat16"), draw(2, 9, 4, 2, seed=9, dtype="bfloat16")

    @jax.jit
    def road(x, dy):
        y, pullback = ops.upsample_vjp(x, (3, 2), method=method)
        return y, *pullback(dy)

    found, wide = road(x, dy), road(x.astype("float32"), dy.astype("float32"))
    assert {a.dtype for a in found} == {jnp.dtype("bfloat16")}
    close(*(jax.tree.map(lambda a: np.asarray(a, "f"), t) for t in (found, wide)), 2.0**-8, 1e-6)


X = jnp.zeros((2, 3, 2, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0, 0], 2, "nearest"), "upsample needs a floating-point x (N, one to three spatial axes, C)"),
        ((X, 0, "nearest"), "upsample needs a factor of whole numbers ≥ 1, one or 2; got 0"),
        ((X, (2, 0), "nearest"), "one or 2; got (2, 0)"),
        ((X, 2, "cubic"), "upsample needs a method of 'nearest', 'bilinear'; got 'cubic'"),
        ((X[:, :0], 2, "nearest"), "at least one element along each spatial axis; got x (2, 0, 2, 3)"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _check(*arguments)


@pytest.mark.parametrize("f", [ops.upsample, ops.upsample_vjp])
def test_the_public_functions_check(f):
    with pytest.raises(ValueError, match="upsample has no implementation 'cpu'; it has 'xla'"):
        f(X, 2, implementation="cpu")
    with pytest.raises(ValueError, match="got 'cubic'"):
        f(X, 2, method="cubic")
