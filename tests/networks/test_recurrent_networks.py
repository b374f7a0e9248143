"""The recurrent networks: the law, their shapes, a task that needs memory, and their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import data, losses, networks, train

KEY, TRAINING = jax.random.key(0), jax.random.key(7)
LENGTHS = jnp.asarray([2, 0, 3])

NETWORKS = {
    "recurrent": (networks.recurrent(2, [4, 3], activation="tanh"), (3, 3)),
    "gru in both directions": (
        networks.recurrent(2, 3, cell="gru", layers=2, bidirectional=True, dropout_rate=0.2, output="sequence"),
        (3, 3, 3),
    ),
    "lstm": (networks.lstm(2, 3, forget_bias=2.0, dropout_rate=0.3), (3, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_vjp_equals_autodiff_of_apply_in_training(x64, name):
    net, shape = NETWORKS[name]
    x = jax.random.normal(jax.random.key(5), (3, 3, 2), jnp.float64), LENGTHS

    @jax.jit
    def both(params, x, dy):
        def apply(params, sequences):
            return net.apply(params, (sequences, x[1]), key=TRAINING)

        expected, autodiff = jax.vjp(apply, params, x[0])
        y, pullback = net.vjp(params, x, key=TRAINING)
        dparams, (dx, _) = pullback(dy)
        return (y, (dparams, dx)), (expected, autodiff(dy))

    dy = jax.random.normal(jax.random.key(9), shape, jnp.float64)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), *both(net.init(KEY, x), x, dy))


def test_it_learns_what_only_memory_can_tell():
    # Whether the first of up to eight numbers was positive: all that comes after it is noise.
    net = networks.lstm(8, 2)
    x = jax.random.normal(jax.random.key(1), (64, 8, 1))
    lengths = jax.random.randint(jax.random.key(2), (64,), 1, 9)
    examples = (x, lengths), (x[:, 0, 0] > 0).astype("int32")
    optimizer = train.adamw(0.05)
    state = train.init(net, optimizer, KEY, examples[0])
    step = train.make_step(net, losses.cross_entropy, optimizer, steps=10)
    batches = data.batches(examples, 32, key=jax.random.key(3))
    measure = {"loss": losses.cross_entropy, "accuracy": train.accuracy}
    before = train.evaluate(net, state.params, batches, measure)
    state = train.fit(state, step, batches, epochs=40, progress=False)
    after = train.evaluate(net, state.params, batches, measure)
    assert before["loss"] > 0.5
    assert after["loss"] < 0.1
    assert after["accuracy"] == 1


def test_the_gradient_of_training_on_sequences_with_lengths():
    net = networks.recurrent(2, 3)
    x = jax.random.normal(jax.random.key(1), (3, 3, 2)), LENGTHS
    report = train.check_gradients(net, losses.cross_entropy, net.init(KEY, x), (x, jnp.asarray([0, 2, 1])))
    assert report.ok, report


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networks.recurrent(2, 3, cell="lstmm"), "a cell of 'rnn', 'lstm', 'gru'; got 'lstmm'"),
        (lambda: networks.recurrent(0, 3), "features ≥ 1; got 0"),
        (lambda: networks.lstm(2, 0), "sizes must be whole numbers ≥ 1; got 0"),
        (lambda: networks.lstm(2, 3, output="all"), "an output 'sequence' or 'last'; got 'all'"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
