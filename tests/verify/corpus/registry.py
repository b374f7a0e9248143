"""How a case is written down: a function, its arguments from a seed, and what a checker must say of it.

@planted(wrong="b")
def bias_without_its_sum(rng):
    '''What the mistake is.'''
    return setup(rule(forward, backward), normal(rng, 4, 3), normal(rng, 3))
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SEEDS = range(20)
CASES: dict[str, "Case"] = {}


class Setup(NamedTuple):
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any]  # of check_gradients: reference, hand_written, constant, around, ...


@dataclass(frozen=True)
class Case:
    """`wrong` and `index` are what the report must name.

    Attributes:
        bug: whether there is one.
        wrong: leaves of which the gradient is wrong; none if a property of the whole function is broken.
        index: of the worst element of the wrong leaf, None for any index along an axis.
        witness: the row of the report that must fail, where the leaves' own rows need not.
        order: 2 if only the second derivative shows it.
        reverse: whether jax.grad can be taken at all.
        source: the bug of this kind in the public record: project and number of issue or pull request.
    """

    name: str
    file: str
    make: Callable[[np.random.Generator], Setup]
    bug: bool
    wrong: frozenset[str] = frozenset()
    index: tuple[int | None, ...] | None = None
    witness: str | None = None
    order: int = 1
    reverse: bool = True
    source: str = ""

    def setup(self, seed: int) -> Setup:
        return self.make(np.random.default_rng(seed))

    def has_index(self, index: tuple[int, ...]) -> bool:
        pattern = self.index or ()
        return len(index) == len(pattern) and all(p in (None, i) for p, i in zip(pattern, index, strict=True))


def planted(
    *wrong: str,
    index: tuple[int | None, ...] | None = None,
    witness: str | None = None,
    order: int = 1,
    reverse: bool = True,
    source: str = "",
) -> Callable[[Callable[..., Setup]], Callable[..., Setup]]:
    """Register a function with one mistake."""
    return _register(True, frozenset(wrong), index, witness, order, reverse, source)


def correct(
    *, order: int = 1, reverse: bool = True, source: str = ""
) -> Callable[[Callable[..., Setup]], Callable[..., Setup]]:
    """Register a function without a mistake, that has a trap for a checker."""
    return _register(False, frozenset(), None, None, order, reverse, source)


def _register(bug: bool, *rest: Any) -> Callable[[Callable[..., Setup]], Callable[..., Setup]]:
    def register(make: Callable[..., Setup]) -> Callable[..., Setup]:
        name, file = make.__name__, make.__module__.rpartition(".")[2]
        assert name not in CASES, f"two cases are called {name}"
        assert make.__doc__, f"{name} must say what it is"
        CASES[name] = Case(name, file, make, bug, *rest)
        return make

    return register


def setup(fn: Callable[..., Any], *args: Any, **options: Any) -> Setup:
    return Setup(fn, args, options)


def rule(fn: Callable[..., Any], backward: Callable[..., Any]) -> Any:
    """`fn` with `backward(*args, y, dy)`, which returns a gradient per argument, as its custom_vjp."""
    op = jax.custom_vjp(fn)

    def forward(*args: Any) -> Any:
        y = fn(*args)
        return y, (*args, y)

    op.defvjp(forward, lambda residuals, dy: backward(*residuals, dy))
    return op


def tangent_rule(fn: Callable[..., Any], tangent: Callable[..., Any]) -> Any:
    """`fn` with `tangent(*args, *dargs)` as its custom_jvp."""
    op = jax.custom_jvp(fn)
    op.defjvp(lambda args, dargs: (op(*args), tangent(*args, *dargs)))
    return op


def transposed_sine(tangent: Callable[..., Any], transpose: Callable[..., Any]) -> Any:
    """sin x, with `tangent(cos x, dx)` as its custom_jvp and `transpose(cos x, dy)` as the transpose of that."""

    def linear(x: Any, dx: Any) -> Any:
        return jax.custom_derivatives.linear_call(tangent, transpose, jnp.cos(x), dx)

    return tangent_rule(lambda x: jnp.sin(x), linear)


def normal(rng: np.random.Generator, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape), dtype)


def wide(x: jax.Array) -> jax.Array:
    """At least float32: where a loss in low precision is summed."""
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def positive(rng: np.random.Generator, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    """Between a half and two."""
    return jnp.asarray(2.0 ** rng.uniform(-1, 1, shape), dtype)


def away_from_zero(rng: np.random.Generator, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    """Half of them negative, |x| between a half and two."""
    size = int(np.prod(shape))
    signs = rng.permutation(np.where(np.arange(size) % 2, 1.0, -1.0)).reshape(shape)
    return jnp.asarray(signs * 2.0 ** rng.uniform(-1, 1, shape), dtype)
