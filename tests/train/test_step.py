"""One training step: the update, compilation, donation, random keys, metrics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_run import PER_EPOCH

from jaxnet import data, losses, networks, train

SGD = optax.sgd(0.1)


@pytest.fixture
def batch():
    draw = np.random.default_rng(3)
    x = draw.standard_normal((6, 5)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(draw.integers(0, 3, 6), np.int32)


@pytest.fixture
def net():
    return networks.feedforward([5, 17, 3])


def state_of(net, optimizer, batch, dtype=jnp.float32):
    params = train.init(net, optimizer, jax.random.key(0), batch[0]).params
    params = jax.tree.map(lambda w: w.astype(dtype), params)
    return train.TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), jax.random.key(4))


def mean_loss(net, batch, key=None):
    return lambda params: losses.cross_entropy(net.apply(params, batch[0], key=key), batch[1]).mean()


def largest_difference(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda p, q: float(jnp.abs(p - q).max()), a, b)))


def test_sgd_is_the_plain_rule(net, batch, x64):
    batch = (batch[0].astype(jnp.float64), batch[1])
    state = state_of(net, optax.sgd(0.1), batch, jnp.float64)
    gradient = jax.grad(mean_loss(net, batch))(state.params)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, state.params, gradient)
    after, _ = train.make_step(net, losses.cross_entropy, optax.sgd(0.1))(state, batch)
    assert largest_difference(after.params, expected) < 1e-15
    assert int(after.step) == 1


def test_adamw_is_optax_adamw(net, batch, x64):
    batch = (batch[0].astype(jnp.float64), batch[1])
    ends = []
    for optimizer in (train.adamw(0.01, weight_decay=0.1), optax.adamw(0.01, weight_decay=0.1)):
        step = train.make_step(net, losses.cross_entropy, optimizer)
        state = state_of(net, optimizer, batch, jnp.float64)
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            for _ in range(5):
                state, _ = step(state, batch)
        ends.append(state.params)
    assert largest_difference(*ends) < 1e-13


@pytest.mark.parametrize("optimizer", [train.adamw(0.01), optax.sgd(0.1, momentum=0.9)], ids=["adamw", "sgd"])
def test_the_state_is_updated_in_its_own_memory(net, batch, optimizer):
    step, state = train.make_step(net, losses.cross_entropy, optimizer), state_of(net, optimizer, batch)
    text = step.jitted.lower(state, batch).compile().as_text()
    (header,) = (line for line in text.splitlines() if "input_output_alias" in line)
    assert header.count("-alias)") == len(jax.tree.leaves(state))
    assert "= f32[5,17]{1,0} copy(" not in text
    after, _ = step(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state, state.step)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def test_compiles_once_for_each_shape_of_a_batch(single, tmp_path, caplog):
    step, traces = single.step, []

    def counted_loss(prediction, target):
        traces.append(prediction.shape)
        return losses.cross_entropy(prediction, target)

    step = train.make_step(single.net, counted_loss, single.optimizer)
    with jax.log_compiles():
        for epochs, resume in ((2, False), (4, True)):
            train.fit(single.state(), step, single.batches, epochs=epochs, run=tmp_path / "run", resume=resume)
    assert traces == [(5, 3), (2, 3)]  # the whole batch, and the last of an epoch
    compiled = [line for line in caplog.messages if line.startswith(f"Compiling jit({step.one.__name__})")]
    assert len(compiled) == 2, caplog.messages


def test_augmented_steps_see_what_the_key_draws(single):
    """It is a step without on the batch augmented, and each has a key of its own."""
    seen = []

    def augment(key, x):
        jax.debug.callback(lambda drawn: seen.append(float(drawn)), jax.random.uniform(key))
        return x * 2

    x, y = next(single.batches.epoch(0))
    net = networks.feedforward([7, 5, 3])  # draws nothing itself
    augmented = train.make_step(net, losses.cross_entropy, SGD, augment=augment)
    plain = train.make_step(net, losses.cross_entropy, SGD)
    state, metrics = augmented(state_of(net, SGD, (x, y)), (x, y))
    _, expected = plain(state_of(net, SGD, (x, y)), (2 * x, y))
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
    augmented(state, (x, y))
    jax.effects_barrier()
    assert len(set(seen)) == 2


def test_scanned_steps_are_single_steps(same_bits, single):
    groups = [*single.batches.epoch(0, group=4)]
    singly, losses_singly = single.state(), []
    for batch in single.batches.epoch(0):
        singly, metrics = single.step(singly, batch)
        losses_singly.append(float(metrics["loss"]))
    scanned, losses_scanned = single.state(), []
    several = train.make_step(
        single.net, losses.cross_entropy, single.optimizer, metrics={"accuracy": train.accuracy}, steps=4
    )
    for group in groups:
        scanned, metrics = several(scanned, group)
        losses_scanned.extend(metrics["loss"].tolist())
    same_bits(scanned, singly)
    assert losses_scanned == losses_singly
    assert len(losses_singly) == PER_EPOCH


def test_dropout_draws_from_the_key_and_the_step(batch):
    net = networks.feedforward([5, 17, 3], dropout_rate=0.5)
    step = train.make_step(net, losses.cross_entropy, optax.sgd(0.0))  # the parameters stay
    values = []
    for _ in range(2):
        state = state_of(net, optax.sgd(0.0), batch)
        params = jax.tree.map(jnp.copy, state.params)
        values.append([])
        for _ in range(4):
            state, metrics = step(state, batch)
            values[-1].append(float(metrics["loss"]))
    assert values[0] == values[1]
    assert len(set(values[0])) == 4
    by_hand = [mean_loss(net, batch, jax.random.fold_in(jax.random.key(4), n))(params) for n in range(4)]
    np.testing.assert_allclose(values[0], by_hand, rtol=1e-6)


def test_metrics_are_those_of_the_parameters_before_the_update(net, batch):
    step = train.make_step(net, losses.cross_entropy, optax.sgd(1.0), metrics={"accuracy": train.accuracy})
    state = state_of(net, optax.sgd(1.0), batch)
    logits = net.apply(state.params, batch[0])
    loss, right = losses.cross_entropy(logits, batch[1]).mean(), (logits.argmax(-1) == batch[1]).mean()
    _, metrics = step(state, batch)
    assert set(metrics) == {"loss", "accuracy"}
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    assert float(metrics["accuracy"]) == float(right)


def test_an_empty_scan_is_refused(net):
    with pytest.raises(ValueError, match=r"steps ≥ 1 or None; got 0"):
        train.make_step(net, losses.cross_entropy, optax.sgd(0.1), steps=0)


def test_evaluate_is_the_mean_over_examples(net, batch):
    params = train.init(net, optax.sgd(0.1), jax.random.key(0), batch[0]).params
    unequal = data.batches(tuple(map(np.asarray, batch)), 4)
    assert [len(x) for x, _ in unequal] == [4, 2]
    found = train.evaluate(net, params, unequal, {"loss": losses.cross_entropy, "accuracy": train.accuracy})
    logits = net.apply(params, batch[0])
    np.testing.assert_allclose(found["loss"], losses.cross_entropy(logits, batch[1]).mean(), rtol=1e-6)
    np.testing.assert_allclose(found["accuracy"], (logits.argmax(-1) == batch[1]).mean(), rtol=1e-6)


def test_evaluate_leaves_out_what_is_ignored():
    draw = np.random.default_rng(1)
    x, y = jnp.asarray(draw.standard_normal((5, 3, 4)), jnp.float32), draw.integers(0, 3, (5, 3)).astype(np.int32)
    y[0, 1:] = y[3] = -1
    net = networks.feedforward([4, 3])
    params = net.init(jax.random.key(0), x)
    counted, labels = net.apply(params, x)[y >= 0], jnp.asarray(y[y >= 0])
    loss, accuracy = losses.cross_entropy(counted, labels), train.accuracy(counted, labels)
    ignoring = partial(losses.cross_entropy, ignore_label=-1)
    metrics = {"loss": ignoring, "accuracy": train.accuracy}
    found = train.evaluate(net, params, data.batches((x, y), 2), metrics, ignore_label=-1)
    assert found == {"loss": pytest.approx(loss.mean()), "accuracy": pytest.approx(accuracy.mean())}


def test_evaluate_is_inference(batch):
    net = networks.feedforward([5, 17, 3], dropout_rate=0.5)
    params = train.init(net, optax.sgd(0.1), jax.random.key(0), batch[0]).params
    found = train.evaluate(net, params, data.batches(batch, 6), {"loss": losses.cross_entropy})
    np.testing.assert_allclose(found["loss"], mean_loss(net, batch)(params), rtol=1e-6)


def test_count():
    assert train.count({"w": jnp.zeros((3, 4)), "b": jnp.zeros(4), "none": ()}) == 16
