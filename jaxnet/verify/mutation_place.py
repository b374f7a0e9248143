"""A mutant in the place of its function, for as long as it is tried."""

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
from jax.tree_util import tree_flatten, tree_unflatten

from jaxnet.verify.leaves import is_differentiable
from jaxnet.verify.mutation_operators import MARK

# Part of jit's cache key: whatever is traced for one mutant is never taken for another.
_mutant = jax.make_user_context(default_value=None)
_serial = itertools.count(1)


@contextlib.contextmanager
def in_place(functions: Sequence[FunctionType], code: CodeType) -> Iterator["Mark"]:
    """`code` as that of functions that share theirs, for whoever holds them; nothing traced before is used."""
    kept, names, mark = functions[0].__code__, functions[0].__globals__, Mark()
    names[MARK] = mark
    for function in functions:
        function.__code__ = code
    try:
        with _mutant(next(_serial)):
            yield mark
    finally:
        for function in functions:
            function.__code__ = kept
        del names[MARK]


@contextlib.contextmanager
def programs_kept() -> Iterator[None]:
    """What XLA compiles is kept on disk, since most programs are the same for every mutant.

    Four times as fast; a program is known by its own text there, so that no mutant is taken for another.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        wanted: dict[str, Any] = {
            "jax_compilation_cache_dir": folder,
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
        kept = {name: getattr(jax.config, name) for name in wanted}
        if kept["jax_compilation_cache_dir"] is not None:  # the caller keeps them already
            yield
            return
        try:
            for name, value in wanted.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
            yield
        finally:
            for name, value in kept.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


@dataclass
class Mark:
    """What a mutant calls where its mistake stands; some mistakes are made by it."""

    reached: bool = False

    def __call__(self) -> None:
        """Note that the place was reached."""
        self.reached = True

    def forced(self, test: Any, value: bool) -> bool:
        """A condition that always or never holds; reached where that makes a difference."""
        self.reached |= bool(test) != value
        return value

    def negated(self, tree: Any) -> Any:
        """The arrays with the other sign."""
        return self._each(tree, lambda a: -a, 0)

    def rolled(self, tree: Any) -> Any:
        """The arrays shifted by one along their last axis."""
        return self._each(tree, lambda a: jnp.roll(a, 1, -1), 1)

    def transposed(self, tree: Any) -> Any:
        """The arrays with their last two axes swapped."""
        return self._each(tree, lambda a: jnp.swapaxes(a, -1, -2), 2)

    def first(self, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        """The first term of a sum."""
        self.reached = True
        axes = tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
        for i in axes:
            x = jax.lax.slice_in_dim(x, 0, 1, axis=i)
        return x if keepdims else jnp.squeeze(x, axes)

    def mean(self, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        """A sum divided by the number of its terms."""
        self.reached = True
        return jnp.mean(x, axis, keepdims=keepdims)

    def _each(self, tree: Any, change: Callable[[Any], Any], rank: int) -> Any:
        self.reached = True
        leaves, structure = tree_flatten(tree)
        chosen = [is_differentiable(leaf) and jnp.ndim(leaf) >= rank for leaf in leaves]
        if not any(chosen):
            raise TypeError(f"no array of rank {rank} or more is returned here")
        changed = [change(leaf) if mine else leaf for leaf, mine in zip(leaves, chosen, strict=True)]
        return tree_unflatten(structure, changed)
