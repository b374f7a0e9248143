"""The embedding: rows of a table, chosen by integers.

Axes: … those of the ids · V rows of the table · E features.

    y_i = W[id_i]        dW_v = Σ_i [id_i = v] dy_i

The gradient is a segment sum: the rows of dy that have one id are added.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Float, Integer

from jaxnet.activations import accumulation_dtype
from jaxnet.ops import dispatch
from jaxnet.ops.arrays import check_arrays
from jaxnet.ops.gradients import like, zeros
from jaxnet.ops.integers import check_integers, wide


class Residuals(NamedTuple):
    """What the backward pass needs; of the table its shape and dtype, not its values."""

    ids: Integer[Array, "..."]
    table: Float[Array, "V E"]


def embedding(
    ids: Integer[Array, "..."], table: Float[Array, "V E"], *, implementation: str | None = None
) -> Float[Array, "... E"]:
    """y = W[ids]. Ids that come several times have their gradients added, in at least float32, rounded once.

    Reverse mode only (`jax.custom_vjp`); the backward pass can itself be differentiated.

    Args:
        ids: integers from 0 to V − 1, any shape.
        table: W, (V, E).
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for a table that isn't (V, E) floating-point, ids that aren't integers, and for ids out of
            range where they can be looked at, outside `jit`; inside, such a row is NaN and has no gradient.

    Example:
        >>> ops.embedding(jnp.array([[2, 0, 2]]), jnp.ones((3, 64))).shape
        (1, 3, 64)
    """
    _check(ids, table)
    return dispatch.choose("embedding", implementation, _embedding, {})(ids, table)


def embedding_vjp(
    ids: Integer[Array, "..."], table: Float[Array, "V E"], *, implementation: str | None = None
) -> tuple[Float[Array, "... E"], Partial]:
    """Returns y and its pullback dy ↦ dW; arguments as in `embedding`."""
    _check(ids, table)
    y, residuals = dispatch.choose("embedding", implementation, forward, {})(ids, table)
    return y, Partial(_pullback, residuals)


def reference(ids: Array, table: Array) -> Array:
    """The specification, for autodiff."""
    return jax.nn.one_hot(ids, len(table), dtype=table.dtype) @ table


def forward(ids: Array, table: Array) -> tuple[Array, Residuals]:
    """y = W[ids], NaN where there is no such row: a negative id doesn't count from the end."""
    rows, features = jax.typeof(ids).sharding, jax.typeof(table).sharding
    sharding = NamedSharding(rows.mesh, PartitionSpec(*rows.spec, features.spec[1]))
    options: dict[str, Any] = {"mode": "fill", "fill_value": jnp.nan, "wrap_negative_indices": False}
    return jnp.asarray(table).at[wide(ids)].get(**options, out_sharding=sharding), Residuals(ids, table)


def backward(residuals: Residuals, dy: Array) -> tuple[None, Array]:
    """dW_v = Σ_i [id_i = v] dy_i."""
    ids, table = residuals
    start = zeros(table, accumulation_dtype(table.dtype), ids, table, dy)
    options: dict[str, Any] = {"mode": "drop", "wrap_negative_indices": False}
    sharding = jax.typeof(table).sharding
    return None, like(start.at[wide(ids)].add(dy.astype(start.dtype), **options, out_sharding=sharding), table)


def _pullback(residuals: Residuals, dy: Array) -> Array:
    return backward(residuals, dy)[1]


@jax.custom_vjp
def _embedding(ids: Array, table: Array) -> Array:
    return forward(ids, table)[0]


_embedding.defvjp(forward, backward)


def _check(ids: Array, table: Array) -> None:
    check_arrays("embedding", {"ids": ids, "table": table})
    if table.ndim != 2 or not jnp.issubdtype(table.dtype, jnp.floating):
        raise ValueError(f"embedding needs a floating-point table (V, E); got {table.dtype} {table.shape}")
    check_integers(f"the ids of an embedding of {len(table)} rows", ids, len(table))
