"""The affine map with a fused activation: y = f(x W + b).

Axes: … any leading axes · I features in · O features out.

    z = x W + b        dz = f′(z) ⊙ dy        dx = dz Wᵀ
    y = f(z)           dW = xᵀ dz             db = Σ dz    (sums over all leading axes)
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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
from jaxnet.ops.gradients import like


class Residuals(NamedTuple):
    """What the backward pass needs. `z`, only for an activation, is kept in the dtype it was summed in.

    For relu it is max(z, 0), which has the same derivative: z itself is never stored.
    """

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
    return _linear(_check(x, weight, bias, activation), dispatch.name(implementation), x, weight, bias)


def linear_vjp(
    x: Float[Array, "... I"],
    weight: Float[Array, "I O"],
    bias: Float[Array, " O"] | None = None,
    *,
    activation: str | Activation | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "... O"], Partial]:
    """Returns y and its pullback dy ↦ (dx, dW, db), the formulas above; arguments as in `linear`."""
    function, name = _check(x, weight, bias, activation), dispatch.name(implementation)
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
    relu = activation is activations.relu
    z = sums(x, weight, bias, relu=relu, implementation=implementation)
    if activation is None or relu:
        return z.astype(x.dtype), Residuals(x, weight, bias, z if relu else None)
    return activation(z).astype(x.dtype), Residuals(x, weight, bias, z)


def sums(
    x: Float[Array, "... I"],
    weight: Float[Array, "I O"],
    bias: Float[Array, " O"] | None,
    *,
    relu: bool = False,
    implementation: str | None = None,
) -> Float[Array, "... O"]:
    """z = x W + b, or max(z, 0), in the dtype it is summed in."""
    return _product(_Product(implementation, relu=relu), x, weight, None, bias)


def backward(
    activation: Activation | None,
    residuals: Residuals,
    dy: Float[Array, "... O"],
    *,
    implementation: str | None = None,
) -> tuple[Float[Array, "... I"], Float[Array, "I O"], Float[Array, " O"] | None]:
    """dz = f′(z) ⊙ dy,  dx = dz Wᵀ,  dW = xᵀ dz,  db = Σ dz."""
    x, weight, bias, z = residuals
    relu = activation is activations.relu
    dz = dy.astype(accumulation_dtype(x.dtype))
    if activation is not None and not relu:
        dz = activations.pullback(activation)(z, dz)
    if x.dtype != dz.dtype:
        implementation = "xla"  # as the forward pass: no kernel takes half precision
    # relu's dz = [y > 0] ⊙ dy isn't stored: each product makes it as it reads dy.
    y = z if relu else None
    # Sums over a sharded axis can lie on the devices in several ways: a gradient lies as its argument does.
    to_x = _Product(implementation, transpose_b=True, sharding=jax.typeof(x).sharding)
    dx = _product(to_x, dz, weight.astype(dz.dtype), y, None)
    dweight, dbias = gradients(x, dz, weight, y, implementation=implementation)
    return like(dx, x), dweight, None if bias is None else like(dbias, bias)


def gradients(
    x: Float[Array, "... I"],
    dz: Float[Array, "... O"],
    weight: Float[Array, "..."],
    y: Float[Array, "... O"] | None = None,
    *,
    implementation: str | None = None,
) -> tuple[Float[Array, "I O"], Float[Array, " O"]]:
    """dW = xᵀ dz, in the dtype of the weight and lying as it does; db = Σ dz. For relu's y of [y > 0] ⊙ dz."""
    which = _Product(implementation, sharding=jax.typeof(weight).sharding)
    dweight, dbias = _gradients(which, x.astype(dz.dtype), dz, y)
    return like(dweight, weight), dbias


class _Product(NamedTuple):
    """How a product is computed, and which: a b or a bᵀ, with relu or without."""

    implementation: str | None
    transpose_b: bool = False
    relu: bool = False
    sharding: NamedSharding | None = None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(which: _Product, a: Array, b: Array, y: Array | None, bias: Array | None) -> Array:
    """f(a′ op(b) + bias), f the identity or relu, a′ = a or, if the y of a relu is given, [y > 0] ⊙ a."""
    kernel = partial(cpu.product, transpose_b=which.transpose_b, relu=which.relu)
    sizes = math.prod(a.shape[:-1]), *b.shape
    return _choose(which, partial(_xla_product, which), kernel, sizes, a, b, y, bias)


@_product.defjvp
def _product_jvp(which: _Product, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """Derivatives of second and higher order: in forward and in reverse mode, hence by XLA."""
    (a, b, y, bias), (da, db, _, dbias) = primals, tangents
    linear = which._replace(relu=False)
    dz = _xla_product(linear, da, b, y, dbias) + _xla_product(linear, a, db, y, None)
    c = _product(which, a, b, y, bias)
    return c, _masked(dz, c if which.relu else None)


def _xla_product(which: _Product, a: Array, b: Array, y: Array | None, bias: Array | None) -> Array:
    dtype = accumulation_dtype(a.dtype)
    a, b = _masked(a, y), b.T if which.transpose_b else b
    z = jnp.matmul(a, b, preferred_element_type=dtype, out_sharding=which.sharding)
    z = z if bias is None else z + jnp.broadcast_to(bias.astype(dtype), z.shape)
    return activations.relu(z) if which.relu else z


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gradients(which: _Product, x: Array, dy: Array, y: Array | None) -> tuple[Array, Array]:
    """dW = xᵀ dz,  db = Σ dz,  dz = dy or, if the y of a relu is given, [y > 0] ⊙ dy."""
    sizes = x.shape[-1], math.prod(x.shape[:-1]), dy.shape[-1]
    return _choose(which, partial(_xla_gradients, which), cpu.gradients, sizes, x, dy, y)


@_gradients.defjvp
def _gradients_jvp(which: _Product, primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    """As for `_product`."""
    (x, dy, y), (tangent_x, tangent_dy, _) = primals, tangents
    dweight, dbias = _xla_gradients(which, x, tangent_dy, y)
    return _gradients(which, x, dy, y), (dweight + _xla_gradients(which, tangent_x, dy, y)[0], dbias)


def _xla_gradients(which: _Product, x: Array, dy: Array, y: Array | None) -> tuple[Array, Array]:
    dz, leading = _masked(dy, y), tuple(range(x.ndim - 1))
    sums = (leading, leading), ((), ())
    return jax.lax.dot_general(x, dz, sums, out_sharding=which.sharding), jnp.sum(dz, leading)


def _masked(dy: Array, y: Array | None) -> Array:
    """[y > 0] ⊙ dy, which doesn't vary with y: relu has no second derivative."""
    return dy if y is None else activations.pullback("relu")(y, dy)


def _choose(
    which: _Product, xla: Callable, kernel: Callable, sizes: tuple[int, ...], *operands: Array | None
) -> Any:
    reason = dispatch.unsupported(*operands)
    if which.implementation is None:
        reason = reason or cpu.slow(*sizes)
    kernels = {"cpu": dispatch.Kernel(kernel, reason)}
    return dispatch.choose("linear", which.implementation, xla, kernels)(*operands)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _linear(
    activation: Activation | None, implementation: str | None, x: Array, weight: Array, bias: Array | None
) -> Array:
    return forward(activation, x, weight, bias, implementation=implementation)[0]


_linear.defvjp(
    lambda activation, name, *args: forward(activation, *args, implementation=name),
    lambda activation, name, *args: backward(activation, *args, implementation=name),
)


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
