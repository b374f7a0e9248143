"""One question, "what is the gradient of φ at x?", put to every road that can answer it.

φ(v) is the function as a scalar of one real vector: a scalar output itself, any other output through a
random cotangent, φ = Σ Re⟨w, f⟩.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.verify import roads, rules
from jaxnet.verify.differences import Lines
from jaxnet.verify.leaves import Arguments, float_leaves, take_apart
from jaxnet.verify.roads import Gradient, setting


@dataclass(frozen=True)
class Problem:
    """A function, a point and every road to its gradient there."""

    arguments: Arguments
    point: np.ndarray
    seed: int
    promoted: bool
    eps: float
    own_eps: float
    random: bool
    stops: bool
    lines: Lines
    roads: Mapping[str, Gradient]
    claimed: frozenset[int]
    forward: Callable[[np.ndarray], float] | None
    own_dtype: Callable[[], dict[str, np.ndarray]]
    remarks: list[str]

    @property
    def floor(self) -> float:
        """Relative difference that is never held against a road."""
        return max(1e-9, 50 * self.eps)

    @property
    def resolution(self) -> float:
        """Coarsest relative bound with which differences still decide anything."""
        return min(0.1, max(1e-4, 1e5 * self.eps))


@dataclass(frozen=True)
class Rounding:
    """How exactly φ and each element of its gradient are known at the point."""

    value: float
    gradient: np.ndarray


def pose(
    fn: Callable[..., Any], args: tuple[Any, ...], hand_written: Callable[..., Any] | None, seed: int
) -> Problem:
    """Put the question: promote `fn` to float64 if it can be, and find the roads that can be taken."""
    arguments = take_apart(fn, args)
    remarks: list[str] = []
    reduce = _scalar_of(fn, arguments, hand_written, seed)

    def phi_of(promoted: bool) -> Callable[[Any], Any]:
        device = roads.cpu()
        return lambda v: reduce(fn(*arguments.rebuild(arguments.unpack(v, promoted=promoted), device)))

    vector = arguments.vector()
    promoted, closed = _trace(phi_of, vector, remarks)
    own_eps = max(leaf.eps for leaf in arguments.leaves)
    eps = max(float(np.finfo(np.float64).eps) if promoted else own_eps, rules.narrowest(closed.jaxpr))
    if promoted and eps > np.finfo(np.float64).eps:
        remarks.append(f"float64: inside, the function rounds to eps {eps:.1e}; judged with that noise")
    names = {eqn.primitive.name for eqn in rules.equations(closed.jaxpr)}
    phi = phi_of(promoted)
    taken, forward = roads.find_roads(phi, closed, vector, promoted, hand_written is not None, remarks)
    claimed: frozenset[int] = frozenset()
    if hand_written is not None:
        # Taken in its own dtype first, so that a wrong claim is raised as the caller's mistake.
        claimed = roads.claims_of(hand_written, arguments)
        hand = roads.hand_road(hand_written, arguments, promoted, remarks)
        if hand is not None:
            taken[roads.HAND] = hand
    return Problem(
        arguments=arguments,
        point=vector,
        seed=seed,
        promoted=promoted,
        eps=eps,
        own_eps=max(own_eps, eps),
        random="random_bits" in names,
        stops="stop_gradient" in names,
        lines=Lines(lambda v, extra: phi(v)),
        roads=taken,
        claimed=claimed,
        forward=forward,
        own_dtype=lambda: roads.own_dtype(fn, reduce, arguments, hand_written),
        remarks=remarks,
    )


def _trace(
    phi_of: Callable[[bool], Callable[[Any], Any]], vector: np.ndarray, remarks: list[str]
) -> tuple[bool, Any]:
    """Whether φ can be promoted to float64, and its jaxpr."""
    try:
        with setting(True):
            return True, jax.make_jaxpr(phi_of(True))(vector)
    except Exception as error:  # whatever it raises: in its own dtype the function has just been traced
        remarks.append(
            f"float64: the function cannot be promoted ({roads.brief(error)}); judged in its own dtype, with "
            "the noise that has"
        )
    with setting(False):
        return False, jax.make_jaxpr(phi_of(False))(vector)


def _scalar_of(
    fn: Callable[..., Any], arguments: Arguments, hand_written: Callable[..., Any] | None, seed: int
) -> Callable[[Any], Any]:
    """How the output becomes a scalar. What `fn` raises for its own arguments comes through here."""

    def call(arrays: list[Any]) -> list[Any]:
        return float_leaves(fn(*arguments.rebuild(arrays)))

    shapes = jax.eval_shape(call, arguments.native())
    if not shapes:
        raise ValueError(
            "check_gradients needs a function with a float output; this one returns no array of float "
            "dtype. Return the loss, or the outputs whose gradient is meant."
        )
    if len(shapes) == 1 and shapes[0].shape == () and jnp.issubdtype(shapes[0].dtype, jnp.floating):
        return lambda output: jnp.asarray(float_leaves(output)[0]).astype(jnp.result_type(float))
    if hand_written is not None:
        raise ValueError(
            f"hand_written states the gradient of a scalar, but the function returns "
            f"{[(s.shape, str(s.dtype)) for s in shapes]}. Give the function that ends in a scalar."
        )
    rng = np.random.default_rng(seed & 0xFFFFFFFF)
    weights = []
    for output in jax.jit(call)(arguments.native()):
        size = np.abs(np.asarray(output).astype(np.complex128))
        weights.append(rng.standard_normal(output.shape) / (float(np.sqrt(np.mean(size**2))) or 1.0))

    def reduce(output: Any) -> Any:
        wide = jnp.result_type(float)
        total = jnp.zeros((), wide)
        for weight, leaf in zip(weights, float_leaves(output), strict=True):
            parts = [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]
            for part in parts:
                total += (part.astype(wide) * jnp.asarray(weight, wide)).sum()
        return total

    return reduce
