"""The differentiable leaves of a function's arguments, as one real float64 vector.

A leaf is differentiable if its dtype is inexact and it has elements. Integers, booleans, PRNG keys, None
and empty arrays are held fixed. A complex leaf counts as pairs of real numbers, so that everything that
is compared is real: for real φ, JAX's gradient is dφ/d(re) - i·dφ/d(im).
"""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import (
    GetAttrKey,
    keystr,
    register_pytree_with_keys,
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_unflatten,
)


def is_differentiable(value: Any) -> bool:
    """Whether derivatives are taken by `value`: an array or a number of inexact dtype, not empty."""
    if not isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return isinstance(value, float | complex)
    return bool(jnp.issubdtype(value.dtype, jnp.inexact)) and int(np.prod(value.shape)) > 0


@dataclass(frozen=True)
class Leaf:
    """One differentiable leaf: its name, its place in the arguments and its part of the vector."""

    name: str
    path: str
    position: int
    shape: tuple[int, ...]
    dtype: Any
    start: int
    stop: int

    @property
    def part(self) -> slice:
        """Where the leaf lies in the vector."""
        return slice(self.start, self.stop)

    @property
    def is_complex(self) -> bool:
        """Whether each element takes two places (real, imaginary)."""
        return bool(jnp.issubdtype(self.dtype, jnp.complexfloating))

    @property
    def eps(self) -> float:
        """The machine epsilon of the leaf's own dtype."""
        return float(jnp.finfo(self.dtype).eps)

    def index(self, place: int) -> tuple[int, ...]:
        """The index in the leaf of an element of its part (real and imaginary share one)."""
        element = place // 2 if self.is_complex else place
        return tuple(int(i) for i in np.unravel_index(element, self.shape))


@dataclass(frozen=True)
class Arguments:
    """Arguments taken apart into differentiable leaves and the rest, which is held fixed."""

    treedef: Any
    values: tuple[Any, ...]
    leaves: tuple[Leaf, ...]

    @property
    def size(self) -> int:
        """Length of the vector."""
        return self.leaves[-1].stop

    def native(self) -> list[Any]:
        """The differentiable leaves as JAX takes them, in their own dtype."""
        return [jnp.asarray(self.values[leaf.position]) for leaf in self.leaves]

    def vector(self) -> np.ndarray:
        """The leaves' values, rounded to their own dtype, as one float64 vector."""
        return np.concatenate([_real_parts(value) for value in self.native()])

    def round(self, vector: np.ndarray) -> list[Any]:
        """The leaves that a vector stands for, as JAX takes them, in their own dtype."""
        arrays = []
        for leaf in self.leaves:
            part = vector[leaf.part]
            part = part[0::2] + 1j * part[1::2] if leaf.is_complex else part
            arrays.append(jax.device_put(part.reshape(leaf.shape).astype(leaf.dtype)))
        return arrays

    def rounded(self, vector: np.ndarray) -> np.ndarray:
        """A vector whose elements their leaves' own dtypes can hold."""
        return np.concatenate([_real_parts(value) for value in self.round(vector)])

    def rebuild(self, arrays: Sequence[Any], device: Any = None) -> tuple[Any, ...]:
        """The arguments with `arrays` in place of the differentiable leaves."""
        values = [
            jax.device_put(v, device) if device is not None and isinstance(v, jax.Array) else v
            for v in self.values
        ]
        for leaf, array in zip(self.leaves, arrays, strict=True):
            values[leaf.position] = array
        args: tuple[Any, ...] = closed(tree_unflatten(self.treedef, values))
        return args

    def unpack(self, vector: Any, *, promoted: bool) -> list[Any]:
        """The leaves that a vector stands for: float64 and complex128, or each in its own dtype."""
        # Not slices: their transpose is a sum of padded vectors, that of this a concatenation.
        parts = jax.lax.split(vector, [leaf.stop - leaf.start for leaf in self.leaves])
        arrays = []
        for leaf, part in zip(self.leaves, parts, strict=True):
            if leaf.is_complex:
                pairs = part.reshape((*leaf.shape, 2))
                array = jax.lax.complex(pairs[..., 0], pairs[..., 1])
            else:
                array = part.reshape(leaf.shape)
            arrays.append(array if promoted else array.astype(leaf.dtype))
        return arrays

    def pack(self, gradients: Sequence[Any]) -> np.ndarray:
        """Gradients, one per leaf in JAX's convention, as one float64 vector."""
        return np.concatenate(
            [
                _real_parts(np.asarray(g, np.complex128).conj() if leaf.is_complex else g)
                for leaf, g in zip(self.leaves, gradients, strict=True)
            ]
        )


def take_apart(fn: Callable[..., Any], args: tuple[Any, ...], constant: Sequence[str | int] = ()) -> Arguments:
    """Find the differentiable leaves of `args`, named after the parameters of `fn`.

    `constant` names arguments, or leaves inside them, that are held fixed too.

    Raises:
        ValueError: nothing in `args` can be differentiated, or `constant` names what is not there.
    """
    flat, treedef = tree_flatten_with_path(opened(args))
    names = _argument_names(fn, len(args))
    fixed = {names[c] if isinstance(c, int) and -len(names) <= c < len(names) else str(c) for c in constant}
    found = [names[path[0].idx] + keystr(path[1:]) for path, _ in flat]
    if unknown := [c for c in sorted(fixed) if c not in names and not any(_inside(name, c) for name in found)]:
        raise ValueError(f"constant={unknown}: there is no such argument or leaf; there are {names}, {found}.")
    leaves, start = [], 0
    for position, (path, value) in enumerate(flat):
        if not is_differentiable(value) or any(_inside(found[position], c) for c in fixed):
            continue
        # As JAX takes it: a Python or NumPy float64 becomes float32 unless x64 is on.
        array = jnp.asarray(value)
        count = int(np.prod(array.shape)) * (2 if jnp.issubdtype(array.dtype, jnp.complexfloating) else 1)
        leaves.append(
            Leaf(found[position], keystr(path), position, array.shape, array.dtype, start, start + count)
        )
        start += count
    if not leaves:
        raise ValueError(
            f"check_gradients needs at least one non-empty array of float dtype among the arguments; got "
            f"{[_described(v) for _, v in flat]}"
            f"{f', with constant={sorted(fixed)}' if fixed else ''}. Pass the parameters as floats."
        )
    return Arguments(treedef, tuple(value for _, value in flat), tuple(leaves))


def _described(value: Any) -> str:
    """Dtype and shape of an array, the type of anything else."""
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else type(value).__name__


def claimed_gradients(arguments: Arguments, gradients: Any, count: int) -> dict[int, Any]:
    """The gradients that a hand-written function returned, by the number of their leaf.

    None stands for a subtree without differentiable leaves; arguments beyond the tuple's end have no
    claim.

    Raises:
        TypeError: `gradients` is not a tuple.
        ValueError: it is longer than the arguments, or differs from their tree or shapes.
    """
    if not isinstance(gradients, tuple):
        raise TypeError(
            "hand_written must return a tuple with one gradient per argument; got "
            f"{type(gradients).__name__}. For a single argument return (gradient,)."
        )
    if len(gradients) > count:
        raise ValueError(f"hand_written returned {len(gradients)} gradients for {count} arguments.")
    flat = tree_flatten_with_path(opened(gradients), is_leaf=lambda v: v is None)[0]
    found = {keystr(path): value for path, value in flat if value is not None}
    claims = {}
    for number, leaf in enumerate(arguments.leaves):
        if leaf.path.startswith(tuple(f"[{i}]" for i in range(len(gradients), count))):
            continue
        value = found.pop(leaf.path, None)
        if value is None:
            raise ValueError(
                f"hand_written returned no gradient for {leaf.name}: its tuple must have the tree of the "
                f"arguments. It has {sorted(found)}."
            )
        if np.shape(value) != leaf.shape:
            raise ValueError(
                f"hand_written returned a gradient of shape {np.shape(value)} for {leaf.name}, whose shape "
                f"is {leaf.shape}; a gradient has the shape of what it belongs to."
            )
        claims[number] = value
    fixed = {keystr(path) for path, _ in tree_flatten_with_path(
        tree_unflatten(arguments.treedef, arguments.values))[0]}  # fmt: skip
    if unknown := sorted(set(found) - fixed):
        raise ValueError(f"hand_written returned gradients for {unknown}, which the arguments do not have.")
    return claims


class _Opened:
    """A dataclass that JAX does not know as a pytree, the fields that hold float arrays as its children."""

    def __init__(self, original: Any, fields: dict[str, Any]) -> None:
        """Keep the object and, by name, the fields to be exchanged."""
        self.original, self.fields = original, fields


class _Same:
    """An object in the structure of a tree: equal to itself only, whatever its `==` does."""

    def __init__(self, value: Any) -> None:
        """Hold `value`."""
        self.value = value

    def __eq__(self, other: object) -> bool:
        """Whether it is the same object."""
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        """By identity."""
        return id(self.value)


register_pytree_with_keys(
    _Opened,
    lambda o: ([(GetAttrKey(k), v) for k, v in o.fields.items()], (_Same(o.original), tuple(o.fields))),
    lambda kept, values: _Opened(kept[0].value, dict(zip(kept[1], values, strict=True))),
)


def opened(tree: Any) -> Any:
    """`tree` with dataclasses that are leaves to JAX, but hold float arrays, opened to those fields.

    Their numbers are settings (a rate, an epsilon) and stay where they are.
    """

    def one(leaf: Any) -> Any:
        if not dataclasses.is_dataclass(leaf) or isinstance(leaf, type):
            return leaf
        fields = {f.name: opened(getattr(leaf, f.name, None)) for f in dataclasses.fields(leaf)}
        fields = {name: value for name, value in fields.items() if any(map(_is_array, tree_leaves(value)))}
        return _Opened(leaf, fields) if fields else leaf

    return tree_map(one, tree)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and is_differentiable(value)


def closed(tree: Any) -> Any:
    """The inverse of `opened`, for other values of the leaves."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, _Opened):
            return leaf
        made = copy.copy(leaf.original)
        for name, value in leaf.fields.items():
            object.__setattr__(made, name, closed(value))
        return made

    return tree_map(one, tree, is_leaf=lambda leaf: isinstance(leaf, _Opened))


def _inside(name: str, argument: str) -> bool:
    """Whether the leaf `name` is `argument` or lies in it."""
    return name == argument or (name.startswith(argument) and name[len(argument)] in "[.")


def _real_parts(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if np.iscomplexobj(array):
        array = np.stack([array.real, array.imag], axis=-1)
    return array.astype(np.float64).reshape(-1)


def _argument_names(fn: Callable[..., Any], count: int) -> list[str]:
    """Names of the positional parameters; `[0]`, `[1]`, ... where the signature does not tell."""
    try:
        kinds = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        kinds = []  # type: ignore[assignment]
    named = [p.name for p in kinds if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [named[i] if i < len(named) else f"[{i}]" for i in range(count)]


def float_leaves(tree: Any) -> list[Any]:
    """The leaves of `tree` that have an inexact dtype."""
    return [leaf for leaf in tree_flatten(opened(tree))[0] if is_differentiable(leaf)]
