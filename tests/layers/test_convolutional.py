"""The law for the convolutional layers, their initial weights, and their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers, verify
from jaxnet.layers import conv, conv_transpose

KEY = jax.random.key(0)

LAYERS = {
    "conv": (conv(3, 3), (2, 5, 4, 2)),
    "conv tanh, stride": (conv(3, (3, 2), stride=2, activation="tanh"), (2, 5, 4, 2)),
    "conv relu without bias": (conv(4, 1, activation="relu", bias=False), (2, 3, 3, 2)),
    "causal": (conv(3, 3, padding="CAUSAL", dilation=2), (2, 7, 2)),
    "depthwise": (conv(4, 3, groups=2, padding=1, activation="gelu"), (2, 4, 3, 2)),
    "3-D, orthogonal": (conv(2, 2, padding="VALID", weight_init="orthogonal", bias_init="ones"), (2, 3, 2, 3, 1)),
    "transposed": (conv_transpose(3, 4, stride=2, activation="silu"), (2, 3, 2, 2)),
    "transposed, gradient": (
        conv_transpose(
            2, 3, stride=2, padding=1, output_padding=1, groups=2, convention="gradient", activation="relu"
        ),
        (2, 3, 2, 4),
    ),
    "an encoder and its decoder": (
        layers.serial(
            conv(3, 3, stride=2, activation="elu"),
            conv_transpose(1, 3, stride=2, activation="sigmoid", convention="gradient"),
        ),
        (2, 4, 4, 1),
    ),
}
each = pytest.mark.parametrize("name", LAYERS)


def x_of(shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(5), shape, dtype)


@pytest.mark.parametrize("name", ["conv tanh, stride", "depthwise", "transposed, gradient"])
def test_the_law_on_four_roads(name):
    layer, shape = LAYERS[name]
    report = verify.check_layer(layer, KEY, x_of(shape))
    assert report.ok, report


@each
def test_vjp_equals_autodiff_of_apply(x64, name):
    layer, shape = LAYERS[name]
    x = x_of(shape, jnp.float64)
    params = layer.init(KEY, x)
    y, pullback = jax.jit(layer.vjp)(params, x)
    expected, autodiff = jax.jit(lambda *args: jax.vjp(layer.apply, *args))(params, x)
    dy = jax.random.normal(jax.random.key(9), y.shape, y.dtype)
    np.testing.assert_allclose(y, expected, atol=1e-12)
    ours, theirs = jax.jit(lambda f, dy: f(dy))(pullback, dy), jax.jit(lambda f, dy: f(dy))(autodiff, dy)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), ours, theirs)


@each
def test_a_shape_is_enough_and_the_dtype_is_that_of_x(name):
    layer, shape = LAYERS[name]
    x = x_of(shape, jnp.bfloat16)
    params = layer.init(KEY, x)
    from_shape = layer.init(KEY, jax.ShapeDtypeStruct(x.shape, x.dtype))
    jax.tree.map(np.testing.assert_array_equal, params, from_shape)
    y, pullback = jax.eval_shape(layer.vjp, params, x)
    gradients = jax.eval_shape(lambda f, dy: f(dy), pullback, y)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, y, gradients))} == {x.dtype}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, gradients[0])


@pytest.mark.parametrize(
    ("make", "fan_in", "fan_out"),
    [
        (conv, 9 * 16, 9 * 32),
        (conv_transpose, 9 * 16, 9 * 32),
        (lambda *args, **options: conv_transpose(*args, convention="gradient", **options), 9 * 16, 9 * 32),
        (lambda *args, **options: conv(*args, groups=4, **options), 9 * 4, 9 * 32),
    ],
)
def test_the_variance_of_the_initial_weights(make, fan_in, fan_out):
    x = jax.ShapeDtypeStruct((1, 8, 8, 16), jnp.float32)
    expected = {"he_normal": 2 / fan_in, "lecun_uniform": 1 / fan_in, "glorot_normal": 2 / (fan_in + fan_out)}
    for name, variance in expected.items():
        weight = np.asarray(make(32, 3, weight_init=name).init(KEY, x)["weight"])
        # The variance of n draws has a relative deviation of at most √(2/n), that of a normal's.
        assert abs(weight.var() / variance - 1) < 5 * np.sqrt(2 / weight.size)
    suited, he = (make(32, 3, activation="relu", weight_init=init).init(KEY, x) for init in (None, "he_normal"))
    np.testing.assert_array_equal(suited["weight"], he["weight"])


def test_of_relu_only_y_is_kept():
    layer, x = conv(3, 3, activation="relu"), x_of((2, 5, 4, 2))
    y, pullback = layer.vjp(layer.init(KEY, x), x)
    kept = [leaf for leaf in jax.tree.leaves(pullback) if leaf.shape == y.shape]
    assert len(kept) == 1
    np.testing.assert_array_equal(kept[0], y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: conv(0, 3), "conv needs a whole number of features ≥ 1; got 0"),
        (lambda x: conv(3, 3, activation="tnah"), "did you mean 'tanh'"),
        (lambda x: conv(3, 3, weight_init="glorot"), "did you mean 'glorot_"),
        (lambda x: conv(3, 0).init(KEY, x), "conv needs a kernel_size of whole numbers ≥ 1, one or 2; got 0"),
        (lambda x: conv(3, (3, 3, 3)).init(KEY, x), r"one or 2; got \(3, 3, 3\)"),
        (lambda x: conv(3, 3).init(KEY, x[0, 0]), r"with 1, 2 or 3 axes of places; got float32 \(4, 2\)"),
        (lambda x: conv(3, 3).init(KEY, x.astype(int)), "conv needs a floating-point x"),
        (lambda x: conv(3, 3, groups=2).init(KEY, x), "divide the channels, 2, and the features, 3; got 2"),
        (lambda x: conv(3, 3, padding="same").init(KEY, x), "got 'same'"),
        (lambda x: conv(3, 7, padding="VALID").init(KEY, x), "doesn't fit into an image"),
        (lambda x: conv_transpose(3, 3, convention="keras").init(KEY, x), "got 'keras'"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make(x_of((2, 5, 4, 2)))
