"""What every op takes: arrays, of JAX or NumPy, traced or not."""

from collections.abc import Mapping
from typing import Any


def check_arrays(op: str, required: Mapping[str, Any], **optional: Any) -> None:
    """Checks that all are arrays; those that are optional may be None. An op asks this before any shape.

    Raises:
        TypeError: for a list, a number, and what else has no shape and dtype.
    """
    given = {name: value for name, value in optional.items() if value is not None}
    for name, value in {**required, **given}.items():
        if not (hasattr(value, "shape") and hasattr(value, "dtype")):
            raise TypeError(
                f"{op} needs an array as {name}; got {type(value).__name__}. "
                "jnp.asarray makes one of lists and numbers"
            )
