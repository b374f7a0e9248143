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
from jax.sharding import NamedSharding
from jax.tree_util import Partial
from jaxtyping import Float

from jaxnet import activations
from jaxnet.activations import Activation, accumulation_dtype
from jaxnet.kernels.linear import cpu
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
    return _linear(_check(x, weight, bias, activation), _name(implementation), x, weight, bias)


def linear_vjp(
    x: Float[Array, "... I"],
    weight: Float[Array, "I O"],
    bias: Float[Array, " O"] | None = None,
    *,
    activation: str | Activation | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "... O"], Partial]:
    """Returns y and its pullback dy ↦ (dx, dW, db), the formulas above; arguments as in `linear`."""
    function, name = _check(x, weight, bias, activation), _name(implementation)
    y, residuals = forward(function, x, weight, bias, implementation=name)
    return y, Partial(partial(backward, function, implementation=name), residuals)


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
    *,
    implementation: str | None = None,
) -> tuple[Float[Array, "... O"], Residuals]:
    """y = f(x W + b)."""
    z = _product(_Product(implementation), x, weight, bias)
    if activation is None:
        return z.astype(x.dtype), Residuals(x, weight, bias, None)
    return activation(z).astype(x.dtype), Residuals(x, weight, bias, z)


def backward(
    activation: Activation | None,
    residuals: Residuals,
    dy: Float[Array, "... O"],
    *,
    implementation: str | None = None,
) -> tuple[Float[Array, "... I"], Float[Array, "I O"], Float[Array, " O"] | None]:
    """dz = f′(z) ⊙ dy,  dx = dz Wᵀ,  dW = xᵀ dz,  db = Σ dz."""
    x, weight, bias, z = residuals
    dz = dy.astype(accumulation_dtype(x.dtype))
    if activation is not None:
        dz = activations.pullback(activation)(z, dz)
    if x.dtype != dz.dtype:
        implementation = "xla"  # as the forward pass: no kernel takes half precision
    # Sums over a sharded axis can lie on the devices in several ways: a gradient lies as its argument does.
    to_x = _Product(implementation, transpose_b=True, sharding=jax.typeof(x).sharding)
    to_weight = _Product(implementation, transpose_a=True, sharding=jax.typeof(weight).sharding)
    dx = _product(to_x, dz, weight.astype(dz.dtype), None)
    dweight = _product(to_weight, x.astype(dz.dtype), dz, None)
    dbias = None if bias is None else _like(jnp.sum(dz, tuple(range(x.ndim - 1))), bias)
    return _like(dx, x), _like(dweight, weight), dbias


class _Product(NamedTuple):
    """Which product: a b, a bᵀ or aᵀ b (summed over the leading axes of both), and how it is computed."""

    implementation: str | None
    transpose_a: bool = False
    transpose_b: bool = False
    sharding: NamedSharding | None = None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(which: _Product, a: Array, b: Array, bias: Array | None) -> Array:
    options = {"transpose_a": which.transpose_a, "transpose_b": which.transpose_b}
    reason = cpu.unsupported(a, b, bias)
    if which.implementation is None:
        reason = reason or cpu.slow(a, b, **options)
    kernels = {"cpu": dispatch.Kernel(partial(cpu.run, **options), reason)}
    return dispatch.choose("linear", which.implementation, partial(_xla_product, which), kernels)(a, b, bias)


@_product.defjvp
def _product_jvp(which: _Product, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """Derivatives of second and higher order: in forward and in reverse mode, hence by XLA."""
    (a, b, bias), (da, db, dbias) = primals, tangents
    dc = _xla_product(which, da, b, dbias) + _xla_product(which, a, db, None)
    return _product(which, a, b, bias), dc


def _xla_product(which: _Product, a: Array, b: Array, bias: Array | None) -> Array:
    dtype = accumulation_dtype(a.dtype)
    if which.transpose_a:
        leading = tuple(range(a.ndim - 1))
        sums = (leading, leading), ((), ())
        return jax.lax.dot_general(a, b, sums, preferred_element_type=dtype, out_sharding=which.sharding)
    b = b.T if which.transpose_b else b
    c = jnp.matmul(a, b, preferred_element_type=dtype, out_sharding=which.sharding)
    return c if bias is None else c + jnp.broadcast_to(bias.astype(dtype), c.shape)


def _like(gradient: Array, argument: Array) -> Array:
    """The gradient in its argument's dtype; inside `shard_map`, summed over the devices that share it."""
    g, a = (jax.typeof(array).manual_axis_type.varying for array in (gradient, argument))
    return (jax.lax.psum(gradient, tuple(g - a)) if g - a else gradient).astype(argument.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _linear(
    activation: Activation | None, implementation: str | None, x: Array, weight: Array, bias: Array | None
) -> Array:
    return forward(activation, x, weight, bias, implementation=implementation)[0]


_linear.defvjp(
    lambda activation, name, *args: forward(activation, *args, implementation=name),
    lambda activation, name, *args: backward(activation, *args, implementation=name),
)


def _name(implementation: str | None) -> str | None:
    """The name that holds for both passes, also if the pullback is called outside of a `using` block."""
    return implementation if implementation is not None else dispatch._in_use.value


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
