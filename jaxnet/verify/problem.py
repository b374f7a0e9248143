"""One question, "what is the gradient of φ at x?", put to every road that can answer it.

φ(v) = ⟨w, y(v)⟩ is the function as a scalar of one real vector: y are its float outputs, w is 1 for a scalar
output and a random cotangent for any other.
"""

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.verify import complex_step, frozen, roads, rules
from jaxnet.verify.differences import Lines, directions
from jaxnet.verify.leaves import Arguments, float_leaves, take_apart
from jaxnet.verify.roads import (
    HAND,
    OWN,
    REFERENCE,
    UNTRACEABLE,
    Gradient,
    Lazy,
    Outputs,
    Program,
    brief,
    pull,
    push,
    setting,
)

_FLOAT64 = float(np.finfo(np.float64).eps)


def nothing(point: np.ndarray) -> Any:
    """What outputs depend on beside the point: usually nothing."""
    return ()


@dataclass(frozen=True)
class Options:
    """What the caller of a check states; see `check_gradients`."""

    reference: Callable[..., Any] | None = None
    hand_written: Callable[..., Any] | None = None
    constant: Sequence[str | int] = ()
    nondeterminism: float = 0.0
    rtol: float = 0.0
    atol: float = 0.0
    order: int = 1
    around: str | Sequence[str] = ()


@dataclass(frozen=True)
class Flattened:
    """The float outputs of a function: their shapes, and how they become one real vector."""

    shapes: tuple[Any, ...]

    @property
    def scalar(self) -> bool:
        """Whether there is one output, a real number: φ itself."""
        return (
            len(self.shapes) == 1
            and self.shapes[0].shape == ()
            and jnp.issubdtype(self.shapes[0].dtype, jnp.floating)
        )

    def flatten(self, output: Any) -> Any:
        """The outputs in the widest float dtype there is; a complex one as pairs of real numbers."""
        found = float_leaves(output)
        if [jnp.shape(leaf) for leaf in found] != [s.shape for s in self.shapes]:
            raise ValueError(f"the outputs have shapes {[jnp.shape(v) for v in found]}, not {self.text}")
        parts = []
        for leaf in map(jnp.asarray, found):
            real = jnp.stack([leaf.real, leaf.imag], axis=-1) if jnp.iscomplexobj(leaf) else leaf
            parts.append(real.reshape(-1).astype(jnp.result_type(float)))
        return jnp.concatenate(parts)

    def weights(self, y: np.ndarray, seed: int) -> np.ndarray:
        """The cotangent: normal random numbers over each output's RMS, rounded to the output's dtype."""
        if self.scalar:
            return np.ones(1)
        rng = np.random.default_rng(seed & 0xFFFFFFFF)
        weights, start = [], 0
        for s in self.shapes:
            pairs = 2 if jnp.issubdtype(s.dtype, jnp.complexfloating) else 1
            part = y[start : start + pairs * int(np.prod(s.shape))]
            start += part.size
            size = float(np.sqrt(pairs * np.mean(np.where(np.isfinite(part), part, 0) ** 2)))
            draw = rng.standard_normal(part.size) / (size or 1.0)
            weights.append(draw.astype(jnp.finfo(s.dtype).dtype).astype(np.float64))
        return np.nan_to_num(np.concatenate(weights))

    @property
    def text(self) -> str:
        """The outputs' shapes and dtypes in words."""
        return str([(s.shape, str(s.dtype)) for s in self.shapes])


@dataclass(frozen=True)
class Problem:
    """A function, a point and every road to its gradient there. Nothing that is compiled knows the seed."""

    fn: Callable[..., Any]
    options: Options
    arguments: Arguments
    spec: Flattened
    point: np.ndarray
    seed: int
    promoted: bool
    eps: float
    own_eps: float
    closed: Any
    outputs: Outputs
    along: Lines
    own: Program | None
    plain: Program | None
    hand: Gradient | None
    claimed: frozenset[int]
    weights: np.ndarray
    remarks: list[str]
    own_reason: str | None = None
    forward_mode: Lazy = field(default_factory=lambda: Lazy(push))
    complex_mode: Lazy = field(default_factory=lambda: Lazy(complex_step.push))
    batched: Lazy = field(default_factory=lambda: Lazy(lambda outputs: jax.vmap(pull(outputs))))
    extra: Callable[[np.ndarray], Any] = nothing
    line_extra: Callable[[np.ndarray], Any] = nothing
    inner: Callable[[np.ndarray], Any] = nothing  # of the second order: what the first depended on
    _pulled: dict[tuple[int, int], Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def floor(self) -> float:
        """Relative difference that is never held against a road."""
        return max(1e-9, 50 * self.eps, self.options.rtol)

    @property
    def resolution(self) -> float:
        """Coarsest relative bound with which differences still decide anything."""
        return max(min(0.1, max(1e-4, 1e5 * self.eps)), 2 * self.options.rtol)

    @property
    def reverse_mode(self) -> bool:
        """Whether jax.grad is not known to be impossible."""
        return self.own is None or self.own.reverse

    @property
    def random(self) -> bool:
        """Whether the function draws random numbers."""
        return self.has("random_bits")

    @property
    def stops(self) -> bool:
        """Whether the function has a stop_gradient."""
        return self.closed is not None and frozen.has_stops(self.closed.jaxpr)

    @functools.cached_property
    def table(self) -> np.ndarray:
        """The directions at the point."""
        return directions(self.arguments.leaves, self.point, self.seed)

    @functools.cached_property
    def longest_sum(self) -> int:
        """Number of terms of the longest sum in the function, as far as that is known."""
        return 1 if self.closed is None else rules.longest_sum(self.closed.jaxpr)

    def has(self, primitive: str) -> bool:
        """Whether a primitive of that name occurs in the function."""
        return self.closed is not None and any(
            eqn.primitive.name == primitive for eqn in rules.equations(self.closed.jaxpr)
        )

    @property
    def lines(self) -> Lines:
        """φ along lines through a point."""
        return self.along.given(lambda point: (self.weights, self.line_extra(point)))

    @property
    def roads(self) -> Mapping[str, Gradient]:
        """The gradient of φ by every road that can be taken."""
        found: dict[str, Gradient] = {}
        for road, program in ((OWN, self.own), (REFERENCE, self.plain)):
            if program is not None:
                found[road] = self._gradient_by(program)
        if self.hand is not None:
            found[HAND] = self.hand
        return found

    def pulled(self, program: Program, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The outputs and their gradient at `v` by a program, calculated once while `v` exists."""
        key = id(program), id(v)
        if key not in self._pulled:
            self._pulled[key] = program(v, self.weights, self.extra(v))
            weakref.finalize(v, self._pulled.pop, key, None)
        return self._pulled[key]

    def _gradient_by(self, program: Program) -> Gradient:
        return lambda v: self.pulled(program, v)[1]

    @property
    def forward(self) -> Callable[[np.ndarray], float] | None:
        """φ as the forward pass under jax.grad returns it."""
        own = self.own
        return None if own is None else lambda v: float(self.weights @ self.pulled(own, v)[0])

    def seeded(self, seed: int) -> "Problem":
        """The same problem with another seed, and nothing compiled anew."""
        program = self.own or self.plain
        y = self.weights if program is None else program(self.point, self.weights, self.extra(self.point))[0]
        return replace(self, seed=seed, weights=self.spec.weights(y, seed), remarks=list(self.remarks))


@dataclass(frozen=True)
class Rounding:
    """How exactly φ and each element of its gradient are known at the point."""

    value: float
    gradient: np.ndarray


def pose(fn: Callable[..., Any], args: tuple[Any, ...], options: Options, seed: int) -> Problem:
    """Put the question: promote `fn` to float64 if it can be, and find the roads that can be taken."""
    _takes(fn, args)
    arguments = take_apart(fn, args, options.constant)
    spec = _outputs_of(fn, arguments)
    if options.hand_written is not None and not spec.scalar:
        raise ValueError(
            f"hand_written states the gradient of a scalar, but the function returns {spec.text}. "
            "Give the function that ends in a scalar."
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
    example = (vector, np.zeros(sum(_count(s) for s in spec.shapes)), ())
    taken = roads.reverse(OWN, outputs, example, promoted, remarks)
    own, plain, reason = _choose(judged, closed, taken, example, options, promoted, remarks)
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
    own_eps = max(leaf.eps for leaf in arguments.leaves)
    inside = rules.narrowest_of([closed and closed.jaxpr, own and own.jaxpr])
    eps = max(_FLOAT64 if promoted else own_eps, inside, options.nondeterminism)
    if promoted and inside > _FLOAT64:
        remarks.append(f"float64: inside, the function rounds to eps {inside:.1e}; judged with that noise")
    program = own or plain
    y = np.zeros_like(example[1]) if program is None else program(*example)[0]
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
    remarks: list[str],
) -> tuple[Program | None, Program | None, str | None]:
    """The programs of the function's own derivative and of the plain one, and why the former is missing."""
    reason = brief(taken) if isinstance(taken, Exception) else None
    plain: Program | Exception | None = None
    if options.reference is not None:
        plain = roads.reverse(REFERENCE, judged, example, promoted, remarks)
    elif closed is not None and rules.has_rules(closed.jaxpr):
        stripped = rules.stripped(closed)
        plain = roads.reverse(REFERENCE, lambda v, extra: stripped(v)[0], example, promoted, remarks)
    if isinstance(plain, Exception):
        remarks.append(f"{REFERENCE}: not taken ({brief(plain)})")
        plain = None
    own = None if isinstance(taken, Exception) else taken
    if own is not None and plain is not None:
        rounds = max(rules.narrowest_of([own.jaxpr]), own.gradient_eps)
        if rounds > max(_FLOAT64 if promoted else 0.0, rules.narrowest_of([closed and closed.jaxpr])):
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


def _takes(fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Say which arguments `fn` needs, before anything inside it fails for want of them."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args)
    except TypeError as error:
        name = getattr(fn, "__name__", type(fn).__name__)
        raise TypeError(
            f"check_gradients calls {name}{signature} with the {len(args)} arguments after it: {error}. Pass all "
            f"of them, check_gradients({name}, {', '.join(signature.parameters)}), and bind keywords by "
            "functools.partial."
        ) from None


def _outputs_of(fn: Callable[..., Any], arguments: Arguments) -> Flattened:
    """The float outputs. What `fn` itself raises comes through, with a note."""

    def call(arrays: list[Any]) -> list[Any]:
        return [jnp.asarray(leaf) for leaf in float_leaves(fn(*arguments.rebuild(arrays)))]

    try:
        try:
            shapes = jax.eval_shape(call, arguments.native())
        except UNTRACEABLE:  # it branches on values
            shapes = call(arguments.native())
    except Exception as error:
        got = [f"{leaf.name}: {leaf.dtype}{list(leaf.shape)}" for leaf in arguments.leaves]
        error.add_note(
            "check_gradients: the function itself raises this for these arguments, before any derivative. Pass "
            f"what it can be called with; got {', '.join(got)}."
        )
        raise
    if not shapes:
        raise ValueError(
            "check_gradients needs a function with a float output; this one returns no array of float "
            "dtype. Return the loss, or the outputs whose gradient is meant."
        )
    return Flattened(tuple(jax.ShapeDtypeStruct(s.shape, s.dtype) for s in shapes))


def _count(shape: Any) -> int:
    return int(np.prod(shape.shape)) * (2 if jnp.issubdtype(shape.dtype, jnp.complexfloating) else 1)
