"""The feedforward network, or multilayer perceptron. (Rumelhart, Hinton and Williams, 1986)."""

from collections.abc import Sequence
from typing import Any

from jax import Array

from jaxnet.activations import Activation
from jaxnet.layers import Layer, dense, dropout, serial
from jaxnet.layers.initializers import Initializer
from jaxnet.layers.layer import Input, Params


def feedforward(
    sizes: Sequence[int],
    *,
    activation: str | Activation = "relu",
    output_activation: str | Activation | None = None,
    dropout_rate: float = 0.0,
    bias: bool = True,
    weight_init: str | Initializer | None = None,
    implementation: str | None = None,
) -> Layer:
    """aₗ = f(aₗ₋₁ Wₗ + bₗ) for the hidden layers, y = g(a W + b) at the end.

    Args:
        sizes: features in, of each hidden layer, and out: `[64, 128, 10]` has one hidden layer of 128.
        activation: f, of the hidden layers.
        output_activation: g; None gives logits, which is what the losses take.
        dropout_rate: of dropout after each hidden layer; 0 is none.
        bias: whether the layers have a b.
        weight_init: None takes what suits the activation (`layers.initializers.suited_to`).
        implementation: see `jaxnet.ops.dispatch`.

    `params` is a tuple of `{"weight": (in, out), "bias": (out,)}`, and `()` for each dropout.

    Raises:
        ValueError: for sizes that aren't at least two whole numbers ≥ 1, an unknown activation, a dropout
            rate outside [0, 1); in `init`, if x doesn't have sizes[0] features.

    Example:
        >>> net = networks.feedforward([64, 128, 10], activation="relu")
        >>> params = net.init(jax.random.key(0), jnp.zeros((1, 64)))
        >>> net.apply(params, jnp.ones((5, 64))).shape
        (5, 10)
    """
    sizes = tuple(sizes)
    if len(sizes) < 2 or any(not isinstance(n, int) or n < 1 for n in sizes):
        raise ValueError(f"feedforward needs at least two sizes, whole numbers ≥ 1: (in, …, out); got {sizes}")
    options: dict[str, Any] = {"bias": bias, "weight_init": weight_init, "implementation": implementation}
    stack = []
    for features in sizes[1:-1]:
        stack += [dense(features, activation=activation, **options)]
        stack += [dropout(dropout_rate)] if dropout_rate else []
    net = serial(*stack, dense(sizes[-1], activation=output_activation, **options))

    def init(key: Array, x: Input) -> Params:
        if not x.shape or x.shape[-1] != sizes[0]:
            raise ValueError(
                f"feedforward({list(sizes)}) needs x (…, {sizes[0]}); got {x.shape}. "
                "For images, put layers.flatten() before it"
            )
        return net.init(key, x)

    return net._replace(init=init)
