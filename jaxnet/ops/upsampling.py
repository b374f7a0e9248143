"""Upsampling by a whole factor, nearest or linear.

Axes: N batch · S… one to three spatial axes, each made f times as long · C channels, last.

    nearest    y[q·f + r] = x[q]
              dx[q] = Σ_r dy[q·f + r]
    linear     y[q·f + r] = a_r x[q − 1] + b_r x[q] + c_r x[q + 1]
              dx[q] = Σ_r a_r dy[(q + 1)·f + r] + b_r dy[q·f + r] + c_r dy[(q − 1)·f + r]

one axis after the other. Output q·f + r lies at q + t of the input, t = (r + ½)/f − ½ (half-pixel centres), so
a_r = max(−t, 0), c_r = max(t, 0), b_r = 1 − |t|. Beyond its edges x goes on with its first and last element.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.tree_util import Partial
from jaxtyping import Float

from jaxnet.activations import accumulation_dtype
from jaxnet.ops import dispatch
from jaxnet.ops.windows import PerAxis, padded, per_axis, spatial_of

METHODS = ("nearest", "bilinear")


class _Scaling(NamedTuple):
    factor: tuple[int, ...]
    method: str


def upsample(
    x: Float[Array, "N *S C"], factor: PerAxis, *, method: str = "nearest", implementation: str | None = None
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
    x: Float[Array, "N *S C"], factor: PerAxis, *, method: str = "nearest", implementation: str | None = None
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
    linear = scaling.method == "bilinear"
    y = x.astype(accumulation_dtype(x.dtype)) if linear else x
    if linear:
        y = padded(y, [(1, 1) if f > 1 else (0, 0) for f in scaling.factor])
    for axis, (n, f) in enumerate(zip(x.shape[1:-1], scaling.factor, strict=True), 1):
        if f > 1:
            weights = _weights(n, f) if linear else [np.ones((1, f))]
            parts = [lax.slice_in_dim(y, i, i + n, axis=axis) for i in range(len(weights))]
            wide = [
                _along(axis, w, y.ndim + 1, y.dtype) * jnp.expand_dims(part, axis + 1)
                for w, part in zip(weights, parts, strict=True)
            ]
            y = sum(wide[1:], wide[0]).reshape(*y.shape[:axis], n * f, *y.shape[axis + 1 :])
    return y.astype(x.dtype), None


def backward(scaling: _Scaling, residuals: None, dy: Float[Array, "N *O C"]) -> tuple[Float[Array, "N *S C"]]:
    """dx[q] = Σ_r a dy[q + 1, r] + b dy[q, r] + c dy[q − 1, r] along each axis, or Σ_r dy[q, r]."""
    linear = scaling.method == "bilinear"
    dx = dy.astype(accumulation_dtype(dy.dtype))
    if linear:
        dx = padded(dx, [(f, f) if f > 1 else (0, 0) for f in scaling.factor])
    for axis, (m, f) in enumerate(zip(dy.shape[1:-1], scaling.factor, strict=True), 1):
        if f > 1:
            weights = np.concatenate(_weights(m // f, f)[::-1], 1) if linear else np.ones((1, f))
            reach = m - f + 1  # from the first element of a tap to its last
            taps = [
                _along(axis, w, dx.ndim, dx.dtype) * lax.slice_in_dim(dx, j, j + reach, f, axis)
                for j, w in enumerate(weights.T)
                if w.any()
            ]
            dx = sum(taps[1:], taps[0])
    return (dx.astype(dy.dtype),)


def _weights(n: int, factor: int) -> list[np.ndarray]:
    """a, b and c for each q and r. Beyond an edge x goes on with the element there: a or c is added to its b."""
    t = np.broadcast_to((np.arange(factor) + 0.5) / factor - 0.5, (n, factor))
    a, b, c = np.maximum(-t, 0), 1 - abs(t), np.maximum(t, 0)
    b[0] += a[0]
    b[-1] += c[-1]
    return [a, b, c]


def _along(axis: int, weights: np.ndarray, rank: int, dtype: np.dtype) -> Array:
    """The weights' axes put at `axis` of so many."""
    return jnp.asarray(weights.reshape(*(1,) * axis, *weights.shape, *(1,) * (rank - axis - weights.ndim)), dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _upsample(scaling: _Scaling, x: Array) -> Array:
    return forward(scaling, x)[0]


_upsample.defvjp(forward, backward)


def _check(x: Array, factor: PerAxis, method: str) -> _Scaling:
    spatial = spatial_of("upsample", x)
    if method not in METHODS:
        raise ValueError(f"upsample needs a method of {', '.join(map(repr, METHODS))}; got {method!r}")
    if 0 in spatial:
        raise ValueError(f"upsample needs at least one element along each spatial axis; got x {x.shape}")
    return _Scaling(per_axis("upsample", "factor", factor, len(spatial)), method)
