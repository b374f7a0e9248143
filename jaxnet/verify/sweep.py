"""One kernel over all its shapes, dtypes and options."""

import contextlib
import functools
import inspect
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.verify.cases import build
from jaxnet.verify.check import check_gradients
from jaxnet.verify.progress import Progress
from jaxnet.verify.report import Report

_ORDER = ("fail", "raised", "undecided", "pass")  # the worst first


@dataclass(frozen=True)
class Combination:
    """One shape, dtype and set of options, and what came of it: a report, or what was raised."""

    shape: str
    dtype: str
    options: Mapping[str, Any]
    report: Report | None
    error: str | None

    @property
    def state(self) -> str:
        """The report's, or "raised"."""
        return "raised" if self.report is None else self.report.state

    def row(self) -> tuple[str, ...]:
        """The cells of its row."""
        start = (self.shape, self.dtype, *map(_brief, self.options.values()))
        if self.report is None:
            return (*start, "-", "-", "-", f"RAISED {self.error}")
        digits = [leaf.digits for leaf in self.report.leaves if leaf.digits is not None]
        own = [leaf.own_dtype_eps for leaf in self.report.leaves if leaf.own_dtype_eps is not None]
        return (
            *start,
            f"{min(digits):.1f}" if digits else "-",
            f"{max(own):.1f} eps" if own else "-",
            f"{self.report.seconds:.1f} s",
            self.state if self.report.ok else self.state.upper(),
        )


@dataclass(frozen=True)
class SweepReport:
    """What a sweep found. `str(report)` is a table of all combinations, then those in full that failed."""

    title: str
    combinations: tuple[Combination, ...]
    seconds: float

    @property
    def state(self) -> str:
        """The worst of the combinations: "fail" before "raised" before "undecided" before "pass"."""
        return min((c.state for c in self.combinations), key=_ORDER.index)

    @property
    def ok(self) -> bool:
        """Whether every combination passed."""
        return self.state == "pass"

    def __str__(self) -> str:
        """One row a combination, then the reports of those that did not pass."""
        states = [c.state for c in self.combinations]
        counts = ", ".join(f"{states.count(s)} {s}" for s in _ORDER if s in states)
        head = ("shapes", "dtype", *self.combinations[0].options, "digits", "own dtype", "time", "verdict")
        rows = [head, *(c.row() for c in self.combinations)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"{self.state.upper()}  {self.title}  {len(states)} combinations: {counts}  {self.seconds:.1f} s"]
        lines += ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        bad = [str(c.report) for c in self.combinations if c.report is not None and not c.report.ok]
        return "\n\n".join(["\n".join(lines), *bad])

    def to_json(self) -> str:
        """All of it as JSON."""
        combinations = [
            {**asdict(replace(c, report=None)), "options": {k: _brief(v) for k, v in c.options.items()}}
            | {"state": c.state, "report": c.report and json.loads(c.report.to_json())}
            for c in self.combinations
        ]
        content = {"state": self.state, "ok": self.ok, "title": self.title, "seconds": self.seconds}
        return json.dumps({**content, "combinations": combinations}, indent=1, ensure_ascii=False)


def sweep(
    fn: Callable[..., Any],
    *,
    shapes: Sequence[Any],
    dtypes: Sequence[Any] = ("float32",),
    options: Mapping[str, Sequence[Any]] | None = None,
    reference: Callable[..., Any] | None = None,
    seed: int = 0,
    **check: Any,
) -> SweepReport:
    """`check_gradients` of a kernel for every combination of shapes, dtypes and options.

    Args:
        fn: called as `fn(*arrays, **options)`.
        shapes: for each combination the shape of the one argument, or a list with an entry for each
            argument: a shape, whose array is drawn from the normal distribution, or anything else,
            passed as in `case`: a function of `seed` that makes it, or the value itself.
        dtypes: of the arrays drawn. For a 64-bit dtype x64 is turned on meanwhile.
        options: the values to try of each keyword of `fn`.
        reference: the plain form of `fn`. It is given those of the options that it has a parameter for.
        seed: of the arrays and of the check.
        **check: options of `check_gradients`.

    Returns:
        A `SweepReport`: `.ok`, `.state`, `.combinations`, `str(report)`, `.to_json()`. A combination for
        which `fn` raises is "raised", which is not ok.

    Raises:
        ValueError: nothing to sweep over, or a dtype that has no gradient.

    Example:
        >>> report = sweep(swish, shapes=[(8, 128), (7, 5)], dtypes=["float32", "bfloat16"],
        ...                options={"block": [4, 8]}, reference=jax.nn.swish)
        >>> report.ok
        True
    """
    kinds = [_dtype(dtype) for dtype in dtypes]
    chosen = [dict(zip(options or {}, v, strict=True)) for v in itertools.product(*(options or {}).values())]
    combinations = list(itertools.product([_arguments(shape) for shape in shapes], kinds, chosen))
    if not combinations:
        raise ValueError(
            f"sweep needs at least one shape, dtype and value of each option; got shapes={shapes!r}, "
            f"dtypes={dtypes!r}, options={options!r}."
        )
    began, done = time.perf_counter(), []
    name = getattr(fn, "__name__", type(fn).__name__)
    with Progress(f"sweep {name}", len(combinations)) as progress:
        for arguments, dtype, values in combinations:
            text = ", ".join(
                [
                    " ".join(_text(a) for a in arguments),
                    dtype.name,
                    *map("{}={!r}".format, values, values.values()),
                ]
            )
            progress.step(text)
            done.append(_combination(fn, arguments, dtype, values, reference, seed, f"{name}({text})", check))
    return SweepReport(name, tuple(done), time.perf_counter() - began)


def _combination(
    fn: Callable[..., Any],
    arguments: tuple[Any, ...],
    dtype: Any,
    options: Mapping[str, Any],
    reference: Callable[..., Any] | None,
    seed: int,
    title: str,
    check: Mapping[str, Any],
) -> Combination:
    shape = " ".join(_text(argument) for argument in arguments)
    if reference is not None:
        check = {**check, "reference": functools.partial(reference, **_taken(reference, options))}
    try:
        with _x64(dtype):
            makers = tuple(functools.partial(_draw, a, dtype) if _is_shape(a) else a for a in arguments)
            args = build(makers, seed)
            report = check_gradients(functools.partial(fn, **options), *args, seed=seed, **check)
    except Exception as error:  # of the function, for this combination: the others are still worth knowing
        first = next(iter(str(error).strip().splitlines()), "")
        return Combination(shape, dtype.name, options, None, f"{type(error).__name__}: {first}")
    return Combination(shape, dtype.name, options, replace(report, title=title), None)


def _arguments(shape: Any) -> tuple[Any, ...]:
    """A shape alone stands for one argument."""
    return (tuple(shape),) if _is_shape(shape) else tuple(shape)


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(size, int | np.integer) for size in value)


def _text(argument: Any) -> str:
    return str(tuple(argument)) if _is_shape(argument) else _brief(argument)


def _brief(value: Any) -> str:
    """A value in a few words: the name of a function, the kind of an array."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    text = getattr(value, "__name__", None) or repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _dtype(dtype: Any) -> Any:
    kind = jnp.dtype(dtype)
    if not jnp.issubdtype(kind, jnp.inexact):
        raise ValueError(
            f"sweep draws arrays of float or complex dtype; got {kind.name} in dtypes. Give an argument of "
            "integers in shapes, as a function that makes it."
        )
    return kind


def _draw(shape: Sequence[int], dtype: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    draw = rng.standard_normal(shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jnp.asarray(draw + 1j * rng.standard_normal(shape), dtype)
    return jnp.asarray(draw, dtype)


def _taken(reference: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that `reference` has a parameter for: the plain form of a kernel has no block size."""
    parameters = inspect.signature(reference).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(options)
    return {name: value for name, value in options.items() if name in parameters}


@contextlib.contextmanager
def _x64(dtype: Any) -> Iterator[None]:
    if dtype.name not in ("float64", "complex128"):
        yield
        return
    with jax.enable_x64(True):
        yield
