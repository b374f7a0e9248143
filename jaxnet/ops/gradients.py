"""What every backward pass ends with."""

import jax
from jax import Array


def like(gradient: Array, argument: Array) -> Array:
    """The gradient in its argument's dtype; inside `shard_map`, summed over the devices that share it."""
    g, a = (jax.typeof(array).manual_axis_type.varying for array in (gradient, argument))
    return (jax.lax.psum(gradient, tuple(g - a)) if g - a else gradient).astype(argument.dtype)
