"""Neural networks as pure functions in JAX, every backward pass written by hand and proved."""

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = ("activations", "data", "interop", "layers", "losses", "networks", "ops", "train", "verify")
__all__ = ["using", *_ROOMS]


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: `import jaxnet` stays quick, whatever a room itself imports.
    if name in _ROOMS:
        return importlib.import_module(f"jaxnet.{name}")
    if name == "using":
        return importlib.import_module("jaxnet.ops").using
    raise AttributeError(f"module 'jaxnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
