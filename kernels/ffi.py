"""The compiled kernels as XLA calls: the only file that touches `jax.ffi`.

There is one library for each instruction set, all compiled from the same C++; importing this module
loads the best that the CPU runs and registers its targets. The environment variable `JAXNET_ISA`
(`baseline`, `avx2` or `avx512`) names one.
"""

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import P
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding

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


def or_zero(bias: jax.Array | None, weight: jax.Array) -> jax.Array:
    """The bias of what is multiplied to a weight, (inputs, outputs); zero if it is missing."""
    return jnp.zeros(weight.shape[1], weight.dtype) if bias is None else bias


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


def spread_call(name: str, axes: str, *args: jax.Array, **options: Any) -> list[jax.Array]:
    """`call`, but each device computes its own rows, see `spread`; all results are of the dtype of `args[0]`."""

    def part(*args: jax.Array) -> list[jax.Array]:
        arguments, results = _names(axes)
        sizes = {
            n: size
            for names, x in zip(arguments, args, strict=True)
            for n, size in zip(names, x.shape, strict=True)
        }
        shapes = ([sizes[n] for n in names] for names in results)
        return call(name, [jax.ShapeDtypeStruct(shape, args[0].dtype) for shape in shapes], *args, **options)

    return spread(part, axes)(*args)


def spread(kernel: Callable[..., list[jax.Array]], axes: str) -> Callable[..., list[jax.Array]]:
    """The kernel, of whose rows each device computes its own where they are sharded automatically.

    Args:
        kernel: a function of arrays.
        axes: the names of the axes of its arguments and results: `"R i, R o -> i o"`. Along those in capitals it
            computes one row like another; a result without them is a sum over them. All others are whole on each
            device.
    """
    if jax.sharding.get_abstract_mesh().manual_axes:
        return kernel  # inside `jax.shard_map`, of the rows of this device
    arguments, results = _names(axes)
    names = dict.fromkeys(n for argument in arguments for n in argument)
    kept = {n for result in results for n in result}

    def partition(mesh: Mesh, args: Sequence[Any], _: Any) -> tuple[Any, ...]:
        over: dict[str, Any] = {}  # where the rows lie: an axis of the mesh, or several
        for argument, x in zip(arguments, args, strict=True):
            over |= {
                n: on for n, on in zip(argument, x.sharding.spec, strict=True) if n.isupper() and on is not None
            }

        def part(*args: jax.Array) -> list[jax.Array]:
            found = kernel(*args)
            for n in over.keys() - kept:
                found = [jax.lax.psum(y, over[n]) for y in found]
            return found

        def lies(names: list[str]) -> NamedSharding:
            return NamedSharding(mesh, P(*map(over.get, names)))

        return mesh, part, [*map(lies, results)], tuple(map(lies, arguments))

    run = custom_partitioning(kernel)
    run.def_partition(
        partition,
        sharding_rule=axes,
        reduction_factors=tuple(n for n in names if n.isupper() and n not in kept),
        need_replication_factors=tuple(n for n in names if not n.isupper()),
    )
    mapped = custom_vmap(run)  # `custom_partitioning` has no rule for `jax.vmap`

    @mapped.def_vmap
    def _(size: int, is_batched: Sequence[bool], *args: jax.Array) -> tuple[list[jax.Array], list[bool]]:
        found = jax.vmap(kernel, [0 if batched else None for batched in is_batched], axis_size=size)(*args)
        return found, [True] * len(found)

    return mapped


def _names(axes: str) -> tuple[list[list[str]], ...]:
    return tuple([names.split() for names in side.split(",")] for side in axes.split("->"))
