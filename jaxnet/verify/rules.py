"""Autodiff of the plain function: a jaxpr evaluated with every custom rule left out.

`jax.custom_jvp` and `jax.custom_vjp` keep the function that they decorate inside the jaxpr. Evaluating
that primal in place of the call gives the same value, and JAX then differentiates it by its own rules.
Source: the interpreter follows "Writing custom Jaxpr interpreters in JAX" of the JAX documentation.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

RULES = {"custom_jvp_call", "custom_vjp_call"}
_KERNELS = {"ffi_call", "pure_callback"}
# Calls that say only how to compile or store what they hold: evaluated in place.
_INLINED = RULES | {"jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"}

_MOVES = {"broadcast_in_dim", "concatenate", "reshape", "slice", "split", "squeeze", "transpose"}


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, those of the jaxprs inside it too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for held in inner(eqn):
            yield from equations(held)


def variables(jaxpr: Any) -> Iterator[Any]:
    """Every variable and literal in a jaxpr that has a dtype."""
    for eqn in equations(jaxpr):
        yield from (v for v in (*eqn.invars, *eqn.outvars) if hasattr(v.aval, "dtype"))


def inner(eqn: Any) -> list[Any]:
    """The jaxprs that an equation holds."""
    return list(core.jaxprs_in_params(eqn.params))


def has_rules(jaxpr: Any) -> bool:
    """Whether a custom derivative rule is called anywhere in `jaxpr`."""
    return any(eqn.primitive.name in RULES for eqn in equations(jaxpr))


def has_plain_form(jaxpr: Any) -> bool:
    """Whether there is a rule that can be left out: one that doesn't itself stand for a kernel."""
    return any(eqn.primitive.name in RULES and not _is_kernel(eqn) for eqn in equations(jaxpr))


def narrowest(jaxpr: Any) -> float:
    """The largest machine epsilon among the dtypes to which `jaxpr` rounds a wider float."""
    eps = 0.0
    for eqn in equations(jaxpr):
        if eqn.primitive.name == "convert_element_type":
            source, target = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
            if jnp.issubdtype(source, jnp.inexact) and jnp.issubdtype(target, jnp.inexact):
                lost = float(jnp.finfo(target).eps)
                eps = max(eps, lost if lost > float(jnp.finfo(source).eps) else 0.0)
    return eps


def coarsest(jaxpr: Any) -> float:
    """The largest machine epsilon of a float that `jaxpr` calculates, not only moves, as from narrow data."""
    calculated = (eqn for eqn in equations(jaxpr) if eqn.primitive.name not in _MOVES | {"device_put"})
    dtypes = {v.aval.dtype for eqn in calculated for v in eqn.outvars if hasattr(v.aval, "dtype")}
    return max((float(jnp.finfo(d).eps) for d in dtypes if jnp.issubdtype(d, jnp.inexact)), default=0.0)


def narrowest_of(jaxprs: Sequence[Any]) -> float:
    """The largest machine epsilon to which any of them rounds; None stands for one that is unknown."""
    return max((narrowest(jaxpr) for jaxpr in jaxprs if jaxpr is not None), default=0.0)


def different(jaxpr: Any) -> int:
    """How many different operations there are: primitives with different shapes count each."""
    kinds = {(eqn.primitive.name, *(str(v.aval) for v in (*eqn.invars, *eqn.outvars))) for eqn in equations(jaxpr)}
    return len(kinds)


def longest_sum(jaxpr: Any) -> int:
    """Number of terms of the longest sum in `jaxpr` or in its transpose.

    What a broadcast repeats, its transpose sums; a matrix product (m,k)·(k,n) sums over k, its transposes
    over n and m; a loop's sums go on over its turns.
    """
    longest = 1
    for eqn in jaxpr.eqns:
        sizes = [int(np.prod(getattr(v.aval, "shape", ()))) for v in (*eqn.invars, *eqn.outvars)] or [1]
        name = eqn.primitive.name
        held = max([longest_sum(j) for j in inner(eqn)], default=1)
        if name == "scan":
            held *= eqn.params["length"]
        elif name == "dot_general":
            (contracted, _), (batch, _) = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            length = int(np.prod([shape[i] for i in contracted]))
            rows = int(np.prod([shape[i] for i in batch])) * length
            held = max([length, *(size // max(rows, 1) for size in sizes[:2])])
        elif name.startswith(("reduce", "broadcast", "cumsum", "gather", "scatter", "argsort")):
            held = max(sizes) // max(1, min(sizes[0], sizes[-1]))
        elif name in ("conv_general_dilated", "pallas_call") or (not inner(eqn) and "call" in name):
            held = max(sizes)  # a kernel of which no more is known
        longest = max(longest, held)
    return longest


def work(jaxpr: Any) -> tuple[int, int]:
    """Numbers of elements calculated by loops that the compiler writes, and of operations.

    Products of matrices are a library's, but not of a matrix and a vector in batches, nor convolutions in
    float64. What only moves elements takes the memory's time.
    """
    elements, operations = 0, 0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        sizes = [int(np.prod(getattr(v.aval, "shape", ()))) for v in (*eqn.invars, *eqn.outvars)] or [1]
        each = 0 if name in _MOVES else max(sizes)
        if name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            each = sizes[-1] * (sizes[1] // max(1, kernel[params["dimension_numbers"].rhs_spec[0]]))
        elif name == "dot_general":
            _, (batch, _) = params["dimension_numbers"]
            each = max(sizes) if batch and sizes[-1] <= min(sizes[:2]) else 0
        elif "window_dimensions" in params:
            each *= int(np.prod(params["window_dimensions"]))
        held = [work(j) for j in inner(eqn)]
        turns = params["length"] if name == "scan" else 1
        elements += turns * sum(e for e, _ in held) if held else each
        operations += sum(n for _, n in held) if held else 1
    return elements, operations


def stripped(closed: Any) -> Callable[..., list[Any]]:
    """The function of a closed jaxpr, without its custom derivative rules."""

    def plain(*args: Any) -> list[Any]:
        return _evaluate(closed.jaxpr, closed.consts, args)

    return plain


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    return walk(jaxpr, consts, args, apply)


def walk(
    jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], apply: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """Evaluate `jaxpr`, every equation of it by `apply(eqn, operands)`."""
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        values.update(zip(eqn.outvars, apply(eqn, [read(atom) for atom in eqn.invars]), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def inlined(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    """Jaxpr and constants of a call that can be evaluated in place, a custom rule's too."""
    if eqn.primitive.name not in _INLINED:
        return None
    held = next(v for v in eqn.params.values() if isinstance(v, core.Jaxpr | core.ClosedJaxpr))
    return inner(eqn)[0], getattr(held, "consts", ())


def apply(eqn: Any, operands: list[Any]) -> list[Any]:
    """The results of one equation, without its custom rules."""
    if (call := inlined(eqn)) and not _is_kernel(eqn):
        return _evaluate(*call, operands)
    if any(map(has_rules, inner(eqn))):
        return bind(eqn, operands, {name: _strip_param(value) for name, value in eqn.params.items()})
    return bind(eqn, operands, eqn.params)


def _is_kernel(eqn: Any) -> bool:
    """Whether a custom rule stands directly for a kernel: nothing but that rule can differentiate it."""
    return eqn.primitive.name in RULES and any(map(_calls_a_kernel, inner(eqn)))


def _calls_a_kernel(jaxpr: Any) -> bool:
    return any(
        eqn.primitive.name in _KERNELS
        or (eqn.primitive.name not in RULES and any(map(_calls_a_kernel, inner(eqn))))
        for eqn in jaxpr.eqns
    )


def bind(eqn: Any, operands: list[Any], params: dict[str, Any]) -> list[Any]:
    """The results of one equation as it is."""
    results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(params))
    return list(results) if eqn.primitive.multiple_results else [results]


def _strip_param(value: Any) -> Any:
    """A parameter of scan, while, cond, ... with the rules taken out of the jaxprs that it holds."""
    if isinstance(value, core.ClosedJaxpr):
        avals = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in value.in_avals]
        return jax.make_jaxpr(stripped(value))(*avals)
    if isinstance(value, tuple):
        parts = [_strip_param(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
