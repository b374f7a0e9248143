"""Max and average pooling over the whole image.

Axes: N batch · S… one to three spatial axes, of |S| elements together · C channels, last.

    max      y = max_p x[p]      dx[p] = [p is the first maximum] dy
    average  y = Σ_p x[p] / |S|  dx[p] = dy / |S|
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import Partial
from jaxtyping import Float, Integer

from jaxnet.activations import accumulation_dtype
from jaxnet.ops import dispatch
from jaxnet.ops.windows import spatial_of


class MaxResiduals(NamedTuple):
    """Where the maximum is, counted row by row."""

    place: Integer[Array, "N 1 C"]


def global_max_pool(x: Float[Array, "N *S C"], *, implementation: str | None = None) -> Float[Array, "N C"]:
    """The maximum of each channel; of equal ones the first gets the gradient. NaN is the largest.

    Reverse mode only (`jax.custom_vjp`); the backward pass can itself be differentiated.

    Args:
        x: (N, S…, C), one to three spatial axes.
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for an x that doesn't fit or has no pixel, or an unknown implementation.

    Example:
        >>> ops.global_max_pool(jnp.ones((2, 7, 7, 64))).shape
        (2, 64)
    """
    spatial = _spatial("global_max_pool", x)
    return dispatch.choose("global_max_pool", implementation, partial(_global_max_pool, spatial), {})(x)


def global_max_pool_vjp(
    x: Float[Array, "N *S C"], *, implementation: str | None = None
) -> tuple[Float[Array, "N C"], Partial]:
    """Returns y and its pullback dy ↦ dx; arguments as in `global_max_pool`."""
    spatial = _spatial("global_max_pool", x)
    y, residuals = dispatch.choose("global_max_pool", implementation, partial(max_forward, spatial), {})(x)
    return y, Partial(partial(max_backward, spatial), residuals)


def max_reference(x: Float[Array, "N *S C"]) -> Float[Array, "N C"]:
    """The specification, for autodiff where no two elements are equal."""
    return x.max(tuple(range(1, x.ndim - 1)))


def max_forward(spatial: tuple[int, ...], x: Float[Array, "N *S C"]) -> tuple[Float[Array, "N C"], MaxResiduals]:
    """y = x[p], p the first maximum or NaN."""
    flat = x.reshape(x.shape[0], math.prod(spatial), x.shape[-1])
    rows = _rows(spatial)
    # What argmax finds, in two plain reductions: XLA's CPU is slow at those of two results.
    largest = (flat == lax.stop_gradient(flat).max(1, keepdims=True)) | jnp.isnan(flat)
    place = jnp.where(largest, rows, rows.size).min(1, keepdims=True)
    return jnp.where(rows == place, flat, jnp.zeros((), x.dtype)).sum(1), MaxResiduals(place)


def max_backward(
    spatial: tuple[int, ...], residuals: MaxResiduals, dy: Float[Array, "N C"]
) -> tuple[Float[Array, "N *S C"]]:
    """dx[p] = [p = place] dy."""
    flat = jnp.where(_rows(spatial) == residuals.place, dy[:, None], jnp.zeros((), dy.dtype))
    return (flat.reshape(dy.shape[0], *spatial, dy.shape[-1]),)


def _rows(spatial: tuple[int, ...]) -> Array:
    """The number of each element, row by row: (1, |S|, 1)."""
    return jnp.arange(math.prod(spatial), dtype=jnp.int32)[None, :, None]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _global_max_pool(spatial: tuple[int, ...], x: Array) -> Array:
    return max_reference(x)  # where nothing is differentiated, one reduction


_global_max_pool.defvjp(max_forward, max_backward)


def global_avg_pool(x: Float[Array, "N *S C"], *, implementation: str | None = None) -> Float[Array, "N C"]:
    """The mean of each channel, summed in at least float32 and rounded once.

    Reverse mode only (`jax.custom_vjp`); the backward pass can itself be differentiated.

    Args:
        x: (N, S…, C), one to three spatial axes.
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for an x that doesn't fit or has no pixel, or an unknown implementation.

    Example:
        >>> ops.global_avg_pool(jnp.ones((2, 7, 7, 64))).shape
        (2, 64)
    """
    spatial = _spatial("global_avg_pool", x)
    return dispatch.choose("global_avg_pool", implementation, partial(_global_avg_pool, spatial), {})(x)


def global_avg_pool_vjp(
    x: Float[Array, "N *S C"], *, implementation: str | None = None
) -> tuple[Float[Array, "N C"], Partial]:
    """Returns y and its pullback dy ↦ dx; arguments as in `global_avg_pool`."""
    spatial = _spatial("global_avg_pool", x)
    y, _ = dispatch.choose("global_avg_pool", implementation, partial(avg_forward, spatial), {})(x)
    return y, Partial(partial(avg_backward, spatial), None)


def avg_reference(x: Float[Array, "N *S C"]) -> Float[Array, "N C"]:
    """The specification, for autodiff."""
    return x.mean(tuple(range(1, x.ndim - 1)))


def avg_forward(spatial: tuple[int, ...], x: Float[Array, "N *S C"]) -> tuple[Float[Array, "N C"], None]:
    """y = Σ_p x[p] / |S|."""
    total = jnp.sum(x, tuple(range(1, x.ndim - 1)), dtype=accumulation_dtype(x.dtype))
    return (total / math.prod(spatial)).astype(x.dtype), None


def avg_backward(
    spatial: tuple[int, ...], residuals: None, dy: Float[Array, "N C"]
) -> tuple[Float[Array, "N *S C"]]:
    """dx[p] = dy / |S|."""
    each = (dy.astype(accumulation_dtype(dy.dtype)) / math.prod(spatial)).astype(dy.dtype)
    one = each.reshape(dy.shape[0], *(1 for _ in spatial), dy.shape[-1])
    return (jnp.broadcast_to(one, (dy.shape[0], *spatial, dy.shape[-1])),)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _global_avg_pool(spatial: tuple[int, ...], x: Array) -> Array:
    return avg_forward(spatial, x)[0]


_global_avg_pool.defvjp(avg_forward, avg_backward)


def _spatial(op: str, x: Array) -> tuple[int, ...]:
    spatial = spatial_of(op, x)
    if 0 in spatial:
        raise ValueError(f"{op} needs at least one element along each spatial axis; got x {x.shape}")
    return spatial
