"""Mistakes in the derivatives of norms and variances."""

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
