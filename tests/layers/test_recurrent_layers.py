"""The law for the recurrent layers, what their options mean, their initial weights, and their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers, ops, verify
from jaxnet.layers import gru, lstm, rnn

KEY, TRAINING = jax.random.key(0), jax.random.key(7)
LENGTHS = jnp.asarray([2, 0, 3])

# Whether x has lengths, and whether the layer draws from a key.
LAYERS = {
    "rnn": (rnn(2), False, False),
    "rnn relu, the last, reverse": (rnn(2, activation="relu", output="last", reverse=True), True, False),
    "rnn, both directions": (rnn(2, bidirectional=True, bias=False, remat=True), True, False),
    "lstm": (lstm(2, weight_init="he_normal"), True, False),
    "lstm, the last, stacked, both directions": (
        lstm(2, layers=2, bidirectional=True, output="last", dropout_rate=0.3, remat=True),
        True,
        True,
    ),
    "gru": (gru(2, reset_after=False, remat=True), False, False),
    "gru, the last, stacked": (gru(2, layers=2, output="last", dropout_rate=0.4, bias_init="ones"), False, True),
    "a classifier": (layers.serial(gru(2, output="last"), layers.dense(3)), True, False),
}
each = pytest.mark.parametrize("name", LAYERS)


def x_of(pair, dtype=jnp.float32, shape=(3, 3, 2)):
    x = jax.random.normal(jax.random.key(5), shape, dtype)
    return (x, LENGTHS) if pair else x


def test_the_law_on_four_roads():
    layer, pair, _ = LAYERS["lstm"]
    report = verify.check_layer(layer, KEY, x_of(pair))
    assert report.ok, report


@each
def test_vjp_equals_autodiff_of_apply(x64, name):
    layer, pair, random = LAYERS[name]
    x, key = x_of(pair, jnp.float64), TRAINING if random else None
    params = jax.tree.map(lambda p: p + 0.1, layer.init(KEY, x))

    @jax.jit
    def both(params, x, dy):
        y, pullback = layer.vjp(params, x, key=key)
        expected, autodiff = jax.vjp(lambda *args: layer.apply(*args, key=key), params, x)
        return (y, *pullback(dy)), (expected, *autodiff(dy))

    y = jax.eval_shape(lambda *args: layer.apply(*args, key=key), params, x)
    ours, theirs = both(params, x, jax.random.normal(jax.random.key(9), y.shape, y.dtype))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if a.dtype != jax.dtypes.float0:  # of the lengths
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_a_pullback_leaves_jit_and_enters_it():
    layer, x = gru(2, layers=2, output="last"), x_of(True)
    params = layer.init(KEY, x)
    y, pullback = jax.jit(layer.vjp)(params, x)
    found = jax.jit(lambda f, dy: f(dy))(pullback, y)
    expected = jax.jit(lambda *args: layer.vjp(*args)[1](y))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found[0], expected[0])


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru, the last, stacked", "a classifier"])
def test_a_shape_is_enough_and_the_dtype_is_that_of_x(name):
    layer, pair, _ = LAYERS[name]
    x = x_of(pair, jnp.bfloat16)
    params = layer.init(KEY, x)
    from_shape = layer.init(KEY, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), x))
    jax.tree.map(np.testing.assert_array_equal, params, from_shape)
    y, pullback = jax.eval_shape(layer.vjp, params, x)
    dparams, dx = jax.eval_shape(lambda f, dy: f(dy), pullback, y)
    dx = dx[0] if pair else dx
    assert {leaf.dtype for leaf in jax.tree.leaves((params, y, dparams, dx))} == {jnp.dtype("bfloat16")}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, dparams)


def test_both_directions_stacked_are_the_op_four_times(x64):
    sequence, last = (rnn(2, layers=2, bidirectional=True, output=output) for output in ("sequence", "last"))
    x = x_of(True, jnp.float64)

    def by_ops(params, x):
        h, lengths = x
        for pair in params:
            runs = [
                ops.rnn(h, p["weight"], p["recurrent_weight"], p["bias"], reverse=reverse, lengths=lengths)
                for p, reverse in zip(pair, (False, True), strict=True)
            ]
            h, state = (jnp.concatenate(parts, -1) for parts in zip(*runs, strict=True))
        return h, state

    def by_layers(params, x):
        return sequence.apply(params, x), last.apply(params, x)

    params = sequence.init(KEY, x)
    for a, b in zip(jax.jit(by_ops)(params, x), jax.jit(by_layers)(params, x), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_last_state_is_that_of_the_last_element(reverse):
    x = x_of(False)
    params = lstm(2).init(KEY, x)
    y = lstm(2, reverse=reverse).apply(params, (x, LENGTHS))
    last = lstm(2, reverse=reverse, output="last").apply(params, (x, LENGTHS))
    ends = jnp.stack([y[0, 0 if reverse else 1], jnp.zeros(2), y[2, 0 if reverse else 2]])
    np.testing.assert_allclose(last, ends, atol=1e-6)


def test_dropout_is_between_the_layers_alone():
    one, two = (rnn(50, layers=n, dropout_rate=0.9, output="last") for n in (1, 2))
    x = x_of(False)
    params = two.init(KEY, x)
    assert params[1] == ()
    assert not (two.apply(params, x, key=TRAINING) == 0).any()
    np.testing.assert_array_equal(*(one.apply(params[0], x, key=key) for key in (None, TRAINING)))
    assert not np.allclose(*(two.apply(params, x, key=key) for key in (None, TRAINING)))


def test_initial_weights_gate_by_gate():
    x = jax.ShapeDtypeStruct((1, 5, 30), jnp.float32)
    params = lstm(20).init(KEY, x)
    for gate in jnp.split(params["recurrent_weight"], 4, -1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(20), atol=30 * np.finfo("f").eps)
    bound = np.sqrt(6 / (30 + 20))  # of a uniform distribution of variance 2 / (30 + 20)
    assert 0.95 * bound < jnp.abs(params["weight"]).max() <= bound
    np.testing.assert_array_equal(params["bias"], np.repeat([0.0, 1.0, 0.0, 0.0], 20))
    assert not lstm(20, forget_bias=0.0).init(KEY, x)["bias"].any()
    assert set(lstm(20, bias=False).init(KEY, x)) == {"weight", "recurrent_weight"}
    assert gru(20).init(KEY, x)["recurrent_bias"].shape == (20,)
    assert set(gru(20, reset_after=False).init(KEY, x)) == {"weight", "recurrent_weight", "bias"}
    np.testing.assert_array_equal(
        rnn(20, activation="relu").init(KEY, x)["weight"], rnn(20, weight_init="he_normal").init(KEY, x)["weight"]
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rnn(0), "rnn needs a whole number of features ≥ 1; got 0"),
        (lambda: lstm(2, layers=0), "lstm needs a whole number of layers ≥ 1; got 0"),
        (lambda: gru(2, output="state"), "gru needs an output 'sequence' or 'last'; got 'state'"),
        (lambda: gru(2, bidirectional=True, reverse=True), "in both directions if bidirectional=True"),
        (lambda: lstm(2, dropout_rate=1.0), "0 ≤ rate < 1; got 1.0"),
        (lambda: lstm(2, recurrent_init="orthogonl"), "did you mean 'orthogonal'"),
        (lambda: gru(2, implementation="gpu").init(KEY, x_of(False)), "gru has no implementation 'gpu'; it has"),
        (lambda: rnn(2, activation="gelu"), "rnn needs an activation 'tanh' or 'relu'; got 'gelu'"),
        (lambda: lstm(2).init(KEY, x_of(False)[0]), r"or a pair of that and lengths \(B,\); got float32 \(3, 2\)"),
        (lambda: lstm(2).init(KEY, (x_of(False), LENGTHS, LENGTHS)), r"lengths \(B,\); got 3 arrays"),
        (lambda: lstm(2).init(KEY, x_of(False).astype(int)), r"got int32 \(3, 3, 2\)"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
