"""The best parameters of a run."""

import jax.numpy as jnp
import pytest

from jaxnet import train


def test_the_least_is_kept_and_found_again(tmp_path):
    def evaluate(params):
        return {"loss": float((params["w"] - 2) ** 2), "other": 0.0}

    params = {"w": jnp.float32(0)}
    best = train.Best(tmp_path, evaluate)
    with pytest.raises(FileNotFoundError, match="train for an epoch"):
        train.best_parameters(tmp_path, params)
    for w in (5.0, 3.0, 4.0, 1.0):
        assert best({"w": jnp.float32(w)}) == evaluate({"w": w})
    assert float(train.best_parameters(tmp_path, params)["w"]) == 3  # of equals the first
    again = train.Best(tmp_path, evaluate)  # as after a resume
    again({"w": jnp.float32(3.5)})
    assert float(train.best_parameters(tmp_path, params)["w"]) == 3
    again({"w": jnp.float32(2.5)})
    assert float(train.best_parameters(tmp_path, params)["w"]) == 2.5
    with pytest.raises(ValueError, match="another network"):
        train.best_parameters(tmp_path, {"w": jnp.zeros(3)})


def test_a_measure_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="needs a measure 'nats'; evaluate returned loss"):
        train.Best(tmp_path, lambda params: {"loss": 1.0}, of="nats")({"w": jnp.zeros(1)})
