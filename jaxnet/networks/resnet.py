"""Residual networks. (He et al., "Deep residual learning for image recognition", 2015)."""

from typing import Any

from jaxnet import layers
from jaxnet.activations import Activation
from jaxnet.layers import Layer
from jaxnet.networks.blocks import block

_IMAGENET = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}


def resnet(
    depth: int,
    classes: int,
    *,
    width: int | None = None,
    activation: str | Activation = "relu",
    normalization: str = "batch",
    implementation: str | None = None,
) -> Layer:
    """y = f(x + g(x)), g two convolutions 3×3, or 1×1, 3×3 and 1×1; stages of such blocks, a mean, logits.

    Depths 18, 34, 50, 101 and 152 are those for images of 224×224: a convolution 7×7 and pooling, four stages of
    64 to 512 features. Depths 6n + 2 (20, 32, 44, 56, 110) are those for 32×32: three stages of 16, 32 and 64.
    Where a block changes the shape its shortcut is a convolution 1×1.

    Args:
        depth: the number of layers with weights.
        classes: the number of logits.
        width: features of the first stage; None takes 64 or 16.
        activation: f.
        normalization: "batch", "group" or "layer", after each convolution.
        implementation: see `jaxnet.ops.dispatch`.

    Raises:
        ValueError: for another depth, classes or width < 1, an unknown activation or normalisation.

    Example:
        >>> net = networks.resnet(20, 10)
        >>> params = net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    """
    large = depth in _IMAGENET
    if not large and (depth < 8 or depth % 6 != 2):
        raise ValueError(f"resnet has depths {', '.join(map(str, _IMAGENET))} and 6n + 2 (20, 32, …); got {depth}")
    if classes < 1 or (width is not None and width < 1):
        raise ValueError(f"resnet needs classes ≥ 1 and width ≥ 1; got {classes} and {width}")
    kind, stages = _IMAGENET[depth] if large else ("basic", ((depth - 2) // 6,) * 3)
    features = width or (64 if large else 16)
    options: dict[str, Any] = {"norm": normalization, "implementation": implementation}

    body = [block(features, 7 if large else 3, activation, stride=2 if large else 1, **options)]
    body += [layers.max_pool(3, stride=2, padding="SAME")] if large else []
    before = features
    for number, blocks in enumerate(stages):
        inner = features * 2**number
        after = inner * (4 if kind == "bottleneck" else 1)
        for i in range(blocks):
            stride = 2 if number and not i else 1
            if kind == "basic":
                parts = [block(inner, 3, activation, stride=stride, **options), block(inner, 3, None, **options)]
            else:
                parts = [
                    block(inner, 1, activation, **options),
                    block(inner, 3, activation, stride=stride, **options),
                    block(after, 1, None, **options),
                ]
            shortcut = block(after, 1, None, stride=stride, **options) if stride > 1 or before != after else None
            body += [layers.residual(layers.serial(*parts), shortcut), layers.activation(activation)]
            before = after
    head = layers.dense(classes, implementation=implementation)
    return layers.serial(*body, layers.global_avg_pool(), head)
