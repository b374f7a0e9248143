"""Derivatives that differ from the function's on purpose, and say so."""

from typing import Any

import jax
import jax.numpy as jnp

from .registry import Setup, correct, normal, positive, rule, setup

stop = jax.lax.stop_gradient


@correct()
def rounding_straight_through(rng: Any) -> Setup:
    """x + stop(round(x) - x): with the stopped value held fixed, the slope is 1."""
    return setup(lambda x, w: ((x + stop(jnp.round(x) - x)) * w).sum(), 3 * normal(rng, 5), normal(rng, 5))


@correct()
def vector_quantisation(rng: Any) -> Setup:
    """The nearest code in the forward, the identity in the backward, and a loss for the codes."""

    def loss(x: Any, codes: Any) -> Any:
        nearest = codes[((x[:, None] - codes[None]) ** 2).sum(axis=-1).argmin(axis=1)]
        through = x + stop(nearest - x)
        return (through**3).sum() + ((stop(x) - nearest) ** 2).sum() + 0.25 * ((x - stop(nearest)) ** 2).sum()

    return setup(loss, normal(rng, 4, 2), normal(rng, 3, 2))


@correct()
def bootstrapped_target(rng: Any) -> Setup:
    """The squared error to a target that depends on the same parameters, held fixed."""

    def loss(w: Any, x: Any, after: Any) -> Any:
        target = 1 + 0.9 * stop(after @ w)
        return ((x @ w - target) ** 2).mean()

    return setup(loss, normal(rng, 3), normal(rng, 5, 3), normal(rng, 5, 3))


@correct()
def policy_gradient(rng: Any) -> Setup:
    """log π·(reward - baseline), the advantage held fixed."""

    def loss(logits: Any, value: Any) -> Any:
        logp = jax.nn.log_softmax(logits)[jnp.arange(4), jnp.array([0, 2, 1, 0])]
        advantage = 1.5 - value
        return -(logp * stop(advantage)).sum() + (advantage**2).sum()

    return setup(loss, normal(rng, 4, 3), normal(rng, 4))


@correct()
def softmax_with_its_maximum_stopped(rng: Any) -> Setup:
    """Its value doesn't depend on what is stopped: both ways of looking agree."""

    def softmax(x: Any) -> Any:
        e = jnp.exp(x - stop(x.max(axis=-1, keepdims=True)))
        return e / e.sum(axis=-1, keepdims=True)

    return setup(softmax, normal(rng, 3, 4))


@correct()
def stopped_inside_a_scan(rng: Any) -> Setup:
    """A carry that is cut at every second step."""

    def fn(x: Any, w: Any) -> Any:
        def step(h: Any, row: Any) -> Any:
            x, t = row
            h = jnp.tanh(w * jnp.where(t % 2 == 0, stop(h), h) + x)
            return h, h

        return jax.lax.scan(step, jnp.zeros_like(x[0]), (x, jnp.arange(5)))[1]

    return setup(fn, normal(rng, 5, 3), positive(rng, 3))


@correct()
def stopped_inside_a_rule(rng: Any) -> Setup:
    """The primal of a custom_vjp has a stop_gradient, its rule is right for the stopped function."""
    op = rule(lambda x: x * stop(jnp.exp(x)), lambda x, y, dy: (dy * jnp.exp(x),))
    return setup(lambda x: op(x) ** 2, normal(rng, 4))


@correct()
def argument_meant_to_be_constant(rng: Any) -> Setup:
    """A rule that gives its second argument no gradient, as documented: constant= names it."""
    op = rule(lambda x, table: x * table.sum(), lambda x, table, y, dy: (dy * table.sum(), jnp.zeros_like(table)))
    return setup(op, normal(rng, 4), normal(rng, 3), constant=("table",))


@correct()
def gradient_reversal(rng: Any) -> Setup:
    """The identity whose gradient is -λ·dy: the reference is a function that has that derivative."""
    op = rule(lambda x: 1 * x, lambda x, y, dy: (-0.3 * dy,))

    def reference(x: Any) -> Any:
        return jnp.sin(stop(x) - 0.3 * (x - stop(x)))

    return setup(lambda x: jnp.sin(op(x)), normal(rng, 4), reference=reference)


@correct()
def surrogate_of_a_spike(rng: Any) -> Setup:
    """A step in the forward, a fast sigmoid's slope in the backward."""

    def slope(x: Any) -> Any:
        return 1 / (1 + 5 * jnp.abs(x)) ** 2

    op = rule(lambda x: (x > 0).astype(x.dtype), lambda x, y, dy: (dy * slope(x),))

    def reference(x: Any, w: Any) -> Any:
        return ((stop((x > 0).astype(x.dtype)) + stop(slope(x)) * (x - stop(x))) * w).sum()

    return setup(lambda x, w: (op(x) * w).sum(), normal(rng, 6), normal(rng, 6), reference=reference)


@correct()
def rounding_with_a_reference(rng: Any) -> Setup:
    """A quantiser by custom_vjp whose backward is the identity inside the range."""

    def quantise(x: Any) -> Any:
        return jnp.clip(jnp.round(4 * x) / 4, -1, 1)

    op = rule(quantise, lambda x, y, dy: (jnp.where(jnp.abs(x) <= 1, dy, 0),))

    def reference(x: Any) -> Any:
        return jnp.where(jnp.abs(x) <= 1, x, 0) + stop(quantise(x) - jnp.where(jnp.abs(x) <= 1, x, 0))

    return setup(op, normal(rng, 6), reference=reference)
