"""The mutation targets of the layers and the networks made of them, for mutation.py."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from mutation_ops import Target, draw, module

from jaxnet import layers, networks
from jaxnet.verify.trials import layer_trial

KEY, TRAINING = jax.random.key(0), jax.random.key(7)


def of_layer(functions: Sequence[Any], *makes: Callable[[], Any], random: Any = None, x: Any = None) -> Target:
    """`random` makes a layer that draws from a key."""
    x = draw(4, 4) if x is None else x
    training = [layer_trial(random, KEY, x, training_key=TRAINING)] if random else []
    return functions, [*(layer_trial(make, KEY, x) for make in makes), *training]


def two_dense(**options: Any) -> Any:
    return layers.parallel(layers.dense(4), layers.dense(4, activation="tanh"), **options)


combinators = module("layers.combinators")
reshape = module("layers.reshape")
layer_attention = module("layers.attention")
layer_pooling, layer_normalization = module("layers.pooling"), module("layers.normalization")


def of_with_lengths() -> Target:
    """With lengths and without."""
    x = draw(2, 3, 2)
    trials = []
    for inputs in (x, (x, jnp.asarray([3, 1]))):
        trials += of_layer(
            [], lambda: layers.serial(layers.with_lengths(layers.dense(3)), layers.rnn(2)), x=inputs
        )[1]
    return [(layers.with_lengths, "vjp"), combinators._with_lengths_pullback], trials


def of_encoder_and_decoder() -> Target:
    """What goes from the one to the other, with layers that are smaller."""
    decoder, memory, transformer = (module(f"networks.{name}") for name in ("decoder", "memory", "transformer"))
    x, m, lengths = draw(2, 3, 4), draw(2, 2, 4, seed=1), jnp.asarray([2, 1])

    def step(lengths: Any) -> Any:
        attention = memory.given(layers.attention(1, memory=True, lengths=lengths is not None), lengths)
        return layers.serial(transformer._residual(attention), memory.without_memory())

    def whole() -> Any:
        def decoder_of(lengths: Any) -> Any:
            return networks.Decoder.of(step(lengths), select=None)

        return decoder.encoder_decoder(layers.dense(4), decoder_of)

    def encoder() -> Any:
        return memory.of_lengths(
            lambda lengths: memory.given(layers.attention(1, lengths=lengths is not None), lengths)
        )

    functions = [
        decoder._on_memory_pullback,
        (memory.of_lengths, "vjp"),
        *(getattr(memory, f"_{name}_pullback") for name in ("of_lengths", "given", "without_memory")),
        (transformer._residual, "vjp"),
        transformer._residual_pullback,
    ]
    makes = [(whole, (m, x)), (partial(step, lengths), (x, m)), (encoder, (x, jnp.asarray([3, 1]))), (encoder, x)]
    return functions, [trial for make, x in makes for trial in of_layer([], make, x=x)[1]]


def of_attention_layer() -> Target:
    """Each form of its input."""
    x, memory, lengths = draw(2, 3, 4), draw(2, 4, 3, seed=1), jnp.array([4, 2])
    _, trials = of_layer(
        [],
        lambda: layers.attention(2, rotary=7.0, bias=False, causal=True),
        random=lambda: layers.attention(2, dropout_rate=0.4),
        x=x,
    )
    for options, inputs in (
        ({"memory": True}, (x, memory)),
        ({"lengths": True}, (x, lengths)),
        ({"memory": True, "lengths": True}, (x, memory, lengths)),
    ):
        trials += of_layer([], partial(layers.attention, 2, **options), x=inputs)[1]
    return [(layers.attention, "vjp"), layer_attention._pullback, layer_attention._Inputs.together], trials


def of_heads() -> Target:
    """On an encoder, as small as one can be."""
    heads, encoder = module("networks.heads"), networks.transformer_encoder(4, 1, 2, vocabulary=5)
    ids, lengths, places = jnp.asarray([[0, 4, 1], [2, 2, 3]]), jnp.asarray([2, 3]), jnp.asarray([[1, 0], [2, 2]])
    functions = [
        (networks.masked_language_model, "vjp"),
        (networks.sequence_classifier, "vjp"),
        *(getattr(heads, f"_{name}_pullback") for name in ("at", "masked", "classifier")),
    ]
    trials = of_layer([], lambda: networks.masked_language_model(encoder, 4), x=(ids, lengths, places))[1]
    for pool in ("mean", "first"):
        trials += of_layer([], partial(networks.sequence_classifier, encoder, 2, pool=pool), x=(ids, lengths))[1]
    return functions, trials


IDS = jnp.asarray([0, 4, 1, 1, 2])

LAYERS: dict[str, Callable[[], Target]] = {
    "dense": lambda: of_layer(
        [module("layers.dense")._pullback, (layers.dense, "vjp")],
        lambda: layers.dense(4, activation="tanh"),
        lambda: layers.dense(4, bias=False),
    ),
    "layers' conv": lambda: of_layer(
        [module("layers.convolution")._pullback, module("layers.convolution")._pullback_through],
        lambda: layers.conv(2, 2, activation="tanh"),
        lambda: layers.conv(2, 2, bias=False),
        lambda: layers.conv_transpose(2, 2, stride=2, activation="relu"),
        x=draw(2, 3, 2),
    ),
    "recurrent layers": lambda: of_layer(
        [module("layers.recurrent")._pullback, module("layers.recurrent")._pullback_of_x],
        lambda: layers.lstm(2, output="last"),
        lambda: layers.gru(2, bidirectional=True),
        lambda: layers.rnn(2, bias=False, reverse=True),
        x=draw(2, 3, 2),
    ),
    "recurrent layers with lengths": lambda: of_layer(
        [module("layers.recurrent")._pullback_of_pair],
        lambda: layers.rnn(2, output="last"),
        x=(draw(2, 3, 2), jnp.asarray([3, 1])),
    ),
    "with_lengths": of_with_lengths,
    "activation": lambda: of_layer(
        [(layers.activation, "vjp"), (layers.activation, "_pullback")],
        lambda: layers.activation("mish"),
        lambda: layers.activation("softmax", axis=0),
    ),
    "dropout": lambda: of_layer(
        [(layers.dropout, "vjp"), (layers.dropout, "_pullback"), module("layers.dropout")._identity],
        random=lambda: layers.serial(layers.dropout(0.0), layers.dropout(0.4)),
    ),
    "reshape": lambda: of_layer([(reshape.reshape, "vjp")], lambda: layers.reshape(3, -1), x=draw(6, 2, 3)),
    "pooling": lambda: of_layer(
        [(layer_pooling._layer, "vjp"), layer_pooling._pullback],
        lambda: layers.serial(layers.max_pool(2), layers.upsample(2), layers.global_avg_pool()),
        x=draw(2, 4, 4, 3),
    ),
    "normalisation": lambda: of_layer(
        [(layer_normalization._affine, "vjp"), layer_normalization._affine_pullback, layer_normalization._named],
        layers.layer_norm,
        layers.rms_norm,
        lambda: layers.layer_norm(scale=False),
        lambda: layers.group_norm(2, bias=False),
    ),
    "normalisation of the batch": lambda: of_layer(
        [
            (layers.batch_norm, "vjp"),
            layer_normalization._inference_pullback,
            layer_normalization._training_pullback,
        ],
        lambda: layers.batch_norm(scale=False, bias=False),
        random=lambda: layers.batch_norm(eps=0.1),
    ),
    "layers' attention": of_attention_layer,
    "layers' embedding": lambda: of_layer(
        [(layers.embedding, "vjp"), module("layers.embedding")._pullback],
        lambda: layers.embedding(5, 4, scale=1.7),
        x=IDS,
    ),
    "gated": lambda: of_layer(
        [(layers.gated, "vjp"), module("layers.gated")._pullback],
        lambda: layers.gated(3, bias=True),
    ),
    "decoders": lambda: of_layer(
        [
            (module("networks.decoder").decoder, "vjp"),
            (module("networks.decoder")._hidden, "vjp"),
            *(getattr(module("networks.decoder"), f"_{name}_pullback") for name in ("hidden", "tied", "head")),
        ],
        lambda: networks.transformer_decoder(5, 4, 1, 2),
        lambda: networks.transformer_decoder(5, 4, 1, 2, tied=False),
        x=IDS[None],
    ),
    "encoder and decoder": of_encoder_and_decoder,
    "what is put on an encoder": of_heads,
    "positions": lambda: of_layer(
        [
            (layers.positions, "vjp"),
            module("layers.embedding")._positions_pullback,
            module("layers.embedding")._learned_pullback,
        ],
        lambda: layers.positions("sinusoidal"),
        lambda: layers.positions("learned", length=5),
        x=draw(2, 3, 4),
    ),
    "serial": lambda: of_layer(
        [(layers.serial, "vjp"), combinators._serial_pullback],
        lambda: layers.serial(*(layers.dense(4, activation=f) for f in ("tanh", "silu", None))),
        random=lambda: layers.serial(layers.dropout(0.4), layers.dense(4), layers.dropout(0.2)),
    ),
    "parallel": lambda: of_layer(
        [(layers.parallel, "vjp"), combinators._parallel_pullback],
        two_dense,
        partial(two_dense, axis=0),
        partial(two_dense, combine="add"),
        random=lambda: layers.parallel(layers.dropout(0.4), layers.dense(3), layers.dropout(0.2)),
    ),
    "repeat": lambda: of_layer(
        [(layers.repeat, "vjp"), combinators._repeat_pullback],
        lambda: layers.repeat(layers.dense(4, activation="tanh"), 2),
        random=lambda: layers.repeat(layers.dropout(0.3), 2),
    ),
    "gaussian_noise": lambda: of_layer(
        [(layers.gaussian_noise, "vjp"), module("layers.noise")._pullback],
        random=lambda: layers.gaussian_noise(0.4),
    ),
    "variational_autoencoder": lambda: of_layer(
        [(networks.variational_autoencoder, "vjp"), module("networks.autoencoder")._variational_pullback],
        random=lambda: networks.variational_autoencoder(4, 3, hidden=[3], activation="tanh"),
    ),
}
