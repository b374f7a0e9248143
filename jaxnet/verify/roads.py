"""One question, "what is the gradient of φ at x?", put to every road that can answer it.

φ(v) is the function as a scalar of one real vector: a scalar output itself, any other output through a
random cotangent, φ = Σ Re⟨w, f⟩. It is evaluated in float64 on the CPU with the highest matmul
precision, so that what is judged is the formula; the function's own dtype is asked separately.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.verify import rules
from jaxnet.verify.differences import Lines
from jaxnet.verify.leaves import Arguments, claimed_gradients, float_leaves, take_apart

REFERENCE, OWN, HAND = "reference", "jax.grad", "hand"
Gradient = Callable[[np.ndarray], np.ndarray]
_UNTRACEABLE = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)


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


@contextlib.contextmanager
def setting(promoted: bool) -> Iterator[None]:
    """Exact arithmetic on the CPU; float64 if `promoted`. The caller's settings come back afterwards."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.default_matmul_precision("highest"))
        stack.enter_context(jax.default_device(_cpu()))
        if promoted:
            stack.enter_context(jax.enable_x64(True))
            # Data that the function closes over stays in its own dtype and must widen silently.
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
        yield


def pose(
    fn: Callable[..., Any], args: tuple[Any, ...], hand_written: Callable[..., Any] | None, seed: int
) -> Problem:
    """Put the question: promote `fn` to float64 if it can be, and find the roads that can be taken."""
    arguments = take_apart(fn, args)
    remarks: list[str] = []
    reduce = _scalar_of(fn, arguments, hand_written, seed)

    def phi_of(promoted: bool) -> Callable[[Any], Any]:
        device = _cpu()
        return lambda v: reduce(fn(*arguments.rebuild(arguments.unpack(v, promoted=promoted), device)))

    vector = arguments.vector()
    promoted = True
    try:
        with setting(True):
            closed = jax.make_jaxpr(phi_of(True))(vector)
    except Exception as error:  # whatever it raises: in its own dtype the function has just been traced
        promoted = False
        remarks.append(
            f"float64: the function cannot be promoted ({_brief(error)}); judged in its own dtype, with "
            "the noise that has"
        )
        with setting(False):
            closed = jax.make_jaxpr(phi_of(False))(vector)
    own_eps = max(leaf.eps for leaf in arguments.leaves)
    eps = max(float(np.finfo(np.float64).eps) if promoted else own_eps, rules.narrowest(closed.jaxpr))
    if promoted and eps > np.finfo(np.float64).eps:
        remarks.append(f"float64: inside, the function rounds to eps {eps:.1e}; judged with that noise")
    names = {eqn.primitive.name for eqn in rules.equations(closed.jaxpr)}
    phi = phi_of(promoted)
    roads, forward = _find_roads(phi, closed, vector, promoted, hand_written is not None, remarks)
    claimed: frozenset[int] = frozenset()
    if hand_written is not None:
        # Taken in its own dtype first, so that a wrong claim is raised as the caller's mistake.
        claimed = _claimed(hand_written, arguments)
        hand = _hand_road(hand_written, arguments, promoted, remarks)
        if hand is not None:
            roads[HAND] = hand
    return Problem(
        arguments=arguments,
        point=vector,
        seed=seed,
        promoted=promoted,
        eps=eps,
        own_eps=max(own_eps, eps),
        random="random_bits" in names,
        stops="stop_gradient" in names,
        lines=Lines(phi),
        roads=roads,
        claimed=claimed,
        forward=forward,
        own_dtype=lambda: _own_dtype(fn, reduce, arguments, hand_written),
        remarks=remarks,
    )


def _find_roads(
    phi: Callable[[Any], Any],
    closed: Any,
    vector: np.ndarray,
    promoted: bool,
    has_hand: bool,
    remarks: list[str],
) -> tuple[dict[str, Gradient], Callable[[np.ndarray], float] | None]:
    """The function's own derivative, and autodiff of it without its custom rules."""
    plain = rules.stripped(closed)
    roads: dict[str, Gradient] = {}
    own = _compile(phi, vector, promoted)
    if isinstance(own, Exception):
        if not has_hand:
            raise own
        remarks.append(f"{OWN}: not taken ({_brief(own)})")
    else:
        roads[OWN] = lambda v: own(v)[1]
    if rules.has_rules(closed.jaxpr):
        reference = _compile(lambda v: plain(v)[0], vector, promoted)
        if isinstance(reference, Exception):
            remarks.append(f"{REFERENCE}: not taken ({_brief(reference)})")
        else:
            roads[REFERENCE] = lambda v: reference(v)[1]
    elif OWN in roads:
        roads[REFERENCE] = roads[OWN]
        remarks.append(f"the function has no custom rule: {REFERENCE} and {OWN} are one road")
    forward = None if isinstance(own, Exception) else lambda v: own(v)[0]
    return roads, forward


def _compile(
    phi: Callable[[Any], Any], vector: np.ndarray, promoted: bool
) -> Callable[[np.ndarray], tuple[float, np.ndarray]] | Exception:
    """Value and gradient as one program, or what JAX raises for it."""
    try:
        with setting(promoted):
            program = jax.jit(jax.value_and_grad(phi)).lower(jnp.asarray(vector)).compile()
    except Exception as error:  # no derivative: any of a dozen types, by primitive
        return error

    def run(v: np.ndarray) -> tuple[float, np.ndarray]:
        with setting(promoted):
            value, gradient = program(jnp.asarray(v))
            return float(value), np.asarray(gradient, np.float64)

    return run


def _asks(
    hand_written: Callable[..., Any], arguments: Arguments, device: Any = None
) -> Callable[[Sequence[Any]], dict[int, Any]]:
    """The claims of `hand_written` as a function of the differentiable leaves."""

    def ask(arrays: Sequence[Any]) -> dict[int, Any]:
        args = arguments.rebuild(arrays, device)
        return claimed_gradients(arguments, hand_written(*args), len(args))

    return ask


def _claimed(hand_written: Callable[..., Any], arguments: Arguments) -> frozenset[int]:
    """The leaves for which `hand_written` returns a gradient."""
    ask = _asks(hand_written, arguments)
    try:
        return frozenset(jax.eval_shape(ask, arguments.native()))
    except _UNTRACEABLE:
        return frozenset(ask(arguments.native()))


def _hand_road(
    hand_written: Callable[..., Any], arguments: Arguments, promoted: bool, remarks: list[str]
) -> Gradient | None:
    ask = _asks(hand_written, arguments, _cpu())

    def claims(v: Any) -> dict[int, Any]:
        return ask(arguments.unpack(v, promoted=promoted))

    def run(v: np.ndarray) -> np.ndarray:
        with setting(promoted):
            return _fill(arguments, program(jnp.asarray(v)))

    program: Callable[..., Any] = jax.jit(claims)
    try:
        with setting(promoted):
            jax.eval_shape(claims, arguments.vector())
    except _UNTRACEABLE:
        program = claims  # written in NumPy: called as it is
    except Exception as error:  # it has been taken in its own dtype: this one it cannot do
        remarks.append(f"{HAND}: not taken in float64 ({_brief(error)}); its own dtype is judged")
        return None
    return run


def _own_dtype(
    fn: Callable[..., Any],
    reduce: Callable[[Any], Any],
    arguments: Arguments,
    hand_written: Callable[..., Any] | None,
) -> dict[str, np.ndarray]:
    """Gradients as the caller would get them: own dtype, own device, own settings."""
    program = jax.jit(jax.grad(lambda arrays: reduce(fn(*arguments.rebuild(arrays)))))
    found: dict[str, np.ndarray] = {}
    try:
        found[OWN] = arguments.pack(program(arguments.native()))
    except Exception:
        if hand_written is None:
            raise
    if hand_written is not None:
        found[HAND] = _own_dtype_hand(hand_written, arguments)
    return found


def _own_dtype_hand(hand_written: Callable[..., Any], arguments: Arguments) -> np.ndarray:
    ask = _asks(hand_written, arguments)
    try:
        return _fill(arguments, jax.jit(ask)(arguments.native()))
    except _UNTRACEABLE:
        return _fill(arguments, ask(arguments.native()))


def _fill(arguments: Arguments, claims: Mapping[int, Any]) -> np.ndarray:
    """Claims as one vector; zero, to be ignored, where a leaf has none."""
    return arguments.pack(
        [claims.get(number, np.zeros(leaf.shape)) for number, leaf in enumerate(arguments.leaves)]
    )


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


def _cpu() -> Any:
    return jax.local_devices(backend="cpu")[0]


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:120]}"
