"""The loop: what it trains, records and refuses."""

import json
import signal
import threading
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from small_run import PER_EPOCH, before_each_call

from jaxnet import losses, networks, train


def handmade(x_shape=(4, 7), y=(0, 1, 2, 0), dtype=jnp.int32):
    return jnp.ones(x_shape, jnp.float32), jnp.asarray(y, dtype)


def fit(problem, **options):
    return train.fit(problem.state(), problem.step, problem.batches, **options)


def test_fit_is_the_steps_one_after_another(problem, same_bits):
    expected = problem.state()
    for epoch in range(2):
        for batch in problem.batches.epoch(epoch, group=problem.step.steps):
            expected, _ = problem.step(expected, batch)
    same_bits(fit(problem, epochs=2), expected)


def test_every_step_has_a_row(problem, tmp_path):
    fit(problem, epochs=2, run=tmp_path / "run", evaluate=problem.evaluate)
    rows = train.read_metrics(tmp_path / "run/metrics.csv")
    assert [row["step"] for row in rows] == [*range(1, 2 * PER_EPOCH + 1)]
    assert [row["epoch"] for row in rows] == [0] * PER_EPOCH + [1] * PER_EPOCH
    assert all(0 <= row["accuracy"] <= 1 < row["loss"] + 1 for row in rows)
    measured = [row["step"] for row in rows if row["test_loss"] is not None]
    assert measured == [row["step"] for row in rows if row["test_accuracy"] is not None]
    assert measured == [PER_EPOCH, 2 * PER_EPOCH]


def test_evaluates_the_parameters_after_each_epoch(single, tmp_path):
    seen = []

    def evaluate(params):
        seen.append(single.evaluate(params))
        return seen[-1]

    last = fit(single, epochs=3, run=tmp_path / "run", evaluate=evaluate)
    assert len(seen) == 3
    assert seen[-1] == single.evaluate(last.params)
    rows = train.read_metrics(tmp_path / "run/metrics.csv")[PER_EPOCH - 1 :: PER_EPOCH]
    np.testing.assert_allclose([row["test_loss"] for row in rows], [m["loss"] for m in seen], rtol=1e-8)


def test_a_sequence_of_batches(problem, same_bits, tmp_path):
    batches = [batch for batch in problem.batches.epoch(0) if len(batch[0]) == 5]
    expected = problem.state()
    for _ in range(2):
        for start in range(0, len(batches), problem.step.steps or 1):
            group = batches[start : start + (problem.step.steps or 1)]
            batch = jax.tree.map(lambda *a: jnp.stack(a), *group) if problem.step.steps else group[0]
            expected, _ = problem.step(expected, batch)
    found = train.fit(problem.state(), problem.step, batches, epochs=2, run=tmp_path / "run")
    same_bits(found, expected)
    assert len(train.read_metrics(tmp_path / "run/metrics.csv")) == 2 * len(batches)


def test_batches_of_numpy(single, same_bits):
    batches = [*single.batches.epoch(0)]
    in_numpy = [jax.tree.map(np.asarray, batch) for batch in batches]
    ends = [train.fit(single.state(), single.step, b, epochs=1) for b in (batches, in_numpy)]
    same_bits(*ends)


def test_writes_nothing_without_a_folder(single, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(single)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("every", "steps"), [(None, [0, 5, 10]), (2, [8, 10]), (3, [6, 9, 10]), (7, [5, 7, 10]), (99, [0, 5, 10])]
)
def test_checkpoints_at_each_epoch_and_as_often_as_asked(single, tmp_path, every, steps):
    fit(single, epochs=2, run=tmp_path / "run", checkpoint_every=every)
    kept = train.Checkpoints(tmp_path / "run/checkpoints").steps()
    assert len(kept) == 3
    assert set(steps) <= set(kept)


def test_config_json(single, tmp_path):
    fit(single, run=tmp_path / "run", config={"learning_rate": 0.5, "hidden": (3, 4), "folder": tmp_path})
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["options"] == {"learning_rate": 0.5, "hidden": [3, 4], "folder": str(tmp_path)}
    assert config["versions"] == train.versions()
    assert {"python", "jax", "jaxlib", "jaxnet", "numpy", "optax", "platform"} <= set(config["versions"])


# ------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("options", [{"epochs": 0}, {"epochs": -1}, {"checkpoint_every": 0}])
def test_refuses_numbers_below_one(single, options):
    with pytest.raises(ValueError, match="fit needs epochs ≥ 1, checkpoint_every ≥ 1; got"):
        fit(single, **options)


def test_refuses_a_folder_that_holds_a_run(single, tmp_path, rows):
    fit(single, run=tmp_path / "run")
    before = rows(tmp_path / "run")
    with pytest.raises(FileExistsError, match="already holds a run"):
        fit(single, run=tmp_path / "run")
    assert rows(tmp_path / "run") == before


def test_refuses_to_resume_nothing(single, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        fit(single, run=tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_refuses_no_batches(single):
    with pytest.raises(ValueError, match="at least one batch; got none"):
        train.fit(single.state(), single.step, [])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (handmade(y=(0, 1, 3, 0)), "labels 0 to 2 for 3 classes; got the label 3"),
        (handmade(y=(0, -1, 2, 0)), "labels 0 to 2 for 3 classes; got the label -1"),
        (handmade(dtype=jnp.float32), r"integer labels \(4,\) or probabilities \(4, 3\); got float32 \(4,\)"),
        (handmade(x_shape=(0, 7), y=()), r"at least one example; got x of shape \(0, 7\)"),
        (handmade(y=(0, 1)), r"integer labels \(4,\) .* got int32 \(2,\)"),
    ],
    ids=["label 3", "label -1", "float labels", "no example", "2 labels"],
)
def test_refuses_a_batch_before_a_step(single, batch, message):
    made = []
    step = before_each_call(single.step, lambda: made.append(1))
    with pytest.raises(ValueError, match=message):
        train.fit(single.state(), step, [batch])
    assert len(made) <= 1  # shapes are looked at by the step itself


def test_refuses_another_number_of_features(single, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would be the first to complain
    with pytest.raises(ValueError, match=r"x \(…, 7\) for a weight \(7, 13\); got \(4, 6\)"):
        train.fit(single.state(), single.step, [handmade(x_shape=(4, 6))])


def test_looks_at_the_labels_of_each_batch(problem):
    good, bad = handmade(), handmade(y=(0, 1, 2, 9))
    with pytest.raises(ValueError, match="got the label 9"):
        train.fit(problem.state(), problem.step, [good, good, good, good, bad])


def test_looks_at_the_labels_of_a_smoothed_loss(single):
    smoothed = partial(losses.cross_entropy, label_smoothing=0.1)
    step = train.make_step(single.net, smoothed, single.optimizer)
    with pytest.raises(ValueError, match="got the label 9"):
        train.fit(single.state(), step, [handmade(y=(0, 1, 2, 9))])


def test_leaves_the_ignored_label_alone(single):
    padded = partial(losses.cross_entropy, ignore_label=-1)
    step = train.make_step(single.net, padded, single.optimizer)
    state = train.fit(single.state(), step, [handmade(y=(0, -1, 2, -1))], progress=False)
    assert int(state.step) == 1
    with pytest.raises(ValueError, match="got the label 9"):
        train.fit(single.state(), step, [handmade(y=(0, -1, 2, 9))])


def test_looks_at_the_labels_of_what_augmentation_makes():
    """Which may be of another shape than the batch."""
    net, (x, y) = networks.feedforward([14, 3]), handmade()
    sgd = optax.sgd(0.1)
    step = train.make_step(net, losses.cross_entropy, sgd, augment=lambda key, x: jnp.tile(x, 2))
    state = train.init(net, sgd, jax.random.key(0), jnp.tile(x, 2))
    train.fit(state, step, [(x, y)], progress=False)
    with pytest.raises(ValueError, match="labels 0 to 2 for 3 classes; got the label 3"):
        train.fit(train.init(net, sgd, jax.random.key(0), jnp.tile(x, 2)), step, [(x, y + 1)], progress=False)


# -------------------------------------------------------------------------------------- interruption


def signalled(problem, calls, number=signal.SIGINT, times=1):
    """The problem's step, with a signal before call number `calls`."""
    count = iter(range(1, 10**6))

    def raise_signal():
        if next(count) == calls:
            for _ in range(times):
                signal.raise_signal(number)

    return before_each_call(problem.step, raise_signal)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(problem, tmp_path, number, same_bits, rows):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    run, step = tmp_path / "run", signalled(problem, 2, number)
    with pytest.raises(train.Interrupted, match=r"stopped after step \d of 15, saved in .*run"):
        train.fit(problem.state(), step, problem.batches, epochs=3, run=run)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    saved = train.Checkpoints(run / "checkpoints").steps()[-1]
    assert saved == (4 if problem.step.steps else 2)
    assert len(rows(run)) == saved
    resumed = fit(problem, epochs=3, run=run, resume=True)
    same_bits(resumed, fit(problem, epochs=3, run=tmp_path / "other"))
    assert rows(run) == rows(tmp_path / "other")


def test_a_signal_without_a_folder_says_that_nothing_is_saved(single):
    with pytest.raises(train.Interrupted, match="stopped after step 2 of 5, not saved: fit was given no run"):
        train.fit(single.state(), signalled(single, 2), single.batches)


def test_a_second_signal_stops_at_once(single, tmp_path):
    with pytest.raises(KeyboardInterrupt) as stop:
        train.fit(single.state(), signalled(single, 2, times=2), single.batches, run=tmp_path / "run")
    assert not isinstance(stop.value, train.Interrupted)
    assert train.Checkpoints(tmp_path / "run/checkpoints").steps() == [0]


def test_a_signal_in_the_last_step_changes_nothing(single, same_bits):
    same_bits(train.fit(single.state(), signalled(single, 5), single.batches), fit(single))


def test_fit_in_a_thread(single, same_bits):
    ends = []
    thread = threading.Thread(target=lambda: ends.append(fit(single)))
    thread.start()
    thread.join()
    same_bits(ends[0], fit(single))


def test_regression_converges_to_the_line(x64):
    x = jnp.linspace(-1, 1, 16)[:, None]
    net = networks.feedforward([1, 1])
    step = train.make_step(net, losses.squared_error, optax.sgd(0.5))
    state = train.init(net, optax.sgd(0.5), jax.random.key(0), x)
    state = train.fit(state, step, [(x, 3 * x - 2)], epochs=200)
    np.testing.assert_allclose(net.apply(state.params, x), 3 * x - 2, atol=1e-9)
