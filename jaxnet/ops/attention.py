"""Scaled dot-product attention with the online softmax: memory grows with T + S, not with T·S.

Axes: B batch · T queries · S keys · N heads, G of them to each of K key/value heads · H features of a query and
a key · D of a value. A query t sees some of the keys s; the others have z = −∞, p = 0.

    z_ts = c q_t·k_s + b_ts       p_ts = e^(z_ts − λ_t),  λ_t = ln Σ_s e^z_ts       y_t = Σ_s m_ts p_ts v_s

m is 1 or, with dropout at the rate r, 0 with probability r and else 1/(1 − r). With
D_t = Σ_s p_ts dp_ts = dy_t·y_t,

    dp_ts = m_ts dy_t·v_s       dz_ts = p_ts (dp_ts − D_t)       dv_s = Σ_t m_ts p_ts dy_t
    dq_t = c Σ_s dz_ts k_s      dk_s = c Σ_t dz_ts q_t           db = dz, summed over the axes that b lacks

Both passes go through the tiles of z that hold a key that is seen, one after the other. The forward pass keeps for
each query the largest z so far μ, the sum l of e^(z − μ) and that of m e^(z − μ) v, which shrink by e^(μ_old − μ)
when μ grows; λ = μ + ln l. The backward pass calculates each tile of p again, from λ. A query that sees no key
has y = 0 and no gradient.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import Partial
from jaxtyping import Bool, Float, Integer

from jaxnet.activations import accumulation_dtype
from jaxnet.ops import dispatch
from jaxnet.ops.arrays import check_arrays
from jaxnet.ops.attention_tiles import Options, Others, Tiles, grouped, kept, pairs, scores, tiles_of
from jaxnet.ops.gradients import like, zeros

CHUNK = 256  # queries and keys of a tile, at most

Window = int | tuple[int | None, int | None]


class Residuals(NamedTuple):
    """What the backward pass needs: the arguments, y, and one number λ for each query and head."""

    query: Float[Array, "B T N H"]
    key: Float[Array, "B S K H"]
    value: Float[Array, "B S K D"]
    bias: Float[Array, "..."] | None
    others: Others
    y: Float[Array, "B T N D"]
    logsumexp: Float[Array, "B K T G"]


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K D"],
    *,
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    causal: bool = False,
    window: Window | None = None,
    lengths: Integer[Array, " B"] | None = None,
    offset: int | Array = 0,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    implementation: str | None = None,
) -> Float[Array, "B T N D"]:
    """y = softmax(c q kᵀ + b) v for each head, in at least float32 and rounded once to the dtype of the query.

    Query t stands at position offset + t, key s at s. With offset 0 `causal` is aligned at the start, as in
    PyTorch and `jax.nn`: the first query sees the first key alone, also if S ≠ T. To decode against a cache that
    holds `lengths` keys, of which the last T are the queries' own, let offset = lengths − T. For one query nothing
    but `lengths` is needed.

    Reverse mode only (`jax.custom_vjp`); the backward pass can itself be differentiated, then in O(T·S) memory.
    Dropout is drawn tile by tile: the same for one key and the same shapes.

    Args:
        query: (B, T, N, H).
        key: (B, S, K, H), K a divisor of N: heads n·G to n·G + G − 1 use key/value head n. K = N is multi-head,
            K = 1 multi-query attention.
        value: (B, S, K, D).
        bias: b, added to the logits, (B, N, T, S) or 1 in place of any of them. −∞ hides a key.
        mask: of the same shapes, True where the key is seen.
        causal: no key after its query's position is seen.
        window: (left, right), how many keys before and after its position a query sees; None is all of them. One
            number is for both.
        lengths: how many keys there are in each example; the rest is padding.
        offset: the position of the first query, for all examples or for each.
        scale: c; None is 1/√H.
        dropout_rate: r, of the probabilities p.
        dropout_key: what m is drawn from; needed if r > 0.
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for shapes, dtypes or options that don't fit, an unknown implementation.

    Example:
        >>> x = jnp.ones((2, 16, 8, 64))
        >>> ops.attention(x, x[:, :, :2], x[:, :, :2], causal=True).shape
        (2, 16, 8, 64)

    Reference: Vaswani et al., Attention Is All You Need, 2017, https://arxiv.org/abs/1706.03762; Dao et al.,
    FlashAttention, 2022, https://arxiv.org/abs/2205.14135; for K < N Ainslie et al., GQA, 2023,
    https://arxiv.org/abs/2305.13245
    """
    options, others = _check(
        query,
        key,
        value,
        bias=bias,
        mask=mask,
        causal=causal,
        window=window,
        lengths=lengths,
        offset=offset,
        scale=scale,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
    )
    run = dispatch.choose("attention", implementation, partial(_attention, options), {})
    return run(query, key, value, bias, others)


def attention_vjp(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K D"],
    *,
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    causal: bool = False,
    window: Window | None = None,
    lengths: Integer[Array, " B"] | None = None,
    offset: int | Array = 0,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T N D"], Partial]:
    """Returns y and its pullback dy ↦ (dq, dk, dv, db), db None without a bias; arguments as in `attention`."""
    options, others = _check(
        query,
        key,
        value,
        bias=bias,
        mask=mask,
        causal=causal,
        window=window,
        lengths=lengths,
        offset=offset,
        scale=scale,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
    )
    run = dispatch.choose("attention", implementation, partial(forward, options), {})
    y, residuals = run(query, key, value, bias, others)
    return y, Partial(partial(_pullback, options), residuals)


def reference(
    options: Options, query: Array, key: Array, value: Array, bias: Array | None, others: Others
) -> Array:
    """The specification, for autodiff: all of z at once."""
    tiles, groups = tiles_of(options, query, key), query.shape[2] // key.shape[2]
    t, s = tiles.queries, tiles.keys
    z = options.scale * jnp.einsum("btnh,bsnh->bnts", query, jnp.repeat(key, groups, 2))
    z = z if bias is None else z + bias
    offset = jnp.full(1, options.offset or 0) if others.offset is None else others.offset
    position, at = (offset[:, None] + jnp.arange(t)[None])[:, None, :, None], jnp.arange(s)[None, None, None]
    seen = jnp.ones((1, 1, t, s), bool) if others.mask is None else others.mask
    seen = seen if others.lengths is None else seen & (at < others.lengths[:, None, None, None])
    seen = seen if options.left is None else seen & (at >= position - options.left)
    seen = seen if options.right is None else seen & (at <= position + options.right)
    z = jnp.where(seen, z, -jnp.inf)
    sees = jnp.any(z != -jnp.inf, -1, keepdims=True)
    p = jnp.where(sees, jax.nn.softmax(jnp.where(sees, z, 0), -1), 0)
    if options.dropout_rate:
        p = p * _all_kept(options, tiles, others, p, groups)
    return jnp.einsum("bnts,bsnd->btnd", p, jnp.repeat(value, groups, 2))


def _all_kept(options: Options, tiles: Tiles, others: Others, p: Array, groups: int) -> Array:
    """m of all tiles, (B, N, T, S)."""
    (b, n, t, s), h, w = p.shape, tiles.height, tiles.width
    tile, m = jax.ShapeDtypeStruct((b, n // groups, h, groups, w), p.dtype), jnp.zeros_like(p)
    for i in reversed(range(tiles.down)):  # what two tiles share is the first one's
        for j in reversed(range(tiles.across)):
            drawn = kept(options, tiles, others, i, j, tile).transpose(0, 1, 3, 2, 4).reshape(b, n, h, w)
            m = lax.dynamic_update_slice(m, drawn, (0, 0, min(i * h, t - h), min(j * w, s - w)))
    return m


def forward(
    options: Options, query: Array, key: Array, value: Array, bias: Array | None, others: Others
) -> tuple[Array, Residuals]:
    """y = Σ_s m p v = o / l and λ = μ + ln l, with o = Σ_s m e^(z − μ) v."""
    tiles, dtype, heads = tiles_of(options, query, key), accumulation_dtype(query.dtype), key.shape[2]
    queries = grouped(query, heads)

    def step(carry: tuple[Array, Array, Array], pair: Array) -> tuple[tuple[Array, Array, Array], None]:
        i, j = pair
        q = tiles.rows(queries, i, 1).astype(dtype)
        k, v = (tiles.columns(a, j).astype(dtype) for a in (key, value))
        z = scores(options, tiles, q, k, bias, others, i, j)
        o, total, old = (tiles.rows(a, i, 2) for a in carry)
        top = lax.stop_gradient(jnp.maximum(old, jnp.max(z, -1, initial=-jnp.inf)))  # y and λ don't vary with μ
        finite = jnp.where(top == -jnp.inf, 0, top)  # −∞ as long as no key is seen, and −∞ − −∞ is NaN
        p, shrink = jnp.exp(z - finite[..., None]), jnp.exp(old - finite)
        total = total * shrink + jnp.sum(p, -1)
        p = p * kept(options, tiles, others, i, j, p) if options.dropout_rate else p
        o = o * shrink[..., None] + jnp.einsum("bktgs,bskd->bktgd", p, v)
        return (tiles.put(carry[0], o, i), tiles.put(carry[1], total, i), tiles.put(carry[2], top, i)), None

    arrays = jax.tree.leaves((query, key, value, bias, others))
    zero = zeros(queries[..., 0].transpose(0, 2, 1, 3), dtype, *arrays)
    start = jnp.broadcast_to(zero[..., None], (*zero.shape, value.shape[-1])), zero, zero - jnp.inf
    (o, total, top), _ = lax.scan(step, start, pairs(options, tiles))
    unseen = total == 0
    total = jnp.where(unseen, 1, total)
    y = (o / total[..., None]).transpose(0, 2, 1, 3, 4).reshape(*query.shape[:3], value.shape[-1])
    y, logsumexp = y.astype(query.dtype), jnp.where(unseen, 0, top) + jnp.log(total)
    return y, Residuals(query, key, value, bias, others, y, logsumexp)


def backward(options: Options, residuals: Residuals, dy: Array) -> tuple[Array, Array, Array, Array | None, None]:
    """dz = p (m dy·v − D),  dq = c Σ_s dz k,  dk = c Σ_t dz q,  dv = Σ_t m p dy,  db = Σ dz."""
    query, key, value, bias, others, y, logsumexp = residuals
    tiles, dtype, heads = tiles_of(options, query, key), logsumexp.dtype, key.shape[2]
    queries, dys = grouped(query, heads), grouped(dy.astype(dtype), heads)
    inner = jnp.sum(dys * grouped(y.astype(dtype), heads), -1).transpose(0, 2, 1, 3)  # D, (B, K, T, G)

    def step(carry: tuple[Any, ...], pair: Array) -> tuple[tuple[Any, ...], None]:
        dquery, dkey, dvalue, dbias = carry
        i, j = pair
        q, dout = (tiles.rows(a, i, 1).astype(dtype) for a in (queries, dys))
        k, v = (tiles.columns(a, j).astype(dtype) for a in (key, value))
        d, lse = (tiles.rows(a, i, 2)[..., None] for a in (inner, logsumexp))
        z = scores(options, tiles, q, k, bias, others, i, j)
        p = jnp.exp(z - lse)
        dp = jnp.einsum("btkgd,bskd->bktgs", dout, v)
        m = kept(options, tiles, others, i, j, p) if options.dropout_rate else None
        dz = p * ((dp if m is None else m * dp) - d)
        dz = jnp.where(z == -jnp.inf, 0, dz)  # not 0 · NaN, if there is one in a value that isn't seen
        dquery = _add(dquery, jnp.einsum("bktgs,bskh->btkgh", dz, k), tiles.top(i))
        dkey = _add(dkey, jnp.einsum("bktgs,btkgh->bskh", dz, q), tiles.left(j))
        dvalue_ = jnp.einsum("bktgs,btkgd->bskd", p if m is None else m * p, dout)
        dvalue = _add(dvalue, dvalue_, tiles.left(j))
        return (dquery, dkey, dvalue, None if dbias is None else _add_bias(tiles, dbias, dz, i, j)), None

    arrays = jax.tree.leaves((query, key, value, bias, others, dy))
    start: tuple[Any, ...] = tuple(
        None if a is None else zeros(a, dtype, *arrays) for a in (queries, key, value, bias)
    )
    (dquery, dkey, dvalue, dbias), _ = lax.scan(step, start, pairs(options, tiles))
    dquery, dkey = options.scale * dquery.reshape(query.shape), options.scale * dkey
    dbias = None if bias is None else like(dbias, bias)
    return like(dquery, query), like(dkey, key), like(dvalue, value), dbias, None


def _add(a: Array, part: Array, start: Array) -> Array:
    part = lax.dynamic_slice_in_dim(a, start, part.shape[1], 1) + part
    return lax.dynamic_update_slice_in_dim(a, part, start, 1)


def _add_bias(tiles: Tiles, dbias: Array, dz: Array, i: Array, j: Array) -> Array:
    """db with a tile of dz (B, K, T, G, S), summed over the axes that b lacks."""
    start, shape = tiles.place(dbias, i, j)
    b, k, t, g, s = dz.shape
    part = dz.transpose(0, 1, 3, 2, 4).reshape(b, k * g, t, s)
    part = jnp.sum(part, tuple(axis for axis, n in enumerate(shape) if n == 1), keepdims=True)
    return lax.dynamic_update_slice(dbias, lax.dynamic_slice(dbias, start, shape) + part, start)


def _pullback(options: Options, residuals: Residuals, dy: Array) -> tuple[Array, Array, Array, Array | None]:
    return backward(options, residuals, dy)[:4]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    options: Options, query: Array, key: Array, value: Array, bias: Array | None, others: Others
) -> Array:
    return forward(options, query, key, value, bias, others)[0]


_attention.defvjp(forward, backward)


def _check(
    query: Array,
    key: Array,
    value: Array,
    *,
    bias: Array | None = None,
    mask: Array | None = None,
    causal: bool = False,
    window: Window | None = None,
    lengths: Array | None = None,
    offset: int | Array = 0,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    chunk: int = CHUNK,
) -> tuple[Options, Others]:
    at = {} if isinstance(offset, int) else {"offset": offset}
    arrays = {"query": query, "key": key, "value": value}
    check_arrays("attention", arrays | at, bias=bias, mask=mask, lengths=lengths)
    if query.ndim != 4 or key.ndim != 4 or value.shape[:3] != key.shape[:3] or value.ndim != 4:
        raise ValueError(
            "attention needs a query (B, T, N, H), a key (B, S, K, H) and a value (B, S, K, D); "
            f"got {query.shape}, {key.shape} and {value.shape}"
        )
    (b, t, n, h), (_, s, k, _) = query.shape, key.shape
    if (b, h) != (key.shape[0], key.shape[3]) or not h or not k or n % k:
        raise ValueError(
            f"attention needs a key ({b}, S, K, H), H that of the query and ≥ 1, K a divisor of its {n} heads, "
            f"for a query {query.shape}; got {key.shape}"
        )
    for name, array in (arrays | {"bias": bias}).items():
        if array is not None and not (jnp.issubdtype(array.dtype, jnp.floating) and array.dtype == query.dtype):
            raise ValueError(
                f"attention needs query, key, value and bias of one floating-point dtype; got {name} of "
                f"{array.dtype}" + ("" if name == "query" else f" beside a query of {query.dtype}")
            )
    for name, array in {"bias": bias, "mask": mask}.items():
        if array is not None and (
            array.ndim != 4 or any(i not in (1, j) for i, j in zip(array.shape, (b, n, t, s), strict=True))
        ):
            raise ValueError(
                f"attention needs a {name} ({b}, {n}, {t}, {s}), or 1 in place of any; got {array.shape}"
            )
    if mask is not None and mask.dtype != bool:
        raise ValueError(
            f"attention needs a mask of bool; got {mask.dtype}. What is added to the logits is a bias"
        )
    if lengths is not None and (lengths.shape != (b,) or not jnp.issubdtype(lengths.dtype, jnp.integer)):
        raise ValueError(f"attention needs integer lengths ({b},); got {lengths.dtype} {lengths.shape}")
    if not isinstance(offset, int) and (
        offset.shape not in ((), (b,)) or not jnp.issubdtype(offset.dtype, jnp.integer)
    ):
        raise ValueError(
            f"attention needs an offset that is a whole number, or integers () or ({b},); got "
            f"{offset.dtype} {offset.shape}"
        )
    sides = window if isinstance(window, tuple) else (window, window)
    if len(sides) != 2 or any(side is not None and (not isinstance(side, int) or side < 0) for side in sides):
        raise ValueError(f"attention needs a window (left, right) of whole numbers ≥ 0 or None; got {window}")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"attention needs 0 ≤ dropout_rate < 1; got {dropout_rate}")
    if dropout_rate and dropout_key is None:
        raise ValueError(f"attention needs a dropout_key for a dropout_rate of {dropout_rate}; got None")
    left, right = sides
    right = 0 if causal else right
    scale = max(h, 1) ** -0.5 if scale is None else scale
    number, array = (offset, None) if isinstance(offset, int) else (None, offset.reshape(-1))
    options = Options(left, right, number, scale, dropout_rate, chunk)
    return options, Others(mask, lengths, array, dropout_key if dropout_rate else None)
