"""What a backward pass is tried by: a check of the prover, and the gradients themselves to compare."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_leaves, tree_map

from jaxnet.verify.check import check_gradients
from jaxnet.verify.differences import scales
from jaxnet.verify.layer import LayerLike, check_layer
from jaxnet.verify.leaves import Arguments, claimed_gradients, float_leaves, take_apart
from jaxnet.verify.report import Report
from jaxnet.verify.roads import setting

Gradients = list[list[np.ndarray]]  # of each draw, the leaves
Call = Callable[[Sequence[Any], Any], Any]  # gradients at differentiable leaves, their cotangents drawn by a key


class Trial(NamedTuple):
    """A check, and what it is about.

    ===========  ====================================================================================
    `check`      `check() → Report`, or a function that raises an `AssertionError`
    `gradients`  `gradients(seeds) → ` for each seed the gradients at other arguments and cotangents
    ===========  ====================================================================================

    Both must make anew whatever holds the backward pass by its values: a layer, a jitted function.
    """

    check: Callable[[], Report | None]
    gradients: Callable[[Sequence[int]], Gradients]


def trial(fn: Callable[..., Any], *args: Any, **options: Any) -> Trial:
    """`check_gradients(fn, *args, **options)`, and `jax.vjp` of `fn` (of that too, if `order=2`).

    With `hand_written=` what that claims as well. What is `constant` is held fixed.
    """
    arguments = take_apart(fn, args, options.get("constant", ()))
    hand_written = options.get("hand_written")

    def call(arrays: Sequence[Any], key: Any) -> Any:
        found = _pulled_back(lambda given: fn(*arguments.rebuild(given)), arrays, key, options.get("order", 1))
        if hand_written is None:
            return found
        return found, claimed_gradients(arguments, hand_written(*arguments.rebuild(arrays)), len(args))

    return Trial(lambda: check_gradients(fn, *args, **options), _gradients(lambda: call, arguments))


def layer_trial(make: Callable[[], LayerLike], key: Any, x: Any, *, training_key: Any = None) -> Trial:
    """`check_layer` of a layer that `make` makes, and its pullback beside `jax.vjp` of its `apply`."""
    arguments = take_apart(lambda params, x: None, (make().init(key, x), x))
    modes = (None,) if training_key is None else (None, training_key)

    def calls() -> Call:
        layer = make()

        def apply(mode: Any, arrays: Sequence[Any]) -> Any:
            return layer.apply(*arguments.rebuild(arrays), key=mode)

        def call(arrays: Sequence[Any], cotangent_key: Any) -> Any:
            results = []
            for mode in modes:
                y, pullback = layer.vjp(*arguments.rebuild(arrays), key=mode)
                results.append(pullback(tree_map(lambda leaf: _normal(cotangent_key, leaf), y)))
                results.append(_pulled_back(partial(apply, mode), arrays, cotangent_key))
            return results

        return call

    return Trial(lambda: check_layer(make(), key, x, training_key=training_key), _gradients(calls, arguments))


def _pulled_back(call: Callable[[Sequence[Any]], Any], arrays: Sequence[Any], key: Any, order: int = 1) -> Any:
    """The gradients of Σ ⟨w, call⟩ under random w, for `order` 2 also those of Σ ⟨w, gradients⟩."""

    keys = jax.random.split(key)

    def first(arrays: Sequence[Any]) -> list[Any]:
        outputs, pullback = jax.vjp(lambda given: float_leaves(call(given)), arrays)
        return list(pullback([_normal(jax.random.fold_in(keys[0], i), y) for i, y in enumerate(outputs)])[0])

    if order == 1:
        return first(arrays)
    gradients, pullback = jax.vjp(first, arrays)
    return gradients, pullback([_normal(jax.random.fold_in(keys[1], i), g) for i, g in enumerate(gradients)])


def _normal(key: Any, like: Any) -> Any:
    return jax.random.normal(key, like.shape, like.dtype)


def _gradients(calls: Callable[[], Call], arguments: Arguments) -> Callable[[Sequence[int]], Gradients]:
    """Gradients at arguments drawn by a seed: in float64 if the function, as it is, can be promoted."""
    promotes: list[bool] = []

    def at(seeds: Sequence[int], promoted: bool) -> Gradients:
        call = calls()

        @jax.jit
        def program(vector: Any, key: Any) -> Any:
            return call(arguments.unpack(vector, promoted=promoted), key)

        with setting(promoted):
            drawn = [(jnp.asarray(draw(arguments, seed)), jax.random.key(seed)) for seed in seeds]
            found = [tree_leaves(program(*one)) for one in drawn]
            # in integers there is no derivative, and nothing to compare
            return [[np.asarray(leaf) for leaf in leaves if leaf.dtype != jax.dtypes.float0] for leaves in found]

    def gradients(seeds: Sequence[int]) -> Gradients:
        if not promotes:
            try:
                at(seeds[:1], True)
                promotes.append(True)
            except Exception:  # whatever it raises: its own dtype decides whether that was the reason
                promotes.append(False)
        return at(seeds, promotes[0])

    return gradients


def draw(arguments: Arguments, seed: int) -> np.ndarray:
    """The arguments' vector at another place: by turns near, of other signs, shuffled, normal, ten times so."""
    rng = np.random.default_rng(seed)
    vector = arguments.vector()
    for leaf in arguments.leaves:
        part = vector[leaf.part]
        rms, _ = scales(part)
        near = part * rng.uniform(0.5, 1.5, part.size)
        vector[leaf.part] = (
            part,
            near,
            near * rng.choice([-1.0, 1.0], part.size),
            rng.permutation(part),
            rng.normal(0, rms, part.size),
            rng.normal(0, 10 * rms, part.size),
        )[seed % 6]
    return vector


def difference(found: Gradients, right: Gradients) -> float:
    """The largest difference of an element, relative to the largest of its leaf.

    An element that isn't finite in `right` says nothing: it was drawn outside of the function's domain.
    Infinite if another tree or shape was found, or NaN where there was a number.
    """
    worst = 0.0
    for ours, theirs in zip(found, right, strict=True):
        if [a.shape for a in ours] != [a.shape for a in theirs]:
            return np.inf
        for a, b in zip(ours, theirs, strict=True):
            inside = np.isfinite(b)
            if inside.any():
                with np.errstate(all="ignore"):
                    gap = np.abs(a.astype(np.complex128) - b)[inside].max()
                worst = max(worst, float(np.nan_to_num(gap, nan=np.inf) / (np.abs(b[inside]).max() or 1.0)))
    return worst
