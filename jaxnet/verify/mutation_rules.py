"""The derivative rules that a function uses, found by following what its code names and holds."""

import dis
import functools
import inspect
import sysconfig
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import jax

_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def rules_of(fn: Callable[..., Any], *stated: Callable[..., Any]) -> list[FunctionType]:
    """The rules of every `custom_vjp` and `custom_jvp` that `fn` is, wraps or calls, and the `stated` gradients.

    With each rule the functions of its file that it alone uses: not those that the function itself or
    its forward pass calls too, whose mutants would change the value, and not those of another rule.
    Functions of installed packages are left alone.
    """
    found: dict[int, FunctionType] = {}
    customs = filter(_is_custom, _reached(fn, through=True))
    for rule, *primal in [*map(_parts, customs), *((gradient, fn) for gradient in stated)]:
        own = [f for f in _reached(rule) if isinstance(f, FunctionType) and not hasattr(f, "__wrapped__")]
        files = {f.__code__.co_filename for f in own[:1]}
        shared = {id(f) for start in primal for f in _reached(start)}
        found |= {id(f): f for f in own if f.__code__.co_filename in files and id(f) not in shared}
    return list(found.values())


def _parts(custom: Any) -> tuple[Any, ...]:
    """The rule of a custom derivative, None if it has none yet, the function and the forward pass."""
    rule = getattr(custom, "bwd", None) or getattr(custom, "jvp", None)
    return rule and inspect.unwrap(rule), custom.fun, getattr(custom, "fwd", None)


def _reached(start: Any, through: bool = False) -> list[Any]:
    """What can be reached from `start`, itself first; beyond another custom derivative only if `through`."""
    seen: dict[int, Any] = {}
    pending = [start]
    while pending:
        value = pending.pop(0)
        if id(value) not in seen and _is_ours(value):
            seen[id(value)] = value
            if through or value is start or not _is_face(value):
                pending += list(_held(value))
    return list(seen.values())


def _held(value: Any) -> Iterator[Any]:
    """What a function, a wrapper of one or a custom derivative refers to."""
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif _is_custom(value):
        yield from (getattr(value, name, None) for name in ("fun", "fwd", "bwd", "jvp"))
    elif hasattr(value, "__wrapped__"):
        yield value.__wrapped__
    if isinstance(value, FunctionType):
        yield from _closed_over(value)
        yield from _named(value.__code__, value.__globals__)


def _closed_over(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            held = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        yield from held if isinstance(held, list | tuple) else (held,)


def _named(code: CodeType, names: dict[str, Any]) -> Iterator[Any]:
    """The global values that a code loads, in a module those of its attributes that it loads."""
    held: Any = None
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            yield held
            held = names.get(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(held, ModuleType):
            held = getattr(held, instruction.argval, None)
    yield held
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _named(const, names)


def _is_custom(value: Any) -> bool:
    return isinstance(value, jax.custom_vjp | jax.custom_jvp)


def _is_face(value: Any) -> bool:
    """Whether a value is a custom derivative, or a function that stands before one."""
    return _is_custom(value) or (isinstance(value, FunctionType) and any(map(_is_custom, _closed_over(value))))


def _is_ours(value: Any) -> bool:
    """Whether a value can lead to a rule: no function of an installed package, nor anything else."""
    if isinstance(value, FunctionType):
        return hasattr(value, "__wrapped__") or not value.__code__.co_filename.startswith(_INSTALLED)
    wrapper = callable(value) and not isinstance(value, type) and hasattr(value, "__wrapped__")
    return isinstance(value, functools.partial) or _is_custom(value) or wrapper
