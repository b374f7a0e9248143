"""What the recurrent ops are given, checked: sequences (B, T, I), their weights, states and lengths."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnet.ops.arrays import check_arrays
from jaxnet.ops.recurrence import State, Weights


def check(
    op: str,
    gates: int,
    x: Array,
    weights: Weights,
    initial: State | None,
    lengths: Array | None,
    pair: bool = False,
) -> None:
    """Checks the shapes and dtypes of all arguments.

    Raises:
        TypeError: if one is no array.
        ValueError: if they don't fit.
    """
    if pair and initial is not None and not (isinstance(initial, tuple) and len(initial) == 2):
        raise ValueError(
            f"{op} needs an initial state (h, c), a tuple of two arrays; got {type(initial).__name__}"
        )
    given = () if initial is None else initial if pair else (initial,)
    states = dict(zip(("initial h", "initial c"), given, strict=False))
    weight, recurrent_weight, bias, recurrent_bias = weights
    required = {"x": x, "weight": weight, "recurrent_weight": recurrent_weight, **states}
    check_arrays(op, required, bias=bias, recurrent_bias=recurrent_bias, lengths=lengths)
    if x.ndim != 3:
        raise ValueError(f"{op} needs x (B, T, I); got {x.shape}")
    shape = recurrent_weight.shape
    if len(shape) != 2 or shape[1] != gates * shape[0]:
        columns = "H" if gates == 1 else f"{gates} H"
        raise ValueError(f"{op} needs a recurrent_weight (H, {columns}); got {shape}")
    h = shape[0]
    expected = {
        "weight": (weight, (x.shape[2], gates * h)),
        "recurrent_weight": (recurrent_weight, shape),
        "bias": (bias, (gates * h,)),
        "recurrent_bias": (recurrent_bias, (h,)),
    }
    expected |= {name: (state, (x.shape[0], h)) for name, state in states.items()}
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{op} needs a floating-point x; got {x.dtype}")
    for name, (array, right) in expected.items():
        if array is not None and (array.shape != right or array.dtype != x.dtype):
            raise ValueError(
                f"{op} needs {name} {right} of {x.dtype} for x {x.shape} and H = {h}; "
                f"got {array.shape} of {array.dtype}"
            )
    _check_lengths(op, x, lengths)


def _check_lengths(op: str, x: Array, lengths: Array | None) -> None:
    if lengths is None:
        return
    if lengths.shape != x.shape[:1] or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"{op} needs lengths {x.shape[:1]} of whole numbers for x {x.shape}; "
            f"got {lengths.shape} of {lengths.dtype}"
        )
    if (
        isinstance(lengths, jax.core.Tracer)
        or not getattr(lengths, "is_fully_addressable", True)
        or not lengths.size
    ):
        return  # what isn't known here can't be checked: below 0 counts as 0, above T as T
    known = np.asarray(lengths)
    low, high = known.min(), known.max()
    if low < 0 or high > x.shape[1]:
        raise ValueError(f"{op} needs lengths from 0 to T = {x.shape[1]}; got {low} to {high}")


def one_step(op: str, x: Array) -> Array:
    """x (B, I) as a sequence of one step.

    Raises:
        ValueError: for another shape.
    """
    check_arrays(op, {"x": x})
    if x.ndim != 2:
        raise ValueError(f"{op} needs x (B, I); got {x.shape}")
    return x[:, None]
