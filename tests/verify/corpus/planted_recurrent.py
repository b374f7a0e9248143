"""Mistakes in derivatives through time, through randomness and through solvers."""

from typing import Any

import jax
import jax.numpy as jnp

from .registry import Setup, normal, planted, positive, rule, setup

STEPS = 6


def cell(h: Any, x: Any, w: Any) -> Any:
    return jnp.tanh(h @ w + x)


def rnn(x: Any, w: Any, h: Any) -> Any:
    return jax.lax.scan(lambda h, x: (cell(h, x, w), cell(h, x, w)), h, x)[1]


def rnn_point(rng: Any) -> tuple[Any, ...]:
    return normal(rng, STEPS, 3), normal(rng, 3, 3) / 2, normal(rng, 3)


def rnn_backward(*, carried: float = 1.0, initial: float = 1.0) -> Any:
    """Backward through time; the gradient that is handed to the step before is `carried` times the right one."""

    def backward(x: Any, w: Any, h: Any, y: Any, dy: Any) -> Any:
        before = jnp.concatenate([h[None], y[:-1]])

        def step(carry: Any, row: Any) -> Any:
            dh, dw = carry
            before, y, dy = row
            dz = (dy + dh) * (1 - y**2)
            return (carried * dz @ w.T, dw + jnp.outer(before, dz)), dz

        carry = jnp.zeros_like(h), jnp.zeros_like(w)
        (dh, dw), dx = jax.lax.scan(step, carry, (before, y, dy), reverse=True)
        return dx, dw, initial * dh

    return backward


@planted("x", "w", "h", source="qixianbiao/RNN #2")
def gradient_not_handed_to_the_step_before(rng: Any) -> Setup:
    """Each step sees only its own output's cotangent."""
    return setup(rule(rnn, rnn_backward(carried=0)), *rnn_point(rng))


@planted("h", source="Burton2000/CS231n-2017 #7")
def initial_state_without_gradient(rng: Any) -> Setup:
    """All is right but the first state, taken for a constant."""
    return setup(rule(rnn, rnn_backward(initial=0)), *rnn_point(rng))


@planted("x", index=(3, None))
def wrong_at_one_time_step(rng: Any) -> Setup:
    """A gate's derivative is doubled at step 3 of the scan, for the input only."""
    twice = rule(lambda x, t: jnp.sin(x), lambda x, t, y, dy: (jnp.cos(x) * jnp.where(t == 3, 2, 1) * dy, None))

    def fn(x: Any, w: Any) -> Any:
        def step(h: Any, row: Any) -> Any:
            x, t = row
            h = cell(h, twice(x, t), w)
            return h, h

        return jax.lax.scan(step, jnp.zeros_like(x[0]), (x, jnp.arange(STEPS)))[1]

    return setup(fn, normal(rng, STEPS, 3), normal(rng, 3, 3) / 2)


@planted("f", source="proger/accelerated-scan #15")
def decay_of_the_step_after(rng: Any) -> Setup:
    """h_t = f_t·h_{t-1} + x_t: df takes h_t in place of h_{t-1}."""

    def recurrence(f: Any, x: Any) -> Any:
        def step(h: Any, row: Any) -> Any:
            h = row[0] * h + row[1]
            return h, h

        return jax.lax.scan(step, jnp.zeros_like(x[0]), (f, x))[1]

    def backward(f: Any, x: Any, y: Any, dy: Any) -> Any:
        after = jnp.concatenate([f[1:], jnp.zeros_like(f[:1])])
        dx = recurrence(after[::-1], dy[::-1])[::-1]
        return dx * y, dx

    return setup(rule(recurrence, backward), positive(rng, STEPS, 2) / 2, normal(rng, STEPS, 2))


@planted("x", source="pymc-devs/pytensor #2217")
def sequence_gradient_one_step_late(rng: Any) -> Setup:
    """The gradients of the sequence are off by one step."""

    def backward(x: Any, w: Any, h: Any, y: Any, dy: Any) -> Any:
        dx, dw, dh = rnn_backward()(x, w, h, y, dy)
        return jnp.roll(dx, 1, axis=0), dw, dh

    return setup(rule(rnn, backward), *rnn_point(rng))


@planted("f")
def gate_without_its_own_derivative(rng: Any) -> Setup:
    """σ(f)·c: the derivative of the gate is σ, where σ·(1 - σ) belongs."""
    op = rule(
        lambda f, c: jax.nn.sigmoid(f) * c,
        lambda f, c, y, dy: (jax.nn.sigmoid(f) * c * dy, jax.nn.sigmoid(f) * dy),
    )
    return setup(op, normal(rng, 5), normal(rng, 5))


@planted("x", source="state-spaces/mamba #1023")
def dropout_with_another_mask(rng: Any) -> Setup:
    """The backward draws its mask anew, from another key."""

    def mask(key: Any, x: Any) -> Any:
        return jax.random.bernoulli(key, 0.5, x.shape).astype(x.dtype) * 2

    op = rule(
        lambda x, key: x * mask(key, x),
        lambda x, key, y, dy: (dy * mask(jax.random.fold_in(key, 1), x), None),
    )
    return setup(op, normal(rng, 4, 8), jax.random.key(int(rng.integers(1000))))


@planted("x")
def dropout_without_its_scale(rng: Any) -> Setup:
    """The factor 1/(1 - p) is missing in the backward."""
    op = rule(
        lambda x, key: jnp.where(jax.random.bernoulli(key, 0.75, x.shape), x / 0.75, 0),
        lambda x, key, y, dy: (jnp.where(jax.random.bernoulli(key, 0.75, x.shape), dy, 0), None),
    )
    return setup(op, normal(rng, 4, 8), jax.random.key(int(rng.integers(1000))))


@planted("x", source="google-deepmind/optax #1308")
def perturbed_function_off_by_sigma(rng: Any) -> Setup:
    """mean f(x + σ·z): the gradient is σ times the right one."""

    def points(x: Any, key: Any) -> Any:
        return x[None] + 0.3 * jax.random.normal(key, (8, *x.shape), jnp.float32).astype(x.dtype)

    op = rule(
        lambda x, key: jnp.sin(points(x, key)).sum(axis=1).mean(),
        lambda x, key, y, dy: (0.3 * jnp.cos(points(x, key)).mean(axis=0) * dy, None),
    )
    return setup(op, normal(rng, 4), jax.random.key(int(rng.integers(1000))))


def settle(step: Any, x: Any) -> Any:
    """The fixed point of z ← step(z, x)."""
    return jax.lax.fori_loop(0, 80, lambda _, z: step(z, x), jnp.zeros_like(x))


@planted("x")
def fixed_point_by_one_step(rng: Any) -> Setup:
    """The implicit derivative without (1 - ∂z)⁻¹: that of the last step alone."""

    def step(z: Any, x: Any) -> Any:
        return 0.5 * jnp.cos(z) + x

    op = rule(lambda x: settle(step, x), lambda x, z, dz: (dz,))
    return setup(op, normal(rng, 4))


@planted("x")
def newton_step_with_the_wrong_sign(rng: Any) -> Setup:
    """z³ + z = x: dz/dx = 1/(3z² + 1); the sign of the implicit function theorem is lost."""

    def solve(x: Any) -> Any:
        return jax.lax.fori_loop(0, 60, lambda _, z: z - (z**3 + z - x) / (3 * z**2 + 1), jnp.zeros_like(x))

    return setup(rule(solve, lambda x, z, dz: (-dz / (3 * z**2 + 1),)), normal(rng, 4))
