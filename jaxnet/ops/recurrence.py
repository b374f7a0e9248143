"""The loop over time, which `rnn`, `lstm` and `gru` share.

Axes: B batch · T time · I features in · H hidden · K = G H, all gates side by side.

A cell takes the state s, which is h or a pair (h, c), one step on. What it needs of x is one product
for all steps:

    aₜ = xₜ W + b        sₜ = cell(aₜ, sₜ₋₁)        yₜ = hₜ

Backwards only ds goes through the loop. The gradients of all weights are products of whole sequences after it:

    daₜ, dsₜ₋₁ = cell′(dsₜ + dyₜ)      dx = da Wᵀ      dW = Σ xₜᵀ daₜ      db = Σ daₜ      dU = Σ hₜ₋₁ᵀ daₜ

Past the length of a sequence nothing happens: sₜ = sₜ₋₁, yₜ = 0, daₜ = 0, and x isn't read. So a sequence that is
gone through from its end begins with its last element, wherever the padding ends.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec
from jax.tree_util import Partial

from jaxnet.activations import accumulation_dtype
from jaxnet.ops import dispatch
from jaxnet.ops.gradients import like

State = Any  # h, or (h, c); each (B, H)


class Weights(NamedTuple):
    """W (I, K), U (H, K), b (K,), and for a GRU the bias inside its reset (H,)."""

    weight: Array
    recurrent_weight: Array
    bias: Array | None
    recurrent_bias: Array | None = None


class Cell(NamedTuple):
    """One step of time, of whole batches, in the dtype of the sums; `kept` is what its derivative needs.

    ============  ============================================================================
    `forward`     `forward(weights, a, before) → (after, kept)`
    `backward`    `backward(weights, before, kept, dafter) → (da, dbefore)`
    `recurrent`   `recurrent(weights, before, kept, da) → (dU, drecurrent_bias)`, of all steps
    `pair`        whether the state is (h, c)
    ============  ============================================================================
    """

    forward: Callable[..., tuple[State, Any]]
    backward: Callable[..., tuple[Array, State]]
    recurrent: Callable[..., tuple[Array, Array | None]]
    pair: bool = False


class Residuals(NamedTuple):
    """What the backward pass needs; `before`, the states before each step, and `kept` begin with the axis T."""

    x: Array
    weights: Weights
    initial: State | None
    lengths: Array | None
    before: State
    kept: Any


def run(op: str, implementation: str | None, cell: Cell, reverse: bool, *args: Any) -> tuple[Array, State]:
    """Returns y (B, T, H) and the final state; `args` are x, the weights, the initial state and the lengths."""
    return dispatch.choose(op, implementation, partial(_recurrent, cell, reverse), {})(*args)


def run_vjp(
    op: str, implementation: str | None, cell: Cell, reverse: bool, *args: Any
) -> tuple[tuple[Array, State], Partial]:
    """Returns what `run` does, and the pullback (dy, dfinal) ↦ (dx, dweights, dinitial, None)."""
    outputs, residuals = dispatch.choose(op, implementation, partial(forward, cell, reverse), {})(*args)
    return outputs, Partial(partial(backward, cell, reverse), residuals)


def reference(
    step: Callable[[Array, State], State], reverse: bool, x: Array, state: State, lengths: Array | None
) -> tuple[Array, State]:
    """The specification, for autodiff: one step after the other."""
    steps = range(x.shape[1])
    ys = [jnp.zeros_like(hidden(state))] * x.shape[1]
    for t in reversed(steps) if reverse else steps:
        here = None if lengths is None else (t < lengths)[:, None]
        state = _where(here, step(x[:, t], state), state)
        ys[t] = _where(here, hidden(state), jnp.zeros_like(hidden(state)))
    return jnp.stack(ys, 1), state


def forward(
    cell: Cell, reverse: bool, x: Array, weights: Weights, initial: State | None, lengths: Array | None
) -> tuple[tuple[Array, State], Residuals]:
    """aₜ = xₜ W + b,  sₜ = cell(aₜ, sₜ₋₁),  yₜ = hₜ."""
    wide, here = _widened(weights, x), _within(lengths, x.shape[1])
    a = jnp.matmul(_read(x, here), weights.weight, preferred_element_type=accumulation_dtype(x.dtype))
    a = a if wide.bias is None else a + jnp.broadcast_to(wide.bias, a.shape)

    def step(before: State, at: tuple[Array, Array | None]) -> tuple[State, tuple[Array, State, Any]]:
        a, here = at
        after, kept = cell.forward(wide, a, before)
        after = _where(here, after, before)
        return after, (hidden(after), before, kept)

    first = jax.tree.map(partial(_carried, x), start(cell, x, weights) if initial is None else initial)
    final, (h, before, kept) = lax.scan(step, first, (a, here), reverse=reverse)
    y = jnp.swapaxes(_where(here, h, jnp.zeros_like(h)), 0, 1).astype(x.dtype)
    final = jax.tree.map(lambda s: s.astype(x.dtype), final)
    return (y, final), Residuals(x, weights, initial, lengths, before, kept)


def backward(
    cell: Cell, reverse: bool, residuals: Residuals, cotangents: tuple[Array, State]
) -> tuple[Array, Weights, State | None, None]:
    """daₜ, dsₜ₋₁ = cell′(dsₜ + dyₜ);  dx = da Wᵀ,  dW = Σ xₜᵀ daₜ,  db = Σ daₜ."""
    x, weights, initial, lengths, before, kept = residuals
    wide, here = _widened(weights, x), _within(lengths, x.shape[1])
    dy, dfinal = jax.tree.map(partial(_carried, x), cotangents)
    dy = jnp.swapaxes(dy, 0, 1)
    dy = _where(here, dy, jnp.zeros_like(dy))

    def step(dafter: State, at: tuple[Array, Array | None, State, Any]) -> tuple[State, Array]:
        dy, here, before, kept = at
        dh, *rest = jax.tree.leaves(dafter)
        dafter = jax.tree.unflatten(jax.tree.structure(dafter), [dh + dy, *rest])
        da, dbefore = cell.backward(wide, before, kept, dafter)
        return _where(here, dbefore, dafter), _where(here, da, jnp.zeros_like(da))

    dinitial, da = lax.scan(step, dfinal, (dy, here, before, kept), reverse=not reverse)
    dx = jnp.swapaxes(da @ wide.weight.T, 0, 1).astype(x.dtype)
    dweight = summed(_read(x, here).astype(da.dtype), da, weights.weight)
    dbias = None if weights.bias is None else like(jnp.sum(da, (0, 1)), weights.bias)
    dother, drecurrent_bias = cell.recurrent(weights, before, kept, da)
    dinitial = None if initial is None else jax.tree.map(like, dinitial, initial)
    return dx, Weights(dweight, dother, dbias, drecurrent_bias), dinitial, None


def summed(left: Array, right: Array, argument: Array) -> Array:
    """Σ leftₜᵀ rightₜ over time and batch: one product, the gradient of `argument`."""
    sharding = jax.typeof(argument).sharding  # the sum over a sharded batch can lie on the devices in several ways
    return like(lax.dot_general(left, right, (((0, 1), (0, 1)), ((), ())), out_sharding=sharding), argument)


def recurrent(weights: Weights, before: State, kept: Any, da: Array) -> tuple[Array, None]:
    """dU = Σ hₜ₋₁ᵀ daₜ, where h U is added to a."""
    return summed(hidden(before), da, weights.recurrent_weight), None


def hidden(state: State) -> Array:
    """h of the state."""
    return state[0] if isinstance(state, tuple) else state


def start(cell: Cell, x: Array, weights: Weights) -> State:
    """The state before the first step: zero."""
    h = jnp.zeros((x.shape[0], weights.recurrent_weight.shape[0]), x.dtype)
    return (h, h) if cell.pair else h


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recurrent(
    cell: Cell, reverse: bool, x: Array, weights: Weights, initial: State | None, lengths: Array | None
) -> tuple[Array, State]:
    return forward(cell, reverse, x, weights, initial, lengths)[0]


_recurrent.defvjp(forward, backward)


def _widened(weights: Weights, x: Array) -> Weights:
    """The weights in the dtype of the sums."""
    return jax.tree.map(lambda w: w.astype(accumulation_dtype(x.dtype)), weights)


def _within(lengths: Array | None, steps: int) -> Array | None:
    """Whether a step is within its sequence, (T, B, 1)."""
    if lengths is None:
        return None
    return jnp.arange(steps, dtype="int32")[:, None, None] < lengths.astype("int32")[None, :, None]


def _read(x: Array, here: Array | None) -> Array:
    """x with the time first, and without what lies in the padding: NaN there must not spoil a sum."""
    x = jnp.swapaxes(x, 0, 1)
    return _where(here, x, jnp.zeros_like(x))


def _where(here: Array | None, inside: State, outside: State) -> State:
    """The one within the sequences, the other past their ends."""
    return inside if here is None else jax.tree.map(partial(jnp.where, here), inside, outside)


def _carried(x: Array, state: Array) -> Array:
    """As the loop carries it: in the dtype of the sums, and lying on the devices as x does."""
    state = state.astype(accumulation_dtype(x.dtype))
    missing = jax.typeof(x).manual_axis_type.varying - jax.typeof(state).manual_axis_type.varying
    state = lax.pcast(state, tuple(missing), to="varying") if missing else state
    batch, lies = jax.typeof(x).sharding.spec[0], jax.typeof(state).sharding.spec
    return state if batch == lies[0] else jax.sharding.reshard(state, PartitionSpec(batch, *lies[1:]))
