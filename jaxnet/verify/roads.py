"""The roads to a gradient: compiled once, then asked at any point, for any cotangent.

Every road is evaluated in float64 on the CPU with the highest matmul precision, so that what is judged is
the formula; the function's own dtype is asked separately. A road is a program of (v, w, extra): the point,
the cotangent and whatever else the outputs depend on, so that no seed compiles anything anew.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.verify import rules
from jaxnet.verify.leaves import Arguments, claimed_gradients

REFERENCE, OWN, HAND = "reference", "jax.grad", "hand"
Gradient = Callable[[np.ndarray], np.ndarray]
Outputs = Callable[[Any, Any], Any]  # outputs(v, extra) -> the float outputs as one real vector
UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
# Six times as fast to compile, and for most functions that is all the time there is.
_QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
_WORTH = 10**6  # elements that are calculated in the time it takes to compile one operation well
_GRADIENTS = 40  # that are taken in one examination by each program
_FORWARD_LIMIT = 4096  # elements for which a gradient is put together from forward-mode derivatives


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


def compiler_options(jaxpr: Any, runs: int = _GRADIENTS) -> dict[str, Any]:
    """How to compile a program that holds `jaxpr`: quickly, unless it calculates so much in so many runs."""
    elements, operations = rules.work(jaxpr)
    return {} if elements * runs > _WORTH * operations else _quick()


@functools.cache
def _quick() -> dict[str, Any]:
    """Those of the options that this version of XLA knows."""
    return {name: value for name, value in _QUICK.items() if _is_known({name: value})}


def _is_known(options: dict[str, Any]) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:
        return False
    return True


class Program:
    """A function of arrays, compiled; called as it is where it branches on values and cannot be traced."""

    def __init__(self, fn: Callable[..., Any], example: Sequence[Any], promoted: bool) -> None:
        """Compile for the shapes of `example`. What JAX raises for `fn` comes through."""
        self.promoted, self.jaxpr, self.reverse = promoted, None, True
        with setting(promoted):
            arrays = _arrays(example)
            try:
                traced = jax.jit(fn).trace(*arrays)
                self.jaxpr = traced.jaxpr.jaxpr
                self._run: Callable[..., Any] = traced.lower().compile(compiler_options(self.jaxpr))
            except UNTRACEABLE:
                fn(*arrays)
                self._run = fn

    @property
    def gradient_eps(self) -> float:
        """The machine epsilon of the last result's dtype, for a road the gradient's; 0 if it is unknown."""
        return 0.0 if self.jaxpr is None else float(jnp.finfo(self.jaxpr.outvars[-1].aval.dtype).eps)

    def __call__(self, *args: Any) -> Any:
        """The results as NumPy arrays, floats in float64."""
        with setting(self.promoted):
            return jax.tree.map(_wide, self._run(*_arrays(args)))


def pull(outputs: Outputs) -> Callable[..., Any]:
    """(v, w, extra) ↦ (y, ∇⟨w, y⟩) by reverse mode."""

    def run(v: Any, w: Any, extra: Any) -> Any:
        y, pullback = jax.vjp(lambda v: outputs(v, extra), v)
        return y, pullback(w)[0]

    return run


def push(outputs: Outputs) -> Callable[..., Any]:
    """(v, u, extra) ↦ J·u by forward mode."""
    return lambda v, u, extra: jax.jvp(lambda v: outputs(v, extra), (v,), (u,))[1]


def _pull_by_pushes(outputs: Outputs) -> Callable[..., Any]:
    """The same as `pull`, put together from one forward derivative per element."""

    def run(v: Any, w: Any, extra: Any) -> Any:
        def element(i: Any) -> Any:
            return (w * push(outputs)(v, (jnp.arange(v.size) == i).astype(v.dtype), extra)).sum()

        return outputs(v, extra), jax.lax.map(element, jnp.arange(v.size))

    return run


class Lazy:
    """A program that is compiled when it is first asked for, and then shared by all seeds."""

    def __init__(self, make: Callable[[Outputs], Callable[..., Any]]) -> None:
        """`make(outputs)` is the function to compile."""
        self._make = make
        self._program: Program | Exception | None = None

    def get(self, outputs: Outputs, example: Sequence[Any], promoted: bool) -> Program:
        """The program. What JAX raises for it comes through, each time."""
        if self._program is None:
            try:
                self._program = Program(self._make(outputs), example, promoted)
            except Exception as error:
                self._program = error
        if isinstance(self._program, Exception):
            raise self._program
        return self._program


def reverse(
    road: str, outputs: Outputs, example: Sequence[Any], promoted: bool, remarks: list[str]
) -> Program | Exception:
    """The gradient's program: in reverse mode, else in forward mode; else what JAX raised for the first."""
    try:
        return Program(pull(outputs), example, promoted)
    except Exception as error:  # no derivative: any of a dozen types, by primitive
        reason = error
    if np.size(example[0]) > _FORWARD_LIMIT:
        return reason
    try:
        program = Program(_pull_by_pushes(outputs), example, promoted)
    except Exception:
        return reason
    program.reverse = False
    remarks.append(f"{road}: no reverse mode ({brief(reason)}); taken in forward mode (jax.jvp)")
    return program


def _asks(
    hand_written: Callable[..., Any], arguments: Arguments, device: Any = None
) -> Callable[[Sequence[Any]], dict[int, Any]]:
    """The claims of `hand_written` as a function of the differentiable leaves."""

    def ask(arrays: Sequence[Any]) -> dict[int, Any]:
        args = arguments.rebuild(arrays, device)
        return claimed_gradients(arguments, hand_written(*args), len(args))

    return ask


def claims_of(hand_written: Callable[..., Any], arguments: Arguments) -> dict[int, Any]:
    """The dtypes of the gradients that `hand_written` returns, by the number of their leaf."""
    ask = _asks(hand_written, arguments)
    try:
        claims = jax.eval_shape(ask, arguments.native())
    except UNTRACEABLE:
        claims = ask(arguments.native())
    return {number: np.asarray(claim).dtype if not hasattr(claim, "dtype") else claim.dtype
            for number, claim in claims.items()}  # fmt: skip


def hand_road(
    hand_written: Callable[..., Any], arguments: Arguments, promoted: bool, remarks: list[str]
) -> Gradient | None:
    """The hand-written gradient as a road; None, with a remark, if it cannot be taken in float64."""
    ask = _asks(hand_written, arguments, cpu())

    def claims(v: Any) -> dict[int, Any]:
        return ask(arguments.unpack(v, promoted=promoted))

    def run(v: np.ndarray) -> np.ndarray:
        with setting(promoted):
            return fill(arguments, program(jax.device_put(v)))

    program: Callable[..., Any] = claims
    try:
        with setting(promoted):
            jaxpr = jax.make_jaxpr(claims)(arguments.vector()).jaxpr
        program = jax.jit(claims, compiler_options=compiler_options(jaxpr))
    except UNTRACEABLE:
        pass  # written in NumPy: called as it is
    except Exception as error:  # it has been taken in its own dtype: this one it cannot do
        remarks.append(f"{HAND}: not taken in float64 ({brief(error)}); its own dtype is judged")
        return None
    return run


def hand_own_dtype(hand_written: Callable[..., Any], arguments: Arguments) -> Gradient:
    """The hand-written gradient in the leaves' own dtype, at the rounded point."""
    ask = _asks(hand_written, arguments)
    program = jax.jit(ask)

    def run(v: np.ndarray) -> np.ndarray:
        arrays = arguments.round(v)
        try:
            return fill(arguments, program(arrays))
        except UNTRACEABLE:
            return fill(arguments, ask(arrays))

    return run


def fill(arguments: Arguments, claims: Mapping[int, Any]) -> np.ndarray:
    """Claims as one vector; zero, to be ignored, where a leaf has none."""
    return arguments.pack(
        [claims.get(number, np.zeros(leaf.shape)) for number, leaf in enumerate(arguments.leaves)]
    )


def cpu() -> Any:
    """The device on which everything but the own dtype is calculated."""
    return jax.local_devices(backend="cpu")[0]


def brief(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


def _arrays(args: Sequence[Any]) -> list[Any]:
    # Not jnp.asarray, which compiles a program for each shape.
    return [jax.device_put(arg) for arg in args]


def _wide(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.astype(np.float64, copy=False) if jnp.issubdtype(array.dtype, jnp.floating) else array
