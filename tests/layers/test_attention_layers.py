"""The layers of sequences: the law of each, and what each claims."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers, ops, verify
from jaxnet.layers import attention, dense, embedding, positions, residual, rms_norm, serial

KEY, TRAINING = jax.random.key(0), jax.random.key(7)


def x_of(*shape, dtype=jnp.float32, seed=5):
    return jax.random.normal(jax.random.key(seed), shape or (2, 5, 4), dtype)


IDS, LENGTHS = jnp.array([[2, 0, 2], [4, 4, 1]]), jnp.array([5, 3])

# Each with its input.
LAYERS = {
    "gated": (layers.gated(3, activation="gelu", bias=True), x_of),
    "rms_norm": (rms_norm(), x_of),
    "rms_norm alone": (rms_norm(axis=(1, 2), scale=False, eps=0.1), x_of),
    "sinusoidal positions": (positions("sinusoidal"), x_of),
    "learned positions": (positions("learned", length=7), x_of),
    "embedding": (embedding(5, 3), lambda **_: IDS),
    "scaled embedding": (embedding(5, 3, scale=1.7), lambda **_: IDS),
    "attention": (attention(2), x_of),
    "attention of groups": (attention(4, key_value_heads=2, head_features=3, features=6, bias=False), x_of),
    "causal attention": (attention(2, causal=True, window=2, rotary=100.0, weight_init="glorot_uniform"), x_of),
    "attention with dropout": (attention(2, dropout_rate=0.4, key_value_heads=1), x_of),
    "attention with lengths": (attention(2, lengths=True), lambda **options: (x_of(**options), LENGTHS)),
    "attention to a memory": (
        attention(2, memory=True),
        lambda **options: (x_of(**options), x_of(2, 3, 6, seed=6, **options)),
    ),
    "attention to a memory with lengths": (
        attention(1, memory=True, lengths=True, rotary=10.0),
        lambda **options: (x_of(**options), x_of(2, 6, 3, seed=6, **options), LENGTHS),
    ),
    "a block": (serial(residual(serial(rms_norm(), attention(2, causal=True))), dense(3)), x_of),
    "from integers": (serial(embedding(5, 4), positions("learned", length=3), attention(2)), lambda **_: IDS),
}
each = pytest.mark.parametrize("name", LAYERS)


def close(found, expected, **tolerances):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 1e-9, "atol": 1e-11} | tolerances),
        found,
        expected,
    )


def without_integers(tree):
    """Gradients in integers are no numbers: their dtype alone can be compared."""
    return [str(a.dtype) if a.dtype == jax.dtypes.float0 else a for a in jax.tree.leaves(tree)]


# ------------------------------------------------------------------------------------------------ the law


@pytest.mark.parametrize("name", ["rms_norm", "embedding", "attention with lengths"])
def test_the_law_on_four_roads(name):
    layer, x = LAYERS[name]
    report = verify.check_layer(layer, KEY, x(), training_key=TRAINING if "dropout" in name else None)
    assert report.ok, report


@each
def test_vjp_equals_autodiff_of_apply(x64, name):
    layer, make = LAYERS[name]
    x, key = make(dtype=jnp.float64), TRAINING if "dropout" in name else None
    params = jax.tree.map(
        lambda p: p.astype("float64") + jnp.linspace(0.1, 0.3, p.size).reshape(p.shape), layer.init(KEY, x)
    )

    def integers(x):
        return [leaf for leaf in jax.tree.leaves(x) if jnp.issubdtype(leaf.dtype, jnp.integer)]

    @jax.jit
    def roads(params, x):
        y, pullback = layer.vjp(params, x, key=key)
        expected, autodiff = jax.vjp(lambda params, x: layer.apply(params, x, key=key), params, x)
        dy = jax.random.normal(jax.random.key(9), y.shape, y.dtype)
        return (y, pullback(dy)), (expected, autodiff(dy))

    found, expected = roads(params, x)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    found, expected = without_integers(found), without_integers(expected)
    assert [a for a in found if isinstance(a, str)] == ["[('float0', 'V')]"] * len(integers(x))
    close([a for a in found if not isinstance(a, str)], [a for a in expected if not isinstance(a, str)])


@each
def test_a_shape_is_enough_and_everything_has_the_dtype_of_x(name):
    layer, make = LAYERS[name]
    x = make(dtype=jnp.bfloat16)
    params = layer.init(KEY, x)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), x)
    jax.tree.map(np.testing.assert_array_equal, params, layer.init(KEY, shapes))

    def gradients(params, x):
        y, pullback = layer.vjp(params, x, key=TRAINING)
        return y, pullback(y)

    dtypes = {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(gradients, params, x))}
    inexact = (
        jnp.float32 if name in ("embedding", "scaled embedding", "from integers") else jnp.bfloat16
    )  # as the table is
    assert {dtype for dtype in dtypes if dtype != jax.dtypes.float0} == {jnp.dtype(inexact)}


def test_an_empty_batch_and_an_empty_sequence_go_through():
    layer, x = serial(embedding(5, 4), positions("sinusoidal"), attention(2, causal=True), rms_norm()), IDS
    params = layer.init(KEY, x)
    for ids in (IDS[:0], IDS[:, :0]):
        y, pullback = layer.vjp(params, ids)
        assert y.shape == (*ids.shape, 4)
        assert all(not leaf.any() for leaf in jax.tree.leaves(pullback(y)[0]))


# ------------------------------------------------------------------------------------ what is claimed in words


def test_what_lies_beyond_the_lengths_does_not_matter(x64):
    x, moved = x_of(dtype=jnp.float64), x_of(dtype=jnp.float64).at[1, 3:].set(9)
    layer = attention(2, lengths=True)
    params = layer.init(KEY, (x, LENGTHS))
    y, pullback = layer.vjp(params, (x, LENGTHS))
    close(layer.apply(params, (moved, LENGTHS))[1, :3], y[1, :3])
    _, (dx, _) = pullback(jnp.zeros_like(y).at[1, :3].set(1))
    assert not dx[1, 3:].any()


def test_attention_sees_no_order_and_positions_do(x64):
    x, order = x_of(dtype=jnp.float64), np.array([3, 1, 0, 4, 2])
    plain, turned = attention(2), attention(2, rotary=10.0)
    params = plain.init(KEY, x)
    close(plain.apply(params, x[:, order]), plain.apply(params, x)[:, order])
    assert not np.allclose(turned.apply(params, x[:, order]), turned.apply(params, x)[:, order])
    waves = positions("sinusoidal").apply((), jnp.zeros((1, 6, 5)))[0]
    t, i = np.arange(6)[:, None], np.arange(5)
    angles = t / 10_000 ** (2 * (i // 2) / 5)
    close(waves, np.where(i % 2 == 0, np.sin(angles), np.cos(angles)))


def test_a_layer_is_its_formula(x64):
    x, m = x_of(dtype=jnp.float64), x_of(2, 3, 6, dtype=jnp.float64, seed=6)
    layer = attention(2, memory=True)
    params = layer.init(KEY, (x, m))
    q, k, v = (
        ops.linear(a, *params[name].values()).reshape(2, -1, 2, 2)
        for name, a in (("query", x), ("key", m), ("value", m))
    )
    y = ops.linear(ops.attention(q, k, v).reshape(2, 5, 4), *params["output"].values())
    close(layer.apply(params, (x, m)), y)


@pytest.mark.parametrize("name", [name for name in LAYERS if "attention" in name])
def test_probabilities_are_those_of_the_values(x64, name):
    """y = p v Wₒ + b, with the values of each group of heads."""
    layer, make = LAYERS[name]
    x = make(dtype=jnp.float64)
    params = layer.init(KEY, x)
    p = layer.probabilities(params, x)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-12)
    memory = x[1] if "memory" in name else x[0] if isinstance(x, tuple) else x
    v = ops.linear(memory, *[params["value"][part] for part in ("weight", "bias") if part in params["value"]])
    groups = params["key"]["weight"].shape[1] * p.shape[1] // params["query"]["weight"].shape[1]
    v = jnp.repeat(v.reshape(*v.shape[:2], groups, -1), p.shape[1] // groups, 2)
    y = jnp.einsum("bnts,bsnh->btnh", p, v).reshape(p.shape[0], p.shape[2], -1) @ params["output"]["weight"]
    y = y + params["output"].get("bias", jnp.zeros(1))[None, None]
    close(y, layer.apply(params, x))


def test_dropout_is_of_training_alone():
    layer, x = attention(2, dropout_rate=0.5), x_of()
    params = layer.init(KEY, x)
    close(layer.apply(params, x), attention(2).apply(params, x))
    assert not np.allclose(layer.apply(params, x, key=TRAINING), layer.apply(params, x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attention(0), "attention needs whole numbers ≥ 1; got heads = 0"),
        (lambda: attention(2, head_features=-1), "got head_features = -1"),
        (lambda: attention(4, key_value_heads=3), "key_value_heads that divide the 4 heads; got 3"),
        (lambda: attention(2, dropout_rate=1.0), "attention needs 0 ≤ dropout_rate < 1; got 1.0"),
        (lambda: attention(3).init(KEY, x_of()), "attention of 3 heads needs E of x a multiple of them"),
        (lambda: attention(2).init(KEY, x_of(3, 4)), "x (B, T, E) and memory (B, S, M); got float32 (3, 4)"),
        (lambda: attention(2).init(KEY, (x_of(), x_of())), "this attention needs x alone; got 2 arrays"),
        (lambda: attention(2, memory=True).init(KEY, x_of()), "this attention needs (x, memory); got 1 arrays"),
        (lambda: attention(2, lengths=True).init(KEY, x_of()), "this attention needs (x, lengths); got 1 arrays"),
        (lambda: layers.gated(0), "dense needs a whole number of features ≥ 1; got 0"),
        (lambda: embedding(0, 3), "whole numbers of rows and features ≥ 1; got 0 and 3"),
        (lambda: embedding(2, 3).init(KEY, x_of()), "embedding needs an x of integers; got float32 (2, 5, 4)"),
        (lambda: embedding(2, 3).apply({"table": x_of(2, 3)}, IDS), "must be 0 to 1; got 2"),
        (lambda: positions("rotary"), "positions are 'sinusoidal' or 'learned'; got 'rotary'"),
        (lambda: positions("learned"), "learned positions need a length"),
        (lambda: positions("sinusoidal", length=3), "got sinusoidal ones of length 3"),
        (
            lambda: positions("learned", length=3).init(KEY, x_of()),
            "up to a length of 3 don't reach an x of (2, 5, 4)",
        ),
        (lambda: positions("sinusoidal").init(KEY, x_of(4)), "positions need a floating-point x (…, T, E)"),
        (lambda: rms_norm(eps=-1.0), "rms_norm needs eps ≥ 0; got -1.0"),
        (lambda: rms_norm(axis=3).init(KEY, x_of()), "rms_norm over axis 3 doesn't fit x of shape (2, 5, 4)"),
        (lambda: layers.embedding(2, 3, table_init="normal"), "unknown initializer 'normal'"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
