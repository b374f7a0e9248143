"""Transformers. (Vaswani et al., "Attention is all you need", 2017).

A block is two residual steps, attention and a feedforward network on each place:

    before (norm_first)  x ← x + f(norm(x))        after  x ← norm(x + f(x))

The first needs one more normalisation at the end, and trains without a warm-up (Xiong et al., 2020).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxnet import layers
from jaxnet.activations import Activation
from jaxnet.layers import Layer, Reader
from jaxnet.layers.attention import Attention
from jaxnet.layers.layer import Inputs, Params
from jaxnet.networks.blocks import whole_numbers
from jaxnet.networks.decoder import Decoder, decoder, encoder_decoder
from jaxnet.networks.memory import Attending, given, of_lengths, without_memory

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

    x may be a pair of that and lengths (B,): places past the length of a sequence aren't seen, and what is made of
    them is not to be used.

    Raises:
        ValueError: for sizes, names or a rate that don't fit; in `init`, for an x of another form.

    Example:
        >>> net = networks.transformer_encoder(64, 2, 4, vocabulary=1000)
        >>> params = net.init(jax.random.key(0), jnp.zeros((1, 16), int))
    """
    parts = _parts(
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
        embedding = layers.embedding(vocabulary, features, implementation=implementation)
        return of_lengths(lambda lengths: layers.serial(embedding, _encoder(parts, lengths)))
    body = of_lengths(partial(_encoder, parts))

    def init(key: Array, x: Inputs) -> Params:
        sequences = x[0] if isinstance(x, tuple) else x
        if len(sequences.shape) != 3 or sequences.shape[-1] != features:
            raise ValueError(f"this transformer_encoder needs x (B, T, {features}); got {sequences.shape}")
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
    parts = _parts(
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
    return decoder(vocabulary, features, _decoder(parts), tied=tied, implementation=implementation)


def transformer(
    vocabularies: int | tuple[int, int],
    features: int,
    depth: int,
    heads: int,
    *,
    hidden: int | None = None,
    key_value_heads: int | None = None,
    activation: str | Activation = "gelu",
    normalization: str = "layer",
    norm_first: bool = True,
    positions: str | None = "sinusoidal",
    length: int | None = None,
    dropout_rate: float = 0.0,
    bias: bool = True,
    tied: bool = True,
    implementation: str | None = None,
) -> Decoder:
    """Logits (B, T, V) of the next integer of a target, from its source and what comes before: to translate.

    Each block of the decoder has one more step between its two: attention to what the encoder has made of the
    source. Embeddings are multiplied by √E.

    Args:
        vocabularies: how many integers there are in sources and in targets, V; or one number for both, each with
            its own embedding.
        features: as the others, of `transformer_encoder`, for both.
        depth: of each.
        tied: whether the last map is the table of the targets' embedding, transposed.

    x is (source, target), as in `decoder.encoder_decoder`: ids (B, S) or a pair of that and lengths (B,), and ids
    (B, T). `networks.generate` takes the same as its prompt, the target being the integer that begins each.

    `params` is `{"encoder": …, "decoder": …}`.

    Raises:
        ValueError: as in `transformer_encoder`.

    Example:
        >>> net = networks.transformer((1000, 900), 64, 2, 4)
        >>> x = (jnp.zeros((8, 20), int), jnp.full(8, 15)), jnp.zeros((8, 16), int)
        >>> net.apply(net.init(jax.random.key(0), x), x).shape
        (8, 16, 900)
    """
    sources, targets = vocabularies if isinstance(vocabularies, tuple) else (vocabularies, vocabularies)
    whole_numbers("vocabularies", (sources, targets))
    parts_of = partial(
        _parts,
        features,
        depth,
        heads,
        hidden=hidden,
        key_value_heads=key_value_heads,
        activation=activation,
        normalization=normalization,
        norm_first=norm_first,
        positions=positions,
        length=length,
        window=None,
        dropout_rate=dropout_rate,
        bias=bias,
        implementation=implementation,
    )
    before, after = parts_of(causal=False), parts_of(causal=True)
    scale = features**0.5  # else what a block adds, and positions, drown the embeddings
    embedding = layers.embedding(sources, features, scale=scale, implementation=implementation)
    encoder = of_lengths(lambda lengths: layers.serial(embedding, _encoder(before, lengths)))

    def decoder_of(lengths: Array | None) -> Decoder:
        body = _decoder(after, memory=True, lengths=lengths)
        return decoder(targets, features, body, tied=tied, scale=scale, implementation=implementation)

    return encoder_decoder(encoder, decoder_of)


class _Parts(NamedTuple):
    """What blocks are made of."""

    depth: int
    norm_first: bool
    norm: Callable[[], Layer]
    dropout: list[Layer]
    place: Reader | None
    attention: Callable[..., Reader]  # with what is said of places
    cross: Callable[..., Attention]  # to a memory
    forward: list[Layer]

    def step(self, *parts: Layer) -> Layer:
        """A residual step."""
        if self.norm_first:
            return layers.residual(layers.serial(self.norm(), *parts, *self.dropout))
        return layers.serial(layers.residual(layers.serial(*parts, *self.dropout)), self.norm())

    def cross_step(self, attention: Layer) -> Layer:
        """The same, from (x, m) to (x, m)."""
        if self.norm_first:
            return _residual(layers.serial(layers.with_lengths(self.norm()), attention, *self.dropout))
        step = _residual(layers.serial(attention, *self.dropout))
        return layers.serial(step, layers.with_lengths(self.norm()))

    def feed(self) -> Layer:
        """The feedforward step."""
        return self.step(*self.forward)

    def stack(self, block: Layer, *after: Layer) -> Layer:
        """Positions, blocks, and the last normalisation if there is one before each step."""
        first = [layers.with_lengths(layer) for layer in [*([self.place] if self.place else []), *self.dropout]]
        return layers.serial(
            *first, layers.repeat(block, self.depth), *after, *([self.norm()] if self.norm_first else [])
        )

    @property
    def blocks(self) -> int:
        """Where in `params` the blocks are."""
        return (self.place is not None) + len(self.dropout)


def _parts(
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
) -> _Parts:
    for name, n in {"features": features, "depth": depth, "heads": heads}.items():
        whole_numbers(name, n)
    if normalization not in _NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {', '.join(_NORMALIZATIONS)}; got {normalization!r}")
    if positions not in ("sinusoidal", "learned", "rotary", None):
        raise ValueError(f"positions must be 'sinusoidal', 'learned', 'rotary' or None; got {positions!r}")
    if features % heads:
        raise ValueError(f"a transformer needs features that its {heads} heads divide; got {features}")
    dense = partial(layers.dense, bias=bias, implementation=implementation)
    if activation == "swiglu":
        inner = hidden or -(-8 * features // 3)
        forward = [layers.gated(inner, bias=bias, implementation=implementation), dense(features)]
    else:
        forward = [dense(hidden or 4 * features, activation=activation), dense(features)]
    attention = partial(
        layers.attention,
        heads,
        key_value_heads=key_value_heads,
        dropout_rate=dropout_rate,
        bias=bias,
        implementation=implementation,
    )
    rotary = 10_000.0 if positions == "rotary" else None
    return _Parts(
        depth,
        norm_first,
        partial(_NORMALIZATIONS[normalization], implementation=implementation),
        [layers.dropout(dropout_rate)] if dropout_rate else [],
        None if positions in ("rotary", None) else layers.positions(positions, length=length),
        partial(attention, causal=causal, window=window, rotary=rotary),
        partial(attention, memory=True),
        forward,
    )


def _encoder(parts: _Parts, lengths: Array | None) -> Layer:
    """Of sequences of these lengths."""
    attention = given(parts.attention(lengths=lengths is not None), lengths)
    return parts.stack(layers.serial(parts.step(attention), parts.feed()))


def _decoder(parts: _Parts, memory: bool = False, lengths: Array | None = None) -> Reader:
    """Of x, or of (x, m), m being of these lengths: then there is a step of attention to m in each block."""
    attention, feed = parts.attention(), parts.feed()
    cross = parts.cross(lengths=lengths is not None)
    if memory:
        steps = parts.step(attention), parts.cross_step(given(cross, lengths)), feed
        block = layers.serial(layers.with_lengths(steps[0]), steps[1], layers.with_lengths(feed))
        layer = parts.stack(block, without_memory())
    else:
        layer = parts.stack(layers.serial(parts.step(attention), feed))

    def maps_of(params: Params) -> Params:
        """Of the attention to m, of all blocks."""
        return params[parts.blocks][1][1] if parts.norm_first else params[parts.blocks][1][0][0]

    def start(params: Params, x: Any, length: int) -> tuple[Any, Any, Any]:
        x, *m = x if memory else (x,)
        at = None if parts.place is None else parts.place.start(params[0], x, length)
        cache = attention.start(None, x, length)
        caches = jax.tree.map(lambda a: jnp.zeros((parts.depth, *a.shape), a.dtype), cache)
        rest = [] if lengths is None else [lengths]
        memories = jax.vmap(lambda maps: cross.start(maps, (x, *m, *rest), length))(maps_of(params)) if m else None
        return at, caches, memories

    def read(params: Params, state: Any, x: Array, lengths: Array | None = None) -> tuple[Array, Any]:
        """As `serial` has it, but that each attention reads on from its cache."""
        at, caches, memories = state
        if parts.place is not None:
            x, at = parts.place.read(params[0], at, x, lengths)

        def attend(layer: Reader, params: Params, cache: Any, x: Array) -> tuple[Array, Any]:
            if parts.norm_first:
                before, maps = params[:2]
                y, cache = layer.read(maps, cache, parts.norm().apply(before, x), lengths)
                return x + y, cache
            (maps, *_), after = params
            y, cache = layer.read(maps, cache, x, lengths)
            return parts.norm().apply(after, x + y), cache

        def block(x: Array, at: tuple[Params, Any, Any]) -> tuple[Array, Any]:
            (own, *rest, forward), cache, held = at
            # `residual` has an entry for its shortcut
            x, cache = attend(attention, own[0] if parts.norm_first else (own[0][0], own[1]), cache, x)
            if memory:
                x, _ = attend(cross, rest[0], held, x)
            return feed.apply(forward, x), cache

        x, caches = jax.lax.scan(block, x, (params[parts.blocks], caches, memories))
        return parts.norm().apply(params[-1], x) if parts.norm_first else x, (at, caches, memories)

    def select(state: Any, rows: Array) -> Any:
        at, *caches = state
        at = None if parts.place is None else parts.place.select(at, rows)
        return at, *jax.tree.map(lambda a: a[:, rows], caches)

    def alignments(params: Params, x: Any) -> Array:
        """p of the attention to m, of all blocks."""
        x, m = x
        x = x if parts.place is None else parts.place.apply(params[0], x)
        rest = () if lengths is None else (lengths,)

        def block(pair: Any, own: Params) -> tuple[Any, Array]:
            x, m = layers.with_lengths(steps[0]).apply(own[0], pair)
            before, maps = own[1][:2] if parts.norm_first else (None, own[1][0][0])
            seen = parts.norm().apply(before, x) if parts.norm_first else x
            p = cross.probabilities(maps, (seen, m, *rest))
            pair = steps[1].apply(own[1], (x, m))
            return layers.with_lengths(feed).apply(own[2], pair), p

        return jax.lax.scan(block, (x, m), params[parts.blocks])[1]

    if not memory:
        return Reader.of(layer, start, read, select)
    body = Attending.of(layer, start, read, select)
    body.alignments = alignments
    return body


def _residual(layer: Layer) -> Layer:
    """(x + f(x, m), m):  dx = dy + dx of f,  dm = dm + dm of f."""

    def apply(params: Params, x: Any, *, key: Array | None = None) -> Any:
        return x[0] + layer.apply(params, x, key=key), x[1]

    def vjp(params: Params, x: Any, *, key: Array | None = None) -> tuple[Any, Partial]:
        y, pullback = layer.vjp(params, x, key=key)
        return (x[0] + y, x[1]), Partial(_residual_pullback, pullback)

    return Layer(layer.init, apply, vjp)


def _residual_pullback(pullback: Partial, dy: tuple[Array, Array]) -> tuple[Params, Any]:
    dparams, (dx, dmemory) = pullback(dy[0])
    return dparams, (dy[0] + dx, dy[1] + dmemory)
