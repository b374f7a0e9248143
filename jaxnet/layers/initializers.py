"""Initial weights: those of `jax.nn.initializers`, by name.

An initializer is a function `(key, shape, dtype) → array`. Of a shape (…, I, O) fan-in is I and fan-out O, times
the taps of a window before them; of a convolution in groups I is the channels that one output sees.

==================================  ===============================  ==========================
`glorot_uniform`, `glorot_normal`   variance 2 / (fan-in + fan-out)  Glorot and Bengio (2010)
`he_uniform`, `he_normal`           variance 2 / fan-in              He et al. (2015)
`lecun_uniform`, `lecun_normal`     variance 1 / fan-in              LeCun et al. (1998)
`orthogonal`                        orthonormal columns or rows      Saxe et al. (2013)
`zeros`, `ones`                     constant
==================================  ===============================  ==========================
"""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

from jaxnet.activations import accumulation_dtype

Initializer = Callable[..., Array]


def _orthogonal(key: Array, shape: Sequence[int], dtype: DTypeLike) -> Array:
    # The decomposition behind it knows no half precision.
    return initializers.orthogonal()(key, shape, accumulation_dtype(dtype)).astype(dtype)


_NAMES: dict[str, Initializer] = {
    "glorot_uniform": initializers.glorot_uniform(),
    "glorot_normal": initializers.glorot_normal(),
    "he_uniform": initializers.he_uniform(),
    "he_normal": initializers.he_normal(),
    "lecun_uniform": initializers.lecun_uniform(),
    "lecun_normal": initializers.lecun_normal(),
    "orthogonal": _orthogonal,
    "zeros": initializers.zeros,
    "ones": initializers.ones,
}

_SUITED = {
    **dict.fromkeys(("relu", "leaky_relu", "elu", "gelu", "silu", "mish", "hard_swish", "softplus"), "he_normal"),
    **dict.fromkeys(("sigmoid", "tanh", "softmax", "log_softmax"), "glorot_uniform"),
}


def get(initializer: str | Initializer) -> Initializer:
    """Returns the initializer of that name, or the function itself.

    Raises:
        ValueError: if there is none of that name; the message has the nearest.
    """
    if callable(initializer):
        return initializer
    if initializer not in _NAMES:
        near: Any = difflib.get_close_matches(initializer, _NAMES, n=1, cutoff=0.0)[0]
        names = ", ".join(_NAMES)
        raise ValueError(f"unknown initializer {initializer!r}: did you mean {near!r}? There are {names}")
    return _NAMES[initializer]


def suited_to(activation: str | None) -> Initializer:
    """Returns the usual one before an activation: He for rectifiers, Glorot for sigmoids, else LeCun."""
    return _NAMES[_SUITED.get(activation or "", "lecun_normal")]
