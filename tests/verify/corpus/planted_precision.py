"""Derivatives that are right on paper and wrong in the dtype in which they are calculated."""

from typing import Any

import jax
import jax.numpy as jnp

from .registry import Setup, normal, planted, positive, rule, setup, wide


def sum_one_by_one(rows: Any) -> Any:
    """Σ over the first axis in the dtype of `rows`, as a kernel's accumulator of that dtype would."""
    return jax.lax.scan(lambda total, row: (total + row, None), jnp.zeros_like(rows[0]), rows)[0]


@planted("scale", source="linkedin/Liger-Kernel #950")
def weight_gradient_summed_in_bfloat16(rng: Any) -> Setup:
    """1,024 rows: the sum no longer grows once a row is less than half a unit of its last place."""
    op = rule(lambda x, scale: x * scale[None], lambda x, scale, y, dy: (dy * scale[None], sum_one_by_one(dy * x)))
    x = positive(rng, 1024, 4, dtype=jnp.bfloat16)
    return setup(lambda x, scale: wide(op(x, scale)).sum(), x, positive(rng, 4, dtype=jnp.bfloat16))


@planted("table", source="apache/mxnet #17703")
def embedding_gradient_summed_in_float16(rng: Any) -> Setup:
    """One row of the table is used 8,192 times with a gradient of 0.01: the sum stops at 32."""

    def backward(table: Any, y: Any, dy: Any) -> Any:
        return (sum_one_by_one(dy)[None],)

    op = rule(lambda table: jnp.broadcast_to(table[0], (8192, 2)), backward)

    def loss(table: Any) -> Any:
        return (wide(op(table)) * 0.01).sum()

    return setup(loss, normal(rng, 1, 2, dtype=jnp.float16))


@planted("x", source="jax-ml/jax #39899")
def norm_overflows_in_float16(rng: Any) -> Setup:
    """|x| = 300 is a float16, but |x|² isn't: the gradient x/∞ is 0, without any sign of it."""

    def norm(x: Any) -> Any:
        return jnp.sqrt((wide(x) ** 2).sum())

    def backward(x: Any, y: Any, dy: Any) -> Any:
        return (x / jnp.sqrt((x * x).sum()) * dy.astype(x.dtype),)

    return setup(rule(norm, backward), 100 * positive(rng, 9, dtype=jnp.float16))


@planted("x")
def gradient_underflows_in_float16(rng: Any) -> Setup:
    """The mean over 2²⁰ examples is taken before the sum: each part is below the smallest float16."""
    op = rule(
        lambda x: (x**2).sum(), lambda x, y, dy: ((x * jnp.asarray(2.0**-28, x.dtype)) * 2.0**14 * 2.0**15 * dy,)
    )
    return setup(op, positive(rng, 5, dtype=jnp.float16))


@planted("x")
def backward_rounds_to_bfloat16(rng: Any) -> Setup:
    """A float32 product whose backward goes through bfloat16: 3 digits."""

    def backward(x: Any, w: Any, y: Any, dy: Any) -> Any:
        short = (dy.astype(jnp.bfloat16) @ w.T.astype(jnp.bfloat16)).astype(x.dtype)
        return short, x.T @ dy

    return setup(rule(lambda x, w: x @ w, backward), normal(rng, 5, 8), normal(rng, 8, 3))


@planted("x")
def variance_by_the_difference_of_squares(rng: Any) -> Setup:
    """The backward's Σx² - (Σx)² cancels in float32 where the mean is 1,000 times the deviation."""

    def backward(x: Any, y: Any, dy: Any) -> Any:
        std = jnp.sqrt((x * x).mean() - x.mean() ** 2)
        return ((x - x.mean()) / (x.size * std) * dy,)

    return setup(rule(lambda x: jnp.std(x), backward), 1000 + normal(rng, 64))


@planted("x", source="tinygrad/tinygrad #17852")
def elu_overflows_for_large_inputs(rng: Any) -> Setup:
    """Beyond 88 the exponential of the branch not taken is infinite in float32, and 0·∞ is NaN."""
    return setup(lambda x: jnp.where(x > 0, x, jnp.exp(x) - 1), normal(rng, 5).at[3].set(100.0))


@planted("x", source="intel/torch-xpu-ops #4759")
def gelu_cancels_in_its_tail(rng: Any) -> Setup:
    """1 + erf(x/√2) is all rounding below -5, and the slope there is of its size."""

    def backward(x: Any, y: Any, dy: Any) -> Any:
        cdf = 0.5 * (1 + jax.scipy.special.erf(x / 2**0.5))
        return (dy * (cdf + x * jnp.exp(-(x**2) / 2) / (2 * jnp.pi) ** 0.5),)

    op = rule(lambda x: x * 0.5 * jax.scipy.special.erfc(-x / 2**0.5), backward)
    return setup(op, -5.4 - 0.1 * positive(rng, 6))
