"""Metrics: a value per example."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import train


@pytest.mark.parametrize("labels", [[0, 2, 1], np.eye(3)[[0, 2, 1]]], ids=["integers", "one-hot"])
def test_accuracy(labels):
    logits = jnp.array([[3.0, 1, 2], [3, 1, 2], [-3, -1, -2]])
    target = jnp.asarray(labels)
    np.testing.assert_array_equal(train.accuracy(logits, target), np.float32([1, 0, 1]))
    assert train.accuracy(logits, target).dtype == jnp.float32


def test_accuracy_of_sequences():
    logits = jnp.stack([jnp.eye(3), jnp.eye(3)])  # (2, 3, 3): the classes are 0, 1, 2
    target = jnp.array([[0, 1, 2], [2, 1, 0]])
    np.testing.assert_array_equal(train.accuracy(logits, target), np.float32([[1, 1, 1], [0, 1, 0]]))


def test_binary_accuracy():
    logits, labels = jnp.array([2.0, -2.0, 2.0, -2.0, 0.0]), jnp.array([1.0, 0.0, 0.0, 1.0, 0.0])
    np.testing.assert_array_equal(train.binary_accuracy(logits, labels), np.float32([1, 1, 0, 0, 1]))


def test_absolute_error():
    found = train.absolute_error(jnp.array([[1.0], [-2.0]]), jnp.array([[4.0], [-2.5]]))
    np.testing.assert_array_equal(found, np.float32([[3.0], [0.5]]))
