"""Autoencoders: an encoder to a code and a decoder back, plain and variational.

Both are layers with their two halves beside: `net.encoder` and `net.decoder` take the entries of `params`.
A denoising one is a choice of training: `layers.serial(layers.gaussian_noise(σ), net)`, the target being clean.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxnet import layers
from jaxnet.activations import Activation
from jaxnet.layers import Layer
from jaxnet.layers.layer import Input, Params, output, split
from jaxnet.networks.blocks import block, check_normalization, head, sizes_of, whole_numbers


class Autoencoder(Layer):
    """A layer made of two, `params` being (encoder's, decoder's)."""

    encoder: Layer
    decoder: Layer

    @classmethod
    def of(cls, layer: Layer, encoder: Layer, decoder: Layer) -> "Autoencoder":
        """The layer with its halves beside."""
        self = cls(*layer)
        self.encoder, self.decoder = encoder, decoder
        return self


class Variational(NamedTuple):
    """What a variational autoencoder returns: the decoder's output, and the code's distribution N(μ, σ²)."""

    reconstruction: Array
    mean: Array
    log_variance: Array


def autoencoder(
    shape: int | Sequence[int],
    code_size: int,
    *,
    hidden: Sequence[int] = (),
    stages: Sequence[int] = (),
    kernel_size: int = 3,
    activation: str | Activation = "relu",
    normalization: str | None = None,
    output_activation: str | Activation | None = None,
    implementation: str | None = None,
) -> Autoencoder:
    """c = encoder(x),  y = g(decoder(c)), of the shape of x. (Hinton and Salakhutdinov, 2006).

    Args:
        shape: of one example: a number of features, or (h, w, channels) and the like.
        code_size: numbers in c.
        hidden: widths of the encoder's dense layers before the code; the decoder's are the same, reversed.
        stages: features of convolutions with stride 2 before those; the decoder has transposed ones.
        kernel_size: of the convolutions.
        activation: of all layers but the code and the output.
        normalization: None, "batch", "group" or "layer", after each inner convolution.
        output_activation: g; None is the identity, as for logits.
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for sizes < 1, stages that don't divide the size of x evenly, an unknown activation or
            normalisation; in `init`, if x isn't (n, *shape).

    Example:
        >>> net = networks.autoencoder((28, 28, 1), 32, stages=[32, 64], hidden=[128])
        >>> code = net.encoder.apply(params[0], x)
    """
    rest = (activation, normalization, output_activation, implementation)
    encoder, decoder = _halves(shape, code_size, code_size, hidden, stages, kernel_size, *rest)
    net = layers.serial(encoder, decoder)
    return Autoencoder.of(net._replace(init=partial(_init, net, shape)), encoder, decoder)


def variational_autoencoder(
    shape: int | Sequence[int],
    code_size: int,
    *,
    hidden: Sequence[int] = (),
    stages: Sequence[int] = (),
    kernel_size: int = 3,
    activation: str | Activation = "relu",
    normalization: str | None = None,
    output_activation: str | Activation | None = None,
    implementation: str | None = None,
) -> Autoencoder:
    """(μ, ln σ²) = encoder(x),  c = μ + σ ε,  y = g(decoder(c)): returns `Variational(y, μ, ln σ²)`.

    ε ~ N(0, 1) is drawn from `key`; without one c = μ. With dc from the decoder, the reparameterisation's

        dμ = dc + dμ′,    d ln σ² = dc ε σ/2 + d(ln σ²)′.

    Arguments as in `autoencoder`; the loss is `losses.negative_elbo`. (Kingma and Welling, 2014).
    """
    rest = (activation, normalization, output_activation, implementation)
    encoder, decoder = _halves(shape, code_size, 2 * code_size, hidden, stages, kernel_size, *rest)

    def init(key: Array, x: Input) -> Params:
        k1, k2 = jax.random.split(key)
        params = _init(encoder, shape, k1, x)
        both = output(encoder, params, x)
        return params, decoder.init(k2, jax.ShapeDtypeStruct((*both.shape[:-1], code_size), both.dtype))

    def drawn(key: Array | None, mean: Array) -> Array:
        return jnp.zeros_like(mean) if key is None else jax.random.normal(key, mean.shape, mean.dtype)

    def apply(params: Params, x: Array, *, key: Array | None = None) -> Variational:
        k1, k2, k3 = split(key, 3)
        mean, log_variance = jnp.split(encoder.apply(params[0], x, key=k1), 2, -1)
        code = mean + jnp.exp(log_variance / 2) * drawn(k2, mean)
        return Variational(decoder.apply(params[1], code, key=k3), mean, log_variance)

    def vjp(params: Params, x: Array, *, key: Array | None = None) -> tuple[Variational, Partial]:
        k1, k2, k3 = split(key, 3)
        both, encoder_pullback = encoder.vjp(params[0], x, key=k1)
        mean, log_variance = jnp.split(both, 2, -1)
        deviation = jnp.exp(log_variance / 2) * drawn(k2, mean)  # σ ε
        y, decoder_pullback = decoder.vjp(params[1], mean + deviation, key=k3)
        pullback = Partial(_variational_pullback, encoder_pullback, decoder_pullback, deviation)
        return Variational(y, mean, log_variance), pullback

    return Autoencoder.of(Layer(init, apply, vjp), encoder, decoder)


def _variational_pullback(encoder: Any, decoder: Any, deviation: Array, dy: Variational) -> tuple[Params, Array]:
    ddecoder, dcode = decoder(dy.reconstruction)
    dboth = [dy.mean + dcode, dy.log_variance + dcode * deviation / 2]
    dencoder, dx = encoder(jnp.concatenate(dboth, -1))
    return (dencoder, ddecoder), dx


def _halves(
    shape: int | Sequence[int],
    code_size: int,
    outputs: int,
    hidden: Sequence[int],
    stages: Sequence[int],
    kernel_size: int,
    activation: str | Activation,
    normalization: str | None,
    output_activation: str | Activation | None,
    implementation: str | None,
) -> tuple[Layer, Layer]:
    """The encoder, with so many `outputs`, and the decoder."""
    shape, hidden, stages, inner = sizes_of(shape, hidden, stages)
    whole_numbers("code_size", code_size)
    check_normalization(normalization)
    dense_options: dict[str, Any] = {"implementation": implementation}
    block_options: dict[str, Any] = {"stride": 2, "implementation": implementation}

    encoder = [block(n, kernel_size, activation, normalization, **block_options) for n in stages]
    encoder += [layers.flatten()] if len(shape) > 1 else []
    encoder += head((*hidden, outputs), activation, 0.0, **dense_options)

    decoder = [layers.dense(n, activation=activation, **dense_options) for n in reversed(hidden)]
    decoder += [layers.dense(math.prod(inner), activation=activation if stages else None, **dense_options)]
    decoder += [layers.reshape(*inner)] if len(shape) > 1 else []
    for n in reversed(stages[:-1]):
        decoder += [block(n, kernel_size, activation, normalization, transpose=True, **block_options)]
    if stages:
        decoder += [block(shape[-1], kernel_size, None, None, transpose=True, **block_options)]
    decoder += [] if output_activation is None else [layers.activation(output_activation)]
    return layers.serial(*encoder), layers.serial(*decoder)


def _init(net: Layer, shape: int | Sequence[int], key: Array, x: Input) -> Params:
    expected = whole_numbers("shape", shape)
    if x.shape[1:] != expected:
        raise ValueError(f"this autoencoder needs x (n, {', '.join(map(str, expected))}); got {x.shape}")
    return net.init(key, x)
