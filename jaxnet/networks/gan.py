"""Generative adversarial networks: a generator and a discriminator.

References: Goodfellow et al. (2014); Radford et al. (2016), whose convolutional form this is.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnet import activations, layers
from jaxnet.activations import Activation
from jaxnet.layers import Layer
from jaxnet.networks.blocks import block, check_normalization, head, normalized, sizes_of, whole_numbers


class GAN(NamedTuple):
    """Two layers: `generator` from a latent vector to an example, `discriminator` from an example to a logit.

    With classes, each sees the example's class as well: see `with_class`.
    """

    generator: Layer
    discriminator: Layer
    latent_size: int
    classes: int


def gan(
    shape: int | Sequence[int],
    latent_size: int,
    *,
    stages: Sequence[int] = (),
    hidden: Sequence[int] = (),
    classes: int = 0,
    kernel_size: int = 4,
    normalization: str | None = "group",
    dropout_rate: float = 0.0,
    output_activation: str | Activation | None = "tanh",
    implementation: str | None = None,
) -> GAN:
    """x = G(z), z (n, latent_size), and a logit D(x), (n, 1): dense, or convolutional if there are stages.

    Args:
        shape: of one example: a number of features, or (h, w, channels) and the like.
        latent_size: numbers in z, drawn from N(0, 1).
        stages: features of the discriminator's convolutions with stride 2; the generator has transposed ones.
        hidden: widths of dense layers between z and the stages, and after them in the discriminator.
        classes: number of classes that both are told (Mirza and Osindero, 2014); 0 is none.
        kernel_size: of the convolutions.
        normalization: None, "batch", "group" or "layer", between the generator's stages. The discriminator has
            none, as suits every loss: a gradient penalty is one of each example alone.
        dropout_rate: in the discriminator, after each stage and hidden layer.
        output_activation: of G; "tanh" for examples in [−1, 1].
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for sizes < 1, stages that don't divide the size evenly, unknown names.

    Example:
        >>> gan = networks.gan((28, 28, 1), 64, stages=[64, 128])
        >>> x = gan.generator.apply(gan.generator.init(key, z), z)
    """
    shape, hidden, stages, inner = sizes_of(shape, hidden, stages)
    whole_numbers("latent_size", latent_size)
    check_normalization(normalization)
    if classes < 0:
        raise ValueError(f"gan needs classes ≥ 0; got {classes}")
    options: dict[str, Any] = {"implementation": implementation}

    generator = [layers.dense(n, activation="relu", **options) for n in hidden]
    generator += [layers.dense(math.prod(inner), **options)]
    generator += [layers.reshape(*inner)] if len(shape) > 1 else []
    if stages:
        generator += [normalized(normalization, stages[-1])] if normalization else []
        generator += [layers.activation("relu")]
    up: dict[str, Any] = {"stride": 2, "transpose": True, **options}
    generator += [block(n, kernel_size, "relu", normalization, **up) for n in reversed(stages[:-1])]
    generator += [block(shape[-1], kernel_size, None, None, **up)] if stages else []
    generator += [] if output_activation is None else [layers.activation(output_activation)]

    leaky = activations.get("leaky_relu")
    discriminator = []
    for n in stages:
        discriminator += [block(n, kernel_size, leaky, None, stride=2, **options)]
        discriminator += [layers.dropout(dropout_rate)] if dropout_rate else []
    discriminator += [layers.flatten()] if len(shape) > 1 else []
    discriminator += head((*hidden, 1), leaky, dropout_rate, **options)
    return GAN(layers.serial(*generator), layers.serial(*discriminator), latent_size, classes)


def with_class(x: Array, labels: Array | None, classes: int) -> Array:
    """x with the one-hot class as more features, the same at each place of an image: (n, …, c + classes).

    Args:
        x: (n, …, c).
        labels: integers (n,); None is no class, for classes = 0.
        classes: their number; 0 returns x.
    """
    if not classes:
        return x
    if labels is None or labels.shape != x.shape[:1]:
        got = None if labels is None else labels.shape
        raise ValueError(f"with_class needs a label for each of {x.shape[0]} examples; got {got}")
    hot = jax.nn.one_hot(labels, classes, dtype=x.dtype)
    places = hot.reshape(len(x), *(1,) * (x.ndim - 2), classes)
    return jnp.concatenate([x, jnp.broadcast_to(places, (*x.shape[:-1], classes))], -1)
