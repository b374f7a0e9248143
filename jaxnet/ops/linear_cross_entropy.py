"""The cross-entropy of a linear map's logits, which are never stored.

Axes: … any leading axes, R their product · I features in · V classes.

    z = x W + b        λ = ln Σ_v e^z_v        L = λ − Σ_v q_v z_v,  q = (1 − α) [v = label] + α/V

    dz = (p − q) dL,  p = e^(z − λ)        dx = dz Wᵀ        dW = xᵀ dz        db = Σ dz

Both passes take `chunk` classes at a time: there are R × chunk logits at once, where `linear` and `cross_entropy`
hold R × V, several times. The forward pass keeps the largest z so far μ and the sum l of e^(z − μ), which shrinks
by e^(μ_old − μ) when μ grows; λ = μ + ln l. The backward pass calculates each chunk of p again, from λ.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import Partial
from jaxtyping import Float, Integer

from jaxnet.activations import accumulation_dtype
from jaxnet.ops import dispatch
from jaxnet.ops.arrays import check_arrays
from jaxnet.ops.gradients import like, zeros
from jaxnet.ops.integers import check_integers, wide

CHUNK = 1024  # classes


class Options(NamedTuple):
    """What is known while tracing."""

    label_smoothing: float
    ignore_label: int | None
    chunk: int


class Residuals(NamedTuple):
    """What the backward pass needs: the arguments, and one number λ for each example."""

    x: Float[Array, "... I"]
    weight: Float[Array, "I V"]
    labels: Integer[Array, "..."]
    bias: Float[Array, " V"] | None
    logsumexp: Float[Array, "..."]


def linear_cross_entropy(
    x: Float[Array, "... I"],
    weight: Float[Array, "I V"],
    labels: Integer[Array, "..."],
    *,
    bias: Float[Array, " V"] | None = None,
    label_smoothing: float = 0.0,
    ignore_label: int | None = None,
    chunk: int = CHUNK,
    implementation: str | None = None,
) -> Float[Array, "..."]:
    """L = cross_entropy(x W + b, labels) for each example, in at least float32 and rounded once.

    Reverse mode only (`jax.custom_vjp`); the backward pass can itself be differentiated, then in O(R·V) memory.

    Args:
        x: (…, I).
        weight: W, (I, V).
        labels: integers (…), from 0 to V − 1.
        bias: b, (V,), or None.
        label_smoothing: α. (Szegedy et al., 2015).
        ignore_label: the loss of an example with this label, such as −1 for padding, is 0, and so is its
            gradient. A mean over the others is the caller's: their number is Σ [label ≠ ignore_label].
        chunk: of how many classes there are logits at once.
        implementation: see `jaxnet.ops.dispatch`.

    Returns:
        The loss of each example, shape (…), in nats.

    Raises:
        ValueError: for shapes, dtypes or options that don't fit, an unknown implementation, and for labels out
            of range where they can be looked at, outside `jit`; inside, such an example's loss is NaN.

    Example:
        >>> ops.linear_cross_entropy(jnp.ones((2, 8)), jnp.ones((8, 50_000)), jnp.array([3, 5])).shape
        (2,)

    Reference: Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024,
    https://arxiv.org/abs/2411.09009
    """
    options = _check(x, weight, labels, bias, Options(label_smoothing, ignore_label, chunk))
    run = dispatch.choose("linear_cross_entropy", implementation, partial(_linear_cross_entropy, options), {})
    return run(x, weight, labels, bias)


def linear_cross_entropy_vjp(
    x: Float[Array, "... I"],
    weight: Float[Array, "I V"],
    labels: Integer[Array, "..."],
    *,
    bias: Float[Array, " V"] | None = None,
    label_smoothing: float = 0.0,
    ignore_label: int | None = None,
    chunk: int = CHUNK,
    implementation: str | None = None,
) -> tuple[Float[Array, "..."], Partial]:
    """Returns L and its pullback dL ↦ (dx, dW, db), db None without a bias; as in `linear_cross_entropy`."""
    options = _check(x, weight, labels, bias, Options(label_smoothing, ignore_label, chunk))
    run = dispatch.choose("linear_cross_entropy", implementation, partial(forward, options), {})
    loss, residuals = run(x, weight, labels, bias)
    return loss, Partial(partial(_pullback, options), residuals)


def reference(options: Options, x: Array, weight: Array, labels: Array, bias: Array | None) -> Array:
    """The specification, for autodiff: all logits at once."""
    z = x @ weight if bias is None else x @ weight + jnp.broadcast_to(bias, (*x.shape[:-1], bias.size))
    hot = jax.nn.one_hot(labels, weight.shape[1], dtype=z.dtype)
    q = (1 - options.label_smoothing) * hot + options.label_smoothing / weight.shape[1]
    loss = -jnp.sum(jnp.where(q == 0, 0, q * jax.nn.log_softmax(z)), -1)
    return loss if options.ignore_label is None else jnp.where(labels == options.ignore_label, 0, loss)


def forward(
    options: Options, x: Array, weight: Array, labels: Array, bias: Array | None
) -> tuple[Array, Residuals]:
    """L = λ − (1 − α) z_label − α Σ z / V,  λ = μ + ln l."""
    alpha, classes, dtype = options.label_smoothing, weight.shape[1], accumulation_dtype(x.dtype)

    def step(carry: tuple[Array, ...], j: Array) -> tuple[tuple[Array, ...], None]:
        old, total, label, every = carry
        z, hot, new, _ = _logits(options, x, weight, labels, bias, j)
        top = lax.stop_gradient(
            jnp.maximum(old, jnp.max(jnp.where(new, z, -jnp.inf), -1))
        )  # λ doesn't vary with μ
        finite = jnp.where(top == -jnp.inf, 0, top)  # −∞ − −∞ is NaN
        p = jnp.exp(jnp.where(new, z - finite[..., None], -jnp.inf))
        total = total * jnp.exp(old - finite) + jnp.sum(p, -1)
        label = label + jnp.sum(jnp.where(new & hot, z, 0), -1)
        every = every + jnp.sum(jnp.where(new, z, 0), -1) if alpha else every
        return (top, total, label, every), None

    zero = zeros(labels, dtype, *jax.tree.leaves((x, weight, labels, bias)))
    start: tuple[Array, ...] = zero - jnp.inf, zero, zero, zero
    (top, total, label, every), _ = lax.scan(step, start, _numbers(options, classes))
    logsumexp = top + jnp.log(total)
    loss = _counted(options, classes, labels, logsumexp - (1 - alpha) * label - alpha / classes * every)
    return loss.astype(x.dtype), Residuals(x, weight, labels, bias, logsumexp)


def backward(options: Options, residuals: Residuals, dloss: Array) -> tuple[Array, Array, None, Array | None]:
    """dz = (p − q) dL,  dx = dz Wᵀ,  dW = xᵀ dz,  db = Σ dz."""
    x, weight, labels, bias, logsumexp = residuals
    alpha, classes, dtype = options.label_smoothing, weight.shape[1], logsumexp.dtype
    leading, rows, sharding = tuple(range(x.ndim - 1)), x.astype(dtype), jax.typeof(weight).sharding
    scale = _counted(options, classes, labels, dloss.astype(dtype))[..., None]
    ignored = _ignored(options, labels)[..., None]

    def step(carry: tuple[Any, ...], j: Array) -> tuple[tuple[Any, ...], None]:
        dx, dweight, dbias = carry
        z, hot, new, (start, part) = _logits(options, x, weight, labels, bias, j)
        q = (1 - alpha) * hot.astype(dtype) + alpha / classes
        dz = jnp.where(new & ~ignored, (jnp.exp(z - logsumexp[..., None]) - q) * scale, 0)
        dx = dx + dz @ part.astype(dtype).T
        product = lax.dot_general(rows, dz, ((leading, leading), ((), ())), out_sharding=sharding)
        dweight = _add(dweight, product, start)
        return (dx, dweight, None if dbias is None else _add(dbias, jnp.sum(dz, leading), start)), None

    arrays = jax.tree.leaves((x, weight, labels, bias, dloss))
    begin: tuple[Any, ...] = tuple(None if a is None else zeros(a, dtype, *arrays) for a in (x, weight, bias))
    (dx, dweight, dbias), _ = lax.scan(step, begin, _numbers(options, classes))
    return like(dx, x), like(dweight, weight), None, None if bias is None else like(dbias, bias)


def _numbers(options: Options, classes: int) -> Array:
    """j of the chunks."""
    return jnp.arange(-(-classes // options.chunk), dtype=jnp.int32)


def _logits(
    options: Options, x: Array, weight: Array, labels: Array, bias: Array | None, j: Array
) -> tuple[Array, Array, Array, tuple[Array, Array]]:
    """z of chunk j; where it has the label; what is new in it; its first class and its part of W.

    Chunks have equal sizes, and the last one is moved back until it fits: what it shares with the one before it
    isn't new, and W needn't be padded.
    """
    classes = weight.shape[1]
    width = -(-classes // len(_numbers(options, classes)))
    start = jnp.minimum(j * width, classes - width)
    part = lax.dynamic_slice_in_dim(weight, start, width, 1)
    z = jnp.matmul(x, part, preferred_element_type=accumulation_dtype(x.dtype))
    if bias is not None:
        z = z + jnp.broadcast_to(lax.dynamic_slice_in_dim(bias, start, width).astype(z.dtype), z.shape)
    column = (start + jnp.arange(width, dtype=jnp.int32)).reshape(*(1,) * (x.ndim - 1), width)
    ids = wide(labels)[..., None]
    return z, column.astype(ids.dtype) == ids, column >= j * width, (start, part)


def _ignored(options: Options, labels: Array) -> Array:
    return jnp.zeros_like(labels, bool) if options.ignore_label is None else wide(labels) == options.ignore_label


def _counted(options: Options, classes: int, labels: Array, values: Array) -> Array:
    """The values, 0 for the ignored label and NaN for one out of range."""
    inside = (wide(labels) >= 0) & (wide(labels) < classes)
    return jnp.where(_ignored(options, labels), 0, jnp.where(inside, values, jnp.nan))


def _add(a: Array, part: Array, start: Array) -> Array:
    part = lax.dynamic_slice_in_dim(a, start, part.shape[-1], -1) + part
    return lax.dynamic_update_slice_in_dim(a, part, start, -1)


def _pullback(options: Options, residuals: Residuals, dloss: Array) -> tuple[Array, Array, Array | None]:
    dx, dweight, _, dbias = backward(options, residuals, dloss)
    return dx, dweight, dbias


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear_cross_entropy(options: Options, x: Array, weight: Array, labels: Array, bias: Array | None) -> Array:
    return forward(options, x, weight, labels, bias)[0]


_linear_cross_entropy.defvjp(forward, backward)


def _check(x: Array, weight: Array, labels: Array, bias: Array | None, options: Options) -> Options:
    check_arrays("linear_cross_entropy", {"x": x, "weight": weight, "labels": labels}, bias=bias)
    alpha, ignored, chunk = options
    if weight.ndim != 2 or weight.shape[1] < 1 or x.ndim < 1 or x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"linear_cross_entropy needs x (…, I) and a weight (I, V), V ≥ 1; got {x.shape} and {weight.shape}"
        )
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ValueError(f"linear_cross_entropy needs a bias {weight.shape[1:]}; got {bias.shape}")
    for name, array in {"x": x, "weight": weight, "bias": bias}.items():
        if array is not None and not (jnp.issubdtype(array.dtype, jnp.floating) and array.dtype == x.dtype):
            raise ValueError(
                f"linear_cross_entropy needs x, weight and bias of one floating-point dtype; got {name} of "
                f"{array.dtype}" + ("" if name == "x" else f" beside x of {x.dtype}")
            )
    if labels.shape != x.shape[:-1]:
        raise ValueError(f"linear_cross_entropy needs labels {x.shape[:-1]} for x {x.shape}; got {labels.shape}")
    if not 0 <= alpha < 1:
        raise ValueError(f"linear_cross_entropy needs 0 ≤ label_smoothing < 1; got {alpha}")
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"linear_cross_entropy needs a whole number chunk ≥ 1; got {chunk}")
    check_integers("linear_cross_entropy's labels", labels, weight.shape[1], ignored)
    return options
