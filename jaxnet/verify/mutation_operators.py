"""The mistakes that authors of derivatives make, as changes of a syntax tree.

====================  ===========================================================================
`sign`                a + b ↔ a − b, −a → a, a result negated
`term`                a + b → a or b, a − b → a or −b, a += b left out
`factor`              a·b → a or b, a / b → a, aⁿ → a
`operands`            a − b → b − a, a / b → b / a, a @ b → b @ a, f(a, b) → f(b, a), two results swapped
`transpose`           aᵀ → a, a @ b → aᵀ @ b or a @ bᵀ, a result transposed
`index`               an integer made one larger, a result rolled by one along its last axis
`constant`            a number doubled (0.0 becomes 1.0), True ↔ False
`residual`            a variable replaced by the one that is bound before or after it
`sum`                 Σ left out, or its first term alone, or the mean in its place
`call`                f(a, …) → a
`branch`              a condition that always or never holds; a > b → a < b, a ≥ b
====================  ===========================================================================
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MARK = "__jaxnet_mutation__"  # the global through which a mutant speaks while it runs

Change = tuple[str, ast.AST]  # the operator and what stands in the node's place


@dataclass(frozen=True)
class Scope:
    """What the operators know of a function besides the node that they change."""

    variables: dict[str, int]  # in the order in which they are bound: the line from which they are there
    modules: frozenset[str]  # the names that stand for modules: jnp.sum(x) is not a method of jnp
    results: frozenset[int]  # id() of the expressions that are returned, of a tuple each entry
    conditions: frozenset[int]  # id() of the tests of `if`


def scope_of(function: Any, modules: frozenset[str]) -> Scope:
    """What there is to know of the definition `function`, a `FunctionDef` or a `Lambda`."""
    bound: list[tuple[int, int, str]] = []
    results: list[ast.AST] = []
    conditions = []
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            bound.append((node.lineno, node.col_offset, node.arg))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.append((node.lineno + 1, node.col_offset, node.id))
        elif isinstance(node, ast.If | ast.IfExp):
            conditions.append(id(node.test))
        result = (
            node.value if isinstance(node, ast.Return) else node.body if isinstance(node, ast.Lambda) else None
        )
        if result is not None:
            results += result.elts if isinstance(result, ast.Tuple) else [result]
    variables: dict[str, int] = {}
    for line, _, name in sorted(bound):
        variables.setdefault(name, line)
    return Scope(variables, modules, frozenset(map(id, results)), frozenset(conditions))


def marked(expression: Any) -> Any:
    """`(mark(), expression)[1]`: the mark is called first, also if the expression then raises."""
    mark = ast.Call(ast.Name(MARK, ast.Load()), [], [])
    return ast.Subscript(ast.Tuple([mark, expression], ast.Load()), ast.Constant(1), ast.Load())


def by_mark(method: str, *arguments: Any) -> Any:
    """A call of a method of the mark."""
    return ast.Call(ast.Attribute(ast.Name(MARK, ast.Load()), method, ast.Load()), list(arguments), [])


def changes(node: ast.AST, scope: Scope) -> Iterator[Change]:
    """What may stand in place of `node`."""
    if isinstance(node, ast.BinOp):
        yield from _of_operation(node)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "sign", node.operand
    elif isinstance(node, ast.AugAssign):
        if type(node.op) in _FLIPPED:
            yield "sign", ast.AugAssign(node.target, _FLIPPED[type(node.op)](), node.value)
        yield "term", ast.Pass()
    elif isinstance(node, ast.Call):
        yield from _of_call(node, scope)
    elif isinstance(node, ast.Attribute) and node.attr in ("T", "mT"):
        yield "transpose", node.value
    elif isinstance(node, ast.Constant):
        yield from _of_constant(node.value)
    elif isinstance(node, ast.Name) and node.id in scope.variables:
        there = [name for name, line in scope.variables.items() if line <= node.lineno or name == node.id]
        at = there.index(node.id)
        for name in (*there[max(at - 1, 0) : at], *there[at + 1 : at + 2]):
            yield "residual", ast.Name(name, ast.Load())
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        for table in (_TURNED, _BORDER):
            if type(node.ops[0]) in table:
                yield "branch", ast.Compare(node.left, [table[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        yield from (("operands", ast.Return(ast.Tuple(elts, ast.Load()))) for elts in _swapped(node.value.elts))
    if id(node) in scope.conditions:
        yield "branch", by_mark("forced", node, ast.Constant(True))
        yield "branch", by_mark("forced", node, ast.Constant(False))
    if id(node) in scope.results:
        yield "sign", by_mark("negated", node)
        yield "index", by_mark("rolled", node)
        yield "transpose", by_mark("transposed", node)


_FLIPPED: dict[type, type] = {ast.Add: ast.Sub, ast.Sub: ast.Add}
_TURNED: dict[type, type] = {ast.Gt: ast.Lt, ast.Lt: ast.Gt, ast.GtE: ast.LtE, ast.LtE: ast.GtE}
_BORDER: dict[type, type] = {ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Lt: ast.LtE, ast.LtE: ast.Lt}


def _of_operation(node: ast.BinOp) -> Iterator[Change]:
    a, b, kind = node.left, node.right, type(node.op)
    if kind in _FLIPPED:
        yield "sign", ast.BinOp(a, _FLIPPED[kind](), b)
        yield "term", a
        yield "term", b if kind is ast.Add else ast.UnaryOp(ast.USub(), b)
    if kind in (ast.Mult, ast.MatMult, ast.Div, ast.Pow):
        yield "factor", a
    if kind in (ast.Mult, ast.MatMult):
        yield "factor", b
    if kind in (ast.Sub, ast.Div, ast.MatMult):
        yield "operands", ast.BinOp(b, node.op, a)
    if kind is ast.MatMult:
        yield "transpose", ast.BinOp(ast.Attribute(a, "T", ast.Load()), node.op, b)
        yield "transpose", ast.BinOp(a, node.op, ast.Attribute(b, "T", ast.Load()))


def _of_call(node: ast.Call, scope: Scope) -> Iterator[Change]:
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    method = isinstance(function, ast.Attribute) and not _is_module(function.value, scope)
    first: Any = function.value if method else next(iter(node.args), None)  # type: ignore[attr-defined]
    if first is None or any(isinstance(argument, ast.Starred) for argument in node.args):
        return
    if name in _SUMS:
        yield "sum", first
    else:
        yield "transpose" if name in _TRANSPOSES else "call", first
    if name == "sum" and isinstance(function, ast.Attribute):
        for other in ("first", "mean"):
            array, *options = [first, *node.args] if method else node.args
            replaced = by_mark(other, array, *options)
            replaced.keywords = node.keywords
            yield "sum", replaced
    for arguments in _swapped(node.args):
        yield "operands", ast.Call(function, arguments, node.keywords)
    if name in ("matmul", "dot"):
        for i, argument in enumerate(node.args[:2]):
            turned = [*node.args[:i], ast.Attribute(argument, "T", ast.Load()), *node.args[i + 1 :]]
            yield "transpose", ast.Call(function, turned, node.keywords)


_SUMS = ("sum", "mean", "psum", "cumsum")
_TRANSPOSES = ("transpose", "swapaxes", "moveaxis", "matrix_transpose")


def _is_module(node: ast.AST, scope: Scope) -> bool:
    while isinstance(node, ast.Attribute):  # jax.lax
        node = node.value
    return isinstance(node, ast.Name) and node.id in scope.modules


def _swapped(entries: list[Any]) -> Iterator[list[Any]]:
    """Each pair of neighbours swapped."""
    for i in range(len(entries) - 1):
        yield [*entries[:i], entries[i + 1], entries[i], *entries[i + 2 :]]


def _of_constant(value: Any) -> Iterator[Change]:
    if isinstance(value, bool):
        yield "constant", ast.Constant(not value)
    elif isinstance(value, int):
        yield "index", ast.Constant(value + 1)
    elif isinstance(value, float):
        yield "constant", ast.Constant(2 * value or 1.0)
