"""The affine map with a fused activation: y = f(x W + b).

Axes: … any leading axes · I features in · O features out.

    z = x W + b        dz = f′(z) ⊙ dy        dx = dz Wᵀ
    y = f(z)           dW = xᵀ dz             db = Σ dz    (sums over all leading axes)
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial
from jaxtyping import Float

from jaxnet import activations
from jaxnet.activations import Activation, accumulation_dtype
from jaxnet.ops import dispatch


class Residuals(NamedTuple):
    """What the backward pass needs; `z` is kept in the dtype it was summed in, and only for an activation."""

    x: Float[Array, "... I"]
    weight: Float[Array, "I O"]
    bias: Float[Array, " O"] | None
    z: Float[Array, "... O"] | None


def linear(
    x: Float[Array, "... I"],
    weight: Float[Array, "I O"],
    bias: Float[Array, " O"] | None = None,
    *,
    activation: str | Activation | None = None,
    implementation: str | None = None,
) -> Float[Array, "... O"]:
    """y = f(x W + b), summed in at least float32 and rounded once to the dtype of `x`.

    Reverse mode only (`jax.custom_vjp`); the backward pass can itself be differentiated.

    Args:
        x: (…, I).
        weight: W, (I, O).
        bias: b, (O,), or None.
        activation: f, a name or a function of `jaxnet.activations`; None is the identity.
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for shapes or dtypes that don't fit, an unknown activation or implementation.

    Example:
        >>> ops.linear(jnp.ones((2, 3)), jnp.ones((3, 4)), activation="tanh").shape
        (2, 4)
    """
    function = _check(x, weight, bias, activation)
    run = dispatch.choose("linear", implementation, partial(_linear, function), {})
    return run(x, weight, bias)


def linear_vjp(
    x: Float[Array, "... I"],
    weight: Float[Array, "I O"],
    bias: Float[Array, " O"] | None = None,
    *,
    activation: str | Activation | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "... O"], Partial]:
    """Returns y and its pullback dy ↦ (dx, dW, db), the formulas above; arguments as in `linear`."""
    function = _check(x, weight, bias, activation)
    y, residuals = dispatch.choose("linear", implementation, partial(forward, function), {})(x, weight, bias)
    return y, Partial(partial(backward, function), residuals)


def reference(
    activation: Activation | None,
    x: Float[Array, "... I"],
    weight: Float[Array, "I O"],
    bias: Float[Array, " O"] | None,
) -> Float[Array, "... O"]:
    """The specification, for autodiff."""
    z = x @ weight if bias is None else x @ weight + jnp.broadcast_to(bias, (*x.shape[:-1], bias.size))
    return z if activation is None else activation(z)


def forward(
    activation: Activation | None,
    x: Float[Array, "... I"],
    weight: Float[Array, "I O"],
    bias: Float[Array, " O"] | None,
) -> tuple[Float[Array, "... O"], Residuals]:
    """y = f(x W + b)."""
    z = jnp.matmul(x, weight, preferred_element_type=accumulation_dtype(x.dtype))
    if bias is not None:
        z = z + jnp.broadcast_to(bias.astype(z.dtype), z.shape)
    if activation is None:
        return z.astype(x.dtype), Residuals(x, weight, bias, None)
    return activation(z).astype(x.dtype), Residuals(x, weight, bias, z)


def backward(
    activation: Activation | None, residuals: Residuals, dy: Float[Array, "... O"]
) -> tuple[Float[Array, "... I"], Float[Array, "I O"], Float[Array, " O"] | None]:
    """dz = f′(z) ⊙ dy,  dx = dz Wᵀ,  dW = xᵀ dz,  db = Σ dz."""
    x, weight, bias, z = residuals
    dz = dy.astype(accumulation_dtype(x.dtype))
    if activation is not None:
        dz = activations.pullback(activation)(z, dz)
    leading = tuple(range(x.ndim - 1))
    # Sums over a sharded axis can lie on the devices in several ways: a gradient lies as its argument does.
    dx = jnp.matmul(dz, weight.astype(dz.dtype).T, out_sharding=jax.typeof(x).sharding)
    dweight = jax.lax.dot_general(
        x.astype(dz.dtype), dz, ((leading, leading), ((), ())), out_sharding=jax.typeof(weight).sharding
    )
    dbias = None if bias is None else _like(jnp.sum(dz, leading), bias)
    return _like(dx, x), _like(dweight, weight), dbias


def _like(gradient: Array, argument: Array) -> Array:
    """The gradient in its argument's dtype; inside `shard_map`, summed over the devices that share it."""
    g, a = (jax.typeof(array).manual_axis_type.varying for array in (gradient, argument))
    return (jax.lax.psum(gradient, tuple(g - a)) if g - a else gradient).astype(argument.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(activation: Activation | None, x: Array, weight: Array, bias: Array | None) -> Array:
    return forward(activation, x, weight, bias)[0]


_linear.defvjp(forward, backward)


def _check(x: Array, weight: Array, bias: Array | None, activation: str | Activation | None) -> Activation | None:
    if weight.ndim != 2:
        raise ValueError(f"linear needs a weight (I, O); got shape {weight.shape}")
    if x.ndim < 1 or x.shape[-1] != weight.shape[0]:
        raise ValueError(f"linear needs x (…, {weight.shape[0]}) for a weight {weight.shape}; got {x.shape}")
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ValueError(f"linear needs a bias {weight.shape[1:]} for a weight {weight.shape}; got {bias.shape}")
    arrays = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype != x.dtype:
            raise ValueError(
                f"linear needs x, weight and bias of one floating-point dtype; got {name} of {array.dtype}"
                + ("" if name == "x" else f" beside x of {x.dtype}")
            )
    return None if activation is None else activations.get(activation)
