"""The gradients of a Flax module, Linen or NNX, with respect to all its parameters and its inputs."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet.verify.cases import check_options
from jaxnet.verify.check import check_gradients
from jaxnet.verify.layer import moved
from jaxnet.verify.leaves import is_differentiable
from jaxnet.verify.report import Report


def check_module(
    module: Any, *args: Any, params: Any = None, rngs: Any = None, seed: int = 0, **options: Any
) -> Report:
    """`check_gradients` of `module(*args)` by its parameters and every float in `args`.

    What else the module holds (batch statistics, caches, counters, random state) is held fixed, and what
    a call writes to it is dropped, so that every call is the same function. The module is left as it was.

    Args:
        module: a `flax.linen.Module` or a `flax.nnx.Module`.
        *args: what to call it with.
        params: parameters to check at: Linen's tree `variables["params"]`, NNX's nested dict of arrays.
            By default Linen's `init` and NNX's own, each float moved by up to a tenth: at a scale of
            exactly 1 or a bias of exactly 0 some wrong gradients are right by accident.
        rngs: for Linen, a key for each stream, or one key for all. By default made from `seed`.
        seed: of the parameters, streams and directions.
        **options: those that `check_gradients` has (`order=2`, …) are the check's, all others are
            passed to the module's call (`train=True`, …). A `reference` is a module with the same
            parameters, or a function `reference(params, *args)`.

    Returns:
        A `Report` with the leaves of `params` and `args`.

    Raises:
        TypeError: `module` is neither, or is a Linen module already bound to variables.

    Example:
        >>> check_module(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(1)]), x).ok
        True
    """
    check = {name: options.pop(name) for name in check_options() & set(options)}
    pure = _linen if _is_linen(module) else _nnx
    function, initial = pure(module, args, rngs, seed, options)
    if params is None:
        params = moved(initial, seed)
    reference = check.get("reference")
    if _is_linen(reference) or _is_nnx(reference):
        check["reference"] = pure(reference, args, rngs, seed, options)[0]

    def call(params: Any, *args: Any) -> Any:
        return function(params, *args)

    call.__signature__ = _signature(module, len(args))  # type: ignore[attr-defined]
    report = check_gradients(call, params, *args, seed=seed, **check)
    return dataclasses.replace(report, title=getattr(module, "name", None) or type(module).__name__)


def _signature(module: Any, count: int) -> inspect.Signature:
    """`(params, …)` of `count` arguments more, so that the report calls them as the module does."""
    positional = inspect.Parameter.POSITIONAL_ONLY
    own = [
        p.name for p in inspect.signature(module.__call__).parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD
    ]
    names = ["params", *(f"{name}_" if name == "params" else name for name in own[:count])]
    return inspect.Signature([inspect.Parameter(name, positional) for name in names])


def _linen(
    module: Any, args: tuple[Any, ...], rngs: Any, seed: int, options: Mapping[str, Any]
) -> tuple[Callable[..., Any], Any]:
    """A Linen module as a function of parameters and arguments, and its initial parameters."""
    if not _is_linen(module):
        raise TypeError(f"reference must be of the same kind as the module; got {type(module).__name__}.")
    if module.scope is not None:
        raise TypeError(
            f"check_module needs a Linen module that isn't bound to variables; {type(module).__name__} is. "
            "Pass the module as it was constructed, and its parameters as params."
        )
    streams = _streams(rngs, seed)
    held = dict(module.init(streams, *args, **options))
    initial = held.pop("params", {})

    def function(params: Any, *args: Any) -> Any:
        variables = {**_as_wide(held, params, initial), "params": params}
        # All that may be written is given as mutable: Linen then returns it, and we drop it.
        return module.apply(variables, *args, rngs=streams, mutable=[*held, "intermediates"], **options)[0]

    return function, initial


def _as_wide(held: Any, params: Any, initial: Any) -> Any:
    """A copy of `held`, in float64 where `params` are: else what a call writes is rounded to float32."""
    kinds = zip(jax.tree.leaves(params), jax.tree.leaves(initial), strict=True)
    wide = any(jnp.result_type(a) != jnp.result_type(b) for a, b in kinds)

    def one(leaf: Any) -> Any:
        if not (wide and is_differentiable(leaf)):
            return leaf
        return jnp.asarray(leaf, jnp.complex128 if jnp.iscomplexobj(leaf) else jnp.float64)

    return jax.tree.map(one, held)


def _streams(rngs: Any, seed: int) -> dict[str, Any]:
    """Keys for Linen's streams; one that isn't named falls back on that of the parameters."""
    if isinstance(rngs, Mapping):
        return dict(rngs)
    return {"params": jax.random.key(seed) if rngs is None else rngs}


def _nnx(
    module: Any, args: tuple[Any, ...], rngs: Any, seed: int, options: Mapping[str, Any]
) -> tuple[Callable[..., Any], Any]:
    """An NNX module as a function of parameters and arguments, and the parameters that it holds."""
    from flax import nnx

    if not _is_nnx(module):
        raise TypeError(
            f"check_module needs a flax.linen.Module or a flax.nnx.Module; got {type(module).__name__}. For a "
            "function of parameters, Equinox's too, call check_gradients."
        )
    if rngs is not None:
        raise TypeError("rngs is for Linen modules; an NNX module holds its own, as it was constructed.")
    graph, state, held = nnx.split(module, nnx.Param, ...)
    initial = nnx.to_pure_dict(state)

    def function(params: Any, *args: Any) -> Any:
        # Variables of its own for each call: what one writes, neither the next sees nor the module.
        own, rest = jax.tree.map(lambda leaf: leaf, state), _as_wide(held, params, initial)
        nnx.replace_by_pure_dict(own, params)
        return nnx.merge(graph, own, rest)(*args, **options)

    return function, initial


def _is_linen(module: Any) -> bool:
    from flax import linen

    return isinstance(module, linen.Module)


def _is_nnx(module: Any) -> bool:
    from flax import nnx

    return isinstance(module, nnx.Module)
