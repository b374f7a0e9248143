"""The chain of checks of `rotary`."""

import importlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import ops, verify

op = importlib.import_module("jaxnet.ops.rotary")
BASE = 50.0


def draw(*shape, seed=0, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(found, expected, rtol=1e-9, atol=1e-12):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


@pytest.mark.parametrize(
    ("shape", "offset"),
    [((2, 5, 3, 4), 7), ((2, 3, 1, 2), "each"), ((2, 0, 3, 4), 0), ((0, 3, 1, 2), 0), ((1, 2, 1, 0), 0)],
    ids=str,
)
def test_backward_against_the_reference(x64, shape, offset):
    x, dy = draw(*shape), draw(*shape, seed=9)
    at = op._check(x, BASE, jnp.arange(shape[0]) if offset == "each" else offset)

    @jax.jit
    def both(x, dy):
        expected, pullback = jax.vjp(lambda x: op.reference(BASE, x, at), x)
        y, residuals = op.forward(BASE, x, at)
        return (y, op.backward(BASE, residuals, dy)[0]), (expected, *pullback(dy))

    close(*both(x, dy))


def test_four_roads(x64):
    dy = draw(1, 3, 2, 4, seed=9)
    verify.assert_gradients(
        lambda x: (dy * ops.rotary(x, base=BASE)).sum(),
        draw(1, 3, 2, 4),
        hand_written=lambda x: (ops.rotary_vjp(x, base=BASE)[1](dy),),
    )


def test_a_product_varies_with_the_distance_alone(x64):
    q, k = draw(1, 1, 1, 6), draw(1, 1, 1, 6, seed=1)

    @jax.jit
    def product(t, s):
        return (ops.rotary(q, base=BASE, offset=t) * ops.rotary(k, base=BASE, offset=s)).sum()

    close([product(3, 1), product(9, 7)], [product(2, 0)] * 2)
    assert abs(product(3, 1) - product(3, 2)) > 1e-3
    whole = ops.rotary(draw(2, 5, 1, 4), offset=jnp.array([3, 0]))
    close(whole[0, 2:], ops.rotary(draw(2, 5, 1, 4)[:1, 2:], offset=5)[0])


def test_transformations_and_second_order(x64):
    x, directions = draw(2, 3, 1, 4), draw(2, 3, 1, 4, seed=7)

    def loss(f, x):
        return jnp.sin(f(x)).sum()

    ours = partial(loss, partial(ops.rotary, base=BASE, offset=jnp.array([0, 2])))
    reference = partial(loss, lambda x: op.reference(BASE, x, jnp.array([0, 2])))
    one = jax.grad(partial(loss, partial(ops.rotary, base=BASE)))

    @jax.jit
    def roads(x):
        several = jax.vmap(one)(x[:, None]), jax.lax.scan(lambda _, x: (None, one(x)), None, x[:, None])[1]
        slopes = [jax.grad(lambda x, f=f: (directions * jax.grad(f)(x)).sum())(x) for f in (ours, reference)]
        return (jax.grad(jax.checkpoint(ours))(x), jax.grad(reference)(x)), several, slopes

    for found, expected in roads(x):
        close(found, expected)


def test_far_positions_in_half_precision():
    # Their angles are calculated in float32: 3000, as bfloat16, would stand for itself ± 8.
    x, options = draw(1, 3000, 1, 4, dtype=jnp.bfloat16), {"base": BASE}
    y, pullback = ops.rotary_vjp(x, **options)
    wide, wide_pullback = ops.rotary_vjp(x.astype("float32"), **options)
    assert y.dtype == pullback(y).dtype == jnp.bfloat16
    eps = float(jnp.finfo("bfloat16").eps)
    close(np.asarray(y, "f"), wide, eps, 1e-6)
    close(np.asarray(pullback(x), "f"), wide_pullback(x.astype("float32")), eps, 1e-6)


X = jnp.ones((2, 3, 1, 4))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((X[0], BASE, 0), "rotary needs a floating-point x (B, T, N, H), H even; got float32 (3, 1, 4)"),
        ((X[..., :3], BASE, 0), "H even; got float32 (2, 3, 1, 3)"),
        ((X.astype(int), BASE, 0), "got int32 (2, 3, 1, 4)"),
        ((X, 0.0, 0), "rotary needs base > 0; got 0.0"),
        ((X, BASE, jnp.ones(2)), "an offset of integers () or (2,); got float32 (2,)"),
        ((X, BASE, jnp.ones(3, int)), "an offset of integers () or (2,); got int32 (3,)"),
    ],
)
def test_errors(args, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        op._check(*args)


def test_the_public_functions_check():
    for f in (ops.rotary, ops.rotary_vjp):
        with pytest.raises(ValueError, match="rotary needs base > 0"):
            f(X, base=-1.0)
        with pytest.raises(ValueError, match="rotary has no implementation 'cpu'"):
            f(X, implementation="cpu")
