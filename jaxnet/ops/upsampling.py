"""Upsampling by a whole factor, nearest or linear.

Axes: N batch · S… one to three spatial axes, each made f times as long · C channels, last.

    nearest    y[q·f + r] = x[q]
              dx[q] = Σ_r dy[q·f + r]
    linear     y[q·f + r] = a_r x[q − 1] + b_r x[q] + c_r x[q + 1]
              dx[q] = Σ_r a_r dy[(q + 1)·f + r] + b_r dy[q·f + r] + c_r dy[(q − 1)·f + r]

one axis after the other. Output q·f + r lies at q + t of the input, t = (r + ½)/f − ½ (half-pixel centres), so
a_r = max(−t, 0), c_r = max(t, 0), b_r = 1 − |t|. Beyond its edges x goes on with its first and last element.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from jaxtyping import Float

from jaxnet.activations import accumulation_dtype
from jaxnet.ops import dispatch
from jaxnet.ops.windows import Sizes, sizes, spatial_of

METHODS = ("nearest", "bilinear")


class _Scaling(NamedTuple):
    factor: tuple[int, ...]
    method: str


def upsample(
    x: Float[Array, "N *S C"], factor: Sizes, *, method: str = "nearest", implementation: str | None = None
) -> Float[Array, "N *O C"]:
    """x with each spatial axis `factor` times as long.

    Reverse mode only (`jax.custom_vjp`); the backward pass can itself be differentiated.

    Args:
        x: (N, S…, C), one to three spatial axes.
        factor: a whole number ≥ 1, or one for each spatial axis.
        method: "nearest" repeats each element; "bilinear" interpolates linearly between the centres of the
            pixels, along one, two or three axes, as `jax.image.resize` and PyTorch without `align_corners`.
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for an x or factor that doesn't fit, an unknown method or implementation.

    Example:
        >>> ops.upsample(jnp.ones((2, 16, 16, 3)), 2, method="bilinear").shape
        (2, 32, 32, 3)
    """
    return dispatch.choose("upsample", implementation, partial(_upsample, _check(x, factor, method)), {})(x)


def upsample_vjp(
    x: Float[Array, "N *S C"], factor: Sizes, *, method: str = "nearest", implementation: str | None = None
) -> tuple[Float[Array, "N *O C"], Partial]:
    """Returns y and its pullback dy ↦ dx; arguments as in `upsample`."""
    scaling = _check(x, factor, method)
    y, _ = dispatch.choose("upsample", implementation, partial(forward, scaling), {})(x)
    return y, Partial(partial(backward, scaling), None)


def reference(scaling: _Scaling, x: Float[Array, "N *S C"]) -> Float[Array, "N *O C"]:
    """The specification, for autodiff."""
    shape = (x.shape[0], *(n * f for n, f in zip(x.shape[1:-1], scaling.factor, strict=True)), x.shape[-1])
    return jax.image.resize(x, shape, scaling.method)


def forward(scaling: _Scaling, x: Float[Array, "N *S C"]) -> tuple[Float[Array, "N *O C"], None]:
    """y = a x[q − 1] + b x[q] + c x[q + 1] along each axis, or x[q]."""
    y = x if scaling.method == "nearest" else x.astype(accumulation_dtype(x.dtype))
    for axis, f in enumerate(scaling.factor, 1):
        shape = (*y.shape[:axis], y.shape[axis], f, *y.shape[axis + 1 :])
        if scaling.method == "nearest" or f == 1:
            wide = jnp.broadcast_to(jnp.expand_dims(y, axis + 1), shape)
        else:
            a, b, c = _weights(f, axis, y)
            n = y.shape[axis]
            before = jnp.concatenate([_part(y, axis, 0, 1), _part(y, axis, 0, n - 1)], axis)
            after = jnp.concatenate([_part(y, axis, 1, n), _part(y, axis, n - 1, n)], axis)
            before, here, after = (jnp.expand_dims(part, axis + 1) for part in (before, y, after))
            wide = a * before + b * here + c * after
        y = wide.reshape(*shape[:axis], math.prod(shape[axis : axis + 2]), *shape[axis + 2 :])
    return y.astype(x.dtype), None


def backward(scaling: _Scaling, residuals: None, dy: Float[Array, "N *O C"]) -> tuple[Float[Array, "N *S C"]]:
    """dx[q] = Σ_r a dy[q + 1, r] + b dy[q, r] + c dy[q − 1, r] along each axis, or Σ_r dy[q, r].

    What was read beyond an edge goes to the element at the edge.
    """
    dx = dy.astype(accumulation_dtype(dy.dtype))
    for axis, f in enumerate(scaling.factor, 1):
        n = dx.shape[axis] // f
        apart = dx.reshape(*dx.shape[:axis], n, f, *dx.shape[axis + 1 :])
        if scaling.method == "nearest" or f == 1:
            dx = apart.sum(axis + 1)
        else:
            a, b, c = ((w * apart).sum(axis + 1) for w in _weights(f, axis, dx))
            nothing = jnp.zeros_like(_part(a, axis, 0, 1))
            to_before = jnp.concatenate([_part(a, axis, 1, n), nothing], axis)
            to_after = jnp.concatenate([nothing, _part(c, axis, 0, n - 1)], axis)
            inner = jnp.zeros_like(_part(a, axis, 1, n))
            edges = [_part(a, axis, 0, 1), inner], [inner, _part(c, axis, n - 1, n)]
            dx = b + to_before + to_after + sum(jnp.concatenate(edge, axis) for edge in edges)
    return (dx.astype(dy.dtype),)


def _weights(factor: int, axis: int, x: Array) -> tuple[Array, Array, Array]:
    """a, b and c, shaped to be multiplied with x once it has an axis for r after `axis`."""
    t = (np.arange(factor) + 0.5) / factor - 0.5
    shape = (*(1,) * (axis + 1), factor, *(1,) * (x.ndim - axis - 1))
    a, b, c = (jnp.asarray(w.reshape(shape), x.dtype) for w in (np.maximum(-t, 0), 1 - abs(t), np.maximum(t, 0)))
    return a, b, c


def _part(x: Array, axis: int, start: int, stop: int) -> Array:
    return jax.lax.slice_in_dim(x, start, stop, axis=axis)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _upsample(scaling: _Scaling, x: Array) -> Array:
    return forward(scaling, x)[0]


_upsample.defvjp(forward, backward)


def _check(x: Array, factor: Sizes, method: str) -> _Scaling:
    spatial = spatial_of("upsample", x)
    if method not in METHODS:
        raise ValueError(f"upsample needs a method of {', '.join(map(repr, METHODS))}; got {method!r}")
    if 0 in spatial:
        raise ValueError(f"upsample needs at least one element along each spatial axis; got x {x.shape}")
    return _Scaling(sizes("upsample", "factor", factor, len(spatial)), method)
