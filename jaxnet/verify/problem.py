"""One question, "what is the gradient of φ at x?", put to every road that can answer it.

φ(v) = ⟨w, y(v)⟩ is the function as a scalar of one real vector: y are its float outputs, w is 1 for a scalar
output and a random cotangent for any other.
"""

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from jaxnet.verify import complex_step, frozen, rules
from jaxnet.verify.differences import Lines, directions
from jaxnet.verify.leaves import Arguments
from jaxnet.verify.outputs import Flattened
from jaxnet.verify.roads import HAND, OWN, REFERENCE, Gradient, Lazy, Outputs, Program, pull, push

FLOAT64 = float(np.finfo(np.float64).eps)


def nothing(point: np.ndarray) -> Any:
    """What outputs depend on beside the point: usually nothing."""
    return ()


@dataclass(frozen=True)
class Options:
    """What the caller of a check states; see `check_gradients`."""

    reference: Callable[..., Any] | None = None
    hand_written: Callable[..., Any] | None = None
    constant: Sequence[str | int] = ()
    nondeterminism: float = 0.0
    rtol: float = 0.0
    atol: float = 0.0
    order: int = 1
    around: str | Sequence[str] = ()


@dataclass(frozen=True)
class Problem:
    """A function, a point and every road to its gradient there. Nothing that is compiled knows the seed."""

    fn: Callable[..., Any]
    options: Options
    arguments: Arguments
    spec: Flattened
    point: np.ndarray
    seed: int
    promoted: bool
    eps: float
    own_eps: float
    closed: Any
    outputs: Outputs
    along: Lines
    own: Program | None
    plain: Program | None
    hand: Gradient | None
    claimed: frozenset[int]
    weights: np.ndarray
    remarks: list[str]
    own_reason: str | None = None
    forward_mode: Lazy = field(default_factory=lambda: Lazy(push))
    complex_mode: Lazy = field(default_factory=lambda: Lazy(complex_step.push))
    batched: Lazy = field(default_factory=lambda: Lazy(lambda outputs: jax.vmap(pull(outputs))))
    extra: Callable[[np.ndarray], Any] = nothing
    line_extra: Callable[[np.ndarray], Any] = nothing
    inner: Callable[[np.ndarray], Any] = nothing  # of the second order: what the first depended on
    _pulled: dict[tuple[int, int], Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def floor(self) -> float:
        """Relative difference that is never held against a road."""
        return max(1e-9, 50 * self.eps, self.options.rtol)

    @property
    def resolution(self) -> float:
        """Coarsest relative bound with which differences still decide anything."""
        return max(min(0.1, max(1e-4, 1e5 * self.eps)), 2 * self.options.rtol)

    @property
    def reverse_mode(self) -> bool:
        """Whether jax.grad is not known to be impossible."""
        return self.own is None or self.own.reverse

    @property
    def random(self) -> bool:
        """Whether the function draws random numbers."""
        return self.has("random_bits")

    @property
    def stops(self) -> bool:
        """Whether the function has a stop_gradient."""
        return self.closed is not None and frozen.has_stops(self.closed.jaxpr)

    @functools.cached_property
    def table(self) -> np.ndarray:
        """The directions at the point."""
        return directions(self.arguments.leaves, self.point, self.seed)

    @functools.cached_property
    def longest_sum(self) -> int:
        """Number of terms of the longest sum in the function, as far as that is known."""
        return 1 if self.closed is None else rules.longest_sum(self.closed.jaxpr)

    def has(self, primitive: str) -> bool:
        """Whether a primitive of that name occurs in the function."""
        return self.closed is not None and any(
            eqn.primitive.name == primitive for eqn in rules.equations(self.closed.jaxpr)
        )

    @property
    def lines(self) -> Lines:
        """φ along lines through a point."""
        return self.along.given(lambda point: (self.weights, self.line_extra(point)))

    @property
    def roads(self) -> Mapping[str, Gradient]:
        """The gradient of φ by every road that can be taken."""
        found: dict[str, Gradient] = {}
        for road, program in ((OWN, self.own), (REFERENCE, self.plain)):
            if program is not None:
                found[road] = self._gradient_by(program)
        if self.hand is not None:
            found[HAND] = self.hand
        return found

    def pulled(self, program: Program, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The outputs and their gradient at `v` by a program, calculated once while `v` exists."""
        key = id(program), id(v)
        if key not in self._pulled:
            self._pulled[key] = program(v, self.weights, self.extra(v))
            weakref.finalize(v, self._pulled.pop, key, None)
        return self._pulled[key]

    def _gradient_by(self, program: Program) -> Gradient:
        return lambda v: self.pulled(program, v)[1]

    @property
    def forward(self) -> Callable[[np.ndarray], float] | None:
        """φ as the forward pass under jax.grad returns it."""
        own = self.own
        return None if own is None else lambda v: float(self.weights @ self.pulled(own, v)[0])

    def seeded(self, seed: int) -> "Problem":
        """The same problem with another seed, and nothing compiled anew."""
        program = self.own or self.plain
        y = self.weights if program is None else program(self.point, self.weights, self.extra(self.point))[0]
        return replace(self, seed=seed, weights=self.spec.weights(y, seed), remarks=list(self.remarks))


@dataclass(frozen=True)
class Rounding:
    """How exactly φ and each element of its gradient are known at the point."""

    value: float
    gradient: np.ndarray
