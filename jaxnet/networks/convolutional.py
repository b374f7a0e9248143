"""Convolutional networks: stages of convolutions, each of half the size of the one before, and a dense head."""

from collections.abc import Sequence
from typing import Any

from jaxnet import layers
from jaxnet.activations import Activation
from jaxnet.layers import Layer
from jaxnet.networks.blocks import block, head, whole_numbers

_POOLS = ("max", "average", "stride")


def convolutional(
    stages: Sequence[int | Sequence[int]],
    sizes: int | Sequence[int],
    *,
    kernel_size: int | Sequence[int] = 3,
    activation: str | Activation = "relu",
    normalization: str | None = None,
    pool: str = "max",
    global_pool: bool = False,
    dropout_rate: float = 0.0,
    implementation: str | None = None,
) -> Layer:
    """Stages of convolution → normalisation → activation, each ended by pooling; then dense layers.

    For sequences (n, t, c), images (n, h, w, c) and volumes (n, d, h, w, c). (LeCun et al., 1998; Simonyan and
    Zisserman, 2015).

    Args:
        stages: for each, the features of its convolution, or of several: `[32, 64]`, `[(64, 64), (128, 128)]`.
        sizes: features of the dense layers: the outputs, or hidden layers and the outputs.
        kernel_size: of all convolutions, which keep the size ("SAME").
        activation: after each convolution and hidden dense layer.
        normalization: None, "batch", "group" or "layer", before each activation of a convolution.
        pool: how a stage halves its size: "max", "average", or "stride" (its last convolution has stride 2).
        global_pool: whether the mean over all places goes to the head, instead of every place's features.
        dropout_rate: of dropout before the dense layers; 0 is none.
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for numbers < 1, an unknown activation, normalisation or pool.

    Example:
        >>> net = networks.convolutional([6, 16], [120, 84, 10], kernel_size=5, activation="tanh", pool="average")
        >>> params = net.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    """
    if pool not in _POOLS:
        raise ValueError(f"pool must be one of {', '.join(_POOLS)}; got {pool!r}")
    options: dict[str, Any] = {"implementation": implementation}
    body = []
    for stage in stages:
        features = whole_numbers("a stage's features", stage)
        for i, n in enumerate(features):
            stride = 2 if pool == "stride" and i == len(features) - 1 else 1
            body += [block(n, kernel_size, activation, normalization, stride=stride, **options)]
        body += [layers.max_pool(2)] if pool == "max" else [layers.avg_pool(2)] if pool == "average" else []
    body += [layers.global_avg_pool() if global_pool else layers.flatten()]
    body += [layers.dropout(dropout_rate)] if dropout_rate else []
    return layers.serial(*body, *head(whole_numbers("sizes", sizes), activation, dropout_rate, **options))
