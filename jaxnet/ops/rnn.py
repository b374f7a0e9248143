"""The simple recurrent network, of Elman.

Axes: B batch · T time · I features in · H hidden.

    zₜ = xₜ W + b + hₜ₋₁ U        hₜ = f(zₜ)        f = tanh or relu

For both f the derivative is a function of hₜ: tanh′ = 1 − hₜ²,  relu′ = [hₜ > 0]. With dhₜ the sum of dyₜ and what
comes from the step after it:

    dzₜ = f′(zₜ) ⊙ dhₜ        dhₜ₋₁ = dzₜ Uᵀ        dU = Σ hₜ₋₁ᵀ dzₜ

dx, dW and db are those of `jaxnet.ops.recurrence`, da being dz.
"""

from functools import partial

import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial
from jaxtyping import Float, Integer

from jaxnet import activations
from jaxnet.kernels.rnn import cpu
from jaxnet.ops import recurrence
from jaxnet.ops.recurrence import Cell, Loop, Weights
from jaxnet.ops.sequences import check, one_step


def rnn(
    x: Float[Array, "B T I"],
    weight: Float[Array, "I H"],
    recurrent_weight: Float[Array, "H H"],
    bias: Float[Array, " H"] | None = None,
    initial: Float[Array, "B H"] | None = None,
    *,
    activation: str = "tanh",
    reverse: bool = False,
    lengths: Integer[Array, " B"] | None = None,
    remat: bool = False,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T H"], Float[Array, "B H"]]:
    """hₜ = f(xₜ W + b + hₜ₋₁ U), in at least float32; y and the final h are rounded once to the dtype of x.

    Reverse mode only (`jax.custom_vjp`); the backward pass can itself be differentiated.

    Args:
        x: (B, T, I).
        weight: W, (I, H).
        recurrent_weight: U, (H, H).
        bias: b, (H,), or None.
        initial: h before the first step, (B, H); None is zero.
        activation: f, "tanh" or "relu".
        reverse: whether the steps are gone through from the last to the first. y stays in the order of x.
        lengths: how many steps of each sequence count, 0 to T; after them y is 0 and h stays as it is. None is T.
        remat: whether the backward pass computes f(zₜ) again, of all steps at once: between the passes B T H
            numbers less are kept, and the products of the forward pass are computed twice.
        implementation: see `jaxnet.ops.dispatch`.

    Returns:
        y (B, T, H), all h; and the h after the step that came last.

    Raises:
        ValueError: for shapes or dtypes that don't fit, lengths outside 0 to T (unless traced), another
            activation, an unknown implementation.

    Example:
        >>> y, h = ops.rnn(jnp.ones((2, 5, 3)), jnp.ones((3, 4)), jnp.ones((4, 4)))
        >>> y.shape, h.shape
        ((2, 5, 4), (2, 4))

    Reference: Elman, Finding Structure in Time, 1990
    """
    cell, weights = _check(x, weight, recurrent_weight, bias, initial, lengths, activation)
    loop = Loop("rnn", cell, reverse, implementation, remat)
    return recurrence.run(loop, x, weights, initial, lengths)


def rnn_vjp(
    x: Float[Array, "B T I"],
    weight: Float[Array, "I H"],
    recurrent_weight: Float[Array, "H H"],
    bias: Float[Array, " H"] | None = None,
    initial: Float[Array, "B H"] | None = None,
    *,
    activation: str = "tanh",
    reverse: bool = False,
    lengths: Integer[Array, " B"] | None = None,
    remat: bool = False,
    implementation: str | None = None,
) -> tuple[tuple[Float[Array, "B T H"], Float[Array, "B H"]], Partial]:
    """Returns (y, h) and its pullback (dy, dh) ↦ (dx, dW, dU, db, dinitial); arguments as in `rnn`."""
    cell, weights = _check(x, weight, recurrent_weight, bias, initial, lengths, activation)
    loop = Loop("rnn", cell, reverse, implementation, remat)
    outputs, pullback = recurrence.run_vjp(loop, x, weights, initial, lengths)
    return outputs, Partial(_pullback, pullback)


def rnn_step(
    x: Float[Array, "B I"],
    state: Float[Array, "B H"],
    weight: Float[Array, "I H"],
    recurrent_weight: Float[Array, "H H"],
    bias: Float[Array, " H"] | None = None,
    *,
    activation: str = "tanh",
    implementation: str | None = None,
) -> Float[Array, "B H"]:
    """h after one step from the h of `state`: `rnn` of a sequence of one, for steps that come one at a time.

    In half precision h is rounded at each step, where `rnn` of the whole sequence rounds at the end.

    Raises:
        ValueError: as `rnn`.
    """
    x = one_step("rnn_step", x)
    weights = weight, recurrent_weight, bias
    return rnn(x, *weights, state, activation=activation, implementation=implementation)[1]


def reference(
    activation: str, reverse: bool, x: Array, weights: Weights, initial: Array | None, lengths: Array | None
) -> tuple[Array, Array]:
    """The specification, for autodiff."""
    w, u, b, _ = weights
    f = {"tanh": jnp.tanh, "relu": lambda z: jnp.maximum(z, 0)}[activation]
    h = jnp.zeros((x.shape[0], u.shape[0]), x.dtype) if initial is None else initial
    return recurrence.reference(
        lambda x, h: f(x @ w + h @ u + (0 if b is None else b[None])), reverse, x, h, lengths
    )


def forward(activation: str, weights: Weights, a: Array, h: Array) -> tuple[Array, Array]:
    """One step: h′ = f(a + h U)."""
    after = activations.get(activation)(a + h @ weights.recurrent_weight)
    return after, after


def backward(activation: str, weights: Weights, before: Array, h: Array, dh: Array) -> tuple[Array, None, Array]:
    """dz = f′(z) ⊙ dh,  dbefore = dz Uᵀ."""
    dz = (1 - h) * (1 + h) * dh if activation == "tanh" else activations.pullback(activation)(h, dh)
    return dz, None, dz @ weights.recurrent_weight.T


_CELLS = {
    name: Cell(
        partial(forward, name), partial(backward, name), recurrence.recurrent, cpu.loops(relu=name == "relu")
    )
    for name in ("tanh", "relu")
}


def _pullback(pullback: Partial, cotangents: tuple[Array, Array]) -> tuple[Array | None, ...]:
    dx, dweights, dinitial, _ = pullback(cotangents)
    return dx, *dweights[:3], dinitial


def _check(
    x: Array,
    weight: Array,
    recurrent_weight: Array,
    bias: Array | None,
    initial: Array | None,
    lengths: Array | None,
    activation: str,
) -> tuple[Cell, Weights]:
    if activation not in _CELLS:
        raise ValueError(
            f"rnn needs an activation {' or '.join(map(repr, _CELLS))}; got {activation!r}"
            + activations.instead(activation, _CELLS)
        )
    weights = Weights(weight, recurrent_weight, bias)
    check("rnn", 1, x, weights, initial, lengths)
    return _CELLS[activation], weights
