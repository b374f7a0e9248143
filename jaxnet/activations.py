"""Activation functions, each beside its derivative.

Every function is a `jax.custom_jvp` whose derivative is written out below it, so forward mode, reverse
mode and second order all use the formula on this page. Values are computed in at least float32 and
rounded once to the dtype of `x`; the formulas neither overflow for large |x| nor cancel near 0.

At a kink the derivative is the one `jax.nn` takes: relu'(0) = 0, leaky_relu'(0) = 1, elu'(0) = α;
hard_swish takes the outer slope, 0 at −3 and 1 at 3.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

Activation = Callable[..., Array]

_NAMES: dict[str, Activation] = {}


def get(activation: str | Activation) -> Activation:
    """Returns the activation called `activation`, or `activation` itself if it is one.

    An activation with an option set is `functools.partial(activations.leaky_relu, negative_slope=0.2)`.

    Raises:
        ValueError: if there is none of that name (the message has the nearest), or the function has no
            derivative written beside it (`elementwise` adds one; for one of `jax.nn` the message has the name).
    """
    if isinstance(activation, str):
        if activation in _NAMES:
            return _NAMES[activation]
        near = difflib.get_close_matches(activation, _NAMES, n=1, cutoff=0.0)[0]
        names = ", ".join(_NAMES)
        raise ValueError(f"unknown activation {activation!r}: did you mean {near!r}? There are {names}")
    if not hasattr(_function(activation), "derivative"):
        raise ValueError(
            f"activation must be a name or a function with a derivative written beside it; got {activation!r}"
            + (instead(activation) or ". Decorate it with @jaxnet.activations.elementwise(derivative)")
        )
    return activation


def instead(activation: Any, names: Iterable[str] = _NAMES) -> str:
    """How an error goes on about a function of `jax.nn`, or of this page, that has one of `names`; else empty."""
    function, options = _function(activation), getattr(activation, "keywords", None)
    for name in names:
        if function is getattr(jax.nn, name, None) or function is _NAMES[name]:
            return f". Use a partial of jaxnet.activations.{name}" if options else f". Use {name!r}"
    return ""


def derivative(activation: str | Activation) -> Activation:
    """Returns f′ of x. For `softmax` and `log_softmax` it is the Jacobian ∂yᵢ/∂xⱼ, with one axis more."""
    return _attribute(get(activation), "derivative")


def pullback(activation: str | Activation) -> Activation:
    """Returns (x, dy) ↦ dx = (∂y/∂x)ᵀ dy; for an elementwise activation dx = f′(x) ⊙ dy."""
    return _attribute(get(activation), "pullback")


def name(activation: str | Activation) -> str:
    """Returns the name of an activation."""
    return getattr(_function(get(activation)), "__name__", repr(activation))


def _function(activation: Any) -> Any:
    return activation.func if isinstance(activation, partial) else activation


def _attribute(activation: Any, attribute: str) -> Activation:
    found = getattr(_function(activation), attribute)
    return partial(found, **activation.keywords) if isinstance(activation, partial) else found


def elementwise(derivative: Callable[..., Array]) -> Callable[[Callable[..., Array]], Activation]:
    """Decorator: makes f an activation whose derivative f′ is `derivative(x, *options)`.

    Example:
        >>> @activations.elementwise(lambda x: 2 * x)
        ... def square(x):
        ...     return x * x
    """
    return _activation(
        jvp=lambda x, dx, *options: derivative(x, *options) * dx,
        pullback=lambda x, dy, *options: derivative(x, *options) * dy,
        derivative=derivative,
    )


def _activation(
    *, jvp: Callable[..., Array], pullback: Callable[..., Array], derivative: Callable[..., Array]
) -> Callable[[Callable[..., Array]], Activation]:
    """Joins f, its options after `x`, and the rules jvp(x, dx), pullback(x, dy), derivative(x)."""

    def attach(f: Callable[..., Array]) -> Activation:
        signature = inspect.signature(f)
        rule: Any = jax.custom_jvp(f, nondiff_argnums=tuple(range(1, len(signature.parameters))))

        @rule.defjvp
        def _(*args: Any) -> tuple[Array, Array]:
            *options, (x,), (dx,) = args
            return rule(x, *options), jvp(x, dx, *options)

        def wide(g: Callable[..., Array], arrays: int) -> Activation:
            def widened(x: ArrayLike, *args: Any, **options: Any) -> Array:
                operands = [_floating(f.__name__, a) for a in (x, *args[: arrays - 1])]
                bound = signature.bind(x, *args[arrays - 1 :], **options)
                bound.apply_defaults()
                wide_operands = (a.astype(accumulation_dtype(a.dtype)) for a in operands)
                y = g(*wide_operands, *bound.args[1:])
                return y.astype(operands[0].dtype)

            return widened

        activation: Any = wraps(f)(wide(rule, 1))
        activation.derivative = wide(derivative, 1)
        activation.pullback = wide(pullback, 2)
        return activation

    return attach


def accumulation_dtype(dtype: DTypeLike) -> np.dtype:
    """Returns the dtype that values of `dtype` are computed and summed in: at least float32."""
    return max(np.dtype(dtype), np.dtype("float32"), key=lambda d: d.itemsize)


def _floating(name: str, x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} needs a floating-point x; got {x.dtype}. Convert it by x.astype(jnp.float32)")
    return x


def _named(activation: Activation) -> Activation:
    _NAMES[activation.__name__] = activation
    return activation


# ---------------------------------------------------------------------------------------- elementwise


@_named
@elementwise(lambda x: jnp.ones_like(x))
def identity(x: Array) -> Array:
    """f(x) = x,  f′(x) = 1."""
    return x


@_named
@elementwise(lambda x: sigmoid(x) * sigmoid(-x))  # σ(1 − σ), without the cancellation in 1 − σ
def sigmoid(x: Array) -> Array:
    """σ(x) = 1 / (1 + e⁻ˣ),  σ′(x) = σ(x) σ(−x)."""
    return lax.logistic(x)


def _tanh_derivative(x: Array) -> Array:
    t = tanh(x)
    return (1 - t) * (1 + t)


@_named
@elementwise(_tanh_derivative)
def tanh(x: Array) -> Array:
    """f(x) = tanh x,  f′(x) = 1 − tanh² x."""
    return lax.tanh(x)


@_named
@elementwise(lambda x: jnp.where(x > 0, jnp.ones_like(x), jnp.zeros_like(x)))  # not astype: see below
def relu(x: Array) -> Array:
    """f(x) = max(x, 0),  f′(x) = [x > 0]."""
    # XLA makes [x > 0].astype(dtype) · dy a choice between dy and 0, in which 0 · NaN is lost.
    return jnp.maximum(x, 0)


@_named
@elementwise(lambda x, slope: jnp.where(x >= 0, jnp.ones_like(x), slope))
def leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    """f(x) = x for x ≥ 0, αx below,  f′(x) = 1 or α, with α = `negative_slope`."""
    return jnp.where(x >= 0, x, negative_slope * x)


@_named
@elementwise(lambda x, alpha: jnp.where(x > 0, jnp.ones_like(x), alpha * jnp.exp(_below_zero(x))))
def elu(x: Array, alpha: float = 1.0) -> Array:
    """f(x) = x for x > 0, α(eˣ − 1) below,  f′(x) = 1 or αeˣ. (Clevert et al., 2015)."""
    return jnp.where(x > 0, x, alpha * jnp.expm1(_below_zero(x)))


def _below_zero(x: Array) -> Array:
    # exp sees no positive x: the branch that isn't taken must not overflow, or where(…)'s gradient is NaN.
    return jnp.where(x > 0, jnp.zeros_like(x), x)


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


@_named
@elementwise(lambda x: _SELU_SCALE * derivative(elu)(x, _SELU_ALPHA))
def selu(x: Array) -> Array:
    """f(x) = λ elu(x, α),  λ = 1.0507…, α = 1.6732…. (Klambauer et al., 2017)."""
    return _SELU_SCALE * elu(x, _SELU_ALPHA)


@_named
@elementwise(lambda x: sigmoid(x))
def softplus(x: Array) -> Array:
    """f(x) = ln(1 + eˣ),  f′(x) = σ(x)."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@_named
@elementwise(lambda x: sigmoid(x) * (1 + x * sigmoid(-x)))
def silu(x: Array) -> Array:
    """f(x) = x σ(x),  f′(x) = σ(x) (1 + x σ(−x)). Also called swish. (Elfwing et al., 2017)."""
    return x * lax.logistic(x)


swish = _NAMES["swish"] = silu


def _mish_derivative(x: Array) -> Array:
    t = tanh(softplus(x))
    return t + x * (1 - t) * (1 + t) * sigmoid(x)


@_named
@elementwise(_mish_derivative)
def mish(x: Array) -> Array:
    """f(x) = x t,  t = tanh(softplus(x)),  f′(x) = t + x (1 − t²) σ(x). (Misra, 2019)."""
    return x * lax.tanh(softplus(x))


_GELU_A, _GELU_B = 0.7978845608028653558798921198687, 0.044715  # √(2/π), and Hendrycks and Gimpel's constant


def _gelu_derivative(x: Array, approximate: bool) -> Array:
    if not approximate:
        density = jnp.exp(-x * x / 2) * (_GELU_A / 2)  # φ(x); √(2/π)/2 = 1/√(2π)
        return _normal_cdf(x) + x * density
    z = jnp.clip(x, -10, 10)  # beyond, f′ is 0 or 1 to within 1e-35, and x³ must not overflow: 0·∞ is NaN
    u = 2 * _GELU_A * (z + _GELU_B * z**3)
    return sigmoid(u) + z * sigmoid(u) * sigmoid(-u) * 2 * _GELU_A * (1 + 3 * _GELU_B * z**2)


def _normal_cdf(x: Array) -> Array:
    return lax.erfc(-x * (0.5**0.5)) / 2  # erfc, not 1 + erf: no cancellation for negative x


@_named
@elementwise(_gelu_derivative)
def gelu(x: Array, approximate: bool = True) -> Array:
    """The Gaussian error linear unit. (Hendrycks and Gimpel, 2016).

    exact:        f(x) = x Φ(x),  f′(x) = Φ(x) + x φ(x)
    approximate:  f(x) = x σ(u),  u = 2√(2/π)(x + 0.044715 x³),  f′(x) = σ(u) + x σ(u) σ(−u) u′(x),
                  which is x (1 + tanh(u/2)) / 2.
    """
    if not approximate:
        return x * _normal_cdf(x)
    return x * lax.logistic(2 * _GELU_A * (x + _GELU_B * x**3))


def _hard_swish_derivative(x: Array) -> Array:
    inner = (2 * x + 3) / 6
    return jnp.where(x <= -3, jnp.zeros_like(x), jnp.where(x >= 3, jnp.ones_like(x), inner))


@_named
@elementwise(_hard_swish_derivative)
def hard_swish(x: Array) -> Array:
    """f(x) = 0 for x ≤ −3, x for x ≥ 3, x(x + 3)/6 between,  f′(x) = 0, 1, (2x + 3)/6. (Howard et al., 2019)."""
    return x * (jnp.clip(x + 3, 0, 6) / 6)


# ------------------------------------------------------------------------------------ over a whole axis


def _softmax_jvp(x: Array, dx: Array, axis: int) -> Array:
    y = softmax(x, axis)
    return y * (dx - jnp.sum(y * dx, axis, keepdims=True))


def _softmax_jacobian(x: Array, axis: int) -> Array:
    y = jnp.moveaxis(softmax(x, axis), axis, -1)
    return y[..., :, None] * _log_softmax_jacobian(x, axis)  # ∂y = y ∂(ln y)


@_named
@_activation(jvp=_softmax_jvp, pullback=_softmax_jvp, derivative=_softmax_jacobian)  # the Jacobian is symmetric
def softmax(x: Array, axis: int = -1) -> Array:
    """yᵢ = e^xᵢ / Σⱼ e^xⱼ,  ∂yᵢ/∂xⱼ = yᵢ(δᵢⱼ − yⱼ),  so dx = y ⊙ (dy − Σ y dy)."""
    e = jnp.exp(x - lax.stop_gradient(jnp.max(x, axis, keepdims=True)))
    return e / jnp.sum(e, axis, keepdims=True)


def _log_softmax_jvp(x: Array, dx: Array, axis: int) -> Array:
    return dx - jnp.sum(softmax(x, axis) * dx, axis, keepdims=True)


def _log_softmax_pullback(x: Array, dy: Array, axis: int) -> Array:
    return dy - softmax(x, axis) * jnp.sum(dy, axis, keepdims=True)


def _log_softmax_jacobian(x: Array, axis: int) -> Array:
    y = jnp.moveaxis(softmax(x, axis), axis, -1)
    delta = jnp.broadcast_to(jnp.eye(y.shape[-1], dtype=y.dtype), (*y.shape, y.shape[-1]))
    return delta - y[..., None, :]


@_named
@_activation(jvp=_log_softmax_jvp, pullback=_log_softmax_pullback, derivative=_log_softmax_jacobian)
def log_softmax(x: Array, axis: int = -1) -> Array:
    """yᵢ = xᵢ − ln Σⱼ e^xⱼ,  ∂yᵢ/∂xⱼ = δᵢⱼ − softmax(x)ⱼ,  so dx = dy − softmax(x) Σ dy."""
    z = x - lax.stop_gradient(jnp.max(x, axis, keepdims=True))
    return z - jnp.log(jnp.sum(jnp.exp(z), axis, keepdims=True))
