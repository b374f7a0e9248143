"""The law, for every layer, option and combinator; with and without a key; and what a pullback may do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import activations, layers, verify
from jaxnet.layers import dense, dropout, parallel, repeat, residual, serial

KEY, TRAINING = jax.random.key(0), jax.random.key(7)

LAYERS = {
    "dense": dense(3),
    "dense tanh": dense(3, activation="tanh"),
    "dense softmax": dense(3, activation="softmax"),
    "dense without bias": dense(3, bias=False, activation="relu"),
    "dense orthogonal": dense(3, weight_init="orthogonal", bias_init="ones", activation="gelu"),
    "dropout": dropout(0.5),
    "dropout of nothing": dropout(0.0),
    "flatten": layers.flatten(),
    "reshape": layers.reshape(2, -1, 2),
    "activation": layers.activation("mish"),
    "activation with an option": layers.activation("leaky_relu", negative_slope=0.3),
    "activation over an axis": layers.activation("log_softmax", axis=0),
    "serial": serial(dense(5, activation="silu"), dropout(0.3), dense(2)),
    "serial of nothing": serial(),
    "residual": residual(dense(4, activation="sigmoid")),
    "residual with a shortcut": residual(dense(3, activation="elu"), dense(3, bias=False)),
    "parallel": parallel(dense(2), dense(3, activation="tanh"), dropout(0.4)),
    "parallel along the batch": parallel(dense(2), dense(2), axis=0),
    "parallel added": parallel(dense(3), dense(3), dense(3, activation="softplus"), combine="add"),
    "repeat": repeat(dense(4, activation="tanh"), 3),
    "repeat of dropout": repeat(dropout(0.3), 2),
    "repeat with dropout": repeat(serial(dense(4), dropout(0.3)), 2),
    "nested": serial(
        residual(repeat(serial(dense(4, activation="gelu"), dropout(0.2)), 2), dense(4)),
        parallel(dense(2), residual(dense(4)), combine="concatenate"),
        dense(2, activation="log_softmax"),
    ),
}
each = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def x_of(shape=(3, 4), dtype=jnp.float32):
    return jax.random.normal(jax.random.key(5), shape, dtype)


EVERY_DAY = [  # the others .ci/run proves
    "dense tanh",
    "dropout",
    "reshape",
    "activation with an option",
    "residual with a shortcut",
    "parallel",
    "repeat with dropout",
    "nested",
]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in EVERY_DAY else pytest.mark.long) for name in LAYERS]
)
def test_the_law_on_four_roads(name):
    random = any(
        part in name for part in ("dropout", "serial", "parallel", "nested")
    )  # only those draw from a key
    report = verify.check_layer(LAYERS[name], KEY, x_of(), training_key=TRAINING if random else None)
    assert report.ok, report


@each
@pytest.mark.parametrize("key", [None, TRAINING], ids=["inference", "training"])
def test_vjp_equals_autodiff_of_apply(x64, layer, key):
    x = x_of(dtype=jnp.float64)
    params = layer.init(KEY, x)
    y, pullback = jax.jit(lambda params, x: layer.vjp(params, x, key=key))(params, x)
    expected, autodiff = jax.vjp(lambda params, x: layer.apply(params, x, key=key), params, x)
    dy = jax.random.normal(jax.random.key(9), y.shape, y.dtype)
    np.testing.assert_allclose(y, expected, atol=1e-12)
    ours, theirs = jax.jit(lambda f, dy: f(dy))(pullback, dy), autodiff(dy)  # a pullback leaves jit and enters it
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), ours, theirs)


@each
def test_a_shape_is_enough_to_start_from(layer):
    x = x_of()
    from_array, from_shape = layer.init(KEY, x), layer.init(KEY, jax.ShapeDtypeStruct(x.shape, x.dtype))
    jax.tree.map(np.testing.assert_array_equal, from_array, from_shape)


@each
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_parameters_values_and_gradients_have_the_dtype_of_x(x64, layer, dtype):
    x = x_of(dtype=dtype)
    params = layer.init(KEY, x)
    y, pullback = layer.vjp(params, x, key=TRAINING)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, y, pullback(y)))} == {jnp.dtype(dtype)}


def test_an_empty_batch_goes_through():
    layer = serial(layers.flatten(), dense(5, activation="relu"), dropout(0.5), residual(dense(5)))
    params = layer.init(KEY, x_of((1, 2, 3)))
    y, pullback = layer.vjp(params, jnp.zeros((0, 2, 3)), key=TRAINING)
    dparams, dx = pullback(y)
    assert (y.shape, dx.shape) == ((0, 5), (0, 2, 3))
    assert all(not leaf.any() for leaf in jax.tree.leaves(dparams))


def test_repeat_is_serial_with_stacked_parameters():
    block, x = serial(dense(4, activation="tanh"), dropout(0.3)), x_of()
    stacked = repeat(block, 3).init(KEY, x)
    apart = tuple(jax.tree.map(lambda p, i=i: p[i], stacked) for i in range(3))
    for key in (None, TRAINING):
        together = repeat(block, 3).apply(stacked, x, key=key)
        np.testing.assert_allclose(together, serial(block, block, block).apply(apart, x, key=key), rtol=1e-6)


def test_dropout_keeps_the_mean_and_its_rate():
    x = jnp.ones((400, 500))
    y = dropout(0.3).apply((), x, key=TRAINING)
    kept = np.asarray(y != 0)
    # A binomial share of n = 200,000 draws: five standard deviations √(0.3·0.7/n).
    bound = 5 * np.sqrt(0.3 * 0.7 / x.size)
    assert abs(kept.mean() - 0.7) < bound
    assert abs(float(y.mean()) - 1) < bound / 0.7
    np.testing.assert_allclose(np.asarray(y)[kept], 1 / 0.7, rtol=1e-6)
    np.testing.assert_array_equal(dropout(0.3).apply((), x), x)


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("glorot_uniform", 2 / (300 + 200)),
        ("glorot_normal", 2 / (300 + 200)),
        ("he_uniform", 2 / 300),
        ("he_normal", 2 / 300),
        ("lecun_uniform", 1 / 300),
        ("lecun_normal", 1 / 300),
    ],
)
def test_the_variance_of_an_initializer(name, variance):
    weight = np.asarray(dense(200, weight_init=name).init(KEY, x_of((1, 300)))["weight"])
    # The variance of n = 60,000 draws has a relative deviation of at most √(2/n), that of a normal's.
    assert abs(weight.var() / variance - 1) < 5 * np.sqrt(2 / weight.size)
    assert abs(weight.mean()) < 5 * np.sqrt(variance / weight.size)


def test_orthogonal_columns():
    weight = np.asarray(dense(20, weight_init="orthogonal").init(KEY, x_of((1, 30)))["weight"], np.float64)
    np.testing.assert_allclose(weight.T @ weight, np.eye(20), atol=30 * np.finfo("f").eps)


@pytest.mark.parametrize(
    ("activation", "suited"), [("relu", "he_normal"), ("tanh", "glorot_uniform"), (None, "lecun_normal")]
)
def test_the_weights_suit_the_activation(activation, suited):
    ours, named = (dense(5, activation=activation, weight_init=init).init(KEY, x_of()) for init in (None, suited))
    np.testing.assert_array_equal(ours["weight"], named["weight"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dense(0), "features ≥ 1; got 0"),
        (lambda: dense(3, activation="tnah"), "did you mean 'tanh'"),
        (lambda: dense(3, weight_init="glorot"), "unknown initializer 'glorot': did you mean 'glorot_"),
        (
            lambda: dense(3).init(KEY, jnp.zeros((2, 4), jnp.int32)),
            r"floating-point x \(…, features\); got int32 \(2, 4\)",
        ),
        (lambda: dense(3).init(KEY, jnp.zeros(())), r"got float32 \(\)"),
        (lambda: dropout(1.0), "0 ≤ rate < 1; got 1.0"),
        (lambda: dropout(-0.1), "0 ≤ rate < 1; got -0.1"),
        (lambda: layers.reshape(-1, -1), "at most one of them −1"),
        (lambda: layers.reshape(5).init(KEY, x_of()), r"reshape to \(batch, 5\) doesn't fit x of shape \(3, 4\)"),
        (lambda: layers.reshape(3, -1).init(KEY, x_of()), "doesn't fit"),
        (lambda: layers.activation("gleu"), "did you mean 'gelu'"),
        (lambda: layers.activation(jnp.sin), "elementwise"),
        (lambda: parallel(), "at least one layer"),
        (lambda: parallel(dense(2), combine="sum"), "'concatenate' or 'add'; got 'sum'"),
        (
            lambda: parallel(dense(2), dense(3), combine="add").init(KEY, x_of()),
            r"one shape; got \[\(3, 2\), \(3, 3\)\]",
        ),
        (lambda: parallel(dense(2), dense(3), axis=0).init(KEY, x_of()), "differ along axis 0 only"),
        (lambda: residual(dense(3)).init(KEY, x_of()), "outputs of one shape"),
        (lambda: repeat(dense(4), 0), "times ≥ 1; got 0"),
        (
            lambda: repeat(dense(3), 2).init(KEY, x_of()),
            r"keeps the shape .*\(3, 4\) float32 became \(3, 3\) float32",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_function_of_the_users_own_with_its_derivative():
    @activations.elementwise(lambda x: 2 * x)
    def square(x):
        return x * x

    report = verify.check_layer(serial(dense(3, activation=square), layers.activation(square)), KEY, x_of())
    assert report.ok, report


def test_a_wrong_vjp_is_found():
    right = dense(3, activation="tanh")

    def vjp(params, x, *, key=None):
        y, pullback = right.vjp(params, x, key=key)
        return y, lambda dy: jax.tree.map(lambda g: 1.001 * g, pullback(dy))

    report = verify.check_layer(right._replace(vjp=vjp), KEY, x_of())
    assert report.state == "fail"
