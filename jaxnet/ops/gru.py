"""The gated recurrent unit, in two forms.

Axes: B batch · T time · I features in · H hidden. The gates lie side by side, as in PyTorch: r, z, n.

    W = (Wr Wz Wn)        U = (Ur Uz Un)        b = (br bz bn)

    r, z = σ(xₜ Wr + br + hₜ₋₁ Ur, xₜ Wz + bz + hₜ₋₁ Uz)        hₜ = (1 − z) ⊙ n + z ⊙ hₜ₋₁

    reset after the product, as PyTorch and cuDNN    n = tanh(xₜ Wn + bn + r ⊙ u),  u = hₜ₋₁ Un + d
    reset before it, as in the paper                  n = tanh(xₜ Wn + bn + (r ⊙ hₜ₋₁) Un)

With dh the sum of dyₜ and what comes from the step after it, and da = (dar, daz, dan):

    dan = dh ⊙ (1 − z) ⊙ (1 − n²)      daz = dh ⊙ (hₜ₋₁ − n) ⊙ z(1 − z)      dar = dr ⊙ r(1 − r)

    after     dr = dan ⊙ u       dv = (dar, daz, dan ⊙ r)     dhₜ₋₁ = dh ⊙ z + dv Uᵀ
              dU = Σ hₜ₋₁ᵀ dv     dd = Σ dan ⊙ r
    before    ds = dan Unᵀ       dr = ds ⊙ hₜ₋₁              dhₜ₋₁ = dh ⊙ z + ds ⊙ r + (dar, daz) (Ur Uz)ᵀ
              dUr, dUz = Σ hₜ₋₁ᵀ (dar, daz)                  dUn = Σ (r ⊙ hₜ₋₁)ᵀ dan

dx, dW and db are those of `jaxnet.ops.recurrence`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial
from jaxtyping import Float, Integer

from jaxnet import activations
from jaxnet.kernels.gru import cpu
from jaxnet.ops import recurrence
from jaxnet.ops.gradients import like
from jaxnet.ops.recurrence import Cell, Loop, Weights
from jaxnet.ops.sequences import check, one_step


def gru(
    x: Float[Array, "B T I"],
    weight: Float[Array, "I K"],
    recurrent_weight: Float[Array, "H K"],
    bias: Float[Array, " K"] | None = None,
    recurrent_bias: Float[Array, " H"] | None = None,
    initial: Float[Array, "B H"] | None = None,
    *,
    reset_after: bool = True,
    reverse: bool = False,
    lengths: Integer[Array, " B"] | None = None,
    remat: bool = False,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T H"], Float[Array, "B H"]]:
    """hₜ = (1 − z) n + z hₜ₋₁, in at least float32; y and the final h are rounded once to the dtype of x.

    Reverse mode only (`jax.custom_vjp`); the backward pass can itself be differentiated.

    Args:
        x: (B, T, I).
        weight: W, (I, 3 H): of the gates r, z and of n, one beside the other.
        recurrent_weight: U, (H, 3 H).
        bias: b, (3 H,), or None. Of PyTorch's two, b is the sum, but for n, whose second is `recurrent_bias`.
        recurrent_bias: d, (H,), inside the reset of n, or None. Only with `reset_after`: before the product there
            is no place for it.
        initial: h before the first step, (B, H); None is zero.
        reset_after: whether r multiplies hₜ₋₁ Un + d, or hₜ₋₁ itself.
        reverse: whether the steps are gone through from the last to the first. y stays in the order of x.
        lengths: how many steps of each sequence count, 0 to T; after them y is 0 and h stays as it is. None is T.
        remat: whether the backward pass computes the gates again, of all steps at once: between the passes B T 4 H
            numbers less are kept, and the products of the forward pass are computed twice.
        implementation: see `jaxnet.ops.dispatch`.

    Returns:
        y (B, T, H), all h; and the h after the step that came last.

    Raises:
        ValueError: for shapes or dtypes that don't fit, lengths outside 0 to T (unless traced), a recurrent_bias
            without reset_after, an unknown implementation.

    Example:
        >>> y, h = ops.gru(jnp.ones((2, 5, 3)), jnp.ones((3, 12)), jnp.ones((4, 12)))
        >>> y.shape, h.shape
        ((2, 5, 4), (2, 4))

    Reference: Cho et al., Learning Phrase Representations using RNN Encoder–Decoder, 2014,
    https://arxiv.org/abs/1406.1078
    """
    cell, weights = _check(x, weight, recurrent_weight, bias, recurrent_bias, initial, lengths, reset_after)
    loop = Loop("gru", cell, reverse, implementation, remat)
    return recurrence.run(loop, x, weights, initial, lengths)


def gru_vjp(
    x: Float[Array, "B T I"],
    weight: Float[Array, "I K"],
    recurrent_weight: Float[Array, "H K"],
    bias: Float[Array, " K"] | None = None,
    recurrent_bias: Float[Array, " H"] | None = None,
    initial: Float[Array, "B H"] | None = None,
    *,
    reset_after: bool = True,
    reverse: bool = False,
    lengths: Integer[Array, " B"] | None = None,
    remat: bool = False,
    implementation: str | None = None,
) -> tuple[tuple[Float[Array, "B T H"], Float[Array, "B H"]], Partial]:
    """Returns (y, h) and its pullback (dy, dh) ↦ (dx, dW, dU, db, dd, dinitial); arguments as in `gru`."""
    cell, weights = _check(x, weight, recurrent_weight, bias, recurrent_bias, initial, lengths, reset_after)
    loop = Loop("gru", cell, reverse, implementation, remat)
    outputs, pullback = recurrence.run_vjp(loop, x, weights, initial, lengths)
    return outputs, Partial(_pullback, pullback)


def gru_step(
    x: Float[Array, "B I"],
    state: Float[Array, "B H"],
    weight: Float[Array, "I K"],
    recurrent_weight: Float[Array, "H K"],
    bias: Float[Array, " K"] | None = None,
    recurrent_bias: Float[Array, " H"] | None = None,
    *,
    reset_after: bool = True,
    implementation: str | None = None,
) -> Float[Array, "B H"]:
    """h after one step from the h of `state`: `gru` of a sequence of one, for steps that come one at a time.

    In half precision h is rounded at each step, where `gru` of the whole sequence rounds at the end.

    Raises:
        ValueError: as `gru`.
    """
    x = one_step("gru_step", x)
    weights = weight, recurrent_weight, bias, recurrent_bias
    return gru(x, *weights, state, reset_after=reset_after, implementation=implementation)[1]


def reference(
    reset_after: bool, reverse: bool, x: Array, weights: Weights, initial: Array | None, lengths: Array | None
) -> tuple[Array, Array]:
    """The specification, for autodiff."""
    (wr, wz, wn), (ur, uz, un) = (jnp.split(w, 3, -1) for w in weights[:2])
    br, bz, bn = jnp.zeros((3, 1, 1), x.dtype) if weights.bias is None else weights.bias.reshape(3, 1, -1)
    d = jnp.zeros((1, 1), x.dtype) if weights.recurrent_bias is None else weights.recurrent_bias[None]

    def step(x: Array, h: Array) -> Array:
        r, z = jax.nn.sigmoid(x @ wr + br + h @ ur), jax.nn.sigmoid(x @ wz + bz + h @ uz)
        n = jnp.tanh(x @ wn + bn + (r * (h @ un + d) if reset_after else (r * h) @ un))
        return (1 - z) * n + z * h

    h = jnp.zeros((x.shape[0], ur.shape[0]), x.dtype) if initial is None else initial
    return recurrence.reference(step, reverse, x, h, lengths)


def after_forward(weights: Weights, a: Array, h: Array) -> tuple[Array, tuple[Array, Array]]:
    """One step: n = tanh(aₙ + r ⊙ u),  h′ = (1 − z) n + z h."""
    v, d = jnp.split(h @ weights.recurrent_weight, 3, -1), weights.recurrent_bias
    ar, az, an = jnp.split(a, 3, -1)
    u = v[2] if d is None else v[2] + jnp.broadcast_to(d, v[2].shape)
    r, z = activations.sigmoid(ar + v[0]), activations.sigmoid(az + v[1])
    n = activations.tanh(an + r * u)
    return (1 - z) * n + z * h, (jnp.concatenate([r, z, n], -1), u)


def after_backward(weights: Weights, h: Array, kept: tuple[Array, Array], dh: Array) -> tuple[Array, Array, Array]:
    """dv = (dar, daz, dan r),  dh = dh′ z + dv Uᵀ."""
    (r, z, n), u = jnp.split(kept[0], 3, -1), kept[1]
    dan, daz = _candidate_and_update(h, z, n, dh)
    dar = dan * u * r * (1 - r)
    dv = jnp.concatenate([dar, daz, dan * r], -1)
    return jnp.concatenate([dar, daz, dan], -1), dv, dh * z + dv @ weights.recurrent_weight.T


def after_recurrent(
    products: Callable, weights: Weights, h: Array, kept: tuple[Array, Array], dv: Array
) -> tuple[Array, Array | None]:
    """dU = Σ hᵀ dv,  dd = Σ dan r."""
    dweight, sums = products(h, dv, weights.recurrent_weight)
    d = weights.recurrent_bias
    return dweight, None if d is None else like(_apart(sums)[1], d)


def before_forward(weights: Weights, a: Array, h: Array) -> tuple[Array, tuple[Array, Array]]:
    """One step: s = r ⊙ h,  n = tanh(aₙ + s Un),  h′ = (1 − z) n + z h."""
    gates, candidate = _apart(weights.recurrent_weight)
    a, an = _apart(a)
    r, z = jnp.split(activations.sigmoid(a + h @ gates), 2, -1)
    s = r * h
    n = activations.tanh(an + s @ candidate)
    return (1 - z) * n + z * h, (jnp.concatenate([r, z, n], -1), s)


def before_backward(weights: Weights, h: Array, kept: tuple[Array, Array], dh: Array) -> tuple[Array, None, Array]:
    """ds = dan Unᵀ,  dh = dh′ z + ds r + (dar, daz) (Ur Uz)ᵀ."""
    r, z, n = jnp.split(kept[0], 3, -1)
    gates, candidate = _apart(weights.recurrent_weight)
    dan, daz = _candidate_and_update(h, z, n, dh)
    ds = dan @ candidate.T
    dgates = jnp.concatenate([ds * h * r * (1 - r), daz], -1)
    return jnp.concatenate([dgates, dan], -1), None, dh * z + ds * r + dgates @ gates.T


def before_recurrent(
    products: Callable, weights: Weights, h: Array, kept: tuple[Array, Array], da: Array
) -> tuple[Array, None]:
    """dUr, dUz = Σ hᵀ (dar, daz),  dUn = Σ sᵀ dan."""
    (dgates, dan), weight = _apart(da), weights.recurrent_weight
    parts = products(h, dgates, weight)[0], products(kept[1], dan, weight)[0]
    return jnp.concatenate(parts, -1), None


def _candidate_and_update(h: Array, z: Array, n: Array, dh: Array) -> tuple[Array, Array]:
    """dan = dh (1 − z)(1 − n²),  daz = dh (h − n) z(1 − z)."""
    return dh * (1 - z) * ((1 - n) * (1 + n)), dh * (h - n) * z * (1 - z)


def _apart(a: Array) -> tuple[Array, Array]:
    """The part of r and z, and that of n."""
    third = a.shape[-1] // 3
    return a[..., : 2 * third], a[..., 2 * third :]


_AFTER = Cell(after_forward, after_backward, after_recurrent, cpu.loops(reset_after=True))
_BEFORE = Cell(before_forward, before_backward, before_recurrent, cpu.loops(reset_after=False))


def _pullback(pullback: Partial, cotangents: tuple[Array, Array]) -> tuple[Array | None, ...]:
    dx, dweights, dinitial, _ = pullback(cotangents)
    return dx, *dweights, dinitial


def _check(
    x: Array,
    weight: Array,
    recurrent_weight: Array,
    bias: Array | None,
    recurrent_bias: Array | None,
    initial: Array | None,
    lengths: Array | None,
    reset_after: bool,
) -> tuple[Cell, Weights]:
    if recurrent_bias is not None and not reset_after:
        raise ValueError("gru has a recurrent_bias only with reset_after=True; put it into bias")
    weights = Weights(weight, recurrent_weight, bias, recurrent_bias)
    check("gru", 3, x, weights, initial, lengths)
    return _AFTER if reset_after else _BEFORE, weights
