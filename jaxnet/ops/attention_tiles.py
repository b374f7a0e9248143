"""The tiles that `jaxnet.ops.attention` cuts its logits into, axes as there."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


class Options(NamedTuple):
    """What is known while tracing. A query at position p sees the keys p − left to p + right."""

    left: int | None
    right: int | None
    offset: int | None  # None: it is an array
    scale: float
    dropout_rate: float
    chunk: int  # queries and keys of a tile, at most


class Others(NamedTuple):
    """The arrays that nothing is differentiated by."""

    mask: Array | None = None  # (B|1, N|1, T|1, S|1)
    lengths: Array | None = None  # (B,)
    offset: Array | None = None  # (B,) or (1,)
    dropout_key: Any = None


class Tiles(NamedTuple):
    """T × S cut into `down` × `across` tiles of `height` × `width`.

    The last ones are moved back until they fit, so that nothing is padded: what they share with the tiles before
    them counts as unseen in them.
    """

    queries: int
    keys: int
    height: int
    width: int
    down: int
    across: int

    def top(self, i: Array) -> Array:
        """The first row of tile row i."""
        return jnp.minimum(i * self.height, self.queries - self.height)

    def left(self, j: Array) -> Array:
        """The first column of tile column j."""
        return jnp.minimum(j * self.width, self.keys - self.width)

    def rows(self, a: Array, i: Array, axis: int) -> Array:
        """The part of tile row i."""
        return lax.dynamic_slice_in_dim(a, self.top(i), self.height, axis)

    def columns(self, a: Array, j: Array) -> Array:
        """The part of tile column j, axis 1."""
        return lax.dynamic_slice_in_dim(a, self.left(j), self.width, 1)

    def put(self, a: Array, part: Array, i: Array) -> Array:
        """`a` with another part in tile row i, axis 2."""
        return lax.dynamic_update_slice_in_dim(a, part, self.top(i), 2)

    def place(self, a: Array, i: Array, j: Array) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        """Where in a bias or a mask the tile begins, and its shape there: all of an axis of 1."""
        zero = np.zeros((), np.int32)
        row, height = (zero, 1) if a.shape[2] == 1 else (self.top(i), self.height)
        column, width = (zero, 1) if a.shape[3] == 1 else (self.left(j), self.width)
        return (zero, zero, row, column), (*a.shape[:2], height, width)

    def cut(self, a: Array, i: Array, j: Array, heads: int) -> Array:
        """The tile of a bias or a mask, (B|1, K|1, T|1, G|1, S|1)."""
        tile = lax.dynamic_slice(a, *self.place(a, i, j))
        by_head = (1, 1) if a.shape[1] == 1 else (heads, a.shape[1] // heads)
        return tile.reshape(a.shape[0], *by_head, *tile.shape[2:]).transpose(0, 1, 3, 2, 4)


def tiles_of(options: Options, query: Array, key: Array) -> Tiles:
    """As few as hold the chunk, and of equal sizes."""
    queries, keys = query.shape[1], key.shape[1]
    down, across = (-(-n // options.chunk) for n in (queries, keys))
    return Tiles(queries, keys, -(-queries // max(down, 1)), -(-keys // max(across, 1)), down, across)


def pairs(options: Options, tiles: Tiles) -> Array:
    """(i, j) of the tiles in which, as far as is known while tracing, a query may see a key."""
    _, _, height, width, down, across = tiles
    every = np.stack(np.meshgrid(np.arange(down), np.arange(across), indexing="ij"), -1).reshape(-1, 2)
    i, j = every.T.astype(np.int64)
    seen = np.ones(len(every), bool)
    if options.offset is not None:
        if options.right is not None:
            seen &= j * width <= options.offset + (i + 1) * height - 1 + options.right
        if options.left is not None:
            seen &= (j + 1) * width - 1 >= options.offset + i * height - options.left
    return jnp.asarray(every[seen], jnp.int32)


def grouped(a: Array, heads: int) -> Array:
    """(B, T, N, …) as (B, T, K, G, …)."""
    return a.reshape(*a.shape[:2], heads, a.shape[2] // heads, *a.shape[3:])


def scores(
    options: Options, tiles: Tiles, q: Array, k: Array, bias: Array | None, others: Others, i: Array, j: Array
) -> Array:
    """z = c q·k + b of a tile, −∞ where the key isn't seen, (B, K, T, G, S); q and k are cut already."""
    z, heads = options.scale * jnp.einsum("btkgh,bskh->bktgs", q, k), k.shape[2]
    if bias is not None:
        z = z + tiles.cut(bias, i, j, heads).astype(z.dtype)
    row = (tiles.top(i) + jnp.arange(tiles.height, dtype=jnp.int32))[None, None, :, None, None]
    column = (tiles.left(j) + jnp.arange(tiles.width, dtype=jnp.int32))[None, None, None, None]
    seen = (row >= i * tiles.height) & (column >= j * tiles.width)
    if others.mask is not None:
        seen = seen & tiles.cut(others.mask, i, j, heads)
    if others.lengths is not None:
        seen = seen & (column < _of_examples(others.lengths))
    position = row + (_of_examples(others.offset) if options.offset is None else options.offset)
    seen = seen if options.left is None else seen & (column >= position - options.left)
    seen = seen if options.right is None else seen & (column <= position + options.right)
    return jnp.where(seen, z, -jnp.inf)


def kept(options: Options, tiles: Tiles, others: Others, i: Any, j: Any, like: Any) -> Array:
    """m of a tile, of the shape and dtype of its p, the same whenever it is asked for: 0 or 1/(1 − r)."""
    key = jax.random.fold_in(others.dropout_key, i * tiles.across + j)
    drawn = jax.random.bernoulli(key, 1 - options.dropout_rate, like.shape)
    return drawn.astype(like.dtype) / (1 - options.dropout_rate)


def _of_examples(a: Any) -> Array:
    return a.astype(jnp.int32)[:, None, None, None, None]
