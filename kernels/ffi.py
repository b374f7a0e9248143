"""The compiled kernels as XLA calls: the only file that touches `jax.ffi`.

There is one library for each instruction set, all compiled from the same C++; importing this module
loads the best that the CPU runs and registers its targets. The environment variable `JAXNET_ISA`
(`baseline`, `avx2` or `avx512`) names one.
"""

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from . import __path__ as _folders  # two in an editable install: the sources, and what was built

_DTYPES = (jnp.dtype("float32"), jnp.dtype("float64"))
_ISAS = ("avx512", "avx2", "baseline")  # the best first


class _Target(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("handler", ctypes.c_void_p))


def _open(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.jaxnet_targets.restype = ctypes.POINTER(_Target)
    library.jaxnet_targets.argtypes = (ctypes.POINTER(ctypes.c_int64),)
    library.jaxnet_supports.restype = ctypes.c_bool
    library.jaxnet_supports.argtypes = (ctypes.c_char_p,)
    return library


def _choose_isa(supported: Sequence[str]) -> str:
    """The instruction set that `JAXNET_ISA` names, or the first of those supported."""
    asked = os.environ.get("JAXNET_ISA", supported[0])
    if asked not in supported:
        have = ", ".join(supported)
        raise ValueError(f"JAXNET_ISA must be one of those that this CPU supports ({have}); got {asked!r}")
    return asked


def _load() -> tuple[str, tuple[str, ...], str | None]:
    """Loads and registers the kernels: the instruction set, the targets, the reason if there are none."""
    folders = [Path(folder) for folder in _folders]
    built = {isa: path for isa in _ISAS for f in folders if (path := f / f"jaxnet_{isa}.so").exists()}
    if not built:
        return "none", (), "jaxnet was installed without a C++ compiler, so its CPU kernels were not built"
    try:
        baseline = _open(built["baseline"])
        isa = _choose_isa([isa for isa in built if baseline.jaxnet_supports(isa.encode())])
        library = _open(built[isa])
    except OSError as error:
        return "none", (), f"the library of CPU kernels can't be loaded: {error}"
    count = ctypes.c_int64()
    table = library.jaxnet_targets(ctypes.byref(count))
    for target in table[: count.value]:
        jax.ffi.register_ffi_target(target.name.decode(), jax.ffi.pycapsule(target.handler), platform="cpu")
    return isa, tuple(sorted(target.name.decode() for target in table[: count.value])), None


_isa, _targets, _unavailable = _load()


def unavailable() -> str | None:
    """Why there are no compiled kernels in this process; None if there are."""
    return _unavailable


def unsupported(*operands: jax.Array | None) -> str | None:
    """Why a kernel of one dtype can't serve these operands, of which some may be None; None if it can."""
    if reason := unavailable():
        return reason
    types = [jax.typeof(x) for x in operands if x is not None]
    if len({t.dtype for t in types}) > 1 or types[0].dtype not in _DTYPES:
        found = ", ".join(t.dtype.name for t in types)
        return f"arrays must be all float32 or all float64; got {found}"
    if any(t.sharding.mesh.explicit_axes for t in types):
        return "arrays must not lie on a mesh with explicit axes, outside of shard_map"
    return None


def present(*args: jax.Array | None) -> list[jax.Array]:
    """The arguments that aren't missing; whole numbers as kernels read them, in 32 bits."""
    given = [x for x in args if x is not None]
    return [x.astype("int32") if jnp.issubdtype(x.dtype, jnp.integer) else x for x in given]


def isa() -> str:
    """The instruction set of the kernels in use: `"avx512"`, `"avx2"`, `"baseline"`, or `"none"`."""
    return _isa


def targets() -> tuple[str, ...]:
    """The names of the compiled kernels, as they stand in the lowered text of a program."""
    return _targets


def call(
    name: str,
    results: Sequence[jax.ShapeDtypeStruct],
    *args: jax.Array,
    aliases: Mapping[int, int] | None = None,
    batched: bool = False,
    **attributes: Any,
) -> list[jax.Array]:
    """Calls the compiled kernel `name`.

    Args:
        name: one of `targets()`.
        results: the shapes and dtypes of what it returns.
        *args: arrays, row-major.
        aliases: argument number -> number of the result that overwrites its buffer. Where the argument is
            still needed, XLA copies it first.
        batched: whether the kernel takes the same leading batch axes on all its arguments and results.
            Under `jax.vmap` it is then called once; if not, once for each member of the batch.
        **attributes: its options: numbers, booleans, strings, numpy arrays.

    Returns:
        The results, in order.
    """
    kernel = jax.ffi.ffi_call(
        name,
        list(results),
        vmap_method="broadcast_all" if batched else "sequential",
        input_output_aliases=dict(aliases or {}),
    )
    # Inside `jax.shard_map` all arguments, and so the results, vary over the same mesh axes.
    varying = [jax.typeof(x).manual_axis_type.varying for x in args]
    axes = frozenset().union(*varying)
    args = tuple(jax.lax.pcast(x, tuple(axes - v), to="varying") for x, v in zip(args, varying, strict=True))
    return [jax.lax.pcast(y, tuple(axes), to="varying") for y in kernel(*args, **attributes)]
