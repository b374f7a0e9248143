"""Control flow, transformations, and derivatives of derivatives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .registry import Setup, correct, normal, positive, rule, setup, tangent_rule, transposed_sine


@correct(order=2)
def rule_in_a_rule(rng: Any) -> Setup:
    """A custom_vjp inside the tangent of a custom_jvp, right to second order."""
    cosine = tangent_rule(lambda x: jnp.cos(x), lambda x, dx: -jnp.sin(x) * dx)
    sine = tangent_rule(lambda x: jnp.sin(x), lambda x, dx: cosine(x) * dx)
    cube = rule(lambda x: x**3, lambda x, y, dy: (3 * x**2 * dy,))
    return setup(lambda x: cube(sine(x)), normal(rng, 5))


@correct()
def while_loop_in_a_rule(rng: Any) -> Setup:
    """Reverse mode through a while_loop exists only by the rule."""

    def power(x: Any) -> Any:
        return jax.lax.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, s[1] * x), (0, jnp.ones_like(x)))[1]

    return setup(rule(power, lambda x, y, dy: (5 * x**4 * dy,)), normal(rng, 4))


@correct(reverse=False)
def while_loop_forward_only(rng: Any) -> Setup:
    """No reverse mode at all; forward mode can be checked."""

    def fn(x: Any) -> Any:
        return jax.lax.while_loop(lambda s: s[0] < 4, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, x))[1]

    return setup(fn, positive(rng, 3))


@correct()
def scan_cond_switch_and_fori(rng: Any) -> Setup:
    """All of them in one function, with a rule inside."""
    double = rule(lambda x: 2 * x, lambda x, y, dy: (2 * dy,))

    def fn(w: Any, x: Any) -> Any:
        def step(h: Any, row: Any) -> Any:
            x, i = row
            h = jax.lax.switch(i % 3, [jnp.sin, double, jnp.tanh], h @ w + x)
            return jax.lax.cond(h.sum() > 0, double, lambda h: h, h), h.sum()

        h, sums = jax.lax.scan(step, jnp.zeros_like(x[0]), (x, jnp.arange(4)))
        return jax.lax.fori_loop(0, 3, lambda _, h: jax.nn.silu(h), h) * sums.mean()

    return setup(fn, normal(rng, 3, 3) / 2, normal(rng, 4, 3))


@correct()
def associative_scan(rng: Any) -> Setup:
    """A linear recurrence in logarithmic depth."""

    def fn(a: Any, x: Any) -> Any:
        return jax.lax.associative_scan(lambda p, q: (p[0] * q[0], q[0] * p[1] + q[1]), (a, x))[1]

    return setup(fn, positive(rng, 7) / 2, normal(rng, 7))


@correct()
def nested_jit_and_remat(rng: Any) -> Setup:
    """jit in checkpoint in jit, with a rule at the bottom."""
    op = rule(lambda x: jnp.sin(x), lambda x, y, dy: (jnp.cos(x) * dy,))
    inner = jax.checkpoint(jax.jit(lambda x: op(x) * x))
    return setup(jax.jit(lambda x: jax.jit(inner)(inner(x))), normal(rng, 4))


@correct()
def vmap_inside(rng: Any) -> Setup:
    """Per-example losses by vmap, over a rule."""
    norm = rule(lambda x: jnp.sqrt((x**2).sum()), lambda x, y, dy: (dy * x / y,))
    return setup(lambda x, w: jax.vmap(lambda x: norm(x * w))(x), normal(rng, 4, 3), positive(rng, 3))


@correct()
def gradient_penalty(rng: Any) -> Setup:
    """A loss with jax.grad inside."""

    def network(w: Any, x: Any) -> Any:
        return (jnp.tanh(x @ w) ** 2).sum()

    def loss(w: Any, x: Any) -> Any:
        return ((jnp.linalg.norm(jax.grad(network, 1)(w, x), axis=1) - 1) ** 2).mean()

    return setup(loss, normal(rng, 3, 4), normal(rng, 2, 3))


@correct()
def unrolled_optimisation(rng: Any) -> Setup:
    """Ten steps of gradient descent, differentiated by the learning rate and the start."""

    def fn(rate: Any, w: Any) -> Any:
        step = jax.grad(lambda w: ((w**2 - 1) ** 2).sum())
        return jax.lax.scan(lambda w, _: (w - rate * step(w), None), w, length=10)[0]

    return setup(fn, 0.02 * positive(rng), normal(rng, 3))


@correct()
def hand_written_claim(rng: Any) -> Setup:
    """A right claim for some of the arguments only."""

    def loss(params: Any, x: Any) -> Any:
        return (jnp.tanh(x @ params["w"] + params["b"][None]) ** 2).sum()

    def claim(params: Any, x: Any) -> Any:
        y = jnp.tanh(x @ params["w"] + params["b"][None])
        dz = 2 * y * (1 - y**2)
        return ({"w": x.T @ dz, "b": dz.sum(axis=0)},)

    return setup(loss, {"w": normal(rng, 3, 2), "b": normal(rng, 2)}, normal(rng, 4, 3), hand_written=claim)


@correct()
def noise_within_the_stated_bound(rng: Any) -> Setup:
    """A backward whose sums come in any order: nondeterminism= states how much that may do."""

    def host(x: Any, dy: Any) -> Any:
        return (np.cos(x) * dy * (1 + 1e-7 * rng.standard_normal(x.shape))).astype(x.dtype)

    def backward(x: Any, y: Any, dy: Any) -> Any:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return (jax.pure_callback(host, shape, x, dy, vmap_method="sequential"),)

    return setup(rule(lambda x: jnp.sin(x), backward), normal(rng, 5), nondeterminism=1e-6)


@correct()
def linear_call_with_a_right_transpose(rng: Any) -> Setup:
    """Forward and reverse mode by two functions that agree."""
    return setup(transposed_sine(lambda c, t: c * t, lambda c, ct: c * ct), normal(rng, 4))
