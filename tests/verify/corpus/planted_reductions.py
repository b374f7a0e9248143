"""Mistakes in norms, softmax, attention, statistics and losses."""

from typing import Any

import jax
import jax.numpy as jnp

from .registry import Setup, normal, planted, positive, rule, setup

EPS = 1e-2


def standardised(x: Any, axis: int = -1, eps: float = EPS) -> tuple[Any, Any]:
    rstd = jax.lax.rsqrt(x.var(axis=axis, keepdims=True) + eps)
    return (x - x.mean(axis=axis, keepdims=True)) * rstd, rstd


def layer_norm(x: Any, scale: Any) -> Any:
    return standardised(x)[0] * scale[None]


def mean(x: Any, axis: int = -1) -> Any:
    return x.mean(axis=axis, keepdims=True)


def norm_backward(mean_terms: float, variance_terms: float, axis: int = -1) -> Any:
    """(dscale, dx) of layer or batch norm with the terms that come from mean and variance so many times."""

    def backward(x: Any, scale: Any, y: Any, dy: Any) -> Any:
        z, rstd = standardised(x, axis)
        dz = dy * scale[None]
        dx = rstd * (dz - mean_terms * mean(dz, axis) - variance_terms * z * mean(dz * z, axis))
        return dx, (dy * z).sum(axis=0)

    return backward


@planted("x", source="tenstorrent/tt-metal #53204")
def layer_norm_mean_term_twice(rng: Any) -> Setup:
    """The term of the mean is subtracted twice."""
    return setup(rule(layer_norm, norm_backward(2, 1)), normal(rng, 4, 6), positive(rng, 6))


@planted("x")
def layer_norm_without_the_mean_term(rng: Any) -> Setup:
    """The mean is taken for a constant."""
    return setup(rule(layer_norm, norm_backward(0, 1)), normal(rng, 4, 6), positive(rng, 6))


@planted("x")
def batch_norm_without_the_variance_term(rng: Any) -> Setup:
    """The variance is taken for a constant, as in evaluation."""

    def batch_norm(x: Any, scale: Any) -> Any:
        return standardised(x, 0)[0] * scale[None]

    return setup(rule(batch_norm, norm_backward(1, 0, axis=0)), normal(rng, 8, 3), positive(rng, 3))


@planted("x", source="abhiskk/ladder #2")
def variance_cut_off_by_accident(rng: Any) -> Setup:
    """A stop_gradient on the variance, held against the same norm without it."""

    def norm(x: Any) -> Any:
        variance = jax.lax.stop_gradient(x.var(axis=0, keepdims=True))
        return (x - x.mean(axis=0, keepdims=True)) * jax.lax.rsqrt(variance + EPS)

    return setup(norm, normal(rng, 8, 3), reference=lambda x: standardised(x, 0)[0])


@planted("x", source="flagos-ai/FlagGems #5392")
def layer_norm_over_all_but_the_first_axis(rng: Any) -> Setup:
    """The backward takes every input for two-dimensional: its means are over two axes, not one."""

    def backward(x: Any, y: Any, dy: Any) -> Any:
        z, rstd = standardised(x)
        over = {"axis": (1, 2), "keepdims": True}
        return (rstd * (dy - dy.mean(**over) - z * (dy * z).mean(**over)),)

    return setup(rule(lambda x: standardised(x)[0], backward), normal(rng, 2, 3, 5))


def rms_norm(x: Any, scale: Any) -> Any:
    return x * jax.lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + EPS) * scale[None]


@planted("x", source="ooples/AiDotNet #695")
def rms_norm_as_if_the_rms_were_constant(rng: Any) -> Setup:
    """The root mean square depends on the input too: a term parallel to the input is missing."""

    def backward(x: Any, scale: Any, y: Any, dy: Any) -> Any:
        rstd = jax.lax.rsqrt(mean(x * x) + EPS)
        return dy * scale[None] * rstd, (dy * x * rstd).sum(axis=0)

    return setup(rule(rms_norm, backward), normal(rng, 4, 6), positive(rng, 6))


@planted("x", source="karpathy/llm.c #763")
def rms_norm_without_the_weight_in_its_sum(rng: Any) -> Setup:
    """The weight is missing inside the mean of dy·x."""

    def backward(x: Any, scale: Any, y: Any, dy: Any) -> Any:
        rstd = jax.lax.rsqrt(mean(x * x) + EPS)
        z = x * rstd
        return rstd * (dy * scale[None] - z * mean(dy * z)), (dy * z).sum(axis=0)

    return setup(rule(rms_norm, backward), normal(rng, 4, 6), positive(rng, 6))


@planted("x", source="chainer/chainer #4190")
def normalize_without_eps_in_the_backward(rng: Any) -> Setup:
    """x / (|x| + eps) with the backward of x / |x|."""

    def backward(x: Any, y: Any, dy: Any) -> Any:
        size = jnp.linalg.norm(x, axis=1, keepdims=True)
        z = x / size
        return ((dy - z * (z * dy).sum(axis=1, keepdims=True)) / size,)

    op = rule(lambda x: x / (jnp.linalg.norm(x, axis=1, keepdims=True) + 0.1), backward)
    return setup(op, normal(rng, 3, 4))


@planted("x")
def eps_squared(rng: Any) -> Setup:
    """The backward adds eps², where the forward adds eps, under the root."""

    def backward(x: Any, y: Any, dy: Any) -> Any:
        rstd = jax.lax.rsqrt(mean(x * x) + EPS**2)
        z = x * rstd
        return (rstd * (dy - z * mean(dy * z)),)

    op = rule(lambda x: x * jax.lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + EPS), backward)
    return setup(op, normal(rng, 3, 5))


@planted("x")
def normalize_without_the_projection(rng: Any) -> Setup:
    """dx = dy/|x|: right up to a term parallel to the input."""
    op = rule(lambda x: x / jnp.linalg.norm(x), lambda x, y, dy: (dy / jnp.linalg.norm(x),))
    return setup(op, normal(rng, 7))


@planted("x")
def variance_with_the_other_denominator(rng: Any) -> Setup:
    """The forward divides by N - 1, the backward by N."""
    op = rule(lambda x: x.var(ddof=1), lambda x, y, dy: (2 * (x - x.mean()) * dy / x.size,))
    return setup(op, normal(rng, 6))


@planted("x")
def softmax_without_its_sum(rng: Any) -> Setup:
    """dx = y·dy; the sum Σ y·dy is missing."""
    return setup(rule(lambda x: jax.nn.softmax(x), lambda x, y, dy: (y * dy,)), normal(rng, 4, 5))


@planted("x")
def log_softmax_with_a_mean(rng: Any) -> Setup:
    """dx = dy - softmax(x)·mean(dy), where the sum belongs."""
    op = rule(lambda x: jax.nn.log_softmax(x), lambda x, y, dy: (dy - jnp.exp(y) * mean(dy),))
    return setup(op, normal(rng, 4, 5))


def scores(q: Any, k: Any) -> Any:
    scaled = (q @ k.T) / q.shape[-1] ** 0.5
    return jnp.where(jnp.tril(jnp.ones(scaled.shape, bool)), scaled, -1e9)


def attention(q: Any, k: Any, v: Any) -> Any:
    return jax.nn.softmax(scores(q, k)) @ v


def attention_backward(scale: float, diagonal: int) -> Any:
    def backward(q: Any, k: Any, v: Any, y: Any, dy: Any) -> Any:
        p = jax.nn.softmax(scores(q, k))
        dp = dy @ v.T
        ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True))
        ds = jnp.where(jnp.tril(jnp.ones(ds.shape, bool), diagonal), ds, 0) / q.shape[-1] ** 0.5
        return scale * ds @ k, ds.T @ q, p.T @ dy

    return backward


@planted("q")
def attention_without_the_root_of_d(rng: Any) -> Setup:
    """dq is √d times too large: the scale of the scores is missing."""
    return setup(rule(attention, attention_backward(2.0, 0)), *(normal(rng, 6, 4) for _ in range(3)))


@planted("q", "k", source="Dao-AILab/flash-attention #1915")
def causal_mask_off_by_one(rng: Any) -> Setup:
    """The mask of the backward leaves out the diagonal."""
    return setup(rule(attention, attention_backward(1.0, -1)), *(normal(rng, 6, 4) for _ in range(3)))


@planted("x", source="Dao-AILab/flash-attention #141")
def cotangent_of_the_second_output_ignored(rng: Any) -> Setup:
    """Softmax and its logsumexp are returned; the gradient knows only the first."""

    def backward(x: Any, y: Any, dy: Any) -> Any:
        p, dp = y[0], dy[0]
        return (p * (dp - (p * dp).sum(axis=-1, keepdims=True)),)

    op = rule(lambda x: (jax.nn.softmax(x), jax.nn.logsumexp(x, axis=-1)), backward)
    return setup(op, normal(rng, 3, 5))


def masked_cross_entropy(logits: Any, labels: Any) -> Any:
    """Mean over the examples whose label isn't -1."""
    keep = labels >= 0
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
    return -jnp.where(keep, picked, 0).sum() / keep.sum().astype(logits.dtype)


def cross_entropy_point(rng: Any) -> tuple[Any, Any]:
    return normal(rng, 6, 4), jnp.asarray(rng.integers(0, 4, 6)).at[jnp.array([1, 4])].set(-1)


@planted("logits", source="PaddlePaddle/Paddle #28622")
def ignored_labels_get_a_gradient(rng: Any) -> Setup:
    """Examples that the loss leaves out are in its gradient."""

    def backward(logits: Any, labels: Any, y: Any, dy: Any) -> Any:
        count = (labels >= 0).sum().astype(logits.dtype)
        p = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
        return dy * p / count, None

    return setup(rule(masked_cross_entropy, backward), *cross_entropy_point(rng))


@planted("logits")
def mean_over_all_for_mean_over_the_kept(rng: Any) -> Setup:
    """The gradient is divided by the number of all examples, the loss by that of the kept ones."""

    def backward(logits: Any, labels: Any, y: Any, dy: Any) -> Any:
        p = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
        return dy * jnp.where((labels >= 0)[:, None], p, 0) / len(labels), None

    return setup(rule(masked_cross_entropy, backward), *cross_entropy_point(rng))


@planted("p")
def divergence_without_the_entropy(rng: Any) -> Setup:
    """d Σ p·log(p/q) / dp = log(p/q) + 1; the 1 is missing."""
    op = rule(lambda p, q: (p * jnp.log(p / q)).sum(), lambda p, q, y, dy: (jnp.log(p / q) * dy, -p / q * dy))
    return setup(op, positive(rng, 5), positive(rng, 5))


@planted("x")
def squared_error_without_the_factor(rng: Any) -> Setup:
    """The 2 of the square is missing: half of the right gradient."""
    op = rule(
        lambda x, y: ((x - y) ** 2).mean(), lambda x, y, z, dz: ((x - y) * dz / x.size, 2 * (y - x) * dz / x.size)
    )
    return setup(op, normal(rng, 3, 4), normal(rng, 3, 4))


@planted("x")
def cumulative_sum_forwards(rng: Any) -> Setup:
    """The gradient of a cumulative sum runs backwards; this one runs forwards."""
    return setup(rule(lambda x: jnp.cumsum(x), lambda x, y, dy: (jnp.cumsum(dy),)), normal(rng, 6))


def cumulative_product_backward(x: Any, y: Any, dy: Any) -> Any:
    return jnp.cumsum((dy * y)[::-1])[::-1] / x


@planted("x", source="tracel-ai/burn #3864")
def cumulative_product_divided_by_zero(rng: Any) -> Setup:
    """A zero among the factors makes 0/0."""
    op = rule(lambda x: jnp.cumprod(x), lambda *all: (cumulative_product_backward(*all),))
    return setup(op, positive(rng, 5).at[2].set(0.0))


@planted("x", index=(2,), source="tensorflow/tensorflow #119430")
def cumulative_product_zero_at_a_zero(rng: Any) -> Setup:
    """The same 0/0 replaced by 0: finite, and wrong for the zero factor."""
    op = rule(lambda x: jnp.cumprod(x), lambda *all: (jnp.nan_to_num(cumulative_product_backward(*all), nan=0.0),))
    return setup(op, positive(rng, 5).at[2].set(0.0))
