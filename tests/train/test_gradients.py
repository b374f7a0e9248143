"""`train.check_gradients`: the whole network's loss, from the parameters and the input to the mean."""

import jax
import jax.numpy as jnp
import pytest

from jaxnet import layers, losses, networks, train

X = jax.random.normal(jax.random.key(1), (5, 4))
LABELS = jnp.array([0, 2, 1, 1, 0])
CASES = {
    "cross_entropy": (losses.cross_entropy, 3, LABELS),
    "binary_cross_entropy": (losses.binary_cross_entropy, 1, jnp.array([[0.0], [1], [1], [0], [1]])),
    "squared_error": (losses.squared_error, 2, jax.random.normal(jax.random.key(2), (5, 2))),
}


def parameters(net):
    return net.init(jax.random.key(0), X)


@pytest.mark.parametrize("loss", CASES)
def test_of_a_network_that_is_right(loss):
    function, outputs, target = CASES[loss]
    net = networks.feedforward([4, 6, outputs], activation="tanh")
    report = train.check_gradients(net, function, parameters(net), (X, target))
    assert report.ok, str(report)
    names = [leaf.name for leaf in report.leaves]
    assert names == [f"params[{i}]['{name}']" for i in (0, 1) for name in ("bias", "weight")] + ["x"]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda dp, dx: (dp | {"weight": dp["weight"] * 1.01}, dx), "params[1]['weight']"),
        (lambda dp, dx: (dp, -dx), "params[0]['weight']"),
    ],
    ids=["dweight", "dx"],
)
def test_of_a_layer_whose_pullback_is_wrong(wrong, named):
    dense = layers.dense(3)

    def vjp(params, x, *, key=None):
        y, pullback = dense.vjp(params, x, key=key)
        return y, lambda dy: wrong(*pullback(dy))

    net = layers.serial(layers.dense(6, activation="tanh"), dense._replace(vjp=vjp))
    report = train.check_gradients(net, losses.cross_entropy, parameters(net), (X, LABELS))
    assert not report.ok
    assert named in [leaf.name for leaf in report.leaves if leaf.state == "fail"]
    assert named in str(report)
