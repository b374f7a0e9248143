"""Finding where a run first left the finite numbers."""

from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
from jax import Array

from jaxnet.layers import Layer
from jaxnet.layers.layer import Inputs, Params
from jaxnet.train.state import TrainState
from jaxnet.train.step import Batch, Step, augmented


class NonFiniteError(FloatingPointError):
    """The loss or a parameter became NaN or infinite; the message has the step and the place."""


def explain(step: Step, state: TrainState, batch: Batch) -> str:
    """Names the first input, parameter, activation and gradient that isn't finite in the step from `state`."""
    x, target = jax.tree.map(jnp.asarray, batch)
    x, key = augmented(step.augment, state, x)
    places = {
        "input x": first_nonfinite(x),
        "target": first_nonfinite(target),
        "parameter": first_nonfinite(state.params),
    }
    if step.net is not None and step.loss is not None:
        net, loss = step.net, step.loss
        grads = jax.grad(lambda params: jnp.mean(loss(net.apply(params, x, key=key), target)))(state.params)
        places["activation"] = _first_activation(net, state.params, x, key)
        places["gradient of the parameter"] = first_nonfinite(grads)
    found = [f"{kind} {place}".strip() for kind, place in places.items() if place is not None]
    return ", ".join(found) or "nothing, when computed again"


def first_nonfinite(tree: Any) -> str | None:
    """Returns the path of the first floating-point leaf with a NaN or infinity; None if there is none."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not bool(jnp.isfinite(leaf).all()):
            return jax.tree_util.keystr(path)
    return None


def _first_activation(net: Layer, params: Params, x: Inputs, key: Array) -> str | None:
    """Evaluates the network as a list of equations, with each result as an output."""
    program = jax.make_jaxpr(lambda params, x: net.apply(params, x, key=key))(params, x)
    steps = [e for e in program.jaxpr.eqns if e.outvars and not isinstance(e.outvars[0], jax.extend.core.DropVar)]
    unnamed = program.jaxpr.debug_info._replace(result_paths=None)  # the names are those of other results
    tapped = program.jaxpr.replace(outvars=[e.outvars[0] for e in steps], debug_info=unnamed)
    results = jax.extend.core.jaxpr_as_fun(program.replace(jaxpr=tapped))(*jax.tree.leaves((params, x)))
    for step, result in zip(steps, results, strict=True):
        if first_nonfinite(result) is not None:
            return f"{step.source_info.name_stack or step.primitive.name} of shape {result.shape}"
    return None
