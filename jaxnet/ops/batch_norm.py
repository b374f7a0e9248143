"""Batch normalisation: each channel by a mean and a variance over the whole batch.

Axes: N… batch and all others but the last, n elements together · C channels, last.

In training with the batch's own statistics μ = Σ x / n and v = Σ (x − μ)² / n, sums over N…:

    x̂ = (x − μ) ρ,  ρ = 1 / √(v + ε)      y = γ x̂ + β
    dγ = Σ dy x̂      dβ = Σ dy      dx = γ ρ (dy − dβ / n − x̂ dγ / n) + (dμ + 2 (x − μ) dv) / n

the last term from what else depends on the returned μ and v. In inference μ and v are given:

    dx = γ ρ dy      dμ = −Σ dx = −γ ρ dβ      dv = −½ Σ dx (x − μ) ρ² = −½ γ ρ² dγ

The variance is that of the differences from the mean, in a second pass: E[x²] − μ² cancels.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial
from jaxtyping import Float

from jaxnet.activations import accumulation_dtype
from jaxnet.ops import dispatch
from jaxnet.ops.arrays import check_arrays
from jaxnet.ops.gradients import like
from jaxnet.ops.normalization import check

Statistics = tuple[Array, Array, Array]  # y, μ, v


class Residuals(NamedTuple):
    """What the backward passes need; x̂ is calculated again."""

    x: Float[Array, "*N C"]
    mean: Float[Array, " C"]
    rstd: Float[Array, " C"]
    scale: Float[Array, " C"] | None
    bias: Float[Array, " C"] | None
    given: tuple[Array, Array] | None  # μ and v of the inference form, whose gradients are like them


def batch_norm(
    x: Float[Array, "*N C"],
    scale: Float[Array, " C"] | None = None,
    bias: Float[Array, " C"] | None = None,
    *,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> tuple[Float[Array, "*N C"], Float[Array, " C"], Float[Array, " C"]]:
    """y = γ (x − μ) / √(v + ε) + β with the batch's μ and v, in at least float32; returns y, μ and v.

    v divides by n, as y needs it. Sharded over the batch it is the statistics of the whole batch; inside
    `shard_map` of each part. Reverse mode only (`jax.custom_vjp`); the backward pass can itself be
    differentiated.

    Args:
        x: (N…, C).
        scale: γ, (C,), or None.
        bias: β, (C,), or None.
        eps: ε ≥ 0.
        implementation: see `jaxnet.ops.dispatch`.

    Returns:
        y in the dtype of x, μ and v in at least float32.

    Raises:
        ValueError: for shapes or dtypes that don't fit, a negative ε, an unknown implementation.

    Example:
        >>> y, mean, variance = ops.batch_norm(jnp.ones((2, 8, 8, 64)))
        >>> variance.shape
        (64,)

    Reference: Ioffe and Szegedy, Batch Normalization, 2015, https://arxiv.org/abs/1502.03167
    """
    _check("batch_norm", x, eps, scale=scale, bias=bias)
    return dispatch.choose("batch_norm", implementation, partial(_batch_norm, eps), {})(x, scale, bias)


def batch_norm_vjp(
    x: Float[Array, "*N C"],
    scale: Float[Array, " C"] | None = None,
    bias: Float[Array, " C"] | None = None,
    *,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> tuple[tuple[Float[Array, "*N C"], Float[Array, " C"], Float[Array, " C"]], Partial]:
    """Returns (y, μ, v) and its pullback (dy, dμ, dv) ↦ (dx, dγ, dβ); arguments as in `batch_norm`."""
    _check("batch_norm", x, eps, scale=scale, bias=bias)
    outputs, residuals = dispatch.choose("batch_norm", implementation, partial(forward, eps), {})(x, scale, bias)
    return outputs, Partial(partial(backward, eps), residuals)


def reference(eps: float, x: Array, scale: Array | None, bias: Array | None) -> Statistics:
    """The specification, for autodiff."""
    leading = tuple(range(x.ndim - 1))
    mean, variance = x.mean(leading), x.var(leading)
    return inference_reference(eps, x, mean, variance, scale, bias), mean, variance


def forward(eps: float, x: Array, scale: Array | None, bias: Array | None) -> tuple[Statistics, Residuals]:
    """x̂ = (x − μ) ρ,  y = γ x̂ + β."""
    leading, wide = tuple(range(x.ndim - 1)), x.astype(accumulation_dtype(x.dtype))
    mean = jnp.mean(wide, leading)
    variance = jnp.mean(jnp.square(wide - _beside(mean, x)), leading)
    rstd = jax.lax.rsqrt(variance + eps)
    return (_affine(x, mean, rstd, scale, bias), mean, variance), Residuals(x, mean, rstd, scale, bias, None)


def backward(eps: float, residuals: Residuals, cotangents: Statistics) -> tuple[Array, Array | None, Array | None]:
    """dx = γ ρ (dy − dβ / n − x̂ dγ / n) + (dμ + 2 (x − μ) dv) / n,  dγ = Σ dy x̂,  dβ = Σ dy."""
    x, _, rstd, scale, bias, _ = residuals
    dy, dmean, dvariance = cotangents
    wide, centred, xhat, dscale, dbias = _sums(residuals, dy)
    n = math.prod(x.shape[:-1])
    factor = rstd if scale is None else scale.astype(rstd.dtype) * rstd
    dx = _beside(factor, x) * (wide - _beside(dbias / n, x) - xhat * _beside(dscale / n, x))
    dx = dx + (_beside(dmean / n, x) + centred * _beside(2 * dvariance / n, x))
    return (
        dx.astype(x.dtype),
        None if scale is None else like(dscale, scale),
        None if bias is None else like(dbias, bias),
    )


def batch_norm_inference(
    x: Float[Array, "*N C"],
    mean: Float[Array, " C"],
    variance: Float[Array, " C"],
    scale: Float[Array, " C"] | None = None,
    bias: Float[Array, " C"] | None = None,
    *,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> Float[Array, "*N C"]:
    """y = γ (x − μ) / √(v + ε) + β with μ and v given, those of the population.

    Computed in at least float32 and rounded once. Reverse mode only (`jax.custom_vjp`); the backward pass can
    itself be differentiated.

    Args:
        x: (N…, C).
        mean: μ, (C,).
        variance: v, (C,).
        scale: γ, (C,), or None.
        bias: β, (C,), or None.
        eps: ε ≥ 0.
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for shapes or dtypes that don't fit, a negative ε, an unknown implementation.
    """
    _check("batch_norm_inference", x, eps, mean=mean, variance=variance, scale=scale, bias=bias)
    function = dispatch.choose("batch_norm_inference", implementation, partial(_inference, eps), {})
    return function(x, mean, variance, scale, bias)


def batch_norm_inference_vjp(
    x: Float[Array, "*N C"],
    mean: Float[Array, " C"],
    variance: Float[Array, " C"],
    scale: Float[Array, " C"] | None = None,
    bias: Float[Array, " C"] | None = None,
    *,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> tuple[Float[Array, "*N C"], Partial]:
    """Returns y and its pullback dy ↦ (dx, dμ, dv, dγ, dβ); arguments as in `batch_norm_inference`."""
    _check("batch_norm_inference", x, eps, mean=mean, variance=variance, scale=scale, bias=bias)
    function = dispatch.choose("batch_norm_inference", implementation, partial(inference_forward, eps), {})
    y, residuals = function(x, mean, variance, scale, bias)
    return y, Partial(partial(inference_backward, eps), residuals)


def inference_reference(
    eps: float, x: Array, mean: Array, variance: Array, scale: Array | None, bias: Array | None
) -> Array:
    """The specification, for autodiff."""
    y = (x - _beside(mean, x)) / _beside(jnp.sqrt(variance + eps), x)
    y = y if scale is None else y * _beside(scale, x)
    return y if bias is None else y + _beside(bias, x)


def inference_forward(
    eps: float, x: Array, mean: Array, variance: Array, scale: Array | None, bias: Array | None
) -> tuple[Array, Residuals]:
    """y = γ (x − μ) ρ + β."""
    dtype = accumulation_dtype(x.dtype)
    wide, rstd = mean.astype(dtype), jax.lax.rsqrt(variance.astype(dtype) + eps)
    return _affine(x, wide, rstd, scale, bias), Residuals(x, wide, rstd, scale, bias, (mean, variance))


def inference_backward(
    eps: float, residuals: Residuals, dy: Array
) -> tuple[Array, Array, Array, Array | None, Array | None]:
    """dx = γ ρ dy,  dμ = −γ ρ dβ,  dv = −½ γ ρ² dγ,  dγ = Σ dy x̂,  dβ = Σ dy."""
    x, _, rstd, scale, bias, given = residuals
    assert given is not None
    wide, _, _, dscale, dbias = _sums(residuals, dy)
    factor = rstd if scale is None else scale.astype(rstd.dtype) * rstd
    return (
        (_beside(factor, x) * wide).astype(x.dtype),
        like(-factor * dbias, given[0]),
        like(-0.5 * factor * rstd * dscale, given[1]),
        None if scale is None else like(dscale, scale),
        None if bias is None else like(dbias, bias),
    )


def _sums(residuals: Residuals, dy: Array) -> tuple[Array, Array, Array, Array, Array]:
    """dy, x − μ, x̂,  dγ = Σ dy x̂,  dβ = Σ dy."""
    x, mean, rstd = residuals[:3]
    leading, wide = tuple(range(x.ndim - 1)), dy.astype(mean.dtype)
    centred = x.astype(mean.dtype) - _beside(mean, x)
    xhat = centred * _beside(rstd, x)
    return wide, centred, xhat, jnp.sum(wide * xhat, leading), jnp.sum(wide, leading)


def _affine(x: Array, mean: Array, rstd: Array, scale: Array | None, bias: Array | None) -> Array:
    y = (x.astype(mean.dtype) - _beside(mean, x)) * _beside(rstd, x)
    y = y if scale is None else y * _beside(scale.astype(mean.dtype), x)
    return (y if bias is None else y + _beside(bias.astype(mean.dtype), x)).astype(x.dtype)


def _beside(channels: Array, x: Array) -> Array:
    """(C,) with the rank of x."""
    return channels.reshape(*(1,) * (x.ndim - 1), channels.size)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _batch_norm(eps: float, x: Array, scale: Array | None, bias: Array | None) -> Statistics:
    return forward(eps, x, scale, bias)[0]


_batch_norm.defvjp(forward, backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _inference(
    eps: float, x: Array, mean: Array, variance: Array, scale: Array | None, bias: Array | None
) -> Array:
    return inference_forward(eps, x, mean, variance, scale, bias)[0]


_inference.defvjp(inference_forward, inference_backward)


def _check(op: str, x: Array, eps: float, **arrays: Array | None) -> None:
    given = {name: array for name, array in arrays.items() if name in ("mean", "variance")}
    check_arrays(op, {"x": x, **given}, **arrays)
    if x.ndim < 2:
        raise ValueError(f"{op} needs x (N…, C); got {x.shape}")
    check(op, x, x.shape[-1:], eps, **arrays)
