"""The complex step: a derivative without a difference, where the function is made of analytic operations.

For real-analytic f and a tiny h, f(x + i·h·u) = f(x) + i·h·J·u + O(h²): the imaginary part over h is J·u to the
last digits, nothing is subtracted. Comparisons, maxima and |x| go by the real part, and give NaN at a tie; what
`stop_gradient` returns stays real.

Reference: Squire and Trapp, "Using complex variables to estimate derivatives of real functions", SIAM Review
40 (1998); Martins, Sturdza and Alonso, "The complex-step derivative approximation" (2003).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet.verify import rules
from jaxnet.verify.roads import Outputs

_STEP = 2.0**-300  # far below every argument, and h² still a number
_ANALYTIC = {
    "add", "add_any", "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "cos", "cosh",
    "cumsum", "div", "dot_general", "dynamic_slice", "dynamic_update_slice", "exp", "exp2", "expand_dims",
    "expm1", "gather", "integer_pow", "log", "log1p", "logistic", "mul", "neg", "pad", "pow", "reduce_prod",
    "reduce_sum", "reshape", "rev", "rsqrt", "scatter", "scatter-add", "select_n", "sin", "sinh", "slice",
    "split", "sqrt", "square", "squeeze", "sub", "tan", "tanh", "transpose",
}  # fmt: skip
_COMPARED = {"abs", "eq", "ge", "gt", "le", "lt", "max", "min", "ne", "sign"}
_BY_REAL_PART = {"eq", "ge", "gt", "is_finite", "le", "lt", "ne", "sign", "stop_gradient"}


class NotAnalyticError(Exception):
    """An operation that has no complex form here."""


def push(outputs: Outputs) -> Callable[..., Any]:
    """(v, u, extra) ↦ J·u, custom rules left out.

    Raises, when it is traced:
        NotAnalyticError: an operation has no complex form.
    """

    def run(v: Any, u: Any, extra: Any) -> Any:
        closed, ties = jax.make_jaxpr(lambda v: outputs(v, extra))(v), [jnp.array(False)]
        if any(jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in rules.variables(closed.jaxpr)):
            raise NotAnalyticError("complex numbers")
        x = jax.lax.complex(v, _STEP * u)
        y = rules.walk(closed.jaxpr, closed.consts, [x], partial(_apply, ties=ties))[0]
        slope = y.imag / _STEP if jnp.iscomplexobj(y) else jnp.zeros_like(y)
        return jnp.where(jnp.stack(ties).any(), jnp.nan, slope)

    return run


def _apply(eqn: Any, operands: list[Any], *, ties: list[Any]) -> list[Any]:
    """The results of one equation; to `ties` goes whether its operands are where two branches meet."""
    name = eqn.primitive.name
    if not any(map(jnp.iscomplexobj, operands)):
        return rules.apply(eqn, operands)
    if call := rules.inlined(eqn):
        return rules.walk(*call, operands, partial(_apply, ties=ties))
    if name not in _ANALYTIC | _BY_REAL_PART | {"abs", "max", "min", "reduce_max", "reduce_min"}:
        raise NotAnalyticError(name)
    x, reals = operands[0], [jnp.real(x) for x in operands]
    if name in _COMPARED:
        ties.append((reals[0] == (reals[1] if len(reals) > 1 else 0)).any())
    if name in ("max", "min"):
        return [jnp.where((reals[0] > reals[1]) == (name == "max"), *operands)]
    if name == "abs":
        return [x * jnp.sign(x.real)]
    if name in ("reduce_max", "reduce_min"):
        axes = eqn.params["axes"]
        chosen = x.real == jnp.expand_dims(rules.bind(eqn, reals, eqn.params)[0], axes)
        ties.append((chosen.sum(axes) > 1).any())
        return [jnp.where(chosen, x, 0).sum(axes)]
    return rules.bind(eqn, reals, eqn.params) if name in _BY_REAL_PART else _analytic(eqn, operands)


def _analytic(eqn: Any, operands: list[Any]) -> list[Any]:
    """The operation in complex128."""
    if eqn.outvars[0].aval.dtype != jnp.float64:
        raise NotAnalyticError(f"{eqn.primitive.name} to {eqn.outvars[0].aval.dtype}")
    wide = [x.astype(jnp.complex128) if jnp.issubdtype(jnp.asarray(x).dtype, jnp.inexact) else x for x in operands]
    params = {
        name: jnp.dtype("complex128") if name in ("new_dtype", "preferred_element_type") and value else value
        for name, value in eqn.params.items()
    }
    return rules.bind(eqn, wide, params)
