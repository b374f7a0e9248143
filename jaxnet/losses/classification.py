"""Losses of classes, from logits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnet.activations import log_softmax, sigmoid, softmax, softplus
from jaxnet.losses.loss import rule, same_shape, times


def _labels(name: str, z: Array, labels: Array, label_smoothing: float, ignore_label: int | None) -> None:
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
    if ignore_label is not None and not integer:
        raise ValueError(f"{name} needs integer labels to ignore the label {ignore_label}; got probabilities")
    if integer and labels.size and not isinstance(labels, jax.core.Tracer):
        seen = np.asarray(labels)
        check_labels(seen[seen != ignore_label] if ignore_label is not None else seen, z.shape[-1], name)


def check_labels(labels: np.ndarray, classes: int, name: str = "labels") -> None:
    """Raises a `ValueError` unless all `labels` are integers in [0, classes).

    Inside `jit` values can't be looked at; there a label out of range makes its example's loss NaN.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} needs integer labels; got {labels.dtype}")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        wrong = labels[(labels < 0) | (labels >= classes)].ravel()[0]
        raise ValueError(f"{name} needs labels 0 to {classes - 1} for {classes} classes; got the label {wrong}")


def _target_distribution(z: Array, labels: Array, label_smoothing: float, ignore_label: int | None) -> Array:
    """q = (1 − α) q₀ + α/K, where q₀ is `labels`, or one-hot of them if they are integers; 0 where ignored."""
    ignored = None if ignore_label is None else (labels == ignore_label)[..., None]
    if labels.ndim < z.ndim:
        labels = labels if labels.dtype.itemsize > 4 else labels.astype(jnp.int32)  # all class numbers must fit
        # An integer label out of range: NaN, rather than the silent zero row of one_hot.
        valid = (labels >= 0) & (labels < z.shape[-1])
        hot = jax.nn.one_hot(labels, z.shape[-1], dtype=z.dtype)
        labels = jnp.where(valid[..., None], hot, jnp.nan)
    q = (1 - label_smoothing) * labels + label_smoothing / z.shape[-1]
    return q if ignored is None else jnp.where(ignored, 0, q)


def _cross_entropy_derivative(z: Array, labels: Array, label_smoothing: float, ignore_label: int | None) -> Array:
    q = _target_distribution(z, labels, label_smoothing, ignore_label)
    return softmax(z) * jnp.sum(q, -1, keepdims=True) - q


@rule(
    _labels,
    _cross_entropy_derivative,
    lambda z, labels, label_smoothing, ignore_label: -(1 - label_smoothing) * log_softmax(z),
    reduces=True,
)
def cross_entropy(
    logits: Array, labels: Array, label_smoothing: float = 0.0, ignore_label: int | None = None
) -> Array:
    """L = −Σₖ qₖ ln pₖ,  p = softmax(z),  ∂L/∂z = p Σq − q  (p − q when Σq = 1).

    Args:
        logits: z, shape (…, classes).
        labels: integers (…), or probabilities (…, classes).
        label_smoothing: α in q = (1 − α) q₀ + α/K. (Szegedy et al., 2015).
        ignore_label: the loss of an example with this label, such as −1 for padding, is 0, and so is its
            gradient. A mean over the others is the caller's: their number is Σ [label ≠ ignore_label].

    Returns:
        The loss of each example, shape (…), in nats.

    Raises:
        ValueError: for shapes or dtypes that don't fit, and for labels out of range where they can be
            looked at, outside `jit`; inside, such an example's loss is NaN.

    Example:
        >>> losses.cross_entropy(jnp.array([[2.0, 0.0]]), jnp.array([0]))
        Array([0.126928], dtype=float32)
    """
    q = _target_distribution(logits, labels, label_smoothing, ignore_label)
    return -jnp.sum(times(q, log_softmax(logits)), -1)


def _between_0_and_1(name: str, z: Array, y: Array) -> None:
    same_shape(name, z, y)
    _check_values(name, y, lambda y: (y >= 0) & (y <= 1), "labels in [0, 1]")


def _check_values(name: str, t: Array, valid: Callable[[np.ndarray], np.ndarray], expected: str) -> None:
    """Looks at the values of `t` where that is possible: outside `jit`."""
    if isinstance(t, jax.core.Tracer):
        return
    values = np.asarray(t)
    wrong = values[~valid(values)]
    if wrong.size:
        raise ValueError(f"{name} needs {expected}; got {wrong.ravel()[0]}")


@rule(_between_0_and_1, lambda z, y: sigmoid(z) - y, lambda z, y: -z)
def binary_cross_entropy(logits: Array, labels: Array) -> Array:
    """L = −y ln σ(z) − (1 − y) ln σ(−z) = softplus(z) − y z,  ∂L/∂z = σ(z) − y; elementwise, y in [0, 1]."""
    # max(z, 0) − y z + softplus(−|z|): no large numbers that cancel when z is large and y = 1.
    return jnp.maximum(logits, 0) - labels * logits + softplus(-jnp.abs(logits))


def _powers(z: Array, y: Array, gamma: float) -> tuple[Array, Array, Array]:
    """d = σ(z) − y, |d|^γ, and its derivative in d."""
    d = (1 - y) * sigmoid(z) - y * sigmoid(-z)  # no numbers that cancel where z is large and y = 1
    return d, jnp.abs(d) ** gamma, gamma * jnp.sign(d) * jnp.abs(d) ** (gamma - 1)


def _focal_derivative(z: Array, y: Array, gamma: float) -> Array:
    d, weight, slope = _powers(z, y, gamma)
    return slope * sigmoid(z) * sigmoid(-z) * binary_cross_entropy(z, y) + weight * d


def _focal_target_derivative(z: Array, y: Array, gamma: float) -> Array:
    _, weight, slope = _powers(z, y, gamma)
    return -slope * binary_cross_entropy(z, y) - weight * z


def _focused(name: str, z: Array, y: Array, gamma: float) -> None:
    _between_0_and_1(name, z, y)
    if not gamma >= 1:
        raise ValueError(f"{name} needs gamma ≥ 1; got {gamma}")


@rule(_focused, _focal_derivative, _focal_target_derivative)
def focal(logits: Array, labels: Array, gamma: float = 2.0) -> Array:
    """L = |d|^γ B,  d = σ(z) − y,  ∂L/∂z = γ |d|^(γ−1) sgn(d) σ(z) σ(−z) B + |d|^γ d; elementwise, y in [0, 1].

    B is `binary_cross_entropy`: what is nearly right already counts little, so that a few objects aren't lost
    among many places without one. (Lin et al., 2017; for y between 0 and 1 Li et al., "Generalized focal loss",
    2020).
    """
    return _powers(logits, labels, gamma)[1] * binary_cross_entropy(logits, labels)


def _signs(name: str, p: Array, t: Array) -> None:
    same_shape(name, p, t)
    _check_values(name, t, lambda t: np.abs(t) == 1, "targets −1 or 1")


def _where_violated(p: Array, t: Array, dp: Array) -> Array:
    return jnp.where(p * t < 1, dp, jnp.zeros_like(dp))


@rule(_signs, lambda p, t: _where_violated(p, t, -t), lambda p, t: _where_violated(p, t, -p))
def hinge(prediction: Array, target: Array) -> Array:
    """L = max(0, 1 − t p),  ∂L/∂p = −t [t p < 1]; elementwise, t = −1 or 1. (Cortes and Vapnik, 1995)."""
    return jnp.maximum(1 - target * prediction, 0)
