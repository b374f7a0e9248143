"""Rotary positions: each pair of features of a query or a key is turned by an angle that grows with its position.

Axes: B batch · T positions · N heads · H features, the first half u and the second half w.

    u′ = u cos θ − w sin θ        θ_ti = (offset + t) base^(−2i/H),  i < H/2
    w′ = u sin θ + w cos θ

The dot product of a query at t and a key at s then varies with t − s alone. A rotation is orthogonal: its
transpose is the rotation by −θ.
"""

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


class Residuals(NamedTuple):
    """What the backward pass needs."""

    offset: Array


def rotary(
    x: Float[Array, "B T N H"],
    *,
    base: float = 10_000.0,
    offset: int | Array = 0,
    implementation: str | None = None,
) -> Float[Array, "B T N H"]:
    """x with its features turned by their positions, in at least float32 and rounded once.

    Feature i is paired with i + H/2. The paper pairs neighbours, 2i and 2i + 1: that is the same up to the order
    of the features, hence of the weights that make them.

    Reverse mode only (`jax.custom_vjp`); the backward pass can itself be differentiated.

    Args:
        x: (B, T, N, H), H even.
        base: > 0; the longest wave has 2π·base positions.
        offset: the position of the first one, for all examples or for each, (B,).
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for shapes, dtypes or a base that don't fit, an unknown implementation.

    Example:
        >>> ops.rotary(jnp.ones((2, 16, 8, 64))).shape
        (2, 16, 8, 64)

    Reference: Su et al., RoFormer, 2021, https://arxiv.org/abs/2104.09864
    """
    at = _check(x, base, offset)
    return dispatch.choose("rotary", implementation, partial(_rotary, base), {})(x, at)


def rotary_vjp(
    x: Float[Array, "B T N H"],
    *,
    base: float = 10_000.0,
    offset: int | Array = 0,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T N H"], Partial]:
    """Returns y and its pullback dy ↦ dx; arguments as in `rotary`."""
    at = _check(x, base, offset)
    y, residuals = dispatch.choose("rotary", implementation, partial(forward, base), {})(x, at)
    return y, Partial(partial(_pullback, base), residuals)


def reference(base: float, x: Array, offset: Array) -> Array:
    """The specification, for autodiff: complex numbers u + iw, multiplied by cos θ + i sin θ."""
    half, angles = x.shape[-1] // 2, _angles(base, x, offset)
    z = jax.lax.complex(x[..., :half], x[..., half:]) * jax.lax.complex(jnp.cos(angles), jnp.sin(angles))
    return jnp.concatenate([z.real, z.imag], -1)


def forward(base: float, x: Array, offset: Array) -> tuple[Array, Residuals]:
    """u′ = u cos θ − w sin θ,  w′ = u sin θ + w cos θ."""
    return _turned(x, _angles(base, x, offset)), Residuals(offset)


def backward(base: float, residuals: Residuals, dy: Array) -> tuple[Array, None]:
    """du = du′ cos θ + dw′ sin θ,  dw = −du′ sin θ + dw′ cos θ."""
    return _turned(dy, -_angles(base, dy, residuals.offset)), None


def _turned(x: Array, angles: Array) -> Array:
    u, w = jnp.split(x.astype(angles.dtype), 2, -1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([u * cos - w * sin, u * sin + w * cos], -1).astype(x.dtype)


def _angles(base: float, x: Array, offset: Array) -> Array:
    """θ, (B|1, T, 1, H/2)."""
    dtype = accumulation_dtype(x.dtype)
    frequency = base ** (-2 * jnp.arange(x.shape[-1] // 2, dtype=dtype) / x.shape[-1])
    position = offset[:, None] + jnp.arange(x.shape[1], dtype=offset.dtype)[None]
    return position.astype(dtype)[..., None, None] * frequency[None, None, None]


def _pullback(base: float, residuals: Residuals, dy: Array) -> Array:
    return backward(base, residuals, dy)[0]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rotary(base: float, x: Array, offset: Array) -> Array:
    return forward(base, x, offset)[0]


_rotary.defvjp(forward, backward)


def _check(x: Array, base: float, offset: int | Array) -> Array:
    check_arrays("rotary", {"x": x})
    if x.ndim != 4 or x.shape[-1] % 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"rotary needs a floating-point x (B, T, N, H), H even; got {x.dtype} {x.shape}")
    if not base > 0:
        raise ValueError(f"rotary needs base > 0; got {base}")
    at = jnp.asarray(offset)
    if at.shape not in ((), x.shape[:1]) or not jnp.issubdtype(at.dtype, jnp.integer):
        raise ValueError(f"rotary needs an offset of integers () or {x.shape[:1]}; got {at.dtype} {at.shape}")
    return at.astype(jnp.int32).reshape(-1)
