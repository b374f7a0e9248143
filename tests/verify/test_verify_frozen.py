"""What stop_gradient holds fixed on purpose stays fixed in the differences, through every control flow."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import verify

stop = jax.lax.stop_gradient
X = jnp.asarray(np.random.default_rng(0).uniform(0.4, 1.6, 5), jnp.float32)


def straight_through(x: Any) -> Any:
    return x + stop(jnp.round(3 * x) - x)


def in_scan(x: Any) -> Any:
    return jax.lax.scan(lambda c, a: (jnp.sin(c) * a * stop(c + a), a * stop(c)), 1.0 + 0 * x[0], x)


def in_reversed_scan(x: Any) -> Any:
    return jax.lax.scan(lambda c, a: (c * a + stop(c), None), x[0], x, reverse=True)[0]


def in_cond(x: Any) -> Any:
    return jax.lax.cond(x[0] > 0, lambda x: x**2 * stop(x), lambda x: stop(x**3) - x, x)


def in_the_other_branch(x: Any) -> Any:
    return jax.lax.switch(1, [lambda x: stop(x), lambda x: x**3 * stop(jnp.sin(x) + x), lambda x: x], x)


def in_while(x: Any) -> Any:
    step = lambda s: (s[0] + 1, s[1] * x + stop(s[1] ** 2))  # noqa: E731
    return jax.lax.while_loop(lambda s: s[0] < 5, step, (0, x))[1]


def in_a_long_while(x: Any) -> Any:
    step = lambda s: (s[0] + 1, 0.9 * s[1] + 0.1 * x * stop(s[1]))  # noqa: E731
    return jax.lax.while_loop(lambda s: s[0] < 100, step, (0, x))[1]


def in_jit_and_vmap(x: Any) -> Any:
    return jax.jit(jax.vmap(lambda a: a * stop(jnp.exp(a))))(x)


def in_remat(x: Any) -> Any:
    return jax.checkpoint(lambda x: jnp.tanh(x) * stop(x))(x)


def nested(x: Any) -> Any:
    def body(c: Any, a: Any) -> Any:
        return jax.lax.cond(a > 1, lambda c: c * a + stop(c * a), lambda c: stop(c) * a, c), None

    return jax.lax.scan(body, x[0], x)[0]


FUNCTIONS = [
    straight_through, in_scan, in_reversed_scan, in_cond, in_the_other_branch, in_while, in_a_long_while,
    in_jit_and_vmap, in_remat, nested,
]  # fmt: skip


@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)
def test_held_fixed(fn: Any) -> None:
    report = verify.check_gradients(fn, X)
    assert report.ok, str(report)
    assert "once stop_gradient is held fixed" in str(report)


def test_a_wrong_gradient_beside_it_is_found() -> None:
    op = jax.custom_vjp(jnp.sin)
    op.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x) * 1.001,))
    report = verify.check_gradients(lambda x: op(x) * stop(x), X)
    assert report.state == "fail"


def test_order_two_keeps_what_a_rule_hides() -> None:
    op = jax.custom_vjp(jnp.sin)
    op.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(stop(x)),))
    assert verify.check_gradients(lambda x: x * stop(x**2), X, order=2).ok
    assert verify.check_gradients(lambda x: op(x) * stop(x**2), X, order=2).state == "fail"


def test_what_cannot_be_held_fixed_is_undecided() -> None:
    def fn(x: Any) -> Any:
        solve = lambda mv, b: b / 2  # noqa: E731
        return jax.lax.custom_linear_solve(
            lambda y: 2 * y * stop(jnp.ones(())), x * stop(x), solve, symmetric=True
        )

    report = verify.check_gradients(fn, X)
    assert report.state == "undecided", str(report)
    assert "custom_linear_solve cannot be held fixed" in str(report).replace("\n        ", " ")
