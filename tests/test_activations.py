"""Every activation: its value, its derivative on four roads, its kinks, its limits."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from scipy import special

from jaxnet import activations, layers, ops, verify

ROOT_2_PI = np.sqrt(2 / np.pi)


def sigmoid(x):
    return special.expit(x)


def tanh_gelu(x):
    u = 2 * ROOT_2_PI * (x + 0.044715 * x**3)
    return sigmoid(u), sigmoid(u) * sigmoid(-u) * 2 * ROOT_2_PI * (1 + 3 * 0.044715 * x**2)


def mish_t(x):
    return np.tanh(np.logaddexp(0, x))


def mish_derivative(x):
    return mish_t(x) + x * sigmoid(x) / np.cosh(np.minimum(np.logaddexp(0, x), 300)) ** 2


# The same functions in float64 by SciPy and NumPy: name, options -> f, f′.
SELU_SCALE, SELU_ALPHA = 1.0507009873554804934, 1.6732632423543772848
ORACLES = {
    ("identity",): (lambda x: x, np.ones_like),
    ("sigmoid",): (sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
    ("tanh",): (np.tanh, lambda x: np.cosh(np.clip(x, -300, 300)) ** -2.0),
    ("relu",): (lambda x: np.maximum(x, 0), lambda x: np.where(x > 0, 1.0, 0.0)),
    ("leaky_relu",): (lambda x: np.where(x < 0, 0.01 * x, x), lambda x: np.where(x < 0, 0.01, 1.0)),
    ("leaky_relu", ("negative_slope", 0.2)): (
        lambda x: np.where(x < 0, 0.2 * x, x),
        lambda x: np.where(x < 0, 0.2, 1.0),
    ),
    ("elu",): (
        lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
        lambda x: np.exp(np.minimum(x, 0)),
    ),
    ("elu", ("alpha", 1.7)): (
        lambda x: np.where(x > 0, x, 1.7 * np.expm1(np.minimum(x, 0))),
        lambda x: np.where(x > 0, 1.0, 1.7 * np.exp(np.minimum(x, 0))),
    ),
    ("selu",): (
        lambda x: SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(np.minimum(x, 0))),
        lambda x: SELU_SCALE * np.where(x > 0, 1.0, SELU_ALPHA * np.exp(np.minimum(x, 0))),
    ),
    ("softplus",): (lambda x: np.logaddexp(0, x), sigmoid),
    ("silu",): (lambda x: x * sigmoid(x), lambda x: sigmoid(x) * (1 + x * sigmoid(-x))),
    ("mish",): (lambda x: x * mish_t(x), mish_derivative),
    ("gelu",): (lambda x: x * tanh_gelu(x)[0], lambda x: tanh_gelu(x)[0] + x * tanh_gelu(x)[1]),
    ("gelu", ("approximate", False)): (
        lambda x: x * special.ndtr(x),
        lambda x: special.ndtr(x) + x * np.exp(-x * x / 2) * ROOT_2_PI / 2,
    ),
    ("hard_swish",): (
        lambda x: x * np.clip(x + 3, 0, 6) / 6,
        lambda x: np.where(x <= -3, 0.0, np.where(x >= 3, 1.0, (2 * x + 3) / 6)),
    ),
}
CASES = [pytest.param(key, id="-".join([key[0], *(f"{k}={v}" for k, v in key[1:])])) for key in ORACLES]
ROWS = [("softmax", -1), ("softmax", 0), ("log_softmax", -1), ("log_softmax", 1)]
ALL_NAMES = sorted({key[0] for key in ORACLES} | {"softmax", "log_softmax", "swish"})


def made(key):
    name, *options = key
    return partial(activations.get(name), **dict(options)) if options else activations.get(name)


def points(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 2.5, (3, 7)))


def test_every_activation_is_tested():
    assert sorted(activations._NAMES) == ALL_NAMES


# -------------------------------------------------------------------------------------- the derivative


EVERY_DAY = [("relu",), ("leaky_relu", ("negative_slope", 0.2)), ("mish",), ("gelu",)]  # the others .ci/run proves


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(key, id=case.id, marks=[] if key in EVERY_DAY else pytest.mark.long)
        for key, case in zip(ORACLES, CASES, strict=True)
    ],
)
def test_four_roads(key, x64):
    f, df = made(key), activations.derivative(made(key))
    pullback, dy = activations.pullback(made(key)), jnp.asarray(np.random.default_rng(1).normal(size=(3, 7)))
    verify.assert_gradients(f, points())
    verify.assert_gradients(lambda x: (dy * f(x)).sum(), points(), hand_written=lambda x: (pullback(x, dy),))
    verify.assert_gradients(df, points())  # second order: autodiff of f′ against differences of it
    np.testing.assert_allclose(pullback(points(), dy), df(points()) * dy, rtol=1e-12)


@pytest.mark.parametrize("key", CASES)
def test_value_derivative_and_every_mode_against_scipy(key, x64):
    f, x, (value, slope) = made(key), points(), ORACLES[key]
    np.testing.assert_allclose(f(x), value(np.asarray(x)), rtol=1e-13, atol=1e-15)
    expected = slope(np.asarray(x))
    y, forward = jax.jvp(f, (x,), (jnp.ones_like(x),))
    for found in (activations.derivative(f)(x), forward, jax.grad(lambda x: f(x).sum())(x)):
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-15)
    np.testing.assert_array_equal(y, f(x))


@pytest.mark.parametrize("key", CASES)
def test_second_order_is_the_difference_of_the_first(key, x64):
    f, h = made(key), 1e-6
    x = points().ravel()
    hessian = jax.hessian(lambda x: f(x).sum())(x)
    slope = ORACLES[key][1]
    differences = (slope(np.asarray(x) + h) - slope(np.asarray(x) - h)) / (2 * h)  # error h² f‴ + eps / h
    np.testing.assert_allclose(hessian, np.diag(differences), atol=1e-8)


@pytest.mark.parametrize(("name", "axis"), ROWS)
def test_softmax_on_four_roads(name, axis, x64):
    f = partial(activations.get(name), axis=axis)
    x, dy = points(), jnp.asarray(np.random.default_rng(1).normal(size=(3, 7)))
    pullback = activations.pullback(f)
    verify.assert_gradients(lambda x: (dy * f(x)).sum(), x, hand_written=lambda x: (pullback(x, dy),))
    verify.assert_gradients(lambda x: pullback(x, dy), x)
    verify.assert_gradients(activations.derivative(f), x)
    y, forward = jax.jvp(f, (x,), (dy,))
    plain_y, plain = jax.jvp(partial(getattr(jax.nn, name), axis=axis), (x,), (dy,))
    np.testing.assert_allclose(y, plain_y, rtol=1e-12)
    np.testing.assert_allclose(forward, plain, atol=1e-13)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_jacobian_and_hessian(name, x64):
    f, plain, x = activations.get(name), getattr(jax.nn, name), points()
    by_row = jax.vmap(jax.jacrev(plain))(x)
    np.testing.assert_allclose(activations.derivative(f)(x), by_row, atol=1e-13)
    np.testing.assert_allclose(jax.vmap(jax.jacfwd(f))(x), by_row, atol=1e-13)
    columns = activations.derivative(f)(x, axis=0)
    np.testing.assert_allclose(columns, jax.vmap(jax.jacrev(plain), 1)(x), atol=1e-13)
    np.testing.assert_allclose(jax.hessian(f)(x[0]), jax.hessian(plain)(x[0]), atol=1e-13)


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("relu", 0.0, 0.0),
        ("leaky_relu", 0.0, 1.0),
        ("elu", 0.0, 1.0),
        ("selu", 0.0, SELU_SCALE * SELU_ALPHA),
        ("hard_swish", -3.0, 0.0),
        ("hard_swish", 3.0, 1.0),
    ],
)
def test_at_a_kink(name, x, expected):
    x = jnp.float32(x)
    found = [activations.derivative(name)(x), jax.grad(activations.get(name))(x)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    if name != "hard_swish":  # there jax.nn takes the mean of the two slopes
        np.testing.assert_allclose(found[0], jax.grad(getattr(jax.nn, name))(x), rtol=1e-6)


def test_elu_at_its_kink_has_the_slope_alpha():
    assert activations.derivative("elu")(jnp.float32(0), alpha=1.5) == 1.5
    assert jax.grad(partial(jax.nn.elu, alpha=1.5))(jnp.float32(0)) == 1.5


# ------------------------------------------------------------------------------------ limits and dtypes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("key", CASES)
def test_far_from_zero(key, dtype, x64):
    x = np.array([50.0, -50.0, 800.0, -800.0, 1e4, -1e4, 1e30, -1e30])
    f, (value, slope) = made(key), ORACLES[key]
    own, rtol = jnp.asarray(x, dtype), 8 * np.finfo(dtype).eps
    first = jax.grad(f)
    np.testing.assert_allclose(f(own), value(x), rtol=rtol, atol=1e-18)
    np.testing.assert_allclose(jax.vmap(first)(own), slope(x), rtol=rtol, atol=1e-18)
    np.testing.assert_allclose(activations.derivative(f)(own), slope(x), rtol=rtol, atol=1e-18)
    np.testing.assert_allclose(jax.vmap(jax.grad(first))(own), 0, atol=1e-18)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("key", CASES)
def test_finite_at_the_largest_numbers(key, dtype):
    largest = float(jnp.finfo(dtype).max) / 2
    f, first = made(key), jax.grad(made(key))
    for x in (jnp.asarray(largest, dtype), jnp.asarray(-largest, dtype)):
        assert jnp.isfinite(jnp.stack([f(x), first(x), jax.grad(first)(x)])).all()


@pytest.mark.parametrize("key", CASES)
def test_no_cancellation_near_zero(key):
    size = np.logspace(-8, -3, 26)
    x = np.concatenate([size, -size]).astype(np.float32)
    exact = x.astype(np.float64)
    f, (value, slope) = made(key), ORACLES[key]
    np.testing.assert_allclose(f(jnp.asarray(x)), value(exact), rtol=1e-6)
    np.testing.assert_allclose(activations.derivative(f)(jnp.asarray(x)), slope(exact), rtol=1e-6)


@pytest.mark.parametrize("name", ["elu", "selu", "sigmoid", "softplus", "silu", "mish"])
def test_small_results_far_below_zero_keep_their_digits(name):
    x = np.linspace(-60, -5, 45, dtype=np.float32)
    value, slope = ORACLES[(name,)]
    np.testing.assert_allclose(activations.get(name)(jnp.asarray(x)), value(x.astype(float)), rtol=2e-6)
    np.testing.assert_allclose(activations.derivative(name)(jnp.asarray(x)), slope(x.astype(float)), rtol=4e-6)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_nan_passes_and_infinity_is_as_in_jax_nn(name):
    f, plain = activations.get(name), getattr(jax.nn, name)
    x = jnp.array([jnp.nan, 1.0])
    expected = [True, "softmax" in name]  # only a softmax mixes its elements
    np.testing.assert_array_equal(jnp.isnan(f(x)), expected)
    for infinite in (jnp.inf, -jnp.inf):
        x = jnp.array([infinite, 1.0])
        np.testing.assert_allclose(f(x), plain(x), rtol=1e-6)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_is_stable(name):
    f, x = activations.get(name), np.random.default_rng(0).normal(0, 3, (4, 6))
    plain = {"softmax": special.softmax, "log_softmax": special.log_softmax}[name]
    for shift, scale in ((0, 1), (2**14, 1), (-(2**14), 1), (0, 1e4), (0, 1e30)):
        shifted = (x * scale + shift).astype(np.float32)
        expected = plain(shifted.astype(float), axis=-1)
        np.testing.assert_allclose(f(jnp.asarray(shifted)), expected, rtol=2e-6, atol=2e-6)
        assert np.isfinite(activations.derivative(name)(jnp.asarray(shifted))).all()
        assert np.isfinite(jax.hessian(f)(jnp.asarray(shifted[0]))).all()
    for axis in (0, 1, -1):
        y = activations.softmax(jnp.asarray(x, jnp.float32), axis=axis)
        np.testing.assert_allclose(y.sum(axis), 1, rtol=1e-6)
    masked = jnp.array([0.0, -jnp.inf, 0.0])
    np.testing.assert_allclose(activations.softmax(masked), [0.5, 0, 0.5])
    np.testing.assert_allclose(activations.derivative("softmax")(masked)[1], 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("key", [*CASES, ("softmax",), ("log_softmax",)])
def test_half_precision_is_the_float32_result_rounded_once(key, dtype):
    x = points().astype(dtype)
    dy = points(1).astype(dtype)
    wide, wide_dy = x.astype(jnp.float32), dy.astype(jnp.float32)
    f, df, pullback = made(key), activations.derivative(made(key)), activations.pullback(made(key))
    for found, expected in ((f(x), f(wide)), (df(x), df(wide)), (pullback(x, dy), pullback(wide, wide_dy))):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected.astype(dtype))
    gradient = jax.grad(lambda x: f(x).astype(jnp.float32).sum())(x)
    assert gradient.dtype == dtype
    ulp = jnp.finfo(dtype).eps * np.maximum(np.abs(np.asarray(df(wide))), 2.0**-14)
    if "softmax" not in key[0]:
        assert np.all(np.abs(gradient.astype(jnp.float32) - df(wide)) <= ulp)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_transformations(name):
    f, x = activations.get(name), points().astype(jnp.float32)
    np.testing.assert_allclose(jax.jit(f)(x), f(x), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(f)(x), f(x), rtol=1e-6)
    by_row = jax.vmap(jax.grad(lambda x: jnp.square(f(x)).sum()))(x)
    np.testing.assert_allclose(by_row, jax.grad(lambda x: jnp.square(f(x)).sum())(x), rtol=1e-5, atol=1e-6)
    for shape in ((0,), (0, 3)) if "softmax" not in name else ((0, 3),):
        empty = jnp.zeros(shape, jnp.float32)
        assert f(empty).shape == jax.grad(lambda x: f(x).sum())(empty).shape == shape
    if "softmax" not in name:
        assert f(jnp.float32(1)).shape == f(1.0).shape == ()


# ------------------------------------------------------------------------------------------- by name


@pytest.mark.parametrize("name", ALL_NAMES)
def test_integers_are_refused(name):
    for f in (activations.get(name), activations.derivative(name)):
        with pytest.raises(ValueError, match=r"needs a floating-point x; got int32. Convert it by x.astype"):
            f(jnp.arange(3))


@pytest.mark.parametrize(("wrong", "nearest"), [("rleu", "relu"), ("Sigmoid", "sigmoid"), ("soft_max", "softmax")])
def test_an_unknown_name_suggests_the_nearest(wrong, nearest):
    with pytest.raises(ValueError, match=f"unknown activation '{wrong}': did you mean '{nearest}'\\?"):
        activations.get(wrong)


@pytest.mark.parametrize("function", [jnp.sin, jax.nn.celu, lambda x: x])
def test_a_function_without_a_derivative_is_refused(function):
    with pytest.raises(ValueError, match=re.escape("Decorate it with @jaxnet.activations.elementwise")):
        activations.get(function)


@pytest.mark.parametrize(
    ("function", "use"),
    [
        *((getattr(jax.nn, name), f"'{name}'") for name in activations._NAMES if name != "swish"),
        (jax.nn.swish, "'silu'"),
        (jnp.tanh, "'tanh'"),
        (partial(jax.nn.leaky_relu, negative_slope=0.1), "a partial of jaxnet.activations.leaky_relu"),
    ],
)
def test_of_a_function_of_jax_the_name_is_said(function, use):
    for place in (
        activations.get,
        lambda f: ops.linear(jnp.ones((2, 3)), jnp.ones((3, 4)), activation=f),
        lambda f: layers.dense(4, activation=f),
        lambda f: layers.conv(4, 3, activation=f),
        layers.activation,
    ):
        with pytest.raises(ValueError, match=rf"activation must be a name .*; got .*\. Use {use}$"):
            place(function)


@pytest.mark.parametrize("function", [jnp.tanh, jax.nn.relu, activations.tanh, activations.relu])
def test_of_a_function_the_name_that_the_rnn_has_is_said(function, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would be the first to complain
    x, weight = jnp.ones((1, 2, 3)), jnp.ones((3, 3))
    name = getattr(function, "__name__", "relu")
    for rnn in (partial(ops.rnn, x, weight, weight), partial(layers.rnn, 3)):
        with pytest.raises(ValueError, match=rf"rnn needs an activation 'tanh' or 'relu'; got .*\. Use '{name}'$"):
            rnn(activation=function)
        with pytest.raises(ValueError, match=r"rnn needs an activation 'tanh' or 'relu'; got \S+$"):
            rnn(activation="gelu")


def test_names_and_options():
    assert activations.get("swish") is activations.get("silu") is activations.silu
    assert activations.name(partial(activations.elu, alpha=2.0)) == activations.name("elu") == "elu"
    f, x = partial(activations.leaky_relu, negative_slope=0.2), jnp.array([-2.0, 3.0])
    assert activations.get(f) is f
    np.testing.assert_allclose(activations.leaky_relu(x, 0.2), f(x))
    np.testing.assert_allclose(activations.derivative(f)(x), [0.2, 1])
    np.testing.assert_allclose(activations.pullback(f)(x, jnp.array([10.0, 10.0])), [2, 10])
    with pytest.raises(TypeError, match="slope"):
        activations.relu(x, slope=1.0)


def test_a_derivative_of_ones_own(x64):
    @activations.elementwise(lambda x, scale: scale * 2 * x)
    def square(x, scale=1.0):
        """Of a user."""
        return scale * x * x

    @activations.elementwise(lambda x: 3 * x)
    def wrong(x):
        return x * x

    x = points()
    assert square.__doc__ == "Of a user."
    tripled = partial(square, scale=3.0)
    verify.assert_gradients(activations.get(tripled), x)
    np.testing.assert_allclose(activations.derivative(tripled)(x), 6 * x)
    np.testing.assert_allclose(jax.grad(lambda x: tripled(x).sum())(x), 6 * x)
    assert not verify.check_gradients(wrong, x).ok


def test_the_derivative_used_is_the_one_written():
    @activations.elementwise(lambda x: jnp.full_like(x, 7))
    def f(x):
        return x

    x = jnp.ones(3)
    np.testing.assert_array_equal(jax.grad(lambda x: f(x).sum())(x), [7, 7, 7])
    np.testing.assert_array_equal(jax.jvp(f, (x,), (x,))[1], [7, 7, 7])
