"""The feedforward network: the law, its options, its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers, networks, verify

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (5, 7))
OPTIONS = [
    {},
    {"activation": "tanh", "bias": False},
    {"activation": "gelu", "output_activation": "softmax"},
    {"activation": "leaky_relu", "dropout_rate": 0.4, "weight_init": "orthogonal"},
    {"implementation": "xla"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_law(options):
    training = jax.random.key(2) if "dropout_rate" in options else None
    report = verify.check_layer(networks.feedforward([7, 6, 5, 3], **options), KEY, X, training_key=training)
    assert report.ok, report


def test_it_is_the_classic_formula():
    params = networks.feedforward([7, 6, 3], activation="sigmoid").init(KEY, X)
    (hidden, output), x = params, np.asarray(X, np.float64)
    a = 1 / (1 + np.exp(-(x @ hidden["weight"] + np.asarray(hidden["bias"])[None])))
    y = a @ output["weight"] + np.asarray(output["bias"])[None]
    # Three roundings on the way to a sum of six terms of order one.
    actual = networks.feedforward([7, 6, 3], activation="sigmoid").apply(params, X)
    np.testing.assert_allclose(actual, y, atol=20 * np.finfo("f").eps)


def test_parameters_are_named_shaped_and_follow_x(x64):
    net = networks.feedforward([7, 6, 5, 3], dropout_rate=0.5)
    params = net.init(KEY, jax.ShapeDtypeStruct((1, 7), jnp.float64))
    shapes = [{name: p.shape for name, p in layer.items()} if layer else () for layer in params]
    assert shapes == [
        {"weight": (7, 6), "bias": (6,)},
        (),
        {"weight": (6, 5), "bias": (5,)},
        (),
        {"weight": (5, 3), "bias": (3,)},
    ]
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float64")}
    assert "bias" not in networks.feedforward([7, 3], bias=False).init(KEY, X)[0]


def test_one_layer_is_linear_regression():
    net = networks.feedforward([7, 1])
    params = net.init(KEY, X)
    np.testing.assert_array_equal(net.apply(params, X), layers.dense(1).apply(params[0], X))


def test_dropout_needs_a_key():
    net = networks.feedforward([7, 64, 3], dropout_rate=0.5)
    params = net.init(KEY, X)
    np.testing.assert_array_equal(net.apply(params, X), net.apply(params, X))
    one, same, other = (net.apply(params, X, key=jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ([7], {}, r"at least two sizes.*got \(7,\)"),
        ([7, 0, 3], {}, r"whole numbers ≥ 1.*got \(7, 0, 3\)"),
        ([7, 6, 3], {"activation": "rleu"}, "unknown activation 'rleu': did you mean 'relu'"),
        ([7, 6, 3], {"dropout_rate": 1.0}, "0 ≤ rate < 1; got 1.0"),
        ([7, 6, 3], {"weight_init": "he_norml"}, "did you mean 'he_normal'"),
    ],
)
def test_a_network_that_cannot_be(sizes, options, message):
    with pytest.raises(ValueError, match=message):
        networks.feedforward(sizes, **options)


def test_an_input_that_does_not_fit():
    net = networks.feedforward([7, 6, 3])
    with pytest.raises(
        ValueError, match=r"feedforward\(\[7, 6, 3\]\) needs x \(…, 7\); got \(5, 28, 28\).*flatten"
    ):
        net.init(KEY, jnp.zeros((5, 28, 28)))


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_it_equals_the_network_of_flax_in_values_and_all_gradients(activation, x64):
    nn = pytest.importorskip("flax.linen", reason="Flax is only compared with: pip install '.[peers]'")
    f = getattr(nn, activation)
    theirs = nn.Sequential([nn.Dense(6), f, nn.Dense(5), f, nn.Dense(3)])
    net, x = networks.feedforward([7, 6, 5, 3], activation=activation), X.astype(jnp.float64)
    params = net.init(KEY, x)

    def apply(params, x):
        named = {f"layers_{2 * i}": {"kernel": p["weight"], "bias": p["bias"]} for i, p in enumerate(params)}
        return theirs.apply({"params": named}, x)

    expected, pullback = jax.vjp(apply, params, x)
    dy = jax.random.normal(jax.random.key(3), expected.shape, expected.dtype)
    y, by_hand = net.vjp(params, x)
    found = y, by_hand(dy), jax.vjp(net.apply, params, x)[1](dy)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, (expected, pullback(dy), pullback(dy))
    )
