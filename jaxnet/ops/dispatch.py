"""How an op chooses its implementation.

Every op has the keyword `implementation=`:

====================  ==========================================================================
`None`                the fastest that serves these shapes and dtypes on the platform lowered for
`"xla"`               plain `jax.numpy`, with the hand-written backward pass
`"cpu"`               C++ through the XLA foreign-function interface
`"gpu"`, `"tpu"`      Pallas Mosaic
`"cudnn"`             NVIDIA's cuDNN, where JAX exposes it
====================  ==========================================================================

Each name is exactly one code path: an implementation asked for by name serves or raises, it is never
replaced by another. `with using("xla"):` sets the name for all ops traced in a block.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax

from jaxnet.kernels import ffi

IMPLEMENTATIONS = ("xla", "cpu", "gpu", "tpu", "cudnn")
_PLATFORM = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}  # implementation -> the platform it is lowered for

# Part of jit's cache key, so that a function traced outside a `using` block is traced anew inside it.
_in_use = jax.make_user_context(default_value=None)


class Kernel(NamedTuple):
    """A compiled implementation of an op for arguments already known."""

    run: Callable[..., Any]
    unsupported: str | None  # why it can't serve these arguments; None if it can


def using(implementation: str | None) -> AbstractContextManager[None]:
    """Sets `implementation` for every op traced inside the `with` block that isn't given one by keyword.

    Example:
        >>> with jaxnet.using("xla"):
        ...     y = net.apply(params, x)

    Raises:
        ValueError: if there is no implementation of that name.
    """
    _check(implementation)
    return _in_use(implementation)


def name(implementation: str | None) -> str | None:
    """The name that holds for both passes, also if the pullback is called outside of a `using` block."""
    return implementation if implementation is not None else _in_use.value


def choose(
    op: str, implementation: str | None, xla: Callable[..., Any], kernels: Mapping[str, Kernel]
) -> Callable[..., Any]:
    """Returns the function of array arguments that serves `op` under `implementation`.

    Raises:
        ValueError: if the implementation asked for can't serve; the message has the kernel's reason.
    """
    _check(implementation)
    name = implementation if implementation is not None else _in_use.value
    if name == "xla":
        return xla
    if name is None:
        # Which platform a program is lowered for is known only after tracing: the choice is part of it.
        serving = {_PLATFORM[n]: k.run for n, k in kernels.items() if n in _PLATFORM and not k.unsupported}
        return partial(jax.lax.platform_dependent, default=xla, **serving) if serving else xla
    if name not in kernels:
        have = ", ".join(repr(n) for n in ("xla", *kernels))
        raise ValueError(f"{op} has no implementation {name!r}; it has {have}")
    if kernels[name].unsupported:
        raise ValueError(f"implementation {name!r} can't serve {op}: {kernels[name].unsupported}")
    return kernels[name].run


def unsupported(*operands: jax.Array | None) -> str | None:
    """Why no CPU kernel can serve these operands, of which some may be None; None if one can."""
    return ffi.unsupported(*operands)


def differentiable(kernel: Callable[..., Any], xla: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel with the derivatives of what it computes as XLA has them, for second and higher order."""
    run = jax.custom_jvp(kernel)
    run.defjvp(lambda primals, tangents: jax.jvp(xla, primals, tangents))
    return run


def _check(implementation: str | None) -> None:
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        have = ", ".join(repr(n) for n in IMPLEMENTATIONS)
        raise ValueError(f"implementation must be None or one of {have}; got {implementation!r}")


def implementations(op: str) -> dict[str, str | None]:
    """Returns the implementations written for `op`, each with the reason why it can't run here, or None."""
    package = f"jaxnet.kernels.{op}"
    written = [name for name in _PLATFORM if find_spec(package) and find_spec(f"{package}.{name}")]
    return {"xla": None, **{name: ffi.unavailable() if name == "cpu" else None for name in written}}


def isa() -> str:
    """Returns the instruction set of the CPU kernels: `"avx512"`, `"avx2"`, `"baseline"` or `"none"`."""
    return ffi.isa()
