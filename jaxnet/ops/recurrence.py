"""The loop over time, which `rnn`, `lstm` and `gru` share.

Axes: B batch · T time · I features in · H hidden · K = G H, all gates side by side.

A cell takes the state s, which is h or a pair (h, c), one step on. The product with W waits for no step: XLA
computes it for all steps at once, the kernel for a few at a time.

    aₜ = xₜ W + b        sₜ = cell(aₜ, sₜ₋₁)        yₜ = hₜ

Backwards only ds goes through the loop. The gradients of all weights are products of whole sequences after it:

    daₜ, dvₜ, dsₜ₋₁ = cell′(dsₜ + dyₜ)   dx = da Wᵀ   dW = Σ xₜᵀ daₜ   db = Σ daₜ   dU = Σ hₜ₋₁ᵀ dvₜ

Past the length of a sequence nothing happens: sₜ = sₜ₋₁, yₜ = 0, daₜ = 0, and x counts for nothing. So a sequence
that is gone through from its end begins with its last element, wherever the padding ends.

Of each step the states before it are kept, and what else its derivative needs: the gates. With `remat` those are
computed again, of all steps at once: sₜ₋₁ being known, nothing has to wait for the step before.
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
from jaxnet.ops import dispatch, linear
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

    ============  ====================================================================================
    `forward`     `forward(weights, a, before) → (after, kept)`, of one step or, with an axis more, of many
    `backward`    `backward(weights, before, kept, dafter) → (da, dv, dbefore)`; dv, the gradient of what
                  hₜ₋₁ is multiplied to, is None if it is da
    `recurrent`   `recurrent(products, weights, h, kept, dv) → (dU, drecurrent_bias)`, of all steps;
                  `products` sums leftᵀ right over them, and right alone
    `kernel`      the loops of `forward`, with x W + b, and of `backward` on the CPU
    `pair`        whether the state is (h, c)
    ============  ====================================================================================
    """

    forward: Callable[..., tuple[State, Any]]
    backward: Callable[..., tuple[Array, Array | None, State]]
    recurrent: Callable[..., tuple[Array, Array | None]]
    kernel: tuple[Callable[..., Any], Callable[..., Any]]
    pair: bool = False


class Loop(NamedTuple):
    """Which loop, and how."""

    op: str
    cell: Cell
    reverse: bool
    implementation: str | None
    remat: bool = False  # whether what the cell keeps is computed again
    keep: bool = True  # whether a backward pass will come


class Residuals(NamedTuple):
    """What the backward pass needs; `before`, the states before each step, and `kept` begin with the axis T."""

    x: Array
    weights: Weights
    initial: State | None
    lengths: Array | None
    before: State
    kept: Any


def run(loop: Loop, *args: Any) -> tuple[Array, State]:
    """Returns y (B, T, H) and the final state; `args` are x, the weights, the initial state and the lengths."""
    return _recurrent(_named(loop), *args)


def run_vjp(loop: Loop, *args: Any) -> tuple[tuple[Array, State], Partial]:
    """Returns what `run` does, and the pullback (dy, dfinal) ↦ (dx, dweights, dinitial, None)."""
    loop = _named(loop)
    outputs, residuals = forward(loop, *args)
    return outputs, Partial(partial(backward, loop), residuals)


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
    loop: Loop, x: Array, weights: Weights, initial: State | None, lengths: Array | None
) -> tuple[tuple[Array, State], Residuals]:
    """aₜ = xₜ W + b,  sₜ = cell(aₜ, sₜ₋₁),  yₜ = hₜ."""
    first = jax.tree.map(partial(_carried, x), start(loop.cell, x, weights) if initial is None else initial)
    outputs, before, kept = _forward(loop, weights, x, first, lengths)
    outputs = jax.tree.map(lambda s: s.astype(x.dtype), outputs)
    return outputs, Residuals(x, weights, initial, lengths, before, None if loop.remat else kept)


def backward(
    loop: Loop, residuals: Residuals, cotangents: tuple[Array, State]
) -> tuple[Array, Weights, State | None, None]:
    """daₜ, dsₜ₋₁ = cell′(dsₜ + dyₜ);  dx = da Wᵀ,  dW = Σ xₜᵀ daₜ,  db = Σ daₜ."""
    x, weights, initial, lengths, before, kept = residuals
    cotangents = jax.tree.map(partial(_carried, x), cotangents)
    if loop.remat:
        x, before = _after(cotangents, (x, before))
        kept = loop.cell.forward(_widened(weights, x), _summands(loop, x, weights, lengths), before)[1]
    da, dv, dinitial = _backward(loop, _widened(weights, x), before, kept, cotangents, lengths)
    name = _products(loop, x)
    affine = linear.Residuals(_read(x, _within(lengths, x.shape[1])), weights.weight, weights.bias, None)
    dx, dweight, dbias = linear.backward(None, affine, da, implementation=name)
    products = partial(linear.gradients, implementation=name)
    dother, drecurrent_bias = loop.cell.recurrent(
        products, weights, hidden(before), kept, da if dv is None else dv
    )
    dinitial = None if initial is None else jax.tree.map(like, dinitial, initial)
    return jnp.swapaxes(dx, 0, 1), Weights(dweight, dother, dbias, drecurrent_bias), dinitial, None


def _summands(loop: Loop, x: Array, weights: Weights, lengths: Array | None) -> Array:
    """aₜ = xₜ W + b, (T, B, K)."""
    x = _read(x, _within(lengths, x.shape[1]))
    return linear.sums(x, weights.weight, weights.bias, implementation=_products(loop, x))


def _after(first: Any, then: Any) -> Any:
    """`then`, which depends on `first` as far as XLA knows.

    It would else see that the same was computed in the forward pass, and keep that, or compute it early. A square
    is 0 or 1 modulo 4, which XLA doesn't know; a barrier for its optimisation it removes on a CPU.
    """
    total = sum(lax.stop_gradient(leaf).sum(dtype="float32") for leaf in jax.tree.leaves(first))
    bits = lax.bitcast_convert_type(total, jnp.uint32)
    never = bits * bits % 4 == 3
    return jax.tree.map(lambda x: jnp.where(never, jnp.zeros_like(x), x), then)


def _named(loop: Loop) -> Loop:
    return loop._replace(implementation=dispatch.name(loop.implementation))


def _forward(
    loop: Loop, weights: Weights, x: Array, first: State, lengths: Array | None
) -> tuple[tuple[Array, State], State, Any]:
    """y and the final state, the states before each step, what the cell keeps."""

    def xla(weights: Weights, x: Array, first: State, lengths: Array | None) -> Any:
        return _scan_forward(loop, _widened(weights, x), _summands(loop, x, weights, lengths), first, lengths)

    def kernel(weights: Weights, x: Array, first: State, lengths: Array | None) -> Any:
        run = partial(loop.cell.kernel[0], reverse=loop.reverse, keep=loop.keep)
        return run(_widened(weights, x), _widened(x, x), first, lengths)

    operands = _widened((weights, x), x), first
    packed = weights.weight.size + weights.recurrent_weight.size
    return _choose(loop, xla, kernel, operands, packed, x, (weights, x, first, lengths))


def _backward(
    loop: Loop, weights: Weights, before: State, kept: Any, cotangents: tuple[Array, State], lengths: Array | None
) -> tuple[Array, Array | None, State]:
    """da and dv of all steps, and the gradient of the initial state."""
    xla, kernel = partial(_scan_backward, loop), partial(loop.cell.kernel[1], reverse=loop.reverse)
    operands = weights, before, kept, cotangents
    packed = weights.recurrent_weight.size
    return _choose(loop, xla, kernel, operands, packed, cotangents[0], (*operands, lengths))


def _products(loop: Loop, x: Array) -> str | None:
    """The implementation of the products: that of the loop, where they have it."""
    serves = loop.implementation == "xla" or (
        loop.implementation == "cpu" and x.dtype == accumulation_dtype(x.dtype)
    )
    return loop.implementation if serves else None


def _choose(
    loop: Loop, xla: Callable, kernel: Callable, operands: Any, packed: int, sequence: Array, args: tuple
) -> Any:
    """The loop by XLA or by the kernel, which would be given these operands and pack so many weights.

    `sequence` is (B, T, …).
    """
    reason = dispatch.unsupported(*jax.tree.leaves(operands))
    if loop.implementation is None:
        reason = reason or _slow(packed, *sequence.shape[:2])
    kernels = {"cpu": dispatch.Kernel(dispatch.differentiable(kernel, xla), reason)}
    return dispatch.choose(loop.op, loop.implementation, xla, kernels)(*args)


def _slow(packed: int, batch: int, steps: int) -> str | None:
    """Why XLA is faster; None if it isn't. To pack the weights must be worth it."""
    few = steps * batch < 64 and packed > 1 << 18
    return f"{steps} steps of {batch} rows are too few" if few or steps == 1 else None


def _scan_forward(
    loop: Loop, weights: Weights, a: Array, first: State, lengths: Array | None
) -> tuple[tuple[Array, State], State, Any]:
    def step(before: State, at: tuple[Array, Array | None]) -> tuple[State, tuple[Array, State, Any]]:
        a, here = at
        after, kept = loop.cell.forward(weights, a, before)
        after = _where(here, after, before)
        return after, (hidden(after), before, kept)

    here = _within(lengths, a.shape[0])
    final, (h, before, kept) = lax.scan(step, first, (a, here), reverse=loop.reverse)
    outputs = jnp.swapaxes(_where(here, h, jnp.zeros_like(h)), 0, 1), final
    return (outputs, before, kept) if loop.keep else (outputs, None, None)


def _scan_backward(
    loop: Loop, weights: Weights, before: State, kept: Any, cotangents: tuple[Array, State], lengths: Array | None
) -> tuple[Array, Array | None, State]:
    dy, dfinal = cotangents
    dy, here = jnp.swapaxes(dy, 0, 1), _within(lengths, dy.shape[1])
    dy = _where(here, dy, jnp.zeros_like(dy))

    def step(dafter: State, at: tuple[Array, Array | None, State, Any]) -> tuple[State, Any]:
        dy, here, before, kept = at
        dh, *rest = jax.tree.leaves(dafter)
        dafter = jax.tree.unflatten(jax.tree.structure(dafter), [dh + dy, *rest])
        *gradients, dbefore = loop.cell.backward(weights, before, kept, dafter)
        zero = jax.tree.map(jnp.zeros_like, gradients)
        return _where(here, dbefore, dafter), _where(here, gradients, zero)

    dinitial, (da, dv) = lax.scan(step, dfinal, (dy, here, before, kept), reverse=not loop.reverse)
    return da, dv, dinitial


def recurrent(products: Callable, weights: Weights, h: Array, kept: Any, dv: Array) -> tuple[Array, None]:
    """dU = Σ hₜ₋₁ᵀ dvₜ, where h U is added to a."""
    return products(h, dv, weights.recurrent_weight)[0], None


def hidden(state: State) -> Array:
    """h of the state."""
    return state[0] if isinstance(state, tuple) else state


def start(cell: Cell, x: Array, weights: Weights) -> State:
    """The state before the first step: zero."""
    h = jnp.zeros((x.shape[0], weights.recurrent_weight.shape[0]), x.dtype)
    return (h, h) if cell.pair else h


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrent(
    loop: Loop, x: Array, weights: Weights, initial: State | None, lengths: Array | None
) -> tuple[Array, State]:
    return forward(loop._replace(keep=False), x, weights, initial, lengths)[0]


_recurrent.defvjp(forward, backward)


def _widened(arrays: Any, x: Array) -> Any:
    """Arrays in the dtype of the sums."""
    return jax.tree.map(lambda array: array.astype(accumulation_dtype(x.dtype)), arrays)


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
