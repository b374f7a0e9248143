"""What a function takes and returns: its float outputs as one real vector."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.verify.leaves import Arguments, float_leaves
from jaxnet.verify.roads import UNTRACEABLE


@dataclass(frozen=True)
class Flattened:
    """The float outputs of a function: their shapes, and how they become one real vector."""

    shapes: tuple[Any, ...]

    @property
    def scalar(self) -> bool:
        """Whether there is one output, a real number: φ itself."""
        return (
            len(self.shapes) == 1
            and self.shapes[0].shape == ()
            and jnp.issubdtype(self.shapes[0].dtype, jnp.floating)
        )

    @property
    def size(self) -> int:
        """Length of the vector."""
        return sum(map(_count, self.shapes))

    def flatten(self, output: Any) -> Any:
        """The outputs in the widest float dtype there is; a complex one as pairs of real numbers."""
        found = float_leaves(output)
        if [jnp.shape(leaf) for leaf in found] != [s.shape for s in self.shapes]:
            raise ValueError(f"the outputs have shapes {[jnp.shape(v) for v in found]}, not {self.text}")
        parts = []
        for leaf in map(jnp.asarray, found):
            real = jnp.stack([leaf.real, leaf.imag], axis=-1) if jnp.iscomplexobj(leaf) else leaf
            parts.append(real.reshape(-1).astype(jnp.result_type(float)))
        return jnp.concatenate(parts)

    def weights(self, y: np.ndarray, seed: int) -> np.ndarray:
        """The cotangent: normal random numbers over each output's RMS, rounded to the output's dtype."""
        if self.scalar:
            return np.ones(1)
        rng = np.random.default_rng(seed & 0xFFFFFFFF)
        weights, start = [], 0
        for s in self.shapes:
            part = y[start : start + _count(s)]
            start += part.size
            pairs = part.size // max(1, int(np.prod(s.shape)))
            size = float(np.sqrt(pairs * np.mean(np.where(np.isfinite(part), part, 0) ** 2)))
            draw = rng.standard_normal(part.size) / (size or 1.0)
            weights.append(draw.astype(jnp.finfo(s.dtype).dtype).astype(np.float64))
        return np.nan_to_num(np.concatenate(weights))

    @property
    def text(self) -> str:
        """The outputs' shapes and dtypes in words."""
        return str([(s.shape, str(s.dtype)) for s in self.shapes])


def takes(fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Say which arguments `fn` needs, before anything inside it fails for want of them."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args)
    except TypeError as error:
        name = getattr(fn, "__name__", type(fn).__name__)
        raise TypeError(
            f"check_gradients calls {name}{signature} with what comes after it, {len(args)} in number: {error}. "
            f"Pass all of them, check_gradients({name}, {', '.join(signature.parameters)}), and bind keywords by "
            "functools.partial."
        ) from None


def outputs_of(fn: Callable[..., Any], arguments: Arguments, name: str = "the function") -> Flattened:
    """The float outputs. What `fn` itself raises comes through, with a note."""

    def call(arrays: list[Any]) -> list[Any]:
        return [jnp.asarray(leaf) for leaf in float_leaves(fn(*arguments.rebuild(arrays)))]

    try:
        try:
            shapes = jax.eval_shape(call, arguments.native())
        except UNTRACEABLE:  # it branches on values
            shapes = call(arguments.native())
    except Exception as error:
        got = [f"{leaf.name}: {leaf.dtype}{list(leaf.shape)}" for leaf in arguments.leaves]
        error.add_note(
            f"check_gradients: {name} itself raises this for these arguments, before any derivative. Pass "
            f"what it can be called with; got {', '.join(got)}."
        )
        raise
    if not shapes:
        raise ValueError(
            f"check_gradients needs functions with a float output; {name} returns no array of float dtype. "
            "Return the loss, or the outputs whose gradient is meant."
        )
    return Flattened(tuple(jax.ShapeDtypeStruct(s.shape, s.dtype) for s in shapes))


def _count(shape: Any) -> int:
    return int(np.prod(shape.shape)) * (2 if jnp.issubdtype(shape.dtype, jnp.complexfloating) else 1)
