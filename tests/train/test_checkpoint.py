"""Checkpoints: what is written comes back; what is damaged is noticed."""

import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnet import networks, train


@pytest.fixture(scope="module")
def states(single):
    """The states after 0, 1, … 4 steps."""
    made, state = [single.state()], single.state()
    for batch in [*single.batches.epoch(0)][:4]:
        state, _ = single.step(state, batch)
        made.append(jax.tree.map(jnp.copy, state))
    return made


@pytest.fixture
def saved(states, tmp_path):
    """A folder with the checkpoints of steps 1 and 2."""
    checkpoints = train.Checkpoints(tmp_path / "checkpoints")
    for state in states[1:3]:
        checkpoints.save(state)
    return tmp_path / "checkpoints"


def test_comes_back_bit_by_bit(saved, states, single, same_bits):
    same_bits(train.Checkpoints(saved).restore(single.state()), states[2])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.int32, jnp.bool_], ids=lambda d: d.__name__)
def test_every_dtype_and_shape_comes_back(dtype, tmp_path, same_bits):
    values = {"a": jnp.arange(6).reshape(2, 3), "scalar": jnp.ones(()), "none": jnp.zeros((0, 2)), "gap": ()}
    params = [jax.tree.map(lambda a: a.astype(dtype), values)]
    state = train.TrainState(params, optax.EmptyState(), jnp.int32(7), jax.random.key(3, impl="rbg"))
    train.Checkpoints(tmp_path).save(state)
    same_bits(train.Checkpoints(tmp_path).restore(state._replace(key=jax.random.key(0, impl="rbg"))), state)


def test_nan_and_infinity_come_back(tmp_path, same_bits):
    state = train.TrainState(jnp.array([np.nan, -np.inf, -0.0]), (), jnp.int32(0), jax.random.key(0))
    train.Checkpoints(tmp_path).save(state)
    same_bits(train.Checkpoints(tmp_path).restore(state), state)


def test_the_newest_three_are_kept(states, single, tmp_path, same_bits):
    checkpoints = train.Checkpoints(tmp_path)
    for state in states:
        checkpoints.save(state)
        assert len(checkpoints.steps()) <= 3
    assert checkpoints.steps() == [2, 3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "2.sha256", "3", "3.sha256", "4", "4.sha256"]
    same_bits(checkpoints.restore(single.state()), states[4])


def test_sha256sum_reads_the_checksums(saved):
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "2.sha256"], cwd=saved, check=True)


def test_there_is_none(single, tmp_path):
    checkpoints = train.Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.steps() == []
    assert checkpoints.restore(single.state()) is None


def test_what_someone_put_there_stays(saved):
    (saved / "best").mkdir()
    (saved / "notes.txt").write_text("the best is 2")
    train.Checkpoints(saved)
    assert (saved / "best").exists()
    assert (saved / "notes.txt").exists()


# ------------------------------------------------------------------------------------------- damage


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def delete(path):
    path.unlink()


def add(path):
    path.with_name("another").write_bytes(b"")


def files(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_any_damaged_file_is_named_and_the_checkpoint_before_taken(
    damage, saved, states, single, same_bits, caplog
):
    pristine = {path.relative_to(saved): path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    assert len(files(saved / "2")) >= 5
    for file in files(saved / "2"):
        name = str(file.relative_to(saved))
        damage(file)
        caplog.clear()
        same_bits(train.Checkpoints(saved).restore(single.state()), states[1])
        assert f"checkpoint {saved / '2'} is damaged ({name} has changed)" in caplog.text
        assert train.Checkpoints(saved).steps() == [1]
        assert (saved / "2.damaged").is_dir()
        for path, content in pristine.items():
            (saved / path).parent.mkdir(parents=True, exist_ok=True)
            (saved / path).write_bytes(content)


def test_a_file_too_many(saved, states, single, same_bits, caplog):
    add(saved / "2/_METADATA")
    same_bits(train.Checkpoints(saved).restore(single.state()), states[1])
    assert "2/another has changed" in caplog.text


def damaged_checksums(path):
    text = path.read_text()
    wrong = ("1" if text[0] == "0" else "0") + text[1:]
    return {"a digit": wrong, "no end": text[: len(text) // 2], "empty": "", "noise": "\x00\xff\n" * 9}


@pytest.mark.parametrize("kind", ["a digit", "no end", "empty", "noise"])
def test_damaged_checksums(kind, saved, states, single, same_bits, caplog):
    path = saved / "2.sha256"
    path.write_text(damaged_checksums(path)[kind])
    same_bits(train.Checkpoints(saved).restore(single.state()), states[1])
    assert f"checkpoint {saved / '2'} is damaged" in caplog.text


def test_deleted_checksums_are_a_checkpoint_half_written(saved, states, single, same_bits):
    (saved / "2.sha256").unlink()
    checkpoints = train.Checkpoints(saved)
    assert not (saved / "2").exists()
    same_bits(checkpoints.restore(single.state()), states[1])


def test_all_damaged(saved, single):
    for step in (1, 2):
        flip(files(saved / str(step))[0])
    assert train.Checkpoints(saved).restore(single.state()) is None


def test_a_damaged_one_is_written_again(saved, states, single, same_bits):
    flip(files(saved / "2")[0])
    checkpoints = train.Checkpoints(saved)
    checkpoints.restore(single.state())
    checkpoints.save(states[2])
    same_bits(train.Checkpoints(saved).restore(single.state()), states[2])


# ------------------------------------------------------------------------------ of another network


def state_of(sizes, optimizer):
    net = networks.feedforward(sizes)
    return train.init(net, optimizer, jax.random.key(0), jnp.ones((1, 7)))


@pytest.mark.parametrize(
    ("sizes", "optimizer", "message"),
    [
        (
            [7, 14, 3],
            train.adamw(0.1),
            r"opt_state.mu\[0\]\['bias'\] is float32 \(13,\), where .* float32 \(14,\)",
        ),
        ([7, 13, 13, 3], train.adamw(0.1), "is .*, where this run has .*"),
        ([7, 13, 3], optax.sgd(0.1), r"its .opt_state.count is int32 \(\), where this run has missing"),
    ],
    ids=["wider", "deeper", "sgd"],
)
def test_of_another_network_or_optimizer(saved, sizes, optimizer, message):
    with pytest.raises(ValueError, match=message) as error:
        train.Checkpoints(saved).restore(state_of(sizes, optimizer))
    assert f"{saved / '2'} is of another network or optimizer" in str(error.value)
    assert train.Checkpoints(saved).steps() == [1, 2]


def test_of_another_dtype(saved, single):
    half = jax.tree.map(lambda w: w.astype(jnp.float16), single.state().params)
    with pytest.raises(ValueError, match=r"params.* is float32 .*, where this run has float16"):
        train.Checkpoints(saved).restore(single.state()._replace(params=half))
