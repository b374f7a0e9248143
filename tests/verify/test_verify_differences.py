"""Finite differences know their own error; a jaxpr without its rules is the same function."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet.verify import differences, rules
from jaxnet.verify.leaves import take_apart


def estimate(phi: Any, x: float, eps: float = 2.2e-16) -> differences.Estimate:
    with jax.enable_x64(True):
        probes = differences.at_elements([0], [0])
        table = np.ones((5, 1))
        zero = np.zeros(1)
        return differences.estimate(
            differences.Lines(lambda v, extra: phi(v[0]), jax.make_jaxpr(phi)(x)),
            np.array([x]),
            table,
            probes,
            eps=eps,
            rounding=zero,
            scale=zero,
        )


@pytest.mark.parametrize(
    ("phi", "x", "slope"),
    [
        (jnp.sin, 0.7, np.cos(0.7)),
        (jnp.exp, 3.0, np.exp(3.0)),
        (lambda v: v**5, 1.3, 5 * 1.3**4),
        (jnp.log, 1e-3, 1e3),
        (lambda v: jnp.abs(v - 1e-4), 0.0, -1.0),
        (lambda v: 0 * v + 7, 0.0, 0.0),
        (lambda v: 1e6 + jnp.sin(v), 0.3, np.cos(0.3)),
    ],
)
def test_error_estimate_covers_the_error(phi: Any, x: float, slope: float) -> None:
    found = estimate(phi, x)
    assert abs(found.derivative[0] - slope) <= 10 * found.error[0] + 1e-12 * abs(slope)
    assert found.error[0] <= 1e-8 * max(1, abs(slope), 1e-4 * abs(found.value[0]))
    assert found.kink[0] == 0


def test_kink_is_seen_with_its_jump() -> None:
    np.testing.assert_allclose(estimate(lambda v: 3 * jnp.abs(v), 0.0).kink, [6.0])
    np.testing.assert_allclose(estimate(lambda v: jnp.maximum(v, 0) + jnp.sin(v), 0.0).kink, [1.0], rtol=1e-3)


def test_error_of_noisy_function_is_large() -> None:
    found = estimate(lambda v: jnp.sin(v).astype(jnp.float32).astype(jnp.float64), 0.7, eps=1.2e-7)
    assert found.error[0] > 1e-9
    assert abs(found.derivative[0] - np.cos(0.7)) <= 10 * found.error[0]


def test_nothing_finite_has_no_error_bound() -> None:
    assert np.isinf(estimate(lambda v: v * jnp.nan, 1.0).error[0])


@pytest.mark.parametrize("wrap", [
    lambda f: f,
    jax.jit,
    jax.checkpoint,
    jax.vmap,
    lambda f: lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, length=2)[0],
    lambda f: lambda x: jax.lax.cond(x.sum() > 0, f, f, x),
    lambda f: lambda x: jax.lax.while_loop(lambda c: c.sum() < 3, lambda c: f(c) + 1, x),
    lambda f: jax.jit(jax.checkpoint(lambda x: jax.lax.map(jax.jit(f), x))),
])  # fmt: skip
def test_rules_are_stripped_wherever_they_are(wrap: Any) -> None:
    @jax.custom_jvp
    def op(x: Any) -> Any:
        return jnp.sin(x)

    op.defjvp(lambda primals, tangents: (op(primals[0]), 100 * tangents[0]))
    fn, x = wrap(op), jnp.linspace(0.1, 0.5, 3)
    closed = jax.make_jaxpr(fn)(x)
    plain = rules.stripped(closed)
    assert rules.has_rules(closed.jaxpr)
    assert not rules.has_rules(jax.make_jaxpr(plain)(x).jaxpr)
    np.testing.assert_array_equal(plain(x)[0], fn(x))
    _, tangent = jax.jvp(lambda x: plain(x)[0], (x,), (jnp.ones(3),))
    assert (jnp.abs(tangent) < 2).all()


def test_narrowest_finds_rounding_inside() -> None:
    def eps(fn: Any) -> float:
        return rules.narrowest(jax.make_jaxpr(fn)(jnp.ones(2)).jaxpr)

    assert eps(jnp.sin) == 0
    assert eps(jax.jit(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32))) == 2.0**-7


def test_vector_and_back() -> None:
    tree = ({"a": jnp.arange(6.0).reshape(2, 3), "n": 3}, jnp.array([1 + 2j, 3 - 1j]), jnp.zeros(0))
    arguments = take_apart(lambda p, z, e: 0, tree)
    assert [leaf.name for leaf in arguments.leaves] == ["p['a']", "z"]
    back = arguments.rebuild(arguments.unpack(jnp.asarray(arguments.vector(), jnp.float32), promoted=False))
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(a, b)
    assert arguments.leaves[1].index(3) == (1,)
