"""Order 2: the gradient of the gradient, examined as the gradient is.

g(v) = Jᵀ(v)·w is a function of the point like any other: its derivative by JAX, through the rules' own
backward passes, is held against finite differences of g. It shows a backward pass that is right itself but
hides a dependence from JAX: a residual taken through NumPy or stop_gradient, a rule without a second one.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxnet.verify import complex_step, frozen, roads, rules
from jaxnet.verify.differences import Lines
from jaxnet.verify.outputs import Flattened
from jaxnet.verify.problem import Problem
from jaxnet.verify.roads import Lazy, Outputs, pull, push, setting


def derivative(problem: Problem, *, hold_stops: bool) -> Problem:
    """The question for g, at the same point; what JAX raises for its derivative comes through.

    `hold_stops` keeps the function's own stop_gradients at their values at the point, but not those that
    only a custom rule introduces: they hide something.
    """
    outputs, inner = problem.outputs, problem.extra
    if hold_stops:
        record, replay = frozen.frozen(problem.closed, into_rules=False)
        outputs, inner = (lambda v, recorded: replay(recorded, v)[0]), frozen.Recorder(record, problem.promoted)
    slope = _slope(outputs)
    extra = _with_weights(problem, inner)
    example = (problem.point, np.zeros_like(problem.point), extra(problem.point))
    own = roads.Program(pull(slope), example, problem.promoted)
    plain: roads.Program | None = own
    if rules.has_rules(problem.closed.jaxpr) and not hold_stops:
        stripped = rules.stripped(problem.closed)
        taken = roads.reverse(roads.REFERENCE, _slope(lambda v, _: stripped(v)[0]), example, problem.promoted, [])
        plain = taken if isinstance(taken, roads.Program) else None
    with setting(problem.promoted):
        closed = jax.make_jaxpr(slope)(example[0], example[2])
    spec = Flattened(
        tuple(jax.ShapeDtypeStruct((leaf.stop - leaf.start,), np.float64) for leaf in problem.arguments.leaves)
    )
    return replace(
        problem,
        spec=spec,
        closed=closed,
        outputs=slope,
        along=Lines(lambda v, given: (given[0] * slope(v, given[1])).sum(), closed),
        own=own,
        plain=plain,
        hand=None,
        claimed=frozenset(),
        weights=spec.weights(own(*example)[0], problem.seed),
        remarks=[],
        forward_mode=Lazy(push),
        complex_mode=Lazy(complex_step.push),
        batched=Lazy(lambda outputs: jax.vmap(pull(outputs))),
        extra=extra,
        line_extra=extra,
        inner=inner,
    )


def seeded(second: Problem, problem: Problem) -> Problem:
    """The second question for a first one of another seed, or at another point."""
    extra = _with_weights(problem, second.inner)
    moved = replace(second, point=problem.point, extra=extra, line_extra=extra)
    return moved.seeded(problem.seed)


def _slope(outputs: Outputs) -> Outputs:
    return lambda v, extra: pull(outputs)(v, *extra)[1]


def _with_weights(problem: Problem, inner: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
    return lambda point: (problem.weights, inner(point))
