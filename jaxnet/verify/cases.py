"""Functions marked with the arguments to check them at, for `jaxnet verify` and pytest to find."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxnet.verify.check import check_gradients
from jaxnet.verify.report import Report

MARK = "__verify_cases__"
F = TypeVar("F", bound=Callable[..., Any])


class Mark(NamedTuple):
    """What one `@case` notes on a function."""

    name: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A function, the name it goes by, the arguments to check it at and the options of the check."""

    function: Callable[..., Any]
    called: str
    name: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]

    @property
    def title(self) -> str:
        """`function[case]`."""
        return f"{self.called}[{self.name}]"

    def seed(self, **options: Any) -> int:
        """The seed that a check with these options uses."""
        return int({**self.options, **options}.get("seed", 0))

    def build(self, **options: Any) -> tuple[Any, ...]:
        """The arguments that a check with these options uses."""
        return build(self.arguments, self.seed(**options))

    def check(self, **options: Any) -> Report:
        """`check_gradients` at the case's arguments; `options` go before those of the case."""
        report = check_gradients(self.function, *self.build(**options), **{**self.options, **options})
        return dataclasses.replace(report, title=self.title)


def case(*arguments: Any, name: str = "", **options: Any) -> Callable[[F], F]:
    """Mark a function to be checked at `arguments`; the function stays as it is. Several marks stack.

    `jaxnet verify FILE` checks the marked functions of a file, and pytest collects those in test files
    as tests. Marking calls nothing and makes no arrays, if the arguments are given by functions.

    Args:
        *arguments: what to call the function with. A function of no argument, or of one that is named
            `seed`, is called when the check runs, and its result passed; each argument gets a seed of
            its own. If there is but one such function and it returns a tuple, these are all the
            arguments. (To pass a function itself, give one that returns it.)
        name: of the case; by default its number, from the top.
        **options: those of `check_gradients`, such as `order=2` or `reference=plain`.

    Returns:
        A decorator that returns the function it is given.

    Raises:
        TypeError: an option that `check_gradients` does not have, or something that can't be marked.
        ValueError: another case of the function has that name.

    Example:
        >>> @case(lambda seed: jax.random.normal(jax.random.key(seed), (8, 16)))
        ... @jax.custom_vjp
        ... def swish(x): ...
    """
    if unknown := sorted(set(options) - check_options()):
        raise TypeError(
            f"case got {', '.join(unknown)}, which check_gradients does not take; its options are "
            f"{', '.join(sorted(check_options()))}. Bind the function's own options by functools.partial."
        )

    def mark(function: F) -> F:
        others = getattr(function, MARK, ())
        if name and name in [other.name for other in others]:
            raise ValueError(f"{function!r} has a case {name!r} already; give each case a name of its own.")
        try:
            # Decorators are applied from below: the first in the source comes last.
            setattr(function, MARK, (Mark(name, arguments, options), *others))
        except AttributeError:
            raise TypeError(
                f"case can't mark {function!r}, which takes no attributes; mark a function that calls it."
            ) from None
        return function

    return mark


def cases_of(function: Any, called: str) -> list[Case]:
    """The cases that a function is marked with, in the order of the source."""
    # Whatever a module holds is asked, also objects that answer to every name.
    marks = vars(function).get(MARK, ()) if hasattr(function, "__dict__") else ()
    return [Case(function, called, m.name or str(n), m.arguments, m.options) for n, m in enumerate(marks)]


def cases_in(module: Any) -> dict[str, list[Case]]:
    """The cases of the functions that a module defines, by their names; imported ones are left out."""
    found: dict[str, list[Case]] = {}
    seen: set[int] = set()
    for name, value in list(vars(module).items()):
        if id(value) not in seen and (cases := cases_of(value, name)) and defined_in(module, value):
            seen.add(id(value))
            found[name] = cases
    return found


def defined_in(module: Any, function: Any) -> bool:
    """Whether a function is the module's own. A partial does not say whose it is: then it is."""
    owner = getattr(function, "__module__", None)
    return owner in (module.__name__, type(function).__module__)


def build(arguments: tuple[Any, ...], seed: int) -> tuple[Any, ...]:
    """The arguments, those that are given by a function being made now."""
    if len(arguments) == 1 and _kind(arguments[0]):
        made = _make(arguments[0], seed)
        return made if type(made) is tuple else (made,)  # a NamedTuple is one argument
    seeds = np.random.SeedSequence(seed).generate_state(len(arguments)) >> 1  # JAX's keys take 31 bits
    return tuple(_make(value, int(own)) for value, own in zip(arguments, seeds, strict=True))


def check_options() -> set[str]:
    """The names of the options of `check_gradients`."""
    parameters = inspect.signature(check_gradients).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def _make(value: Any, seed: int) -> Any:
    match _kind(value):
        case "constant":
            return value()
        case "seeded":
            return value(seed)
    return value


def _kind(value: Any) -> str | None:
    """Whether `value` is a function that makes an argument, and of what."""
    if not (inspect.isfunction(value) or isinstance(value, functools.partial)):
        return None  # a callable object, such as an activation under jit or a module, is an argument
    parameters = inspect.signature(value).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {(): "constant", ("seed",): "seeded"}.get(tuple(p.name for p in needed))
