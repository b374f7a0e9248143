"""Embeddings and positions: how words, and their places, become vectors."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import normal
from jax.tree_util import Partial
from jax.typing import DTypeLike

from jaxnet import ops
from jaxnet.activations import accumulation_dtype
from jaxnet.layers import initializers
from jaxnet.layers.initializers import Initializer
from jaxnet.layers.layer import Input, Layer, Params, Reader


def embedding(
    rows: int,
    features: int,
    *,
    scale: float = 1.0,
    table_init: str | Initializer | None = None,
    dtype: DTypeLike = "float32",
    implementation: str | None = None,
) -> Layer:
    """y = c W[x], x integers (…), W (rows, features): `ops.embedding` with parameters.

    Args:
        rows: how many different integers there are.
        features: the size of the vectors.
        scale: c; √features makes numbers of about 1 of a W that is also a last map. (Vaswani et al., 2017, 3.4).
        table_init: a name or function of `layers.initializers`; None is N(0, 1/features).
        dtype: of the table: x has none to give.
        implementation: see `jaxnet.ops.dispatch`.

    `params` is `{"table": W}`. The gradient in x is that of an integer, zeros of `jax.dtypes.float0`, as `jax.vjp`
    has it.

    Raises:
        ValueError: for rows or features < 1, an unknown initializer; in `init`, for an x that isn't of integers.
    """
    if any(not isinstance(n, int) or n < 1 for n in (rows, features)):
        raise ValueError(f"embedding needs whole numbers of rows and features ≥ 1; got {rows!r} and {features!r}")
    table_of = normal(features**-0.5) if table_init is None else initializers.get(table_init)

    def scaled(y: Array) -> Array:
        return y * jnp.asarray(scale, y.dtype)

    def init(key: Array, x: Input) -> Params:
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"embedding needs an x of integers; got {x.dtype} {x.shape}")
        return {"table": table_of(key, (rows, features), jnp.dtype(dtype))}

    def apply(params: Params, x: Array, *, key: Array | None = None) -> Array:
        return scaled(ops.embedding(x, params["table"], implementation=implementation))

    def vjp(params: Params, x: Array, *, key: Array | None = None) -> tuple[Array, Partial]:
        y, pullback = ops.embedding_vjp(x, params["table"], implementation=implementation)
        return scaled(y), Partial(partial(_pullback, scale), pullback)

    return Layer(init, apply, vjp)


def _pullback(scale: float, pullback: Partial, dy: Array) -> tuple[Params, Any]:
    """dW is c times that of W[x]."""
    return {"table": pullback(dy * jnp.asarray(scale, dy.dtype))}, of_integers(dy.shape[:-1])


def of_integers(shape: tuple[int, ...]) -> Any:
    """The gradient in integers, as `jax.vjp` has it."""
    return np.zeros(shape, jax.dtypes.float0)


def positions(
    kind: str,
    *,
    length: int | None = None,
    base: float = 10_000.0,
    table_init: str | Initializer | None = None,
) -> Reader:
    """y_t = x_t + P_t, x (…, T, E), so that a network of attention can tell one place from another.

    "sinusoidal":  P_t,2i = sin(t base^(−2i/E)),  P_t,2i+1 = cos(t base^(−2i/E)); no parameters. (Vaswani et al.,
                   2017).
    "learned":     P is a parameter; dP_t = Σ dy_t, and 0 from T on.

    Args:
        kind: "sinusoidal" or "learned".
        length: the longest T, needed if it is learned.
        base: of the wave lengths.
        table_init: of a learned P, a name or function of `layers.initializers`; None is N(0, 0.02²).

    They also read piece by piece (`layers.Reader`), x (B, T, E).

    `params` is `{"table": P}`, (length, E), in the dtype of x, or `()`.

    Raises:
        ValueError: for another kind, a learned one without a length or a sinusoidal one with one, an unknown
            initializer; in `init`, `apply` and `vjp`, for an x that isn't (…, T, E) or is longer than P.
    """
    if kind not in ("sinusoidal", "learned"):
        raise ValueError(f"positions are 'sinusoidal' or 'learned'; got {kind!r}")
    if (kind == "learned") != (isinstance(length, int) and length > 0):
        raise ValueError(
            "learned positions need a length, a whole number ≥ 1, and sinusoidal ones have none; got "
            f"{kind} ones of length {length}"
        )
    table_of = normal(0.02) if table_init is None else initializers.get(table_init)

    def check(x: Input) -> None:
        if len(x.shape) < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"positions need a floating-point x (…, T, E); got {x.dtype} {x.shape}")
        if length is not None and x.shape[-2] > length:
            raise ValueError(f"positions learned up to a length of {length} don't reach an x of {x.shape}")

    def init(key: Array, x: Input) -> Params:
        check(x)
        return () if length is None else {"table": table_of(key, (length, x.shape[-1]), x.dtype)}

    def apply(params: Params, x: Array, *, key: Array | None = None) -> Array:
        check(x)
        table = _waves(x.shape[-2], x.shape[-1], base) if length is None else params["table"][: x.shape[-2]]
        return x + jnp.broadcast_to(jnp.asarray(table, x.dtype), x.shape)

    def vjp(params: Params, x: Array, *, key: Array | None = None) -> tuple[Array, Partial]:
        return apply(params, x), Partial(_positions_pullback if length is None else _learned_pullback, params)

    def start(params: Params, x: Input, longest: int) -> tuple[Any, Array]:
        if length is not None and longest > length:
            raise ValueError(f"positions learned up to a length of {length} don't reach one of {longest}")
        table = None if length is not None else jnp.asarray(_waves(longest, x.shape[-1], base), x.dtype)
        return table, jnp.zeros(x.shape[0], "int32")

    def read(params: Params, state: Any, x: Array, lengths: Array | None = None) -> tuple[Array, Any]:
        table, count = state
        places = count[:, None] + jnp.arange(x.shape[1], dtype=count.dtype)[None]
        y = x + (params["table"] if table is None else table)[places]
        return y, (table, count + (x.shape[1] if lengths is None else lengths.astype("int32")))

    def select(state: Any, rows: Array) -> Any:
        return state[0], state[1][rows]

    return Reader.of(Layer(init, apply, vjp), start, read, select)


def _waves(length: int, features: int, base: float) -> np.ndarray:
    angles = np.arange(length)[:, None] * base ** (-2 * (np.arange(features) // 2) / features)
    return np.where(np.arange(features) % 2, np.cos(angles), np.sin(angles))


def _positions_pullback(params: Params, dy: Array) -> tuple[Params, Array]:
    return (), dy


def _learned_pullback(params: Params, dy: Array) -> tuple[Params, Array]:
    total = jnp.sum(dy.astype(accumulation_dtype(dy.dtype)), tuple(range(dy.ndim - 2))).astype(dy.dtype)
    return {"table": jnp.zeros_like(params["table"]).at[: dy.shape[-2]].set(total)}, dy
