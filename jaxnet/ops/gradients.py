"""What backward passes begin with and end with."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


def like(gradient: Array, argument: Array) -> Array:
    """The gradient in its argument's dtype; inside `shard_map`, summed over the devices that share it."""
    g, a = (jax.typeof(array).manual_axis_type.varying for array in (gradient, argument))
    return (jax.lax.psum(gradient, tuple(g - a)) if g - a else gradient).astype(argument.dtype)


def zeros(a: Array, dtype: DTypeLike, *others: Array) -> Array:
    """Where a sum begins: zeros like `a`; inside `shard_map` varying over the devices as all the others do."""
    start = jnp.zeros_like(a, dtype)
    axes = frozenset().union(*(jax.typeof(other).manual_axis_type.varying for other in others))
    axes -= jax.typeof(start).manual_axis_type.varying
    return jax.lax.pcast(start, tuple(axes), to="varying") if axes else start
