"""Transformers. (Vaswani et al., "Attention is all you need", 2017).

A block is two residual steps, attention and a feedforward network on each place:

    before (norm_first)  x ← x + f(norm(x))        after  x ← norm(x + f(x))

The first needs one more normalisation at the end, and trains without a warm-up (Xiong et al., 2020).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxnet import layers
from jaxnet.activations import Activation
from jaxnet.layers import Layer, Reader
from jaxnet.layers.layer import Input, Params
from jaxnet.networks.blocks import whole_numbers
from jaxnet.networks.decoder import Decoder, decoder

_NORMALIZATIONS: dict[str, Callable[..., Layer]] = {"layer": layers.layer_norm, "rms": layers.rms_norm}


def transformer_encoder(
    features: int,
    depth: int,
    heads: int,
    *,
    vocabulary: int | None = None,
    hidden: int | None = None,
    key_value_heads: int | None = None,
    activation: str | Activation = "gelu",
    normalization: str = "layer",
    norm_first: bool = True,
    positions: str | None = "sinusoidal",
    length: int | None = None,
    window: int | None = None,
    dropout_rate: float = 0.0,
    bias: bool = True,
    implementation: str | None = None,
) -> Layer:
    """y (B, T, E): each place of a sequence in the light of all the others.

    Args:
        features: E.
        depth: the number of blocks, of one `layers.repeat`.
        heads: of the attention, a divisor of E.
        vocabulary: how many integers there are, if x is (B, T) of integers; None: x is (B, T, E).
        hidden: features inside of the feedforward network; None is 4 E, and 8/3 E for "swiglu".
        key_value_heads: as in `layers.attention`.
        activation: of the feedforward network; "swiglu" is silu(x W_g) ⊙ (x W). (Shazeer, 2020).
        normalization: "layer" or "rms".
        norm_first: whether it is before each step or after.
        positions: "sinusoidal", "learned", "rotary" or None.
        length: the longest T, if they are learned.
        window: how many places before and after it one sees.
        dropout_rate: after each step, after the positions, and of the attention's probabilities.
        bias: whether the maps have a b.
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for sizes, names or a rate that don't fit; in `init`, for an x of another form.

    Example:
        >>> net = networks.transformer_encoder(64, 2, 4, vocabulary=1000)
        >>> params = net.init(jax.random.key(0), jnp.zeros((1, 16), int))
    """
    body = _body(
        features,
        depth,
        heads,
        causal=False,
        hidden=hidden,
        key_value_heads=key_value_heads,
        activation=activation,
        normalization=normalization,
        norm_first=norm_first,
        positions=positions,
        length=length,
        window=window,
        dropout_rate=dropout_rate,
        bias=bias,
        implementation=implementation,
    )
    if vocabulary is not None:
        return layers.serial(layers.embedding(vocabulary, features, implementation=implementation), body)

    def init(key: Array, x: Input) -> Params:
        if len(x.shape) != 3 or x.shape[-1] != features:
            raise ValueError(f"this transformer_encoder needs x (B, T, {features}); got {x.shape}")
        return body.init(key, x)

    return body._replace(init=init)


def transformer_decoder(
    vocabulary: int,
    features: int,
    depth: int,
    heads: int,
    *,
    hidden: int | None = None,
    key_value_heads: int | None = None,
    activation: str | Activation = "swiglu",
    normalization: str = "rms",
    norm_first: bool = True,
    positions: str | None = "rotary",
    length: int | None = None,
    window: int | None = None,
    dropout_rate: float = 0.0,
    bias: bool = False,
    tied: bool = True,
    implementation: str | None = None,
) -> Decoder:
    """Logits (B, T, V) of the next integer at each place of x (B, T), from that place and those before it.

    Args:
        vocabulary: V.
        tied: whether the last map is the embedding's table, transposed. (Press and Wolf, 2016).
        features: as the others, of `transformer_encoder`.

    Step by step (`Decoder`) the cache has the keys and values of all places in every block, (depth, B, max_length,
    K, H); a window doesn't shorten it.

    `params` is `{"embedding": …, "body": …}`, and `"head"` if it isn't tied.

    Raises:
        ValueError: as in `transformer_encoder`; in `start`, for learned positions that don't reach `max_length`.

    Example:
        >>> net = networks.transformer_decoder(1000, 64, 2, 4)
        >>> params = net.init(jax.random.key(0), jnp.zeros((1, 16), int))
        >>> net.apply(params, jnp.zeros((2, 16), int)).shape
        (2, 16, 1000)
    """
    whole_numbers("vocabulary", vocabulary)
    body = _body(
        features,
        depth,
        heads,
        causal=True,
        hidden=hidden,
        key_value_heads=key_value_heads,
        activation=activation,
        normalization=normalization,
        norm_first=norm_first,
        positions=positions,
        length=length,
        window=window,
        dropout_rate=dropout_rate,
        bias=bias,
        implementation=implementation,
    )
    return decoder(vocabulary, features, body, tied=tied, implementation=implementation)


def _body(
    features: int,
    depth: int,
    heads: int,
    *,
    causal: bool,
    hidden: int | None,
    key_value_heads: int | None,
    activation: str | Activation,
    normalization: str,
    norm_first: bool,
    positions: str | None,
    length: int | None,
    window: int | None,
    dropout_rate: float,
    bias: bool,
    implementation: str | None,
) -> Reader:
    """Positions, blocks, and the last normalisation if there is one before each step."""
    for name, n in {"features": features, "depth": depth, "heads": heads}.items():
        whole_numbers(name, n)
    if normalization not in _NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {', '.join(_NORMALIZATIONS)}; got {normalization!r}")
    if positions not in ("sinusoidal", "learned", "rotary", None):
        raise ValueError(f"positions must be 'sinusoidal', 'learned', 'rotary' or None; got {positions!r}")
    if features % heads:
        raise ValueError(f"a transformer needs features that its {heads} heads divide; got {features}")
    norm = partial(_NORMALIZATIONS[normalization], implementation=implementation)
    dense = partial(layers.dense, bias=bias, implementation=implementation)
    dropout = [layers.dropout(dropout_rate)] if dropout_rate else []

    if activation == "swiglu":
        inner = hidden or -(-8 * features // 3)
        forward = [layers.gated(inner, bias=bias, implementation=implementation), dense(features)]
    else:
        forward = [dense(hidden or 4 * features, activation=activation), dense(features)]
    attention = layers.attention(
        heads,
        key_value_heads=key_value_heads,
        causal=causal,
        window=window,
        rotary=10_000.0 if positions == "rotary" else None,
        dropout_rate=dropout_rate,
        bias=bias,
        implementation=implementation,
    )

    def step(*parts: Layer) -> Layer:
        if norm_first:
            return layers.residual(layers.serial(norm(), *parts, *dropout))
        return layers.serial(layers.residual(layers.serial(*parts, *dropout)), norm())

    place = None if positions in ("rotary", None) else layers.positions(positions, length=length)
    feed = step(*forward)
    blocks = layers.repeat(layers.serial(step(attention), feed), depth)
    stack = [*([] if place is None else [place]), *dropout, blocks, *([norm()] if norm_first else [])]

    def start(x: Input, length: int) -> tuple[Any, Any]:
        cache = attention.start(x, length)
        caches = jax.tree.map(lambda a: jnp.zeros((depth, *a.shape), a.dtype), cache)
        return None if place is None else place.start(x, length), caches

    def read(params: Params, state: Any, x: Array, lengths: Array | None = None) -> tuple[Array, Any]:
        """As `serial` has it, but that each attention reads on from its cache."""
        at, caches = state
        if place is not None:
            x, at = place.read(params[0], at, x, lengths)

        def block(x: Array, of_block: tuple[Params, Any]) -> tuple[Array, Any]:
            (attend, forward), cache = of_block
            if norm_first:
                (before, maps, *_), _ = attend
                y, cache = attention.read(maps, cache, norm().apply(before, x), lengths)
                return feed.apply(forward, x + y), cache
            ((maps, *_), _), after = attend
            y, cache = attention.read(maps, cache, x, lengths)
            return feed.apply(forward, norm().apply(after, x + y)), cache

        x, caches = jax.lax.scan(block, x, (params[len(stack) - norm_first - 1], caches))
        return norm().apply(params[-1], x) if norm_first else x, (at, caches)

    def select(state: Any, rows: Array) -> Any:
        at, caches = state
        return None if place is None else place.select(at, rows), jax.tree.map(lambda a: a[:, rows], caches)

    return Reader.of(layers.serial(*stack), start, read, select)
