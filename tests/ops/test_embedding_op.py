"""The chain of checks of `embedding`, each link for one reason."""

import importlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import ops, verify

op = importlib.import_module("jaxnet.ops.embedding")


def draw(*shape, seed=0, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(found, expected, rtol=1e-9, atol=1e-12):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


IDS = jnp.array([[2, 0, 2], [4, 4, 4]])


@pytest.mark.parametrize(
    "ids", [IDS, IDS.astype(jnp.int8), jnp.array(3), IDS[:0], IDS.astype(jnp.uint32)], ids=str
)
@pytest.mark.parametrize("shape", [(5, 3), (5, 1), (5, 0)], ids=str)
def test_backward_against_the_reference(x64, ids, shape):
    table, dy = draw(*shape), draw(*ids.shape, shape[1], seed=9)
    expected, pullback = jax.vjp(partial(op.reference, ids), table)
    y, residuals = op.forward(ids, table)
    close((y, op.backward(residuals, dy)[1]), (expected, *pullback(dy)))
    y, pullback_by_hand = ops.embedding_vjp(ids, table)
    close((y, pullback_by_hand(dy)), (expected, *pullback(dy)))


def test_four_roads(x64):
    dy = draw(2, 3, 4, seed=9)
    verify.assert_gradients(
        lambda table: (dy * ops.embedding(IDS, table)).sum(),
        draw(5, 4),
        hand_written=lambda table: (ops.embedding_vjp(IDS, table)[1](dy),),
    )


def test_transformations_and_second_order(x64):
    table, directions = draw(5, 4), draw(5, 4, seed=7)

    def loss(f, table, ids):
        return jnp.sin(f(ids, table)).sum()

    gradient = jax.grad(partial(loss, ops.embedding))

    @jax.jit
    def roads(table, ids):
        _, scanned = jax.lax.scan(lambda _, ids: (None, gradient(table, ids)), None, ids)
        slopes = [
            jax.grad(lambda table, f=f: (directions * jax.grad(partial(loss, f))(table, ids)).sum())(table)
            for f in (ops.embedding, op.reference)
        ]
        remat = jax.grad(jax.checkpoint(partial(loss, ops.embedding)))(table, ids)
        mapped = jax.vmap(gradient, (None, 0))(table, ids)
        expected = jax.grad(partial(loss, op.reference))(table, ids)
        return expected, [gradient(table, ids), remat, mapped.sum(0), scanned.sum(0)], slopes

    expected, found, slopes = roads(table, IDS)
    close(found, [expected] * 4)
    close(*slopes)
    _, pullback = jax.jit(ops.embedding_vjp)(IDS, table)  # a pullback is a pytree: it leaves jit
    close(pullback(draw(2, 3, 4)), ops.embedding_vjp(IDS, table)[1](draw(2, 3, 4)))


def test_many_of_one_id_are_added_in_float32():
    # In bfloat16 a sum of ones would stay at 256.
    table, ids = jnp.ones((2, 3), jnp.bfloat16), jnp.zeros(1000, jnp.int32)
    y, pullback = ops.embedding_vjp(ids, table)
    dtable = pullback(jnp.ones_like(y))
    assert (y.dtype, dtable.dtype) == (jnp.bfloat16, jnp.bfloat16)
    np.testing.assert_array_equal(dtable, jnp.asarray([[1000] * 3, [0] * 3], jnp.bfloat16))


def test_ids_out_of_range_inside_jit():
    ids, table = jnp.array([-1, 1, 5, 4]), draw(5, 3, dtype=jnp.float32)
    y, dtable = jax.jit(
        lambda ids, table: (lambda y, f: (y, f(jnp.ones_like(y))))(*ops.embedding_vjp(ids, table))
    )(ids, table)
    assert np.isnan(y[jnp.array([0, 2])]).all()
    np.testing.assert_array_equal(y[1], table[1])
    np.testing.assert_array_equal(dtable.sum(1), [0, 3, 0, 0, 3])


TABLE = jnp.ones((5, 3))


@pytest.mark.parametrize(
    ("ids", "table", "message"),
    [
        (IDS, TABLE[0], "embedding needs a floating-point table (V, E); got float32 (3,)"),
        (IDS, TABLE.astype(int), "floating-point table (V, E); got int32 (5, 3)"),
        (IDS.astype("float32"), TABLE, "the ids of an embedding of 5 rows must be integers; got float32"),
        (IDS + 1, TABLE, "the ids of an embedding of 5 rows must be 0 to 4; got 5"),
        (IDS - 1, TABLE, "must be 0 to 4; got -1"),
    ],
)
def test_errors(ids, table, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        op._check(ids, table)


def test_the_public_functions_check():
    for f in (ops.embedding, ops.embedding_vjp):
        with pytest.raises(ValueError, match="must be 0 to 4; got 5"):
            f(IDS + 1, TABLE)
        with pytest.raises(ValueError, match="embedding has no implementation 'cpu'"):
            f(IDS, TABLE, implementation="cpu")
