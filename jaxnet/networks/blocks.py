"""What the networks of images are made of: a convolution, a normalisation, an activation."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jaxnet import activations, layers
from jaxnet.activations import Activation
from jaxnet.layers import Layer, initializers

GROUPS = 8  # of a group normalisation, if that many divide the features

NORMALIZATIONS = ("batch", "group", "layer")


def check_normalization(name: str | None) -> None:
    """Raises a `ValueError` if there is none of that name."""
    if name is not None and name not in NORMALIZATIONS:
        raise ValueError(f"normalization must be None or one of {', '.join(NORMALIZATIONS)}; got {name!r}")


def normalized(name: str, features: int) -> Layer:
    """Batch, group or layer normalisation, by name."""
    check_normalization(name)
    if name == "group":
        return layers.group_norm(max(n for n in range(1, GROUPS + 1) if features % n == 0))
    return layers.batch_norm() if name == "batch" else layers.layer_norm()


def block(
    features: int,
    kernel_size: int | Sequence[int],
    activation: str | Activation | None,
    norm: str | None,
    *,
    stride: int = 1,
    transpose: bool = False,
    implementation: str | None = None,
) -> Layer:
    """Convolution → normalisation → activation, the last two if given; a bias if nothing normalises."""
    convolution = layers.conv_transpose if transpose else layers.conv
    name = None if activation is None else activations.name(activations.get(activation))
    options: dict[str, Any] = {"weight_init": initializers.suited_to(name), "implementation": implementation}
    parts = [convolution(features, kernel_size, stride=stride, bias=norm is None, **options)]
    parts += [] if norm is None else [normalized(norm, features)]
    parts += [] if activation is None else [layers.activation(activation)]
    return layers.serial(*parts)


def whole_numbers(what: str, values: int | Sequence[int]) -> tuple[int, ...]:
    """One whole number ≥ 1 or several, as a tuple.

    Raises:
        ValueError: for anything else.
    """
    found = tuple(values) if isinstance(values, Iterable) else (values,)
    if not found or any(not isinstance(n, int) or n < 1 for n in found):
        raise ValueError(f"{what} must be whole numbers ≥ 1; got {values!r}")
    return found


class Sizes(NamedTuple):
    """Of a network from examples to vectors, or back: stages halve the shape, then come dense layers."""

    shape: tuple[int, ...]  # of an example
    hidden: tuple[int, ...]  # of the dense layers
    stages: tuple[int, ...]  # features of the convolutions with stride 2
    inner: tuple[int, ...]  # the shape after the stages


def sizes_of(shape: int | Sequence[int], hidden: Sequence[int], stages: Sequence[int]) -> Sizes:
    """The sizes, checked.

    Raises:
        ValueError: for sizes that aren't whole numbers ≥ 1, or a shape that stages can't halve.
    """
    shape = whole_numbers("shape", shape)
    hidden = whole_numbers("hidden", hidden) if hidden else ()
    stages = whole_numbers("stages", stages) if stages else ()
    shrunk = 2 ** len(stages)
    if stages and len(shape) < 2:
        raise ValueError(f"stages need a shape (places…, channels); got {shape}")
    if any(n % shrunk for n in shape[:-1]):
        raise ValueError(f"{len(stages)} stages of stride 2 need sizes that {shrunk} divides; got shape {shape}")
    inner = (*(n // shrunk for n in shape[:-1]), stages[-1]) if stages else shape
    return Sizes(shape, hidden, stages, inner)


def head(sizes: Sequence[int], activation: str | Activation, dropout_rate: float, **options: Any) -> list[Layer]:
    """Dense layers, with an activation and dropout after all but the last."""
    stack = []
    for features in sizes[:-1]:
        stack += [layers.dense(features, activation=activation, **options)]
        stack += [layers.dropout(dropout_rate)] if dropout_rate else []
    return [*stack, layers.dense(sizes[-1], **options)]
