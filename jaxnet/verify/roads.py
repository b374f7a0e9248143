"""The roads to a gradient: compiled once, then asked at any point.

Every road is evaluated in float64 on the CPU with the highest matmul precision, so that what is judged is
the formula; the function's own dtype is asked separately.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.verify import rules
from jaxnet.verify.leaves import Arguments, claimed_gradients

REFERENCE, OWN, HAND = "reference", "jax.grad", "hand"
Gradient = Callable[[np.ndarray], np.ndarray]
_UNTRACEABLE = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)


@contextlib.contextmanager
def setting(promoted: bool) -> Iterator[None]:
    """Exact arithmetic on the CPU; float64 if `promoted`. The caller's settings come back afterwards."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.default_matmul_precision("highest"))
        stack.enter_context(jax.default_device(cpu()))
        if promoted:
            stack.enter_context(jax.enable_x64(True))
            # Data that the function closes over stays in its own dtype and must widen silently.
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
        yield


def find_roads(
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
        remarks.append(f"{OWN}: not taken ({brief(own)})")
    else:
        roads[OWN] = lambda v: own(v)[1]
    if rules.has_rules(closed.jaxpr):
        reference = _compile(lambda v: plain(v)[0], vector, promoted)
        if isinstance(reference, Exception):
            remarks.append(f"{REFERENCE}: not taken ({brief(reference)})")
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


def claims_of(hand_written: Callable[..., Any], arguments: Arguments) -> frozenset[int]:
    """The leaves for which `hand_written` returns a gradient."""
    ask = _asks(hand_written, arguments)
    try:
        return frozenset(jax.eval_shape(ask, arguments.native()))
    except _UNTRACEABLE:
        return frozenset(ask(arguments.native()))


def hand_road(
    hand_written: Callable[..., Any], arguments: Arguments, promoted: bool, remarks: list[str]
) -> Gradient | None:
    """The hand-written gradient as a road; None, with a remark, if it cannot be taken in float64."""
    ask = _asks(hand_written, arguments, cpu())

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
        remarks.append(f"{HAND}: not taken in float64 ({brief(error)}); its own dtype is judged")
        return None
    return run


def own_dtype(
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


def cpu() -> Any:
    """The device on which everything but the own dtype is calculated."""
    return jax.local_devices(backend="cpu")[0]


def brief(error: Exception) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:120]}"
