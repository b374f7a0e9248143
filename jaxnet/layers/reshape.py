"""Changes of shape: the first axis is the batch and stays."""

import math

from jax import Array
from jax.tree_util import Partial

from jaxnet.layers.layer import Input, Layer, Params


def reshape(*shape: int) -> Layer:
    """(batch, …) → (batch, *shape); one entry may be −1. dx is dy in the shape of x. No parameters.

    Raises:
        ValueError: in `init`, `apply` and `vjp`, if the sizes don't agree.
    """
    if shape.count(-1) > 1 or any(n < 0 for n in shape if n != -1):
        raise ValueError(f"reshape needs sizes ≥ 0, at most one of them −1; got {shape}")
    known = math.prod(n for n in shape if n != -1)

    def target(x: Input) -> tuple[int, ...]:
        size = math.prod(x.shape[1:])
        if not x.shape or (size != known if -1 not in shape else known == 0 or size % known):
            raise ValueError(f"reshape to (batch, {', '.join(map(str, shape))}) doesn't fit x of shape {x.shape}")
        # The batch may be empty, so −1 is resolved here, from the other axes.
        return (x.shape[0], *(size // known if n == -1 else n for n in shape))

    def init(key: Array, x: Input) -> Params:
        target(x)
        return ()

    def apply(params: Params, x: Array, *, key: Array | None = None) -> Array:
        return x.reshape(target(x))

    def vjp(params: Params, x: Array, *, key: Array | None = None) -> tuple[Array, Partial]:
        before = x.shape

        def pullback(dy: Array) -> tuple[Params, Array]:
            return (), dy.reshape(before)

        return x.reshape(target(x)), Partial(pullback)

    return Layer(init, apply, vjp)


def flatten() -> Layer:
    """(batch, …) → (batch, features). No parameters."""
    return reshape(-1)
