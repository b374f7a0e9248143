"""What a loss is: its values and its two derivatives, joined in one rule, its arguments checked."""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxnet.activations import accumulation_dtype

Loss = Callable[..., Array]


def derivative(loss: Loss) -> Loss:
    """Returns (prediction, target) ↦ ∂L/∂prediction, where L is the sum of the per-example losses.

    Raises:
        ValueError: if the function has no derivative written beside it.
    """
    function: Any = loss.func if isinstance(loss, partial) else loss
    if not hasattr(function, "derivative"):
        raise ValueError(f"losses.derivative needs one of jaxnet's losses; got {loss!r}")
    return partial(function.derivative, **loss.keywords) if isinstance(loss, partial) else function.derivative


def rule(
    check: Callable[..., None],
    derivative: Callable[..., Array],
    target_derivative: Callable[..., Array],
    reduces: bool = False,
) -> Callable[[Callable[..., Array]], Loss]:
    """Joins L(prediction, target, *options) and its two derivatives; `reduces` if L sums over the last axis."""

    def attach(f: Callable[..., Array]) -> Loss:
        signature = inspect.signature(f)
        joined: Any = jax.custom_jvp(f, nondiff_argnums=tuple(range(2, len(signature.parameters))))

        @partial(joined.defjvp, symbolic_zeros=True)
        def _(*args: Any) -> tuple[Array, Array]:
            *options, (p, t), tangents = args
            # What isn't differentiated has a symbolic zero: a target's derivative may be infinite, and 0·∞ is NaN.
            terms = [
                d(p, t, *options) * tangent
                for d, tangent in zip((derivative, target_derivative), tangents, strict=True)
                if not isinstance(tangent, SymbolicZero)
            ]
            dL = sum(terms, jnp.zeros_like(p))
            return joined(p, t, *options), jnp.sum(dL, -1) if reduces else dL

        def public(g: Callable[..., Array]) -> Loss:
            @wraps(f)
            def checked(prediction: ArrayLike, target: ArrayLike, *args: Any, **named: Any) -> Array:
                p, t = jnp.asarray(prediction), jnp.asarray(target)
                if not jnp.issubdtype(p.dtype, jnp.floating):
                    raise ValueError(f"{f.__name__} needs a floating-point prediction; got {p.dtype}")
                bound = signature.bind(p, t, *args, **named)
                bound.apply_defaults()
                check(f.__name__, *bound.args)
                dtype = accumulation_dtype(p.dtype)
                wide = t.astype(dtype) if t.ndim == p.ndim or not reduces else t
                return g(p.astype(dtype), wide, *bound.args[2:]).astype(p.dtype)

            return checked

        return derived(public(derivative))(public(joined))

    return attach


def derived(derivative: Callable[..., Any]) -> Callable[[Callable[..., Array]], Loss]:
    """Puts the derivative beside a loss that is made of others, whose rules serve it."""

    def attach(f: Callable[..., Array]) -> Loss:
        loss: Any = f
        loss.derivative = derivative
        return loss

    return attach


def counted(loss: Loss, ignore_label: int) -> Loss:
    """The loss whose mean over all N examples is that of `loss` over the n that count, such as all but padding.

        L = N/n loss,  n = Σ [label ≠ ignore_label],  ∂L/∂p = N/n ∂loss/∂p

    Args:
        loss: one with an `ignore_label`, `losses.cross_entropy` or a partial of it.
        ignore_label: the label of what doesn't count. If nothing counts, the loss is 0.

    Example:
        >>> losses.counted(losses.cross_entropy, -1)(jnp.zeros((4, 2)), jnp.array([0, 1, 1, -1])).mean()
        Array(0.6931472, dtype=float32)
    """
    ignoring = partial(loss, ignore_label=ignore_label)

    @derived(partial(_counted_derivative, ignoring, ignore_label))
    def scaled(prediction: ArrayLike, target: ArrayLike) -> Array:
        return _for_each_counted(ignoring(prediction, target), target, ignore_label)

    return scaled


def _counted_derivative(loss: Loss, ignore_label: int, p: ArrayLike, t: ArrayLike) -> Array:
    return _for_each_counted(derivative(loss)(p, t), t, ignore_label)


def _for_each_counted(values: Array, target: ArrayLike, ignore_label: int) -> Array:
    """N/n values."""
    labels = jnp.asarray(target)
    each = labels.size / jnp.maximum(jnp.sum(labels != ignore_label), 1)
    return each.astype(values.dtype) * values


def same_shape(name: str, p: Array, t: Array, *options: float) -> None:
    """Raises a `ValueError` unless prediction and target have one shape."""
    if p.shape != t.shape:
        raise ValueError(
            f"{name} needs a prediction and a target of the same shape; got {p.shape} and {t.shape}. "
            "Reshape one of them: broadcasting would pair every prediction with every target"
        )


def times(q: Array, log_p: Array) -> Array:
    """q log p."""
    return jnp.where(q == 0, jnp.zeros_like(q), q * log_p)  # 0 ln 0 = 0
