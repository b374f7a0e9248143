"""Losses, each beside its derivative.

A loss is a function of a prediction and a target, per example; the mean over them is the caller's:
`losses.cross_entropy(net.apply(params, x), y).mean()`. Each is a `jax.custom_jvp` with the derivative
in both arguments written out, so forward mode, reverse mode and second order use the formulas here.
Values are computed in at least float32 and have the dtype of the prediction.
"""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxnet.activations import accumulation_dtype, log_softmax, sigmoid, softmax, softplus

Loss = Callable[..., Array]


def derivative(loss: Loss) -> Loss:
    """Returns (prediction, target) ↦ ∂L/∂prediction, where L is the sum of the per-example losses.

    Raises:
        ValueError: if the function has no derivative written beside it.
    """
    function: Any = loss.func if isinstance(loss, partial) else loss
    if not hasattr(function, "derivative"):
        raise ValueError(f"losses.derivative needs one of jaxnet's losses; got {loss!r}")
    return partial(function.derivative, **loss.keywords) if isinstance(loss, partial) else function.derivative


def _loss(
    check: Callable[..., None],
    derivative: Callable[..., Array],
    target_derivative: Callable[..., Array],
    reduces: bool = False,
) -> Callable[[Callable[..., Array]], Loss]:
    """Joins L(prediction, target, *options) and its two derivatives; `reduces` if L sums over the last axis."""

    def attach(f: Callable[..., Array]) -> Loss:
        signature = inspect.signature(f)
        rule: Any = jax.custom_jvp(f, nondiff_argnums=tuple(range(2, len(signature.parameters))))

        @partial(rule.defjvp, symbolic_zeros=True)
        def _(*args: Any) -> tuple[Array, Array]:
            *options, (p, t), tangents = args
            # What isn't differentiated has a symbolic zero: a target's derivative may be infinite, and 0·∞ is NaN.
            terms = [
                d(p, t, *options) * tangent
                for d, tangent in zip((derivative, target_derivative), tangents, strict=True)
                if not isinstance(tangent, SymbolicZero)
            ]
            dL = sum(terms, jnp.zeros_like(p))
            return rule(p, t, *options), jnp.sum(dL, -1) if reduces else dL

        def public(g: Callable[..., Array]) -> Loss:
            @wraps(f)
            def checked(prediction: ArrayLike, target: ArrayLike, *args: Any, **named: Any) -> Array:
                p, t = jnp.asarray(prediction), jnp.asarray(target)
                if not jnp.issubdtype(p.dtype, jnp.floating):
                    raise ValueError(f"{f.__name__} needs a floating-point prediction; got {p.dtype}")
                bound = signature.bind(p, t, *args, **named)
                bound.apply_defaults()
                check(f.__name__, *bound.args)
                dtype = accumulation_dtype(p.dtype)
                wide = t.astype(dtype) if t.ndim == p.ndim or not reduces else t
                return g(p.astype(dtype), wide, *bound.args[2:]).astype(p.dtype)

            return checked

        loss: Any = public(rule)
        loss.derivative = public(derivative)
        return loss

    return attach


def _same_shape(name: str, p: Array, t: Array, *options: float) -> None:
    if p.shape != t.shape:
        raise ValueError(
            f"{name} needs a prediction and a target of the same shape; got {p.shape} and {t.shape}. "
            "Reshape one of them: broadcasting would pair every prediction with every target"
        )


# ----------------------------------------------------------------------------------------- regression


@_loss(_same_shape, lambda p, t: 2 * (p - t), lambda p, t: -2 * (p - t))
def squared_error(prediction: Array, target: Array) -> Array:
    """L = (p − t)²,  ∂L/∂p = 2(p − t) = −∂L/∂t; elementwise."""
    return jnp.square(prediction - target)


def _positive_delta(name: str, p: Array, t: Array, delta: float) -> None:
    _same_shape(name, p, t)
    if not delta > 0:
        raise ValueError(f"{name} needs delta > 0; got {delta}")


@_loss(
    _positive_delta,
    lambda p, t, delta: jnp.clip(p - t, -delta, delta),
    lambda p, t, delta: -jnp.clip(p - t, -delta, delta),
)
def huber(prediction: Array, target: Array, delta: float = 1.0) -> Array:
    """L = e²/2 for |e| ≤ δ, δ(|e| − δ/2) beyond, e = p − t;  ∂L/∂p = clip(e, −δ, δ). (Huber, 1964)."""
    e = jnp.abs(prediction - target)
    inside = jnp.minimum(e, delta)
    return inside * (e - inside / 2)


# ------------------------------------------------------------------------------------- classification


def _labels(name: str, z: Array, labels: Array, label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"{name} needs 0 ≤ label_smoothing < 1; got {label_smoothing}")
    if z.ndim < 1 or z.shape[-1] < 1:
        raise ValueError(f"{name} needs logits (…, classes) with at least one class; got shape {z.shape}")
    integer = jnp.issubdtype(labels.dtype, jnp.integer) and labels.shape == z.shape[:-1]
    if not integer and labels.shape != z.shape:
        raise ValueError(
            f"{name} with logits {z.shape} needs integer labels {z.shape[:-1]} or probabilities {z.shape}; "
            f"got {labels.dtype} {labels.shape}"
        )
    if integer and labels.size and not isinstance(labels, jax.core.Tracer):
        check_labels(np.asarray(labels), z.shape[-1], name)


def check_labels(labels: np.ndarray, classes: int, name: str = "labels") -> None:
    """Raises a `ValueError` unless all `labels` are integers in [0, classes).

    Inside `jit` values can't be looked at; there a label out of range makes its example's loss NaN.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} needs integer labels; got {labels.dtype}")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        wrong = labels[(labels < 0) | (labels >= classes)].ravel()[0]
        raise ValueError(f"{name} needs labels 0 to {classes - 1} for {classes} classes; got the label {wrong}")


def _target_distribution(z: Array, labels: Array, label_smoothing: float) -> Array:
    """q = (1 − α) q₀ + α/K, where q₀ is `labels`, or one-hot of them if they are integers."""
    if labels.ndim < z.ndim:
        labels = labels if labels.dtype.itemsize > 4 else labels.astype(jnp.int32)  # all class numbers must fit
        # An integer label out of range: NaN, rather than the silent zero row of one_hot.
        valid = (labels >= 0) & (labels < z.shape[-1])
        hot = jax.nn.one_hot(labels, z.shape[-1], dtype=z.dtype)
        labels = jnp.where(valid[..., None], hot, jnp.nan)
    return (1 - label_smoothing) * labels + label_smoothing / z.shape[-1]


def _cross_entropy_derivative(z: Array, labels: Array, label_smoothing: float) -> Array:
    q = _target_distribution(z, labels, label_smoothing)
    return softmax(z) * jnp.sum(q, -1, keepdims=True) - q


@_loss(
    _labels,
    _cross_entropy_derivative,
    lambda z, labels, label_smoothing: -(1 - label_smoothing) * log_softmax(z),
    reduces=True,
)
def cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0) -> Array:
    """L = −Σₖ qₖ ln pₖ,  p = softmax(z),  ∂L/∂z = p Σq − q  (p − q when Σq = 1).

    Args:
        logits: z, shape (…, classes).
        labels: integers (…), or probabilities (…, classes).
        label_smoothing: α in q = (1 − α) q₀ + α/K. (Szegedy et al., 2015).

    Returns:
        The loss of each example, shape (…), in nats.

    Raises:
        ValueError: for shapes or dtypes that don't fit, and for labels out of range where they can be
            looked at, outside `jit`; inside, such an example's loss is NaN.

    Example:
        >>> losses.cross_entropy(jnp.array([[2.0, 0.0]]), jnp.array([0]))
        Array([0.126928], dtype=float32)
    """
    q = _target_distribution(logits, labels, label_smoothing)
    return -jnp.sum(_times(q, log_softmax(logits)), -1)


def _times(q: Array, log_p: Array) -> Array:
    return jnp.where(q == 0, jnp.zeros_like(q), q * log_p)  # 0 ln 0 = 0


def _between_0_and_1(name: str, z: Array, y: Array) -> None:
    _same_shape(name, z, y)
    _check_values(name, y, lambda y: (y >= 0) & (y <= 1), "labels in [0, 1]")


def _check_values(name: str, t: Array, valid: Callable[[np.ndarray], np.ndarray], expected: str) -> None:
    """Looks at the values of `t` where that is possible: outside `jit`."""
    if isinstance(t, jax.core.Tracer):
        return
    values = np.asarray(t)
    wrong = values[~valid(values)]
    if wrong.size:
        raise ValueError(f"{name} needs {expected}; got {wrong.ravel()[0]}")


@_loss(_between_0_and_1, lambda z, y: sigmoid(z) - y, lambda z, y: -z)
def binary_cross_entropy(logits: Array, labels: Array) -> Array:
    """L = −y ln σ(z) − (1 − y) ln σ(−z) = softplus(z) − y z,  ∂L/∂z = σ(z) − y; elementwise, y in [0, 1]."""
    # max(z, 0) − y z + softplus(−|z|): no large numbers that cancel when z is large and y = 1.
    return jnp.maximum(logits, 0) - labels * logits + softplus(-jnp.abs(logits))


def _signs(name: str, p: Array, t: Array) -> None:
    _same_shape(name, p, t)
    _check_values(name, t, lambda t: np.abs(t) == 1, "targets −1 or 1")


def _where_violated(p: Array, t: Array, dp: Array) -> Array:
    return jnp.where(p * t < 1, dp, jnp.zeros_like(dp))


@_loss(_signs, lambda p, t: _where_violated(p, t, -t), lambda p, t: _where_violated(p, t, -p))
def hinge(prediction: Array, target: Array) -> Array:
    """L = max(0, 1 − t p),  ∂L/∂p = −t [t p < 1]; elementwise, t = −1 or 1. (Cortes and Vapnik, 1995)."""
    return jnp.maximum(1 - target * prediction, 0)


@_loss(
    _same_shape,
    lambda log_q, p: -p,
    lambda log_q, p: jnp.log(p) + 1 - log_q,
    reduces=True,
)
def kl_divergence(log_prediction: Array, target: Array) -> Array:
    """KL(p ‖ q) = Σₖ pₖ (ln pₖ − ln qₖ),  ∂/∂ln qₖ = −pₖ,  ∂/∂pₖ = ln pₖ + 1 − ln qₖ.

    Args:
        log_prediction: ln q, shape (…, classes), such as `activations.log_softmax(logits)`.
        target: p, the same shape.

    Returns:
        The divergence of each example, shape (…), in nats.
    """
    positive = jnp.where(target > 0, target, jnp.ones_like(target))
    return jnp.sum(_times(target, jnp.log(positive) - log_prediction), -1)
