"""Integers that count from 0: the ids of an embedding, the labels of classes."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def check_integers(what: str, values: Array, below: int, besides: int | None = None) -> None:
    """Checks the dtype, and that all are in [0, below), or equal `besides`, where values can be looked at.

    Raises:
        ValueError: if they aren't.
    """
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise ValueError(f"{what} must be integers; got {values.dtype}")
    if values.size and not isinstance(values, jax.core.Tracer):
        seen = np.asarray(values)
        wrong = (seen < 0) | (seen >= below)
        wrong = wrong if besides is None else wrong & (seen != besides)
        if wrong.any():
            allowed = f"0 to {below - 1}" + ("" if besides is None else f" or {besides}")
            raise ValueError(f"{what} must be {allowed}; got {seen[wrong].ravel()[0]}")


def wide(values: Array) -> Array:
    """In a dtype that holds `below` as well."""
    return values if values.dtype.itemsize > 4 else values.astype(jnp.int32)
