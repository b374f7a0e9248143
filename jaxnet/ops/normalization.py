"""Layer, group and RMS normalisation: each example by its own mean and variance, or by its mean square.

Axes: N batch · S… spatial · C channels, in G groups of K. μ and v are taken over the n elements of the axes A:
for `layer_norm` and `rms_norm` those of `axis`, for `group_norm` all of S… and K.

    x̂ = (x − μ) ρ,  ρ = 1 / √(v + ε),  v = Σ_A (x − μ)² / n        y = γ x̂ + β

Since Σ_A x̂ = 0 and ∂x̂ᵢ/∂xⱼ = ρ (δᵢⱼ − 1/n − x̂ᵢ x̂ⱼ / n), with dx̂ = γ dy:

    dx = ρ (dx̂ − Σ_A dx̂ / n − x̂ Σ_A (dx̂ x̂) / n)        dγ = Σ dy x̂        dβ = Σ dy

The variance is that of the differences from the mean, in a second pass: E[x²] − μ² cancels. For `rms_norm` μ = 0
takes the place of the mean: then v is the mean square, and the term Σ_A dx̂ / n, which is that of μ, is absent.
"""

from collections.abc import Sequence
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


class _Norm(NamedTuple):
    """The shape in which x is normalised, over which axes, and that of γ and β beside it."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    scale_shape: tuple[int, ...]
    eps: float
    centered: bool = True


class Residuals(NamedTuple):
    """What the backward pass needs: x̂ is calculated again, from x itself and two numbers for each mean."""

    x: Float[Array, "..."]
    mean: Float[Array, "..."] | None
    rstd: Float[Array, "..."]
    scale: Float[Array, "..."] | None
    bias: Float[Array, "..."] | None


def layer_norm(
    x: Float[Array, "..."],
    scale: Float[Array, "..."] | None = None,
    bias: Float[Array, "..."] | None = None,
    *,
    axis: int | Sequence[int] = -1,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> Float[Array, "..."]:
    """y = γ (x − μ) / √(v + ε) + β, in at least float32 and rounded once to the dtype of x.

    Reverse mode only (`jax.custom_vjp`); the backward pass can itself be differentiated.

    Args:
        x: any shape.
        scale: γ, of the sizes of `axis` in x, or None.
        bias: β, of the same, or None.
        axis: over which μ and v are taken; one or several.
        eps: ε ≥ 0.
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for shapes, dtypes or axes that don't fit, a negative ε, an unknown implementation.

    Example:
        >>> ops.layer_norm(jnp.ones((2, 16, 64)), jnp.ones(64), jnp.zeros(64)).shape
        (2, 16, 64)

    Reference: Ba, Kiros and Hinton, Layer Normalization, 2016, https://arxiv.org/abs/1607.06450
    """
    norm = _layer(x, scale, bias, axis, eps)
    return dispatch.choose("layer_norm", implementation, partial(_normalized, norm), {})(x, scale, bias)


def layer_norm_vjp(
    x: Float[Array, "..."],
    scale: Float[Array, "..."] | None = None,
    bias: Float[Array, "..."] | None = None,
    *,
    axis: int | Sequence[int] = -1,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> tuple[Float[Array, "..."], Partial]:
    """Returns y and its pullback dy ↦ (dx, dγ, dβ); arguments as in `layer_norm`."""
    norm = _layer(x, scale, bias, axis, eps)
    y, residuals = dispatch.choose("layer_norm", implementation, partial(forward, norm), {})(x, scale, bias)
    return y, Partial(partial(backward, norm), residuals)


def rms_norm(
    x: Float[Array, "..."],
    scale: Float[Array, "..."] | None = None,
    *,
    axis: int | Sequence[int] = -1,
    eps: float = 1e-6,
    implementation: str | None = None,
) -> Float[Array, "..."]:
    """y = γ x / √(Σ x² / n + ε), in at least float32 and rounded once to the dtype of x.

    Reverse mode only (`jax.custom_vjp`); the backward pass can itself be differentiated.

    Args:
        x: any shape.
        scale: γ, of the sizes of `axis` in x, or None.
        axis: over which the mean square is taken; one or several.
        eps: ε ≥ 0.
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for shapes, dtypes or axes that don't fit, a negative ε, an unknown implementation.

    Example:
        >>> ops.rms_norm(jnp.ones((2, 16, 64)), jnp.ones(64)).shape
        (2, 16, 64)

    Reference: Zhang and Sennrich, Root Mean Square Layer Normalization, 2019, https://arxiv.org/abs/1910.07467
    """
    norm = _layer(x, scale, None, axis, eps, "rms_norm")
    return dispatch.choose("rms_norm", implementation, partial(_normalized, norm), {})(x, scale, None)


def rms_norm_vjp(
    x: Float[Array, "..."],
    scale: Float[Array, "..."] | None = None,
    *,
    axis: int | Sequence[int] = -1,
    eps: float = 1e-6,
    implementation: str | None = None,
) -> tuple[Float[Array, "..."], Partial]:
    """Returns y and its pullback dy ↦ (dx, dγ); arguments as in `rms_norm`."""
    norm = _layer(x, scale, None, axis, eps, "rms_norm")
    y, residuals = dispatch.choose("rms_norm", implementation, partial(forward, norm), {})(x, scale, None)
    return y, Partial(partial(_rms_pullback, norm), residuals)


def group_norm(
    x: Float[Array, "N *S C"],
    scale: Float[Array, " C"] | None = None,
    bias: Float[Array, " C"] | None = None,
    *,
    groups: int,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> Float[Array, "N *S C"]:
    """y = γ (x − μ) / √(v + ε) + β, μ and v of each example and group of neighbouring channels.

    Computed in at least float32 and rounded once. With one group per channel it is instance normalisation.
    Reverse mode only (`jax.custom_vjp`); the backward pass can itself be differentiated.

    Args:
        x: (N, S…, C), any number of spatial axes.
        scale: γ, (C,), or None.
        bias: β, (C,), or None.
        groups: G, a divisor of C.
        eps: ε ≥ 0.
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for shapes, dtypes or groups that don't fit, a negative ε, an unknown implementation.

    Example:
        >>> ops.group_norm(jnp.ones((2, 8, 8, 64)), jnp.ones(64), jnp.zeros(64), groups=32).shape
        (2, 8, 8, 64)

    Reference: Wu and He, Group Normalization, 2018, https://arxiv.org/abs/1803.08494
    """
    norm = _group(x, scale, bias, groups, eps)
    return dispatch.choose("group_norm", implementation, partial(_normalized, norm), {})(x, scale, bias)


def group_norm_vjp(
    x: Float[Array, "N *S C"],
    scale: Float[Array, " C"] | None = None,
    bias: Float[Array, " C"] | None = None,
    *,
    groups: int,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> tuple[Float[Array, "N *S C"], Partial]:
    """Returns y and its pullback dy ↦ (dx, dγ, dβ); arguments as in `group_norm`."""
    norm = _group(x, scale, bias, groups, eps)
    y, residuals = dispatch.choose("group_norm", implementation, partial(forward, norm), {})(x, scale, bias)
    return y, Partial(partial(backward, norm), residuals)


def reference(norm: _Norm, x: Array, scale: Array | None, bias: Array | None) -> Array:
    """The specification, for autodiff."""
    apart = x.reshape(norm.shape)
    mean = jnp.mean(apart, norm.axes, keepdims=True) if norm.centered else jnp.zeros_like(apart)
    variance = jnp.mean(jnp.square(apart - mean), norm.axes, keepdims=True)
    y = (apart - mean) / jnp.sqrt(variance + norm.eps)
    y = y if scale is None else y * scale.reshape(norm.scale_shape)
    return (y if bias is None else y + bias.reshape(norm.scale_shape)).reshape(x.shape)


def forward(norm: _Norm, x: Array, scale: Array | None, bias: Array | None) -> tuple[Array, Residuals]:
    """x̂ = (x − μ) ρ,  y = γ x̂ + β."""
    dtype = accumulation_dtype(x.dtype)
    wide = x.reshape(norm.shape).astype(dtype)
    mean = jnp.mean(wide, norm.axes, keepdims=True) if norm.centered else None
    wide = wide if mean is None else wide - mean
    rstd = jax.lax.rsqrt(jnp.mean(jnp.square(wide), norm.axes, keepdims=True) + norm.eps)
    y = wide * rstd
    y = y if scale is None else y * scale.reshape(norm.scale_shape).astype(dtype)
    y = y if bias is None else y + bias.reshape(norm.scale_shape).astype(dtype)
    return y.reshape(x.shape).astype(x.dtype), Residuals(x, mean, rstd, scale, bias)


def backward(norm: _Norm, residuals: Residuals, dy: Array) -> tuple[Array, Array | None, Array | None]:
    """dx = ρ (dx̂ − Σ dx̂ / n − x̂ Σ (dx̂ x̂) / n),  dγ = Σ dy x̂,  dβ = Σ dy."""
    x, mean, rstd, scale, bias = residuals
    wide, centered = (a.reshape(norm.shape).astype(rstd.dtype) for a in (dy, x))
    xhat = (centered if mean is None else centered - mean) * rstd
    dxhat = wide if scale is None else wide * scale.reshape(norm.scale_shape).astype(rstd.dtype)
    dx = dxhat - xhat * jnp.mean(dxhat * xhat, norm.axes, keepdims=True)
    dx = rstd * (dx if mean is None else dx - jnp.mean(dxhat, norm.axes, keepdims=True))
    others = tuple(i for i, size in enumerate(norm.scale_shape) if size == 1)
    dscale = None if scale is None else like(jnp.sum(wide * xhat, others).reshape(scale.shape), scale)
    dbias = None if bias is None else like(jnp.sum(wide, others).reshape(bias.shape), bias)
    return dx.reshape(x.shape).astype(x.dtype), dscale, dbias


def _rms_pullback(norm: _Norm, residuals: Residuals, dy: Array) -> tuple[Array, Array | None]:
    return backward(norm, residuals, dy)[:2]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalized(norm: _Norm, x: Array, scale: Array | None, bias: Array | None) -> Array:
    return forward(norm, x, scale, bias)[0]


_normalized.defvjp(forward, backward)


def _layer(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    axis: int | Sequence[int],
    eps: float,
    op: str = "layer_norm",
) -> _Norm:
    check_arrays(op, {"x": x}, scale=scale, bias=bias)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if not axes or any(not -x.ndim <= a < x.ndim for a in axes) or len({a % x.ndim for a in axes}) < len(axes):
        raise ValueError(f"{op} needs one or several different axes of x {x.shape}; got axis {axis}")
    axes = tuple(sorted(a % x.ndim for a in axes))
    check(op, x, tuple(x.shape[a] for a in axes), eps, scale=scale, bias=bias)
    scale_shape = tuple(n if i in axes else 1 for i, n in enumerate(x.shape))
    return _Norm(x.shape, axes, scale_shape, eps, centered=op == "layer_norm")


def _group(x: Array, scale: Array | None, bias: Array | None, groups: int, eps: float) -> _Norm:
    check_arrays("group_norm", {"x": x}, scale=scale, bias=bias)
    if x.ndim < 2:
        raise ValueError(f"group_norm needs x (N, S…, C); got {x.shape}")
    channels = x.shape[-1]
    if not isinstance(groups, int) or groups < 1 or channels % groups:
        raise ValueError(f"group_norm needs groups ≥ 1 that divide the {channels} channels of x; got {groups}")
    check("group_norm", x, (channels,), eps, scale=scale, bias=bias)
    apart = (groups, channels // groups)
    spatial = tuple(range(1, x.ndim - 1))
    return _Norm((*x.shape[:-1], *apart), (*spatial, x.ndim), (*(1,) * (x.ndim - 1), *apart), eps)


def check(op: str, x: Array, shape: tuple[int, ...], eps: float, **arrays: Array | None) -> None:
    """Checks the shape and dtype of what stands beside x, and ε.

    Raises:
        ValueError: if they don't fit.
    """
    if not eps >= 0:
        raise ValueError(f"{op} needs eps ≥ 0; got {eps}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{op} needs a floating-point x; got {x.dtype}")
    for name, array in arrays.items():
        if array is not None and (array.shape != shape or array.dtype != x.dtype):
            raise ValueError(
                f"{op} needs a {name} {shape} of {x.dtype} for x {x.shape}; got {array.shape} of {array.dtype}"
            )
