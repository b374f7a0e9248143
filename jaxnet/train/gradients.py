"""The gradient of a network's training loss, on four roads."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnet import losses, verify
from jaxnet.layers import Layer
from jaxnet.layers.layer import Inputs, Params
from jaxnet.losses import Loss
from jaxnet.train.step import Batch


def check_gradients(net: Layer, loss: Loss, params: Params, batch: Batch, *, seed: int = 0) -> verify.Report:
    """Compares ∂L/∂params and ∂L/∂x of the mean loss over `batch`, leaf by leaf, in float64.

    The four roads: autodiff of the plain functions, `jax.grad` as training uses it, the chain of
    hand-derived `vjp`s that starts from the loss's own derivative, and finite differences.

    Args:
        net: the network, in inference (without dropout).
        loss: one of `losses`.
        params: its parameters.
        batch: `(x, target)`; a few examples are enough.
        seed: of the directions in which the differences are taken.
    """
    x, target = batch

    def objective(params: Params, x: Inputs) -> Array:
        return jnp.mean(loss(net.apply(params, x), target))

    def by_hand(params: Params, x: Inputs) -> tuple[Params, Inputs]:
        prediction, pullback = net.vjp(params, x)
        examples = loss(prediction, target).size
        dprediction = losses.derivative(loss)(prediction, target)
        return pullback(jax.tree.map(lambda d: d / examples, dprediction))

    return verify.check_gradients(objective, params, jax.tree.map(jnp.asarray, x), hand_written=by_hand, seed=seed)
