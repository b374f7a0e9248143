"""The chain rule, written once.

With these a network's hand-derived gradient costs no code beyond its parts. Each layer gets a key
of its own, split from the network's.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxnet.layers.layer import Inputs, Layer, Params, output, split


def serial(*layers: Layer) -> Layer:
    """y = fₙ(… f₂(f₁(x))),  dx = J₁ᵀ J₂ᵀ … Jₙᵀ dy.

    `params` is a tuple with an entry for each layer; `serial()` is the identity. The first layer may take a tuple
    of arrays, or integers: then so does this one; others may where those before them return one.
    """

    def init(key: Array, x: Inputs) -> Params:
        params = []
        for layer, k in zip(layers, jax.random.split(key, len(layers)), strict=True):
            params.append(layer.init(k, x))
            x = output(layer, params[-1], x)
        return tuple(params)

    def apply(params: Params, x: Inputs, *, key: Array | None = None) -> Any:
        for i, (layer, p, k) in enumerate(zip(layers, params, split(key, len(layers)), strict=True)):
            with jax.named_scope(f"layer{i}"):
                x = layer.apply(p, x, key=k)
        return x

    def vjp(params: Params, x: Inputs, *, key: Array | None = None) -> tuple[Any, Partial]:
        pullbacks = []
        for i, (layer, p, k) in enumerate(zip(layers, params, split(key, len(layers)), strict=True)):
            with jax.named_scope(f"layer{i}"):
                x, pullback = layer.vjp(p, x, key=k)
            pullbacks.append(pullback)
        return x, Partial(_serial_pullback, pullbacks)

    return Layer(init, apply, vjp)


def _serial_pullback(pullbacks: list[Any], dx: Any) -> tuple[Params, Inputs]:
    dparams = []
    for pullback in reversed(pullbacks):
        dp, dx = pullback(dx)
        dparams.append(dp)
    return tuple(reversed(dparams)), dx


def residual(layer: Layer, shortcut: Layer | None = None) -> Layer:
    """y = f(x) + s(x),  dx = J_fᵀ dy + J_sᵀ dy, where s is `shortcut` or the identity. (He et al., 2015).

    Raises:
        ValueError: in `init`, if the two shapes differ.
    """
    return parallel(layer, serial() if shortcut is None else shortcut, combine="add")


def parallel(*layers: Layer, combine: str = "concatenate", axis: int = -1) -> Layer:
    """All layers see the same x; their outputs are concatenated along `axis`, or added.

    y = [f₁(x), …, fₙ(x)]  or  Σ fᵢ(x),  dx = Σ Jᵢᵀ dyᵢ.  `params` is a tuple with an entry for each layer.

    Raises:
        ValueError: for another `combine`, no layer, or, in `init`, outputs that can't be combined.
    """
    if combine not in ("concatenate", "add"):
        raise ValueError(f"parallel's combine must be 'concatenate' or 'add'; got {combine!r}")
    if not layers:
        raise ValueError("parallel needs at least one layer; got none")

    def init(key: Array, x: Inputs) -> Params:
        params = tuple(f.init(k, x) for f, k in zip(layers, jax.random.split(key, len(layers)), strict=True))
        shapes = [output(f, p, x).shape for f, p in zip(layers, params, strict=True)]
        if combine == "add" and len(set(shapes)) > 1:
            raise ValueError(f"layers to be added must have outputs of one shape; got {shapes}")
        if combine == "concatenate" and len({_without(shape, axis) for shape in shapes}) > 1:
            raise ValueError(f"layers to be concatenated must differ along axis {axis} only; got {shapes}")
        return params

    def apply(params: Params, x: Inputs, *, key: Array | None = None) -> Array:
        keys = split(key, len(layers))
        ys = [f.apply(p, x, key=k) for f, p, k in zip(layers, params, keys, strict=True)]
        return sum(ys[1:], ys[0]) if combine == "add" else jnp.concatenate(ys, axis)

    def vjp(params: Params, x: Inputs, *, key: Array | None = None) -> tuple[Array, Partial]:
        keys = split(key, len(layers))
        each = [f.vjp(p, x, key=k) for f, p, k in zip(layers, params, keys, strict=True)]
        ys, pullbacks = [y for y, _ in each], [pullback for _, pullback in each]
        if combine == "add":
            return sum(ys[1:], ys[0]), Partial(_parallel_pullback, pullbacks)
        ends = tuple(sum(y.shape[axis] for y in ys[: i + 1]) for i in range(len(ys) - 1))

        def pullback(pullbacks: list[Any], dy: Array) -> tuple[Params, Any]:
            return _parallel_pullback(pullbacks, *jnp.split(dy, ends, axis))

        return jnp.concatenate(ys, axis), Partial(pullback, pullbacks)

    return Layer(init, apply, vjp)


def _parallel_pullback(pullbacks: list[Any], *dys: Array) -> tuple[Params, Any]:
    dys = dys if len(dys) == len(pullbacks) else dys * len(pullbacks)  # added: each gets the same dy
    dparams, dxs = zip(*(pullback(dy) for pullback, dy in zip(pullbacks, dys, strict=True)), strict=True)
    return dparams, jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *dxs)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


def repeat(layer: Layer, times: int) -> Layer:
    """y = f(… f(f(x))), each time with parameters of its own, stacked along a leading axis.

    One `jax.lax.scan`: the program, and the time to compile it, don't grow with `times`. x may be a tuple of
    arrays, as the layer's output then is.

    Raises:
        ValueError: if `times` < 1 or, in `init`, the layer changes the shape or dtype of x.
    """
    if times < 1:
        raise ValueError(f"repeat needs times ≥ 1; got {times}")

    def init(key: Array, x: Inputs) -> Params:
        params = jax.vmap(lambda k: layer.init(k, x))(jax.random.split(key, times))
        y = output(layer, jax.tree.map(lambda p: p[0], params), x)
        before, after = (jax.tree.map(lambda a: f"{a.shape} {a.dtype}", arrays) for arrays in (x, y))
        if before != after:
            raise ValueError(f"repeat needs a layer that keeps the shape and dtype of x; {before} became {after}")
        return params

    def keys_of(key: Array | None) -> Array | None:
        return None if key is None else jax.random.split(key, times)

    def apply(params: Params, x: Inputs, *, key: Array | None = None) -> Any:
        def body(x: Any, at: tuple[Params, Array | None]) -> tuple[Any, None]:
            return layer.apply(at[0], x, key=at[1]), None

        return jax.lax.scan(body, x, (params, keys_of(key)), length=times)[0]

    def vjp(params: Params, x: Inputs, *, key: Array | None = None) -> tuple[Any, Partial]:
        def body(x: Any, at: tuple[Params, Array | None]) -> tuple[Any, Any]:
            return layer.vjp(at[0], x, key=at[1])

        y, pullbacks = jax.lax.scan(body, x, (params, keys_of(key)), length=times)
        return y, Partial(partial(_repeat_pullback, times), pullbacks)

    return Layer(init, apply, vjp)


def _repeat_pullback(times: int, pullbacks: Any, dy: Any) -> tuple[Params, Any]:
    def body(dx: Any, pullback: Any) -> tuple[Any, Params]:
        dp, dx = pullback(dx)
        return dx, dp

    dx, dparams = jax.lax.scan(body, dy, pullbacks, length=times, reverse=True)
    return dparams, dx


def with_lengths(layer: Layer) -> Layer:
    """(y, lengths) = (f(x), lengths), dx = Jᵀ dy: a layer of each place, before one of sequences with lengths.

    x is a pair (x, lengths), or x alone: then so is y. Whatever comes after x passes through, a memory too.

    Example:
        >>> net = layers.serial(layers.with_lengths(layers.embedding(1000, 64)), layers.lstm(64))
        >>> params = net.init(jax.random.key(0), (jnp.zeros((8, 20), int), jnp.full(8, 15)))
    """

    def init(key: Array, x: Inputs) -> Params:
        return layer.init(key, x[0] if isinstance(x, tuple) else x)

    def apply(params: Params, x: Inputs, *, key: Array | None = None) -> Any:
        if not isinstance(x, tuple):
            return layer.apply(params, x, key=key)
        return layer.apply(params, x[0], key=key), *x[1:]

    def vjp(params: Params, x: Inputs, *, key: Array | None = None) -> tuple[Any, Any]:
        if not isinstance(x, tuple):
            return layer.vjp(params, x, key=key)
        y, pullback = layer.vjp(params, x[0], key=key)
        return (y, *x[1:]), Partial(_with_lengths_pullback, pullback)

    return Layer(init, apply, vjp)


def _with_lengths_pullback(pullback: Any, dy: tuple[Any, ...]) -> tuple[Params, tuple[Any, ...]]:
    """The gradient in the lengths, that of integers, passes through."""
    dparams, dx = pullback(dy[0])
    return dparams, (dx, *dy[1:])
