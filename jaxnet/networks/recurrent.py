"""Recurrent networks: layers that go through a sequence, and a dense head for its end or for each of its steps."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxnet import layers
from jaxnet.activations import Activation
from jaxnet.layers import Layer, Reader
from jaxnet.layers.layer import Params
from jaxnet.networks.blocks import head, whole_numbers
from jaxnet.networks.decoder import Decoder, decoder, encoder_decoder
from jaxnet.networks.memory import Attending, given, without_memory

_CELLS: dict[str, Callable[..., Reader]] = {"rnn": layers.rnn, "lstm": layers.lstm, "gru": layers.gru}


def recurrent(
    features: int,
    sizes: int | Sequence[int],
    *,
    cell: str = "rnn",
    layers: int = 1,
    bidirectional: bool = False,
    output: str = "last",
    activation: str | Activation = "relu",
    dropout_rate: float = 0.0,
    implementation: str | None = None,
) -> Layer:
    """Recurrent layers, then dense ones: of a sequence to one label, or to one for each step.

    Args:
        features: of the state h of each recurrent layer.
        sizes: features of the dense layers: the outputs, or hidden layers and the outputs.
        cell: "rnn" (Elman, 1990), "lstm" or "gru".
        layers: how many recurrent layers.
        bidirectional: whether each goes through the sequences in both directions. Not where the future is to be
            foretold.
        output: "last", the head sees the last state, y is (B, outputs); or "sequence", it sees that of each step,
            y is (B, T, outputs).
        activation: of the hidden dense layers.
        dropout_rate: of dropout between recurrent layers and before each dense layer; 0 is none.
        implementation: see `jaxnet.ops.dispatch`.

    x is (B, T, I), or a pair of that and lengths (B,). Past the length of a sequence the head sees zeros: what it
    makes of them is not to be counted in a loss.

    Raises:
        ValueError: for numbers < 1, an unknown cell, output or activation.

    Example:
        >>> net = networks.recurrent(64, 10, cell="gru", layers=2, bidirectional=True)
        >>> x = jnp.zeros((8, 20, 3)), jnp.full(8, 15)
        >>> net.apply(net.init(jax.random.key(0), x), x).shape
        (8, 10)
    """
    _check_cell("recurrent", cell)
    options: dict[str, Any] = {"layers": layers, "bidirectional": bidirectional, "output": output}
    options |= {"dropout_rate": dropout_rate, "implementation": implementation}
    return _with_head(_CELLS[cell](features, **options), sizes, activation, dropout_rate, implementation)


def lstm(
    features: int,
    sizes: int | Sequence[int],
    *,
    layers: int = 1,
    bidirectional: bool = False,
    output: str = "last",
    forget_bias: float = 1.0,
    activation: str | Activation = "relu",
    dropout_rate: float = 0.0,
    implementation: str | None = None,
) -> Layer:
    """Layers of long short-term memory, then dense ones; arguments as in `recurrent`.

    Args:
        features: of h and c of each layer.
        sizes: features of the dense layers.
        layers: how many recurrent layers.
        bidirectional: whether in both directions.
        output: "last" or "sequence".
        forget_bias: what the bias of the forget gates begins with.
        activation: of the hidden dense layers.
        dropout_rate: of dropout.
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: as `recurrent`.

    Reference: Hochreiter and Schmidhuber, Long Short-Term Memory, 1997
    """
    options: dict[str, Any] = {"layers": layers, "bidirectional": bidirectional, "output": output}
    options |= {"dropout_rate": dropout_rate, "implementation": implementation, "forget_bias": forget_bias}
    return _with_head(_CELLS["lstm"](features, **options), sizes, activation, dropout_rate, implementation)


def recurrent_decoder(
    vocabulary: int,
    features: int,
    *,
    cell: str = "lstm",
    layers: int = 1,
    hidden: int | None = None,
    dropout_rate: float = 0.0,
    tied: bool = True,
    implementation: str | None = None,
) -> Decoder:
    """Logits (B, T, V) of the next integer at each place of x (B, T): recurrent layers on embedded integers.

    Args:
        vocabulary: V.
        features: E, of the embedding.
        cell: "lstm", "gru" or "rnn".
        layers: how many recurrent layers.
        hidden: H, of the state of each; None is E.
        dropout_rate: after the embedding, between recurrent layers and before the logits. (Zaremba et al., 2014).
        tied: whether the last map is the embedding's table, transposed; H must then be E. (Press and Wolf, 2016).
        implementation: see `jaxnet.ops.dispatch`.

    x is (B, T) of integers, or a pair of that and lengths (B,): past its length the logits of a sequence are 0.
    Step by step (`Decoder`) the cache is the state of each layer, whatever the `max_length`.

    `params` is `{"embedding": …, "body": …}`, and `"head"` if it isn't tied.

    Raises:
        ValueError: for numbers < 1, an unknown cell, tied maps of two sizes.

    Example:
        >>> net = networks.recurrent_decoder(1000, 64, cell="gru", layers=2)
        >>> params = net.init(jax.random.key(0), jnp.zeros((1, 16), int))
        >>> net.apply(params, jnp.zeros((2, 16), int)).shape
        (2, 16, 1000)

    Reference: Mikolov et al., Recurrent neural network based language model, 2010
    """
    _check_cell("recurrent_decoder", cell)
    hidden = features if hidden is None else hidden
    if tied and hidden != features:
        raise ValueError(
            f"recurrent_decoder needs hidden = features to tie its maps; got hidden {hidden} and features "
            f"{features}. Untied ones (tied=False) may differ"
        )
    options: dict[str, Any] = {"layers": layers, "dropout_rate": dropout_rate, "implementation": implementation}
    body = _body(_CELLS[cell](hidden, **options), dropout_rate)
    return decoder(vocabulary, features, body, tied=tied, implementation=implementation)


def sequence_to_sequence(
    vocabularies: int | tuple[int, int],
    features: int,
    *,
    cell: str = "lstm",
    layers: int = 1,
    hidden: int | None = None,
    bidirectional: bool = True,
    dropout_rate: float = 0.0,
    tied: bool = True,
    implementation: str | None = None,
) -> Decoder:
    """Logits (B, T, V) of the next integer of a target, from its source and what comes before: to translate.

    With m the states of the encoder, sₜ those of the decoder and a `layers.attention` of one head, as after the
    decoder in Luong et al., 2015:

        cₜ = a(sₜ, m)        yₜ = tanh([sₜ, cₜ] W + b)        logits = yₜ Wₒ

    What is known of the source comes through the attention alone: the decoder begins with a state of 0.

    Args:
        vocabularies: how many integers there are in sources and in targets, V; or one number for both, each with
            its own embedding.
        features: E, of the embeddings and of y.
        cell: "lstm", "gru" or "rnn".
        layers: how many recurrent layers in each.
        hidden: H, of the state of each; None is E.
        bidirectional: whether the encoder's go through the source in both directions.
        dropout_rate: after the embeddings, between recurrent layers and before the logits.
        tied: whether Wₒ is the table of the targets' embedding, transposed.
        implementation: see `jaxnet.ops.dispatch`.

    x is (source, target): ids (B, S) or a pair of that and lengths (B,), and ids (B, T). `networks.generate` takes
    the same as its prompt, the target being the integer that begins each.

    `params` is `{"encoder": …, "decoder": …}`.

    Raises:
        ValueError: for numbers < 1, an unknown cell.

    Example:
        >>> net = networks.sequence_to_sequence((1000, 900), 64)
        >>> x = (jnp.zeros((8, 20), int), jnp.full(8, 15)), jnp.zeros((8, 16), int)
        >>> net.apply(net.init(jax.random.key(0), x), x).shape
        (8, 16, 900)

    Reference: Luong, Pham and Manning, Effective Approaches to Attention-based Neural Machine Translation, 2015,
    https://arxiv.org/abs/1508.04025
    """
    _check_cell("sequence_to_sequence", cell)
    sources, targets = vocabularies if isinstance(vocabularies, tuple) else (vocabularies, vocabularies)
    whole_numbers("vocabularies", (sources, targets))
    hidden = features if hidden is None else hidden
    options: dict[str, Any] = {"layers": layers, "dropout_rate": dropout_rate, "implementation": implementation}
    reading = _CELLS[cell](hidden, bidirectional=bidirectional, **options)
    encoder = _encoder(sources, features, reading, dropout_rate, implementation)
    writing = _CELLS[cell](hidden, **options)

    def decoder_of(lengths: Array | None) -> Decoder:
        body = _attending(writing, lengths, features, dropout_rate, implementation)
        return decoder(targets, features, body, tied=tied, implementation=implementation)

    return encoder_decoder(encoder, decoder_of)


def _encoder(
    vocabulary: int, features: int, cells: Reader, dropout_rate: float, implementation: str | None
) -> Layer:
    """Of ids, or of a pair of ids and lengths."""
    first = [layers.embedding(vocabulary, features, implementation=implementation)]
    first += [layers.dropout(dropout_rate)] if dropout_rate else []
    return layers.serial(*map(layers.with_lengths, first), cells)


def _attending(
    cells: Reader, lengths: Array | None, features: int, dropout_rate: float, implementation: str | None
) -> Attending:
    """y = tanh([s, c] W + b) of (x, m), m being of these lengths."""
    attention = layers.attention(
        1, memory=True, lengths=lengths is not None, bias=False, implementation=implementation
    )
    dense = layers.dense(features, activation="tanh", implementation=implementation)
    dropout = [layers.dropout(dropout_rate)] if dropout_rate else []
    both = layers.parallel(without_memory(), given(attention, lengths))
    first = len(dropout)
    stack = [*map(layers.with_lengths, [*dropout, cells]), both, dense, *dropout]

    def start(params: Params, x: Any, length: int) -> Any:
        x, memory = x
        given = (x, memory) if lengths is None else (x, memory, lengths)
        return cells.start(params[first], x, length), attention.start(params[first + 1][1], given, length)

    def read(params: Params, state: Any, x: Array, lengths: Array | None = None) -> tuple[Array, Any]:
        before, held = state
        s, after = cells.read(params[first], before, x, lengths)
        c, _ = attention.read(params[first + 1][1], held, s)
        return dense.apply(params[first + 2], jnp.concatenate([s, c], -1)), (after, held)

    def alignments(params: Params, x: Any) -> Array:
        s, rest = cells.apply(params[first], x[0]), () if lengths is None else (lengths,)
        return attention.probabilities(params[first + 1][1], (s, x[1], *rest))[None]

    body = Attending.of(layers.serial(*stack), start, read)
    body.alignments = alignments
    return body


def _body(cells: Reader, dropout_rate: float) -> Reader:
    """With dropout before and after, if there is any."""
    if not dropout_rate:
        return cells
    dropout = layers.dropout(dropout_rate)

    def read(params: Params, state: Any, x: Array, lengths: Array | None = None) -> tuple[Array, Any]:
        return cells.read(params[1], state, x, lengths)

    return Reader.of(layers.serial(layers.with_lengths(dropout), cells, dropout), cells.start, read)


def _check_cell(network: str, cell: str) -> None:
    if cell not in _CELLS:
        raise ValueError(f"{network} needs a cell of {', '.join(map(repr, _CELLS))}; got {cell!r}")


def _with_head(
    body: Layer,
    sizes: int | Sequence[int],
    activation: str | Activation,
    dropout_rate: float,
    implementation: str | None,
) -> Layer:
    dropout = [layers.dropout(dropout_rate)] if dropout_rate else []
    dense = head(whole_numbers("sizes", sizes), activation, dropout_rate, implementation=implementation)
    return layers.serial(body, *dropout, *dense)
