"""Mutants of a Python function: the code of its source with one mistake in it.

A mutant is a code object for the function itself. Whoever holds the function, be it `defvjp`, a `partial`
or a closure, then runs the mutant, and no function must be written differently to be mutated. Where the
mistake stands, the mutant calls a mark, so that it is known whether it ran.

Reference: DeMillo, Lipton and Sayward, "Hints on Test Data Selection: Help for the Practicing
Programmer", Computer 11 (1978).
"""

import ast
import copy
import inspect
import linecache
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

from jaxnet.verify.mutation_operators import MARK, changes, marked, scope_of

_AT = 1_000_000  # a line that no source has: by it the compiled definition is found again


@dataclass(frozen=True)
class Mutation:
    """One change of a function's source, and the function's code with it."""

    operator: str
    line: int
    before: str
    after: str
    code: CodeType

    def __str__(self) -> str:
        """The change in words."""
        return f"{self.operator}: `{self.before}` became `{self.after}`"


def plain_function(function: Callable[..., Any]) -> FunctionType:
    """The Python function inside `partial`, `jit` and other wrappers.

    Raises:
        TypeError: there is none.
    """
    inner: Any = function
    while not isinstance(inner, FunctionType) or hasattr(inner, "__wrapped__"):
        held = (getattr(inner, name, None) for name in ("__wrapped__", "func", "__func__"))
        inner = next((value for value in held if value is not None), None)
        if inner is None:
            raise TypeError(
                f"mutation needs a function written in Python; got {function!r}. Of a custom_vjp or custom_jvp "
                "name its rule, the function that was given to defvjp or defjvp."
            )
    plain: FunctionType = inner
    return plain


def mutations(function: FunctionType, inside: str | None = None) -> list[Mutation]:
    """Every mutation of a function and of the functions in it, in the order of the source.

    Args:
        function: a function of Python.
        inside: mutate only the function of this name that is defined inside of it.

    Raises:
        ValueError: the source can't be read, or the function isn't where it was.
    """
    tree, definition = _source(function)
    part = _inside(definition, inside)
    modules = frozenset(name for name, value in function.__globals__.items() if isinstance(value, ModuleType))
    scope = scope_of(part, modules)
    seen = {ast.dump(definition)}
    found = []
    for place, old in list(_places(part)):
        for operator, new in changes(old, scope):
            ast.copy_location(new, old)
            _put(place, new)
            if (tree_with_it := ast.dump(definition)) not in seen:
                seen.add(tree_with_it)
                _put(place, _marked(old, new))
                code = _compiled(tree, definition, function)
                found.append(Mutation(operator, old.lineno, _words(old), _words(new), code))
            _put(place, old)
    return found


def unchanged(function: FunctionType, inside: str | None = None) -> CodeType:
    """The code of a function as it is, with a mark where it, or the function inside, begins."""
    tree, definition = _source(function)
    part = _inside(definition, inside)
    if isinstance(part, ast.Lambda):
        part.body = marked(part.body)
    else:
        part.body = [ast.Expr(marked(ast.Constant(None))), *part.body]
    return _compiled(tree, definition, function)


# ------------------------------------------------------------------------------------ source and code


def _source(function: FunctionType) -> tuple[ast.Module, Any]:
    """The tree of a function's file, and its definition there."""
    code = function.__code__
    file = inspect.getsourcefile(function) or code.co_filename
    lines = linecache.getlines(file, function.__globals__)
    name = f"{function.__module__}.{function.__qualname__}"
    if not lines:
        raise ValueError(f"mutation needs the source of {name}; {file} can't be read. Define it in a file.")
    tree = ast.parse("".join(lines))
    found: list[Any] = [node for node in ast.walk(tree) if _defines(node, code)]
    if len(found) > 1:  # lambdas on one line: the innermost that holds every instruction
        places = [((line, column), (end, last)) for line, end, column, last in code.co_positions() if last]
        found = [node for node in found if all(_holds(node, *place) for place in places)]
    if not found:
        raise ValueError(f"mutation finds no {name} at line {code.co_firstlineno} of {file}. Was it edited since?")
    return tree, found[-1]


def _defines(node: ast.AST, code: CodeType) -> bool:
    """Whether `code` may have been compiled from `node`: the name and the line it begins at are the same."""
    if isinstance(node, ast.Lambda):
        return (code.co_name, code.co_firstlineno) == ("<lambda>", node.lineno)
    if not isinstance(node, ast.FunctionDef):
        return False
    begins = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return (code.co_name, code.co_firstlineno) == (node.name, begins)


def _holds(node: Any, start: Any, end: Any) -> bool:
    return (node.lineno, node.col_offset) <= start and end <= (node.end_lineno, node.end_col_offset)


def _inside(definition: Any, name: str | None) -> Any:
    if name is None:
        return definition
    inner = [node for node in ast.walk(definition) if isinstance(node, ast.FunctionDef) and node.name == name]
    if not inner:
        raise ValueError(f"mutation finds no function {name} inside {getattr(definition, 'name', 'the lambda')}")
    return inner[0]


def _compiled(tree: ast.Module, definition: Any, function: FunctionType) -> CodeType:
    """The code of `definition`: compiled where it stands, so that its scopes are those of the file.

    The free variables are named once more in a branch that is never taken, because a function's code can
    only be replaced by one that has the same, and a mutant may have lost one.
    """
    free = ast.Tuple([ast.Name(name, ast.Load()) for name in function.__code__.co_freevars], ast.Load())
    kept = copy.copy(definition)
    definition.lineno = definition.end_lineno = _AT
    if isinstance(definition, ast.Lambda):
        definition.body = ast.IfExp(ast.Constant(True), definition.body, free)
    else:
        definition.decorator_list = []
        definition.body = [*definition.body, ast.If(ast.Constant(False), [ast.Expr(free)], [])]
    module = compile(ast.fix_missing_locations(tree), function.__code__.co_filename, "exec", dont_inherit=True)
    definition.__dict__.update(kept.__dict__)
    pending = [module]
    while pending[-1].co_firstlineno != _AT:
        pending[-1:] = [const for const in pending[-1].co_consts if isinstance(const, CodeType)]
    return pending[-1]


# -------------------------------------------------------------------------------- places in the source

Place = tuple[Any, str, int | None]  # the parent, its field, the index if that is a list

_NO_VALUE = {"decorator_list", "returns", "annotation", "targets", "target", "op", "ops", "ctx"}
_NO_PLACE = (ast.arguments, ast.Raise, ast.Assert, ast.JoinedStr, ast.ClassDef)


def _places(node: ast.AST) -> Iterator[tuple[Place, Any]]:
    """What may change in a definition: neither signatures nor messages nor what is called."""
    for field, value in ast.iter_fields(node):
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if field in _NO_VALUE or not isinstance(child, ast.AST) or isinstance(child, _NO_PLACE):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue  # a docstring
            if not (field == "func" and isinstance(child, ast.Name | ast.Attribute)):
                yield (node, field, index), child
            yield from _places(child)


def _put(place: Place, new: Any) -> None:
    parent, field, index = place
    if index is None:
        setattr(parent, field, new)
    else:
        getattr(parent, field)[index] = new


def _marked(old: ast.AST, new: Any) -> ast.AST:
    """`new`, calling the mark when it runs; a statement does so in what it evaluates."""
    if isinstance(new, ast.expr):
        new = new if _is_forced(new) else marked(new)
    elif isinstance(new, ast.AugAssign):
        new = ast.AugAssign(new.target, new.op, marked(new.value))
    elif isinstance(new, ast.Return):
        new = ast.Return(marked(new.value))
    else:
        new = ast.Expr(marked(ast.Constant(None)))
    return ast.copy_location(new, old)


def _words(node: Any) -> str:
    node = node.args[1] if _is_forced(node) else node
    text = " ".join(ast.unparse(node).replace(f"{MARK}.", "").split())
    return text if len(text) <= 70 else f"{text[:69]}…"


def _is_forced(node: Any) -> bool:
    """Whether a condition was replaced by its value: the mark is then called only where that differs."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) == f"{MARK}.forced"
