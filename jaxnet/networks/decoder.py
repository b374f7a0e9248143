"""What language models have in common: integers → vectors → a body → logits of the next integer at each place.

Axes: B batch · T places · E features · V vocabulary.

All at once they train; one place after the other they write: `prefill` reads a prompt, `step` an integer more.
What was read is a cache, a value that goes in and comes out. `networks.generate` is made of these.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxnet import layers, ops
from jaxnet.layers import Layer, Reader
from jaxnet.layers.layer import Inputs, Params, output, split
from jaxnet.networks.blocks import whole_numbers
from jaxnet.networks.memory import Attending


class Decoder(Layer):
    """A language model, and what it is made of: logits = hidden · weight.

    `hidden` is the layer before the logits, of the same `params`, `weight(params)` the last map, (E, V): a loss
    that stores no logits is

        losses.linear_cross_entropy(net.hidden.apply(params, ids), net.weight(params), labels)

    In inference it goes step by step:

    ===========  ================================================  ============================================
    `start`      `start(params, batch_size, max_length) → cache`   for sequences of at most so many places
    `step`       `step(params, cache, ids) → (logits, cache)`      `ids` (B,), `logits` (B, V) of the next
    `prefill`    `prefill(params, prompt, room=0)`                 `start` and all steps of the prompt at once,
                 `→ (logits, cache)`                               with room for so many integers more
    `select`     `select(cache, rows) → cache`                     of these examples, in this order
    ===========  ================================================  ============================================

    With a memory, as in `encoder_decoder`, x is a pair (ids, memory), and `start` and `prefill` take a `memory`.
    `alignments(params, x) → p` (layers, B, N, T, S) then tells how much each place of the target sees of each of
    the source, in each layer and head of the attention to it.

    A prompt is ids (B, T), or a pair of that and lengths (B,), each ≥ 1; the logits are those after its end. They
    are `apply`'s at the same places. What goes on beyond `max_length` is lost, without an error.
    """

    hidden: Layer
    weight: Callable[[Params], Array]
    start: Callable[..., Any]
    step: Callable[..., tuple[Array, Any]]
    prefill: Callable[..., tuple[Array, Any]]
    select: Callable[[Any, Array], Any]

    @staticmethod
    def alignments(params: Params, x: Any) -> Array:
        """Of a network with a memory.

        Raises:
            ValueError: for others.
        """
        raise ValueError("alignments are those of a network with a memory, such as transformer; this one has none")

    @classmethod
    def of(cls, layer: Layer, **parts: Any) -> "Decoder":
        """The layer with its parts beside."""
        self = cls(*layer)
        for name, part in parts.items():
            setattr(self, name, part)
        return self


def decoder(
    vocabulary: int,
    features: int,
    body: Reader,
    *,
    tied: bool,
    scale: float = 1.0,
    implementation: str | None = None,
) -> Decoder:
    """The body between an embedding and the last map, which is the embedding's table, transposed, if tied.

    x is ids (B, T), or a pair of that and lengths (B,) if the body takes one. `scale` is of the embedding alone.

    `params` is `{"embedding": …, "body": …}`, and `"head"` if it isn't tied.

    Raises:
        ValueError: for a vocabulary < 1; in `prefill` and `step`, for ids of another form.
    """
    whole_numbers("vocabulary", vocabulary)
    embedding = layers.embedding(vocabulary, features, scale=scale, implementation=implementation)
    last = _hidden(layers.with_lengths(embedding), body)
    head = layers.dense(vocabulary, bias=False, implementation=implementation)

    def init(key: Array, x: Inputs) -> Params:
        first, second = jax.random.split(key)
        params = last.init(first, x)
        return params if tied else params | {"head": head.init(second, output(last, params, x))}

    def weight(params: Params) -> Array:
        return params["embedding"]["table"].T if tied else params["head"]["weight"]

    def apply(params: Params, x: Inputs, *, key: Array | None = None) -> Array:
        return logits(params, last.apply(params, x, key=key))

    def logits(params: Params, y: Array) -> Array:
        return ops.linear(y, weight(params), implementation=implementation)

    def vjp(params: Params, x: Inputs, *, key: Array | None = None) -> tuple[Array, Partial]:
        y, last_pullback = last.vjp(params, x, key=key)
        y, head_pullback = ops.linear_vjp(y, weight(params), implementation=implementation)
        return y, Partial(_tied_pullback if tied else _head_pullback, last_pullback, head_pullback)

    def start(params: Params, batch_size: int, max_length: int, memory: Array | None = None) -> Any:
        whole_numbers("batch_size and max_length", (batch_size, max_length))
        x = output(embedding, params["embedding"], jax.ShapeDtypeStruct((batch_size, 1), "int32"))
        return body.start(params["body"], x if memory is None else (x, memory), max_length)

    def read(params: Params, cache: Any, ids: Array, lengths: Array | None = None) -> tuple[Array, Any]:
        return body.read(params["body"], cache, embedding.apply(params["embedding"], ids), lengths)

    def step(params: Params, cache: Any, ids: Array) -> tuple[Array, Any]:
        if ids.ndim != 1:
            raise ValueError(f"step needs ids (B,), one for each example; got {ids.shape}")
        y, cache = read(params, cache, ids[:, None])
        return logits(params, y[:, 0]), cache

    def prefill(params: Params, prompt: Inputs, room: int = 0, memory: Array | None = None) -> tuple[Array, Any]:
        ids, lengths = prompt if isinstance(prompt, tuple) else (prompt, None)
        check_prompt(ids, lengths)
        cache = start(params, ids.shape[0], ids.shape[1] + room, memory)
        y, cache = read(params, cache, ids, lengths)
        return logits(params, at_end(y, lengths)), cache

    def alignments(params: Params, x: Any) -> Array:
        ids, memory = x
        assert isinstance(body, Attending)
        return body.alignments(params["body"], (embedding.apply(params["embedding"], ids), memory))

    return Decoder.of(
        Layer(init, apply, vjp),
        hidden=last,
        weight=weight,
        start=start,
        step=step,
        prefill=prefill,
        select=body.select,
        **({"alignments": alignments} if isinstance(body, Attending) else {}),
    )


def encoder_decoder(encoder: Layer, decoder_of: Callable[[Array | None], Decoder]) -> Decoder:
    """Logits (B, T, V) of the next integer of each target, given its source: decoder(target, encoder(source)).

    Args:
        encoder: of the source, ids (B, S) or a pair of that and lengths (B,), to a memory (B, S, M).
        decoder_of: the decoder of (target, memory), for these lengths of the memory.

    x is (source, target). As a `Decoder`, `start` takes a source instead of the batch's size, and a prompt is
    (source, the beginning of the target), or (source, (that, lengths)); the encoder runs once.

    `params` is `{"encoder": …, "decoder": …}`.
    """

    def of(source: Inputs) -> Decoder:
        return decoder_of(source[1] if isinstance(source, tuple) else None)

    def init(key: Array, x: Inputs) -> Params:
        source, target = x
        first, second = jax.random.split(key)
        params = encoder.init(first, source)
        memory = output(encoder, params, source)
        return {"encoder": params, "decoder": decoder_of(None).init(second, (target, memory))}

    def weight(params: Params) -> Array:
        return decoder_of(None).weight(params["decoder"])

    def start(params: Params, source: Inputs, max_length: int) -> Any:
        memory = encoder.apply(params["encoder"], source)
        return of(source).start(params["decoder"], len(memory), max_length, memory)

    def step(params: Params, cache: Any, ids: Array) -> tuple[Array, Any]:
        return decoder_of(None).step(params["decoder"], cache, ids)

    def prefill(params: Params, prompt: Inputs, room: int = 0) -> tuple[Array, Any]:
        source, target = prompt
        memory = encoder.apply(params["encoder"], source)
        return of(source).prefill(params["decoder"], target, room, memory)

    def alignments(params: Params, x: Inputs) -> Array:
        source, target = x
        memory = encoder.apply(params["encoder"], source)
        return of(source).alignments(params["decoder"], (target, memory))

    return Decoder.of(
        _on_memory(init, encoder, of),
        hidden=_on_memory(init, encoder, lambda source: of(source).hidden),
        weight=weight,
        start=start,
        step=step,
        prefill=prefill,
        select=decoder_of(None).select,
        alignments=alignments,
    )


def _on_memory(init: Callable[..., Params], encoder: Layer, decoder_of: Callable[[Inputs], Layer]) -> Layer:
    """y = decoder(target, m), m = encoder(source)."""

    def apply(params: Params, x: Inputs, *, key: Array | None = None) -> Array:
        (source, target), (first, second) = x, split(key, 2)
        memory = encoder.apply(params["encoder"], source, key=first)
        return decoder_of(source).apply(params["decoder"], (target, memory), key=second)

    def vjp(params: Params, x: Inputs, *, key: Array | None = None) -> tuple[Array, Partial]:
        (source, target), (first, second) = x, split(key, 2)
        memory, encoder_pullback = encoder.vjp(params["encoder"], source, key=first)
        y, decoder_pullback = decoder_of(source).vjp(params["decoder"], (target, memory), key=second)
        return y, Partial(_on_memory_pullback, encoder_pullback, decoder_pullback)

    return Layer(init, apply, vjp)


def _on_memory_pullback(encoder: Partial, decoder: Partial, dy: Array) -> tuple[Params, Any]:
    ddecoder, (dtarget, dmemory) = decoder(dy)
    dencoder, dsource = encoder(dmemory)
    return {"encoder": dencoder, "decoder": ddecoder}, (dsource, dtarget)


def check_prompt(ids: Array, lengths: Array | None) -> None:
    """Raises a `ValueError` if they aren't integers (B, T), T ≥ 1, and (B,)."""
    if ids.ndim != 2 or not ids.shape[1] or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"a prompt needs ids (B, T) of integers, T ≥ 1; got {ids.dtype} {ids.shape}")
    if lengths is not None and (lengths.shape != ids.shape[:1] or not jnp.issubdtype(lengths.dtype, jnp.integer)):
        raise ValueError(
            f"a prompt {ids.shape} needs integer lengths {ids.shape[:1]}; got {lengths.dtype} {lengths.shape}"
        )


def at_end(y: Array, lengths: Array | None) -> Array:
    """y (B, T, E) at the last place of each sequence, (B, E)."""
    if lengths is None:
        return y[:, -1]
    return jnp.take_along_axis(y, (lengths - 1).astype("int32")[:, None, None], 1)[:, 0]


def _hidden(embedding: Layer, body: Layer) -> Layer:
    """The body on embedded integers; what else there is in `params` has no gradient."""

    def init(key: Array, x: Inputs) -> Params:
        first, second = jax.random.split(key)
        params = embedding.init(first, x)
        return {"embedding": params, "body": body.init(second, output(embedding, params, x))}

    def apply(params: Params, x: Inputs, *, key: Array | None = None) -> Array:
        return body.apply(params["body"], embedding.apply(params["embedding"], x), key=key)

    def vjp(params: Params, x: Inputs, *, key: Array | None = None) -> tuple[Array, Partial]:
        rest = {name: p for name, p in params.items() if name not in ("embedding", "body")}
        y, embedding_pullback = embedding.vjp(params["embedding"], x)
        y, body_pullback = body.vjp(params["body"], y, key=key)
        return y, Partial(_hidden_pullback, embedding_pullback, body_pullback, jax.tree.map(jnp.zeros_like, rest))

    return Layer(init, apply, vjp)


def _hidden_pullback(embedding: Partial, body: Partial, zeros: Params, dy: Array) -> tuple[Params, Any]:
    dbody, dy = body(dy)
    dembedding, dx = embedding(dy)
    return {"embedding": dembedding, "body": dbody} | zeros, dx


def _tied_pullback(last: Partial, head: Partial, dy: Array) -> tuple[Params, Any]:
    """The table is used twice: dW = dW of the embedding + (dW of the last map)ᵀ."""
    dy, dweight, _ = head(dy)
    dparams, dx = last(dy)
    return dparams | {"embedding": {"table": dparams["embedding"]["table"] + dweight.T}}, dx


def _head_pullback(last: Partial, head: Partial, dy: Array) -> tuple[Params, Any]:
    dy, dweight, _ = head(dy)
    dparams, dx = last(dy)
    return dparams | {"head": {"weight": dweight}}, dx
