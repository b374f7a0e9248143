"""Long short-term memory.

Axes: B batch · T time · I features in · H hidden. The four gates lie side by side, as in PyTorch: i, f, g, o.

    (zi, zf, zg, zo) = xₜ W + b + hₜ₋₁ U        i, f, o = σ(zi, zf, zo)        g = tanh(zg)
    cₜ = f ⊙ cₜ₋₁ + i ⊙ g                        hₜ = o ⊙ tanh cₜ

With dhₜ the sum of dyₜ and what comes from the step after it, and dcₜ what comes from there:

    dcₜ += dhₜ ⊙ o ⊙ (1 − tanh² cₜ)
    di = dcₜ ⊙ g        df = dcₜ ⊙ cₜ₋₁        dg = dcₜ ⊙ i        do = dhₜ ⊙ tanh cₜ
    dz = (di ⊙ i(1 − i), df ⊙ f(1 − f), dg ⊙ (1 − g²), do ⊙ o(1 − o))
    dcₜ₋₁ = dcₜ ⊙ f          dhₜ₋₁ = dz Uᵀ          dU = Σ hₜ₋₁ᵀ dz

dx, dW and db are those of `jaxnet.ops.recurrence`, da being dz.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial
from jaxtyping import Float, Integer

from jaxnet import activations
from jaxnet.kernels.lstm import cpu
from jaxnet.ops import recurrence
from jaxnet.ops.recurrence import Cell, Loop, State, Weights
from jaxnet.ops.sequences import check, one_step

Pair = tuple[Float[Array, "B H"], Float[Array, "B H"]]
_Pair = tuple[Array, Array]


def lstm(
    x: Float[Array, "B T I"],
    weight: Float[Array, "I K"],
    recurrent_weight: Float[Array, "H K"],
    bias: Float[Array, " K"] | None = None,
    initial: Pair | None = None,
    *,
    reverse: bool = False,
    lengths: Integer[Array, " B"] | None = None,
    remat: bool = False,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T H"], Pair]:
    """cₜ = f cₜ₋₁ + i g,  hₜ = o tanh cₜ, in at least float32; y and the final (h, c) are rounded once.

    Reverse mode only (`jax.custom_vjp`); the backward pass can itself be differentiated.

    Args:
        x: (B, T, I).
        weight: W, (I, 4 H): of the gates i, f, g, o, one beside the other.
        recurrent_weight: U, (H, 4 H).
        bias: b, (4 H,), or None. PyTorch's two are this one's summands.
        initial: (h, c) before the first step, each (B, H); None is zero.
        reverse: whether the steps are gone through from the last to the first. y stays in the order of x.
        lengths: how many steps of each sequence count, 0 to T; after them y is 0 and (h, c) stays as it is.
            None is T.
        remat: whether the backward pass computes the gates again, of all steps at once: between the passes B T 4 H
            numbers less are kept, and the products of the forward pass are computed twice.
        implementation: see `jaxnet.ops.dispatch`.

    Returns:
        y (B, T, H), all h; and (h, c) after the step that came last.

    Raises:
        ValueError: for shapes or dtypes that don't fit, lengths outside 0 to T (unless traced), an unknown
            implementation.

    Example:
        >>> y, (h, c) = ops.lstm(jnp.ones((2, 5, 3)), jnp.ones((3, 16)), jnp.ones((4, 16)))
        >>> y.shape, c.shape
        ((2, 5, 4), (2, 4))

    Reference: Hochreiter and Schmidhuber, Long Short-Term Memory, 1997; with the forget gate of Gers, Schmidhuber
    and Cummins, Learning to Forget, 2000
    """
    weights = _check(x, weight, recurrent_weight, bias, initial, lengths)
    loop = Loop("lstm", _CELL, reverse, implementation, remat)
    return recurrence.run(loop, x, weights, initial, lengths)


def lstm_vjp(
    x: Float[Array, "B T I"],
    weight: Float[Array, "I K"],
    recurrent_weight: Float[Array, "H K"],
    bias: Float[Array, " K"] | None = None,
    initial: Pair | None = None,
    *,
    reverse: bool = False,
    lengths: Integer[Array, " B"] | None = None,
    remat: bool = False,
    implementation: str | None = None,
) -> tuple[tuple[Float[Array, "B T H"], Pair], Partial]:
    """Returns (y, (h, c)) and its pullback (dy, (dh, dc)) ↦ (dx, dW, dU, db, dinitial); arguments as in `lstm`."""
    weights = _check(x, weight, recurrent_weight, bias, initial, lengths)
    loop = Loop("lstm", _CELL, reverse, implementation, remat)
    outputs, pullback = recurrence.run_vjp(loop, x, weights, initial, lengths)
    return outputs, Partial(_pullback, pullback)


def lstm_step(
    x: Float[Array, "B I"],
    state: Pair,
    weight: Float[Array, "I K"],
    recurrent_weight: Float[Array, "H K"],
    bias: Float[Array, " K"] | None = None,
    *,
    implementation: str | None = None,
) -> Pair:
    """(h, c) after one step from `state`: `lstm` of a sequence of one, for steps that come one at a time.

    In half precision (h, c) is rounded at each step, where `lstm` of the whole sequence rounds at the end.

    Raises:
        ValueError: as `lstm`.
    """
    x = one_step("lstm_step", x)
    return lstm(x, weight, recurrent_weight, bias, state, implementation=implementation)[1]


def reference(
    reverse: bool, x: Array, weights: Weights, initial: _Pair | None, lengths: Array | None
) -> tuple[Array, _Pair]:
    """The specification, for autodiff."""
    w, u, b, _ = weights
    zero = jnp.zeros((x.shape[0], u.shape[0]), x.dtype)

    def step(x: Array, state: _Pair) -> _Pair:
        h, c = state
        i, f, g, o = jnp.split(x @ w + h @ u + (0 if b is None else b[None]), 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    return recurrence.reference(step, reverse, x, (zero, zero) if initial is None else initial, lengths)


def forward(weights: Weights, a: Array, before: _Pair) -> tuple[_Pair, Array]:
    """One step: c′ = f c + i g,  h′ = o tanh c′."""
    h, c = before
    z = jnp.split(a + h @ weights.recurrent_weight, 4, -1)
    i, f, o = (activations.sigmoid(z[gate]) for gate in (0, 1, 3))
    g = activations.tanh(z[2])
    c = f * c + i * g
    return (o * activations.tanh(c), c), jnp.concatenate([i, f, g, o], -1)


def backward(weights: Weights, before: _Pair, kept: Array, dafter: _Pair) -> tuple[Array, None, _Pair]:
    """dc′ += dh′ o (1 − tanh² c′),  dz = (dc′ g i′, dc′ c f′, dc′ i g′, dh′ tanh c′ o′), i′ being i(1 − i)."""
    (_, c), (i, f, g, o), (dh, dc) = before, jnp.split(kept, 4, -1), dafter
    t = activations.tanh(f * c + i * g)  # of two products: not worth its place in memory
    dc = dc + dh * o * ((1 - t) * (1 + t))
    di, df, dg, do = dc * g, dc * c, dc * i, dh * t
    parts = di * i * (1 - i), df * f * (1 - f), dg * ((1 - g) * (1 + g)), do * o * (1 - o)
    dz = jnp.concatenate(parts, -1)
    return dz, None, (dz @ weights.recurrent_weight.T, dc * f)


_CELL = Cell(forward, backward, recurrence.recurrent, cpu.loops(), pair=True)


def _pullback(pullback: Partial, cotangents: tuple[Array, _Pair]) -> tuple[Array | _Pair | None, ...]:
    dx, dweights, dinitial, _ = pullback(cotangents)
    return dx, *dweights[:3], dinitial


def _check(
    x: Array,
    weight: Array,
    recurrent_weight: Array,
    bias: Array | None,
    initial: State | None,
    lengths: Array | None,
) -> Weights:
    weights = Weights(weight, recurrent_weight, bias)
    check("lstm", 4, x, weights, initial, lengths, pair=True)
    return weights
