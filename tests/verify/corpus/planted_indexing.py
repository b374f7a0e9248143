"""Mistakes in gathers, scatters, sorts and windows."""

from typing import Any

import jax
import jax.numpy as jnp

from .registry import Setup, normal, planted, rule, setup

TOKENS = jnp.array([1, 4, 1, 0, 1])


@planted("table", source="openvdb/fvdb-core #434")
def duplicates_overwrite_each_other(rng: Any) -> Setup:
    """A row of the table used three times gets the gradient of the last use only."""
    op = rule(
        lambda table, tokens: table[tokens],
        lambda table, tokens, y, dy: (jnp.zeros_like(table).at[tokens].set(dy), None),
    )
    return setup(op, normal(rng, 6, 3), TOKENS)


@planted("table", source="pytorch/pytorch #26302")
def padding_gets_a_gradient(rng: Any) -> Setup:
    """Token 0 is embedded as zeros, whatever the table says, but its row gets a gradient."""
    op = rule(
        lambda table, tokens: jnp.where((tokens > 0)[:, None], table[tokens], 0),
        lambda table, tokens, y, dy: (jnp.zeros_like(table).at[tokens].add(dy), None),
    )
    return setup(op, normal(rng, 6, 3), TOKENS)


@planted("table")
def negative_index_clamped(rng: Any) -> Setup:
    """table[-1] is the last row; the backward clamps the index to 0."""
    op = rule(
        lambda table, tokens: table[tokens],
        lambda table, tokens, y, dy: (jnp.zeros_like(table).at[jnp.maximum(tokens, 0)].add(dy), None),
    )
    return setup(op, normal(rng, 5, 2), jnp.array([1, -1, 3]))


@planted("table")
def token_off_by_one(rng: Any) -> Setup:
    """The rows are counted from 1 in the backward."""
    op = rule(
        lambda table, tokens: table[tokens],
        lambda table, tokens, y, dy: (jnp.zeros_like(table).at[tokens + 1].add(dy), None),
    )
    return setup(op, normal(rng, 6, 2), TOKENS)


@planted("values", source="tensorflow/tensorflow #56961")
def overwritten_values_get_a_gradient(rng: Any) -> Setup:
    """Two values written to one place: only the one that stays may have a gradient."""
    places = jnp.array([0, 2, 2, 3])
    op = rule(
        lambda base, values: base.at[places].set(values),
        lambda base, values, y, dy: (dy.at[places].set(0.0), dy[places]),
    )
    return setup(op, normal(rng, 5), normal(rng, 4))


@planted("base", source="PaddlePaddle/Paddle #30604")
def overwritten_base_gets_a_gradient(rng: Any) -> Setup:
    """What a scatter overwrites has no gradient."""
    places = jnp.array([0, 2, 3])
    op = rule(lambda base, values: base.at[places].set(values), lambda base, values, y, dy: (dy, dy[places]))
    return setup(op, normal(rng, 5), normal(rng, 3))


@planted("x", source="PaddlePaddle/Paddle #22739")
def sort_without_the_inverse_permutation(rng: Any) -> Setup:
    """dy is permuted like x, where the inverse permutation belongs."""
    op = rule(lambda x: jnp.sort(x), lambda x, y, dy: (dy[jnp.argsort(x)],))
    return setup(
        op, normal(rng, 7)[jnp.argsort(normal(rng, 7))].at[jnp.array([0, 3, 5])].set(jnp.array([9.0, -8.0, -9.0]))
    )


@planted("x")
def segment_mean_as_a_sum(rng: Any) -> Setup:
    """The gradient isn't divided by the number of members."""
    segments = jnp.array([0, 0, 1, 2, 2, 2])

    def mean(x: Any) -> Any:
        count = jax.ops.segment_sum(jnp.ones_like(x), segments, 3)
        return jax.ops.segment_sum(x, segments, 3) / count

    return setup(rule(mean, lambda x, y, dy: (dy[segments],)), normal(rng, 6))


@planted("x")
def overlapping_windows_overwrite(rng: Any) -> Setup:
    """An element that is the maximum of two windows gets the gradient of one."""
    windows = jnp.arange(5)[:, None] + jnp.arange(3)[None]

    def backward(x: Any, y: Any, dy: Any) -> Any:
        return (jnp.zeros_like(x).at[jnp.arange(5) + x[windows].argmax(axis=1)].set(dy),)

    return setup(rule(lambda x: x[windows].max(axis=1), backward), normal(rng, 7).at[3].set(4.0))


@planted("x", index=(4,), source="tracel-ai/burn #5604")
def last_window_divided_by_the_full_kernel(rng: Any) -> Setup:
    """Means over windows of two, the last of one element: its gradient is halved too."""

    def pool(x: Any) -> Any:
        return jnp.concatenate([x[:4].reshape(2, 2).mean(axis=1), x[4:]])

    return setup(rule(pool, lambda x, y, dy: (jnp.repeat(dy, 2)[:5] / 2,)), normal(rng, 5))


@planted("x")
def triangle_off_by_one(rng: Any) -> Setup:
    """The upper triangle without its diagonal, where the forward has it."""
    op = rule(lambda x: jnp.triu(x), lambda x, y, dy: (jnp.triu(dy, k=1),))
    return setup(op, normal(rng, 4, 4))


@planted("x")
def shift_forwards_in_the_backward(rng: Any) -> Setup:
    """The gradient of a shift to the right is a shift to the left."""
    op = rule(lambda x: jnp.roll(x, 1, axis=0), lambda x, y, dy: (jnp.roll(dy, 1, axis=0),))
    return setup(op, normal(rng, 5, 2))


@planted("x")
def reversal_forgotten(rng: Any) -> Setup:
    """A flip along the time axis is missing in the backward."""
    return setup(rule(lambda x: x[::-1] ** 2, lambda x, y, dy: (2 * x * dy,)), normal(rng, 4, 3))


@planted("x")
def concatenation_in_the_wrong_order(rng: Any) -> Setup:
    """The halves of dy are swapped."""
    op = rule(lambda x, y: jnp.concatenate([x, y]), lambda x, y, z, dz: (dz[3:], dz[3:]))
    return setup(op, normal(rng, 3), normal(rng, 3))
