"""Metrics: functions (prediction, target) → a value per example. Any loss is one too."""

import jax.numpy as jnp
from jax import Array


def accuracy(prediction: Array, target: Array) -> Array:
    """1 where the largest of (…, classes) is the target's class, an integer (…) or the largest of (…, classes)."""
    if target.ndim == prediction.ndim:
        target = jnp.argmax(target, -1)
    return (jnp.argmax(prediction, -1) == target).astype(jnp.float32)


def binary_accuracy(logit: Array, label: Array) -> Array:
    """1 where the logit's sign is the label's: positive for 1, else 0."""
    return ((logit > 0) == (label > 0.5)).astype(jnp.float32)


def absolute_error(prediction: Array, target: Array) -> Array:
    """|p − t|, elementwise."""
    return jnp.abs(prediction - target)
