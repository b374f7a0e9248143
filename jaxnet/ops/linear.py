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
from jaxnet.ops.arrays import check_arrays
from jaxnet.ops.gradients import like


class Residuals(NamedTuple):
    """What the backward pass needs. `saved`, only for an activation, is kept in the dtype it was summed in.

    It is z; for relu and tanh y, of which their derivatives are functions: z itself is never stored.
    """

    x: Float[Array, "... I"]
    weight: Float[Array, "I O"]
    bias: Float[Array, " O"] | None
    saved: Float[Array, "... O"] | None


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
    keep: bool = True,
) -> tuple[Float[Array, "... O"], Residuals]:
    """y = f(x W + b)."""
    fused = _fused(activation)
    function = activation if fused else None
    keep_z = keep and fused is not None and function not in _OF_Y
    y, z = _product(_Product(implementation, function=function, keep=keep_z), x, weight, None, bias)
    saved = None if activation is None else y if fused is None or function in _OF_Y else z
    y = y if activation is None or fused else activation(y)
    return y.astype(x.dtype), Residuals(x, weight, bias, saved)


def sums(
    x: Float[Array, "... I"],
    weight: Float[Array, "I O"],
    bias: Float[Array, " O"] | None,
    *,
    implementation: str | None = None,
) -> Float[Array, "... O"]:
    """z = x W + b, in the dtype it is summed in."""
    return _product(_Product(implementation), x, weight, None, bias)[0]


def backward(
    activation: Activation | None,
    residuals: Residuals,
    dy: Float[Array, "... O"],
    *,
    implementation: str | None = None,
) -> tuple[Float[Array, "... I"], Float[Array, "I O"], Float[Array, " O"] | None]:
    """dz = f′(z) ⊙ dy,  dx = dz Wᵀ,  dW = xᵀ dz,  db = Σ dz."""
    x, weight, bias, saved = residuals
    dz = dy.astype(accumulation_dtype(x.dtype))
    if x.dtype != dz.dtype:
        implementation = "xla"  # as the forward pass: no kernel takes half precision
    # If f is fused, dz isn't stored: each product makes it as it reads dy.
    if activation is not None and _fused(activation) is None:
        dz = activations.pullback(activation)(saved, dz)
        activation = saved = None
    # Sums over a sharded axis can lie on the devices in several ways: a gradient lies as its argument does.
    to_x = _Product(implementation, transpose_b=True, slope=activation, sharding=jax.typeof(x).sharding)
    dx, _ = _product(to_x, dz, weight.astype(dz.dtype), saved, None)
    dweight, dbias = gradients(x, dz, weight, saved, slope=activation, implementation=implementation)
    return like(dx, x), dweight, None if bias is None else like(dbias, bias)


def gradients(
    x: Float[Array, "... I"],
    dy: Float[Array, "... O"],
    weight: Float[Array, "..."],
    saved: Float[Array, "... O"] | None = None,
    *,
    slope: Activation | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "I O"], Float[Array, " O"]]:
    """dW = xᵀ dz, in the dtype of the weight and lying as it does; db = Σ dz; dz = dy, with a slope f′ ⊙ dy."""
    which = _Product(implementation, slope=slope, sharding=jax.typeof(weight).sharding)
    dweight, dbias = _gradients(which, x.astype(dy.dtype), dy, saved)
    return like(dweight, weight), dbias


# What the kernels compute with a product, by their names for it; and whose derivatives are functions of y.
_FUSED = {
    activations.relu: "relu",
    activations.tanh: "tanh",
    activations.sigmoid: "sigmoid",
    activations.silu: "silu",
    activations.gelu: "gelu",
}
_OF_Y = (activations.relu, activations.tanh)


def _fused(activation: Activation | None) -> str | None:
    """The kernels' name for an activation; None if they don't have it."""
    if isinstance(activation, partial):
        exact = activation.func is activations.gelu and activation.keywords == {"approximate": False}
        return "gelu exact" if exact else None
    return None if activation is None else _FUSED.get(activation)


class _Product(NamedTuple):
    """How a product is computed, and which: f(a′ op(b) + bias), a′ = a or g′ ⊙ a."""

    implementation: str | None
    transpose_b: bool = False
    function: Activation | None = None  # f, of those that are fused
    slope: Activation | None = None  # g, likewise
    keep: bool = False  # whether what f is of is a result
    sharding: NamedSharding | None = None


def _product(
    which: _Product, a: Array, b: Array, saved: Array | None, bias: Array | None
) -> tuple[Array, Array | None]:
    """f(z) and, to keep it, z = a′ op(b) + bias; `saved` is what g′ is of."""
    names = {"activation": _fused(which.function), "slope": _fused(which.slope)}
    options = {key: name for key, name in names.items() if name}
    kernel = partial(cpu.product, transpose_b=which.transpose_b, keep=which.keep, **options)
    sizes = math.prod(a.shape[:-1]), *b.shape
    return _choose(which, partial(_xla_product, which), kernel, sizes, a, b, saved, bias)


def _xla_product(
    which: _Product, a: Array, b: Array, saved: Array | None, bias: Array | None
) -> tuple[Array, Array | None]:
    dtype = accumulation_dtype(a.dtype)
    a, b = _sloped(which.slope, saved, a), b.T if which.transpose_b else b
    z = jnp.matmul(a, b, preferred_element_type=dtype, out_sharding=which.sharding)
    z = z if bias is None else z + jnp.broadcast_to(bias.astype(dtype), z.shape)
    return z if which.function is None else which.function(z), z if which.keep else None


def _gradients(which: _Product, x: Array, dy: Array, saved: Array | None) -> tuple[Array, Array]:
    """dW = xᵀ dz,  db = Σ dz,  dz = dy or g′ ⊙ dy."""
    name = _fused(which.slope)
    kernel = partial(cpu.gradients, slope=name) if name else cpu.gradients
    sizes = x.shape[-1], math.prod(x.shape[:-1]), dy.shape[-1]
    return _choose(which, partial(_xla_gradients, which), kernel, sizes, x, dy, saved)


def _xla_gradients(which: _Product, x: Array, dy: Array, saved: Array | None) -> tuple[Array, Array]:
    dz, leading = _sloped(which.slope, saved, dy), tuple(range(x.ndim - 1))
    sums = (leading, leading), ((), ())
    return jax.lax.dot_general(x, dz, sums, out_sharding=which.sharding), jnp.sum(dz, leading)


def _sloped(f: Activation | None, saved: Array | None, dy: Array) -> Array:
    """f′ ⊙ dy."""
    if f is None or saved is None:
        return dy
    return (1 - saved) * (1 + saved) * dy if f is activations.tanh else activations.pullback(f)(saved, dy)


def _choose(
    which: _Product, xla: Callable, kernel: Callable, sizes: tuple[int, ...], *operands: Array | None
) -> Any:
    reason = dispatch.unsupported(*operands)
    if which.implementation is None:
        reason = reason or cpu.slow(*sizes)
    kernels = {"cpu": dispatch.Kernel(dispatch.differentiable(kernel, xla), reason)}
    return dispatch.choose("linear", which.implementation, xla, kernels)(*operands)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _linear(
    activation: Activation | None, implementation: str | None, x: Array, weight: Array, bias: Array | None
) -> Array:
    return forward(activation, x, weight, bias, implementation=implementation, keep=False)[0]


_linear.defvjp(
    lambda activation, name, *args: forward(activation, *args, implementation=name),
    lambda activation, name, *args: backward(activation, *args, implementation=name),
)


def _check(x: Array, weight: Array, bias: Array | None, activation: str | Activation | None) -> Activation | None:
    check_arrays("linear", {"x": x, "weight": weight}, bias=bias)
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
