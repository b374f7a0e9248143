"""Layers under transformations: scan, shard_map, axes in the middle, a second call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxnet.layers import activation, dense, dropout, flatten, parallel, repeat, reshape, residual, serial

KEY, TRAINING = jax.random.key(0), jax.random.key(7)
NET = serial(
    repeat(residual(serial(dense(4, activation="tanh"), dropout(0.3))), 2),
    parallel(dense(2), dense(2, activation="gelu"), combine="add"),
)


def x_of(*shape):
    return jnp.asarray(np.random.default_rng(5).normal(size=shape))


def close(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, expected)


def gradients(layer, params, x, dy, key=None):
    return layer.vjp(params, x, key=key)[1](dy)


@pytest.mark.parametrize("key", [None, TRAINING], ids=["inference", "training"])
def test_a_pullback_leaves_scan(key, x64):
    xs, dys = x_of(2, 5, 4), x_of(2, 5, 2)
    params = NET.init(KEY, xs[0])
    _, (ys, pullbacks) = jax.lax.scan(lambda _, x: (None, NET.vjp(params, x, key=key)), None, xs)
    _, found = jax.lax.scan(lambda _, step: (None, step[0](step[1])), None, (pullbacks, dys))
    for i in range(2):
        y, pullback = jax.vjp(lambda p, x: NET.apply(p, x, key=key), params, xs[i])
        close((ys[i], jax.tree.map(lambda g, i=i: g[i], found)), (y, pullback(dys[i])))


def test_vmap_and_remat_of_the_vjp(x64):
    x, dy = x_of(6, 4), x_of(6, 2)
    params = NET.init(KEY, x)
    expected = jax.vjp(NET.apply, params, x)[1](dy)
    rows = jax.vmap(lambda x, dy: gradients(NET, params, x, dy))(x, dy)
    close((jax.tree.map(lambda g: g.sum(0), rows[0]), rows[1]), expected)
    close(jax.vjp(jax.checkpoint(NET.apply), params, x)[1](dy), expected)
    close(jax.jit(gradients, static_argnums=0)(NET, params, x, dy), expected)


def test_the_law_inside_shard_map(x64):
    # The parameters are the same on every device, the batch is not.
    x, dy = x_of(4, 4), x_of(4, 2)
    params = NET.init(KEY, x)
    rows, whole = PartitionSpec("batch"), PartitionSpec()
    mapped = jax.shard_map(
        lambda *args: gradients(NET, *args),
        mesh=jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=(whole, rows, rows),
        out_specs=(whole, rows),
    )
    close(jax.jit(mapped)(params, x, dy), gradients(NET, params, x, dy))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_parallel_along_every_axis(axis, x64):
    layer = parallel(dense(3, activation="tanh"), activation("silu"), dense(3), axis=axis)
    x = x_of(2, 5, 3)
    params = layer.init(KEY, x)
    y, pullback = layer.vjp(params, x)
    parts = [
        f.apply(p, x) for f, p in zip((dense(3, activation="tanh"), activation("silu")), params, strict=False)
    ]
    np.testing.assert_allclose(jnp.take(y, jnp.arange(2 * x.shape[axis]), axis), jnp.concatenate(parts, axis))
    dy = x_of(*y.shape)
    close((y, pullback(dy)), (layer.apply(params, x), jax.vjp(layer.apply, params, x)[1](dy)))


def test_each_layer_has_a_key_of_its_own():
    x = jnp.ones((40, 50))
    added = parallel(dropout(0.5), dropout(0.5)).apply(((), ()), x, key=TRAINING)
    masks = [np.asarray(part) != 0 for part in np.split(np.asarray(added), 2, -1)]
    # Independent masks agree in a binomial share ½ of n = 2000 elements: five standard deviations ½/√n.
    assert abs((masks[0] == masks[1]).mean() - 0.5) < 5 * 0.5 / np.sqrt(x.size)
    repeated = repeat(dropout(0.5), 2).apply((), x, key=TRAINING)
    assert abs((np.asarray(repeated) != 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / x.size)
    assert set(np.unique(repeated)) == {0, 4}


def test_repeat_starts_each_block_apart():
    weight = repeat(dense(4), 3).init(KEY, x_of(2, 4).astype(jnp.float32))["weight"]
    assert weight.shape == (3, 4, 4)
    assert len(np.unique(weight)) == weight.size


def test_reshape_there_and_back(x64):
    layer, x = serial(reshape(2, -1), reshape(-1), flatten()), x_of(3, 4, 1)
    y, pullback = layer.vjp(layer.init(KEY, x), x)
    np.testing.assert_array_equal(y, x.reshape(3, 4))
    np.testing.assert_array_equal(pullback(2 * y)[1], 2 * x)


def test_a_second_step_does_not_trace_again():
    traced = []

    @jax.jit
    def step(params, x, key):
        traced.append(x.shape)
        y, pullback = NET.vjp(params, x, key=key)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, pullback(y)[0])

    x = x_of(5, 4)
    params = NET.init(KEY, x)
    for i in range(3):
        params = step(params, x, jax.random.key(i))
    assert traced == [(5, 4)]
