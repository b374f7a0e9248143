"""Autodiff of the plain function: a jaxpr evaluated with every custom rule left out.

`jax.custom_jvp` and `jax.custom_vjp` keep the function that they decorate inside the jaxpr. Evaluating
that primal in place of the call gives the same value, and JAX then differentiates it by its own rules.
Source: the interpreter follows "Writing custom Jaxpr interpreters in JAX" of the JAX documentation.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

_RULES = {"custom_jvp_call", "custom_vjp_call"}
# Calls that say only how to compile or store what they hold: evaluated in place.
_INLINED = _RULES | {"jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"}


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, those of the jaxprs inside it too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in core.jaxprs_in_params(eqn.params):
            yield from equations(inner)


def has_rules(jaxpr: Any) -> bool:
    """Whether a custom derivative rule is called anywhere in `jaxpr`."""
    return any(eqn.primitive.name in _RULES for eqn in equations(jaxpr))


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


def stripped(closed: Any) -> Callable[..., list[Any]]:
    """The function of a closed jaxpr, without its custom derivative rules."""

    def plain(*args: Any) -> list[Any]:
        return _evaluate(closed.jaxpr, closed.consts, args)

    return plain


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        inner = next(iter(core.jaxprs_in_params(eqn.params)), None)
        if inner is not None and eqn.primitive.name in _INLINED:
            held = next(v for v in eqn.params.values() if isinstance(v, core.Jaxpr | core.ClosedJaxpr))
            results = _evaluate(inner, getattr(held, "consts", ()), operands)
        else:
            params = eqn.params
            if inner is not None and any(map(has_rules, core.jaxprs_in_params(params))):
                params = {name: _strip_param(value) for name, value in params.items()}
            results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(params))
            results = results if eqn.primitive.multiple_results else [results]
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _strip_param(value: Any) -> Any:
    """A parameter of scan, while, cond, ... with the rules taken out of the jaxprs that it holds."""
    if isinstance(value, core.ClosedJaxpr):
        avals = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in value.in_avals]
        return jax.make_jaxpr(stripped(value))(*avals)
    if isinstance(value, tuple):
        parts = [_strip_param(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
