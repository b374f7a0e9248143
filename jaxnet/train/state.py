"""The state of a training run: everything that changes, as one value."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxnet.layers import Layer
from jaxnet.layers.layer import Inputs, Params


class TrainState(NamedTuple):
    """Goes into a step and comes out of it."""

    params: Params
    opt_state: Any
    step: Array  # int32, the number of updates made
    key: Array  # of the run; step n draws from fold_in(key, n)


def init(net: Layer, optimizer: optax.GradientTransformation, key: Array, x: Inputs) -> TrainState:
    """Returns the state before the first step.

    Args:
        net: the network.
        optimizer: any optax transformation, or `train.adamw`.
        key: draws the parameters, and later what the steps draw.
        x: an input batch, or its `jax.ShapeDtypeStruct`.
    """
    params_key, run_key = jax.random.split(key)
    params = net.init(params_key, x)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), run_key)


def count(params: Params) -> int:
    """Returns the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
