"""How the question is put: in float64 if the function can be promoted, by every road that can be taken."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxnet.verify import roads, rules
from jaxnet.verify.differences import Lines
from jaxnet.verify.leaves import Arguments, take_apart
from jaxnet.verify.outputs import Flattened, outputs_of, takes
from jaxnet.verify.problem import FLOAT64, Options, Problem
from jaxnet.verify.roads import OWN, REFERENCE, UNTRACEABLE, Outputs, Program, brief, setting


def pose(fn: Callable[..., Any], args: tuple[Any, ...], options: Options, seed: int) -> Problem:
    """Put the question: promote `fn` to float64 if it can be, and find the roads that can be taken."""
    takes(fn, args)
    arguments = take_apart(fn, args, options.constant)
    spec = outputs_of(fn, arguments)
    if options.hand_written is not None and not spec.scalar:
        raise ValueError(
            f"hand_written states the gradient of a scalar, but the function returns {spec.text}. "
            "Give the function that ends in a scalar."
        )
    if options.reference is not None:
        other = outputs_of(options.reference, arguments, "reference")
        if [s.shape for s in other.shapes] != [s.shape for s in spec.shapes]:
            raise ValueError(
                f"reference returns {other.text}, but the function {spec.text}: they must have the same shapes."
            )
    remarks: list[str] = []
    try:
        return _pose(fn, arguments, spec, options, seed, True, remarks)
    except UnpromotableError as reason:
        remarks = [
            f"float64: the function cannot be promoted ({reason}); judged in its own dtype, with the noise that "
            "has. A reference= in plain JAX would be judged in float64"
        ]
        return _pose(fn, arguments, spec, options, seed, False, remarks)


class UnpromotableError(Exception):
    """The question cannot be put in float64."""


def _pose(
    fn: Callable[..., Any],
    arguments: Arguments,
    spec: Flattened,
    options: Options,
    seed: int,
    promoted: bool,
    remarks: list[str],
) -> Problem:
    vector = arguments.vector()
    outputs = _as_vector(fn, arguments, spec, promoted)
    judged = outputs if options.reference is None else _as_vector(options.reference, arguments, spec, promoted)
    closed = _trace(judged, vector, promoted)
    example = (vector, np.zeros(spec.size), ())
    taken = roads.reverse(OWN, outputs, example, promoted, remarks)
    own_eps = max(leaf.eps for leaf in arguments.leaves)
    own, plain, reason = _choose(judged, closed, taken, example, options, promoted, own_eps, remarks)
    claims: dict[int, Any] = {}
    hand = None
    if options.hand_written is not None:
        # Taken in its own dtype first, so that a wrong claim is raised as the caller's mistake.
        claims = roads.claims_of(options.hand_written, arguments)
        hand = roads.hand_road(options.hand_written, arguments, promoted, remarks)
    if own is None and plain is None and hand is None and isinstance(taken, Exception):
        if promoted:
            raise UnpromotableError(brief(taken))
        if closed is None or not rules.has_rules(closed.jaxpr):
            taken.add_note("check_gradients: JAX has no derivative of this function, in neither mode. Give it one "
                           "by jax.custom_jvp or jax.custom_vjp, or state it by hand_written=.")  # fmt: skip
            raise taken
    inside = rules.narrowest_of([closed and closed.jaxpr, own and own.jaxpr])
    eps = max(FLOAT64 if promoted else own_eps, inside, options.nondeterminism)
    if promoted and inside > FLOAT64:
        remarks.append(f"float64: inside, the function rounds to eps {inside:.1e}; judged with that noise")
    program = own or plain
    try:
        y = np.zeros_like(example[1]) if program is None else program(*example)[0]
    except jax.errors.JaxRuntimeError as error:  # a callback that knows one dtype
        if promoted:
            raise UnpromotableError(brief(error)) from error
        raise
    if program is None and not spec.scalar:
        y = Program(judged, (vector, ()), promoted)(vector, ())
    return Problem(
        fn=fn,
        options=options,
        arguments=arguments,
        spec=spec,
        point=vector,
        seed=seed,
        promoted=promoted,
        eps=eps,
        own_eps=max(own_eps, eps),
        closed=closed,
        outputs=outputs,
        along=Lines(lambda v, given: (given[0] * judged(v, given[1])).sum(), closed),
        own=own,
        plain=plain,
        hand=hand,
        claimed=frozenset(claims),
        weights=spec.weights(y, seed),
        remarks=remarks,
        own_reason=reason,
    )


def _choose(
    judged: Outputs,
    closed: Any,
    taken: Program | Exception,
    example: Sequence[Any],
    options: Options,
    promoted: bool,
    own_eps: float,
    remarks: list[str],
) -> tuple[Program | None, Program | None, str | None]:
    """The programs of the function's own derivative and of the plain one, and why the former is missing."""
    reason = brief(taken) if isinstance(taken, Exception) else None
    plain: Program | Exception | None = None
    if options.reference is not None:
        plain = roads.reverse(REFERENCE, judged, example, promoted, remarks)
    elif closed is not None and rules.has_plain_form(closed.jaxpr):
        stripped = rules.stripped(closed)
        plain = roads.reverse(REFERENCE, lambda v, extra: stripped(v)[0], example, promoted, remarks)
    if isinstance(plain, Exception):
        remarks.append(f"{REFERENCE}: not taken ({brief(plain)})")
        plain = None
    own = None if isinstance(taken, Exception) else taken
    if own is not None and plain is not None:
        rounds = max(rules.narrowest_of([own.jaxpr]), own.gradient_eps)
        if rounds > max(FLOAT64 if promoted else own_eps, rules.narrowest_of([closed and closed.jaxpr])):
            own, reason = None, f"its rule rounds to eps {rounds:.1e}"
    if own is None and plain is not None:
        remarks.append(f"{OWN}: not taken in float64 ({reason}); its own dtype is judged")
    if own is not None and plain is None and options.reference is None and closed is not None \
            and not rules.has_rules(closed.jaxpr):  # fmt: skip
        plain = own
        remarks.append(f"the function has no custom rule: {REFERENCE} and {OWN} are one road")
    return own, plain, reason


def _as_vector(fn: Callable[..., Any], arguments: Arguments, spec: Flattened, promoted: bool) -> Outputs:
    device = roads.cpu()

    def outputs(v: Any, extra: Any) -> Any:
        return spec.flatten(fn(*arguments.rebuild(arguments.unpack(v, promoted=promoted), device)))

    return outputs


def _trace(outputs: Outputs, vector: np.ndarray, promoted: bool) -> Any:
    """The outputs' jaxpr as a function of the vector; None if they branch on values."""
    try:
        with setting(promoted):
            return jax.make_jaxpr(lambda v: outputs(v, ()))(vector)
    except UNTRACEABLE:
        return None
    except Exception as error:  # whatever it raises: in its own dtype the function has just been traced
        if promoted:
            raise UnpromotableError(brief(error)) from error
        raise
