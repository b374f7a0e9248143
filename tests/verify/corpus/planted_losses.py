"""Mistakes in softmax, attention, losses and cumulative sums and products."""

from typing import Any

import jax
import jax.numpy as jnp

from .registry import Setup, normal, planted, positive, rule, setup


def mean(x: Any, axis: int = -1) -> Any:
    return x.mean(axis=axis, keepdims=True)


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
