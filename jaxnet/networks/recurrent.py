"""Recurrent networks: layers that go through a sequence, and a dense head for its end or for each of its steps."""

from collections.abc import Callable, Sequence
from typing import Any

from jax import Array

from jaxnet import layers
from jaxnet.activations import Activation
from jaxnet.layers import Layer, Reader
from jaxnet.layers.layer import Params
from jaxnet.networks.blocks import head, whole_numbers
from jaxnet.networks.decoder import Decoder, decoder

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
