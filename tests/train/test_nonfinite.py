"""A run that leaves the finite numbers stops, says where it did so first, and keeps the last good checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnet import losses, networks, train
from jaxnet.train.nonfinite import first_nonfinite

BATCHES = 6


def batches(at=None, x_value=0.5, y_value=1.0):
    """Six batches; number `at` has one other value in it."""
    draw = np.random.default_rng(0)
    made = []
    for i in range(BATCHES):
        x, y = draw.standard_normal((4, 3)).astype(np.float32), np.ones((4, 1), np.float32)
        if i == at:
            x[1, 2], y[2, 0] = x_value, y_value
        made.append((jnp.asarray(x), jnp.asarray(y)))
    return made


@pytest.fixture(scope="module", params=[None, 4], ids=["single", "scanned"])
def steps(request):
    return request.param


def message_of(given, run=None, *, learning_rate=0.01, activation="relu", steps=None, **options):
    net, optimizer = networks.feedforward([3, 5, 1], activation=activation), optax.sgd(learning_rate)
    step = train.make_step(net, losses.squared_error, optimizer, steps=steps)
    state = train.init(net, optimizer, jax.random.key(0), given[0][0])
    with pytest.raises(train.NonFiniteError) as error:
        train.fit(state, step, given, run=run, **options)
    return str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 3, 5])
def test_in_the_data(at, value, steps):
    message = message_of(batches(at, x_value=value), steps=steps, epochs=2)
    assert f"in step {at + 1} (epoch 1); first not finite: input x, activation layer0 of shape (4, 5)" in message


def test_in_a_target(steps):
    message = message_of(batches(4, y_value=np.nan), steps=steps)
    assert (
        "the loss became nan in step 5 (epoch 1); first not finite: target, gradient of the parameter" in message
    )


def test_a_learning_rate_far_too_large(steps):
    message = message_of(batches(), steps=steps, learning_rate=1e15, epochs=9)
    assert "(epoch 1); first not finite: " in message
    assert "gradient of the parameter [" in message
    assert message.endswith(". A smaller learning rate may help")


def test_an_infinite_update(steps):
    """The loss is still finite; the parameters aren't."""
    given = batches(BATCHES - 1, y_value=1e15)
    message = message_of(given, steps=steps, learning_rate=1e30)
    assert "first not finite: parameter [0]['bias']" in message or "activation" in message
    last = message_of(given[-1:], learning_rate=1e30)
    assert "the update in step 1 (epoch 1) left the finite numbers; first not finite: parameter [0]['" in last


def test_in_an_activation(steps):
    """Finite data, finite parameters: e^x overflows in the first layer's activation."""
    message = message_of(batches(2, x_value=1e30), steps=steps, activation="softplus")
    assert "in step 3 (epoch 1); first not finite: " in message


def test_in_a_later_epoch(tmp_path):
    given = batches()

    def turn_bad(params):
        given[2] = batches(2, x_value=np.nan)[2]
        return {}

    message = message_of(given, tmp_path / "run", epochs=3, evaluate=turn_bad)
    assert f"in step {BATCHES + 3} (epoch 2); first not finite: input x" in message
    assert f"; the checkpoint of step {BATCHES} is kept in {tmp_path / 'run'}." in message


def test_the_last_good_checkpoint_stays(steps, tmp_path, same_bits):
    run = tmp_path / "run"
    good = batches()
    message = message_of(batches(5, x_value=np.nan), run, steps=steps, checkpoint_every=2, epochs=2)
    kept = train.Checkpoints(run / "checkpoints").steps()[-1]
    assert f"; the checkpoint of step {kept} is kept in {run}. " in message
    assert kept == 4

    # With the value mended the run goes on to where it would have come.
    net, optimizer = networks.feedforward([3, 5, 1], activation="relu"), optax.sgd(0.01)
    step = train.make_step(net, losses.squared_error, optimizer, steps=steps)

    def fit(run, **options):
        state = train.init(net, optimizer, jax.random.key(0), good[0][0])
        return train.fit(state, step, good, run=run, epochs=2, **options)

    same_bits(fit(run, resume=True), fit(tmp_path / "other"))


def test_a_label_out_of_range_that_nobody_could_look_at():
    """A loss of the user's own hides the labels from `fit`; when it is NaN, the search sees them."""
    net, optimizer = networks.feedforward([3, 4, 2]), optax.sgd(0.1)
    step = train.make_step(net, lambda p, t: losses.cross_entropy(p, t), optimizer)
    x = jnp.ones((4, 3))
    state = train.init(net, optimizer, jax.random.key(0), x)
    with pytest.raises(ValueError, match="labels 0 to 1 for 2 classes; got the label 5"):
        train.fit(state, step, [(x, jnp.array([0, 1, 5, 0]))])


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        ({"a": jnp.ones(3), "b": [jnp.array([1.0, jnp.nan])]}, "['b'][0]"),
        ({"a": jnp.array(-jnp.inf), "b": jnp.array(jnp.nan)}, "['a']"),
        ({"whole": jnp.arange(3), "key": jax.random.key(0), "none": jnp.zeros((0, 3))}, None),
        (jnp.array(jnp.nan), ""),
    ],
)
def test_names_the_first_leaf(tree, name):
    assert first_nonfinite(tree) == name
