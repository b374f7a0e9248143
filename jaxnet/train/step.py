"""One training step: forward → loss → backpropagation → update."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxnet.data import Batches
from jaxnet.layers import Layer
from jaxnet.layers.layer import Inputs, Params
from jaxnet.losses import Loss
from jaxnet.train.state import TrainState

Metric = Callable[[Array, Array], Array]
Metrics = dict[str, Array]
Augment = Callable[[Array, Inputs], Inputs]  # key, x
Batch = tuple[Inputs, Array | np.ndarray]  # x, target


@dataclass(frozen=True)
class Step:
    """A training step, `step(state, batch) → (state, metrics)`; made by `make_step`."""

    one: Callable[[TrainState, Any], tuple[TrainState, Metrics]]  # a single step, not compiled
    steps: int | None
    jitted: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    net: Layer | None = None  # with what follows: to say where a run left the finite numbers
    loss: Loss | None = None
    augment: Augment | None = None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Runs it; the buffers of `state` are donated, so the old state can't be used again."""
        return self.jitted(state, batch)


def make_step(
    net: Layer,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    metrics: Mapping[str, Metric] | None = None,
    augment: Augment | None = None,
    steps: int | None = None,
) -> Step:
    """Returns the jitted `step(state, batch) → (state, metrics)`, pure, with the buffers of `state` donated.

    `batch` is `(x, target)`, x whatever the network takes: an array, or a pair (x, lengths). The loss is the mean
    of `loss(net.apply(params, x, key=…), target)`, the update w ← w + optimizer(∂L/∂w); `optax.sgd(η)` is the
    plain rule w ← w − η ∂L/∂w.

    Args:
        net: the network.
        loss: one of `losses`, or any function (prediction, target) → values per example.
        optimizer: any optax transformation, or `train.adamw`.
        metrics: more values to return beside "loss", such as `{"accuracy": train.accuracy}`.
        augment: changes the x of each step, `augment(key, x)`, such as those of `data.augment`.
        steps: None, or how many steps one call makes (`jax.lax.scan`); batch and metrics then have one axis
            more, in front. For small networks, whose steps are shorter than the call of one.

    Raises:
        ValueError: for steps < 1.

    Example:
        >>> step = train.make_step(net, losses.cross_entropy, optax.adam(1e-3))
        >>> state, metrics = step(state, (x, y))
    """
    if steps is not None and steps < 1:
        raise ValueError(f"make_step needs steps ≥ 1 or None; got {steps}")
    metrics = dict(metrics or {})

    def one(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        x, target = jax.tree.map(jnp.asarray, batch)
        x, key = augmented(augment, state, x)

        def objective(params: Params) -> tuple[Array, Array]:
            prediction = net.apply(params, x, key=key)
            return jnp.mean(loss(prediction, target)), prediction

        (value, prediction), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        params, opt_state = updated(optimizer, grads, state.params, state.opt_state)
        measured = {name: jnp.mean(metric(prediction, target)) for name, metric in metrics.items()}
        return TrainState(params, opt_state, state.step + 1, state.key), {"loss": value, **measured}

    return Step(one, steps, jitted(one, steps), net, loss, augment)


def jitted(one: Callable[..., Any], steps: int | None) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """One step, or several by a scan, compiled; the buffers of the state are donated."""

    def several(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(one, state, batch)

    return jax.jit(one if steps is None else several, donate_argnums=0)


def augmented(augment: Augment | None, state: TrainState, x: Inputs) -> tuple[Inputs, Array]:
    """What the step from `state` puts into the network, and the key it draws from."""
    key = jax.random.fold_in(state.key, state.step)
    if augment is None:
        return x, key
    augment_key, key = jax.random.split(key)
    return augment(augment_key, x), key


def updated(
    optimizer: optax.GradientTransformation, grads: Params, params: Params, opt_state: Any
) -> tuple[Params, Any]:
    """The parameters and the optimizer's state after one update."""
    fused = getattr(optimizer, "apply", None)  # train.adamw: the update and the addition in one pass
    if fused is not None:
        return fused(grads, opt_state, params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def evaluate(
    net: Layer,
    params: Params,
    batches: Batches,
    metrics: Mapping[str, Metric],
    *,
    ignore_label: int | None = None,
) -> dict[str, float]:
    """Returns the mean of each metric over all examples, in inference (no key).

    With an `ignore_label`, such as that of padding, it is the mean over all places whose label is another one; the
    metrics then have one value for each place, and the targets are integers.

    Example:
        >>> train.evaluate(net, params, test, {"loss": losses.cross_entropy, "accuracy": train.accuracy})
        {'loss': 0.07, 'accuracy': 0.98}
    """
    total, count = dict.fromkeys(metrics, 0.0), 0
    for x, target in batches:
        means = _means(net, tuple(metrics.items()), ignore_label)(params, x, target)
        size = len(jax.tree.leaves(x)[0]) if ignore_label is None else int(np.sum(target != ignore_label))
        total = {name: total[name] + float(mean) * size for name, mean in means.items()}
        count += size
    return {name: value / count for name, value in total.items()}


@lru_cache(maxsize=64)
def _means(
    net: Layer, metrics: tuple[tuple[str, Metric], ...], ignore_label: int | None
) -> Callable[..., Metrics]:
    def mean(values: Array, target: Array) -> Array:
        if ignore_label is None:
            return jnp.mean(values)
        counts = target != ignore_label
        return jnp.sum(jnp.where(counts, values, 0)) / jnp.maximum(jnp.sum(counts), 1).astype(values.dtype)

    @jax.jit
    def means(params: Params, x: Inputs, target: Array) -> Metrics:
        prediction = net.apply(params, x)
        return {name: mean(metric(prediction, target), target) for name, metric in metrics}

    return means
