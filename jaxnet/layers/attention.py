"""Multi-head attention."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxnet import ops
from jaxnet.layers.dense import dense
from jaxnet.layers.embedding import of_integers
from jaxnet.layers.initializers import Initializer
from jaxnet.layers.layer import Layer, Params, Reader
from jaxnet.ops.attention import Window


class Cache(NamedTuple):
    """The keys and values of the places that were read, or of the memory, and how many each example has.

    With a window there are all of them just the same: what lies before it is not looked at.
    """

    keys: Array  # (B, length, K, H)
    values: Array  # (B, length, K, H)
    filled: Array  # (B,)


class Attention(Reader):
    """A layer of attention, and where it looks.

    `probabilities(params, x) → p` (B, N, T, S), of y = p v Wₒ, in inference: how much each place of x sees of each
    place of the memory.
    """

    probabilities: Callable[[Params, Any], Array]


class _Inputs(NamedTuple):
    """What comes with x."""

    memory: bool
    lengths: bool

    def apart(self, x: Any) -> tuple[Any, Any, Any]:
        """x, the memory (x itself in self-attention) and the lengths or None."""
        expected = 1 + self.memory + self.lengths
        found = len(x) if isinstance(x, tuple) else 1
        if found != expected:
            names = ["x", *(["memory"] if self.memory else []), *(["lengths"] if self.lengths else [])]
            raise ValueError(
                f"this attention needs {'(' + ', '.join(names) + ')' if expected > 1 else 'x alone'}; "
                f"got {found} arrays"
            )
        parts = list(x) if expected > 1 else [x]
        return parts[0], parts[1] if self.memory else parts[0], parts[-1] if self.lengths else None

    def together(self, dx: Array, dmemory: Array) -> Any:
        """The gradient, of the same form as the input."""
        parts: tuple[Any, ...] = (dx, dmemory) if self.memory else (dx + dmemory,)
        parts += (of_integers(dx.shape[:1]),) if self.lengths else ()
        return parts if len(parts) > 1 else parts[0]


def attention(
    heads: int,
    *,
    features: int | None = None,
    key_value_heads: int | None = None,
    head_features: int | None = None,
    memory: bool = False,
    lengths: bool = False,
    causal: bool = False,
    window: Window | None = None,
    rotary: float | None = None,
    dropout_rate: float = 0.0,
    bias: bool = True,
    weight_init: str | Initializer | None = None,
    implementation: str | None = None,
) -> Attention:
    """y = softmax(q kᵀ / √H) v Wₒ, with q = x W_q, k = m W_k and v = m W_v cut into heads: `ops.attention`.

    x is (B, T, E). In self-attention m is x; with `memory` the layer takes (x, m), m (B, S, M), and with `lengths`
    (x, lengths) or (x, m, lengths), lengths (B,) being how many places of m count, the rest is padding.

    Args:
        heads: N, of the queries.
        features: of y; None is E.
        key_value_heads: K, a divisor of N; None is N. (Ainslie et al., 2023).
        head_features: H; None is E / N.
        memory: whether m is given beside x: cross-attention.
        lengths: whether the lengths are.
        causal: each place sees itself and those before it.
        window: how many places before and after it one sees, as in `ops.attention`.
        rotary: the base of rotary positions of q and k, such as 10,000 (`ops.rotary`); None is without.
        dropout_rate: of the probabilities, in training.
        bias: whether the four maps have a b.
        weight_init: of the four maps, as in `dense`.
        implementation: see `jaxnet.ops.dispatch`.

    Causal self-attention also reads piece by piece (`layers.Reader`), and so does attention to a memory: `start`
    takes (x, m) as `init` does, `read` the pieces of x alone. The state is a `Cache`.

    `params` is `{"query": …, "key": …, "value": …, "output": …}`, each as of `dense`. The gradient in the lengths
    is that of integers, zeros of `jax.dtypes.float0`, as `jax.vjp` has it.

    Raises:
        ValueError: for sizes that aren't whole numbers ≥ 1, a K that doesn't divide N, a dropout rate outside of
            [0, 1); in `init`, for an input of another form, or heads that don't divide E; in `start`, for
            self-attention that isn't causal, attention to a memory with places in it.

    Reference: Vaswani et al., Attention Is All You Need, 2017, https://arxiv.org/abs/1706.03762
    """
    groups = heads if key_value_heads is None else key_value_heads
    for name, n in {
        "heads": heads,
        "features": features,
        "key_value_heads": groups,
        "head_features": head_features,
    }.items():
        if n is not None and (not isinstance(n, int) or n < 1):
            raise ValueError(f"attention needs whole numbers ≥ 1; got {name} = {n!r}")
    if heads % groups:
        raise ValueError(f"attention needs key_value_heads that divide the {heads} heads; got {groups}")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"attention needs 0 ≤ dropout_rate < 1; got {dropout_rate}")
    inputs = _Inputs(memory, lengths)
    numbers = {"query": heads, "key": groups, "value": groups}

    def options(key: Array | None, count: Array | None) -> dict[str, Any]:
        drawn = {} if key is None else {"dropout_rate": dropout_rate, "dropout_key": key}
        return drawn | {"causal": causal, "window": window, "lengths": count, "implementation": implementation}

    def init(key: Array, x: Any) -> Params:
        x, m, _ = inputs.apart(x)
        if any(len(a.shape) != 3 or not jnp.issubdtype(a.dtype, jnp.floating) for a in (x, m)):
            got = " and ".join(f"{a.dtype} {a.shape}" for a in ((x, m) if memory else (x,)))
            raise ValueError(f"attention needs a floating-point x (B, T, E) and memory (B, S, M); got {got}")
        e = x.shape[-1]
        if head_features is None and e % heads:
            raise ValueError(
                f"attention of {heads} heads needs E of x a multiple of them, or head_features; got {e}"
            )
        h = head_features or e // heads
        sizes = {name: (m if name != "query" else x, n * h) for name, n in numbers.items()}
        sizes["output"] = jax.ShapeDtypeStruct((*x.shape[:2], heads * h), x.dtype), features or e
        keys = jax.random.split(key, len(sizes))
        return {
            name: dense(n, bias=bias, weight_init=weight_init).init(k, a)
            for k, (name, (a, n)) in zip(keys, sizes.items(), strict=True)
        }

    def mapped(params: Params, name: str, x: Array) -> Array:
        return _heads(ops.linear(x, *_of(params[name]), implementation=implementation), numbers[name])

    def apply(params: Params, x: Any, *, key: Array | None = None) -> Array:
        x, m, count = inputs.apart(x)
        q, k, v = (mapped(params, name, x if name == "query" else m) for name in numbers)
        if rotary is not None:
            q, k = (ops.rotary(a, base=rotary, implementation=implementation) for a in (q, k))
        y = ops.attention(q, k, v, **options(key, count))
        return ops.linear(_joined(y), *_of(params["output"]), implementation=implementation)

    def vjp(params: Params, x: Any, *, key: Array | None = None) -> tuple[Array, Partial]:
        x, m, count = inputs.apart(x)
        pullbacks, parts = {}, []
        for name, n in numbers.items():
            a = x if name == "query" else m
            part, pullbacks[name] = ops.linear_vjp(a, *_of(params[name]), implementation=implementation)
            part = _heads(part, n)
            if rotary is not None and name != "value":
                part, pullbacks[f"rotary {name}"] = ops.rotary_vjp(
                    part, base=rotary, implementation=implementation
                )
            parts.append(part)
        y, pullbacks["attention"] = ops.attention_vjp(*parts, **options(key, count))
        y, pullbacks["output"] = ops.linear_vjp(_joined(y), *_of(params["output"]), implementation=implementation)
        return y, Partial(partial(_pullback, inputs, heads), pullbacks)

    def start(params: Params, x: Any, length: int) -> Cache:
        x, m, count = inputs.apart(x)
        placed = causal or window is not None or rotary is not None
        if (memory and placed) or (not memory and (not causal or lengths)):
            raise ValueError(
                "attention reads piece by piece if it is causal and of x alone, or of a memory and without "
                "causal, window and rotary"
            )
        if memory:
            count = jnp.full(m.shape[0], m.shape[1]) if count is None else count
            return Cache(mapped(params, "key", m), mapped(params, "value", m), count.astype("int32"))
        shape = x.shape[0], length, groups, head_features or x.shape[-1] // heads
        return Cache(jnp.zeros(shape, x.dtype), jnp.zeros(shape, x.dtype), jnp.zeros(x.shape[0], "int32"))

    def read(params: Params, state: Cache, x: Array, lengths: Array | None = None) -> tuple[Array, Cache]:
        if memory:
            y = ops.attention(mapped(params, "query", x), state.keys, state.values, **options(None, state.filled))
            return ops.linear(_joined(y), *_of(params["output"]), implementation=implementation), state
        q, k, v = (mapped(params, name, x) for name in numbers)
        if rotary is not None:
            q, k = (ops.rotary(a, base=rotary, offset=state.filled, implementation=implementation) for a in (q, k))
        keys, values = _put(state.keys, k, state.filled), _put(state.values, v, state.filled)
        y = ops.attention(q, keys, values, offset=state.filled, **options(None, None))
        y = ops.linear(_joined(y), *_of(params["output"]), implementation=implementation)
        return y, Cache(keys, values, state.filled + (x.shape[1] if lengths is None else lengths.astype("int32")))

    def probabilities(params: Params, x: Any) -> Array:
        """With v = 1, the unit matrix, y is p."""
        x, m, count = inputs.apart(x)
        q, k = mapped(params, "query", x), mapped(params, "key", m)
        if rotary is not None:
            q, k = (ops.rotary(a, base=rotary, implementation=implementation) for a in (q, k))
        s = m.shape[1]
        v = jnp.broadcast_to(jnp.eye(s, dtype=q.dtype)[None, :, None], (len(m), s, groups, s))
        return ops.attention(q, k, v, **options(None, count)).transpose(0, 2, 1, 3)

    layer = Attention.of(Layer(init, apply, vjp), start, read)
    layer.probabilities = probabilities
    return layer


def _put(cache: Array, piece: Array, count: Array) -> Array:
    """The cache (B, S, …) with the piece (B, T, …) from each example's count on; past its end it is lost."""
    places = count[:, None] + jnp.arange(piece.shape[1], dtype=count.dtype)[None]
    return cache.at[jnp.arange(len(count))[:, None], places].set(piece, mode="drop")


def _pullback(inputs: _Inputs, heads: int, pullbacks: dict[str, Partial], dy: Array) -> tuple[Params, Any]:
    """Back through the output, the attention and the three maps; dm = dm_k + dm_v."""
    dy, *doutput = pullbacks["output"](dy)
    dparts = dict(zip(("query", "key", "value"), pullbacks["attention"](_heads(dy, heads))[:3], strict=True))
    dparams, dinputs = {"output": _named(*doutput)}, {}
    for name, dpart in dparts.items():
        if f"rotary {name}" in pullbacks:
            dpart = pullbacks[f"rotary {name}"](dpart)
        dinputs[name], *dmap = pullbacks[name](_joined(dpart))
        dparams[name] = _named(*dmap)
    return dparams, inputs.together(dinputs["query"], dinputs["key"] + dinputs["value"])


def _heads(x: Array, n: int) -> Array:
    """(B, T, N·H) as (B, T, N, H)."""
    return x.reshape(*x.shape[:2], n, x.shape[2] // n)


def _joined(x: Array) -> Array:
    """(B, T, N, H) as (B, T, N·H)."""
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])


def _of(params: Params) -> tuple[Array, Array | None]:
    return params["weight"], params.get("bias")


def _named(dweight: Array, dbias: Array | None) -> Params:
    return {"weight": dweight} | ({} if dbias is None else {"bias": dbias})
