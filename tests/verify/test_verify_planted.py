"""Wrong hand-written claims fail, and the report names the leaf. Wrong custom rules are in the corpus."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import verify

SIDE = 32  # a square weight of 1,024 elements


def point() -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    shapes = ((SIDE, SIDE), (SIDE,), (8, SIDE))
    return tuple(jnp.asarray(rng.standard_normal(shape) / 4, jnp.float32) for shape in shapes)


def plain(weight: Any, bias: Any, x: Any) -> Any:
    z = x @ weight + bias[None]
    return jnp.where(z > 0, z, jnp.exp(z) - 1)


def right(weight: Any, bias: Any, x: Any, dy: Any) -> dict[str, Any]:
    z = x @ weight + bias[None]
    dz = dy * jnp.where(z > 0, 1, jnp.exp(z))
    return {"weight": x.T @ dz, "bias": dz.sum(axis=0), "x": dz @ weight.T}


def changed(leaf: str, change: Callable[[Any], Any]) -> Callable[..., dict[str, Any]]:
    def wrong(weight: Any, bias: Any, x: Any, dy: Any) -> dict[str, Any]:
        gradients = right(weight, bias, x, dy)
        return {**gradients, leaf: change(gradients[leaf])}

    return wrong


def missing_sum(weight: Any, bias: Any, x: Any, dy: Any) -> dict[str, Any]:
    z = x @ weight + bias[None]
    dz = dy * jnp.where(z > 0, 1, jnp.exp(z))
    return {**right(weight, bias, x, dy), "bias": dz[0]}


def negative_inputs(weight: Any, bias: Any, x: Any, dy: Any) -> dict[str, Any]:
    gradients = right(weight, bias, x, dy)
    return {**gradients, "x": jnp.where(x < 0, 1.1 * gradients["x"], gradients["x"])}


PLANTED = {
    "sign": ("weight", changed("weight", lambda g: -g)),
    "factor 2": ("bias", changed("bias", lambda g: 2 * g)),
    "1/N": ("weight", changed("weight", lambda g: g / 8)),
    "transposed": ("weight", changed("weight", lambda g: g.T)),
    "missing sum": ("bias", missing_sum),
    "zero leaf": ("x", changed("x", lambda g: 0 * g)),
    "one element": ("weight", changed("weight", lambda g: g.at[3, 5].multiply(1 + 1e-4))),
    "negative inputs": ("x", negative_inputs),
    "relative 1e-5": ("weight", changed("weight", lambda g: g * (1 + 1e-5))),
    "rolled": ("bias", changed("bias", lambda g: jnp.roll(g, 1))),
    "nan": ("bias", changed("bias", lambda g: g.at[0].set(jnp.nan))),
}
planted = pytest.mark.parametrize(("leaf", "wrong"), PLANTED.values(), ids=PLANTED)


def loss(y: Any) -> Any:
    return (jnp.sin(y) * (1 + jnp.arange(SIDE, dtype=y.dtype) / SIDE)[None]).sum()


def failed(report: verify.Report) -> set[str]:
    assert report.state == "fail", str(report)
    return {leaf.name for leaf in report.leaves if leaf.state == "fail"}


@planted
def test_as_a_hand_written_claim(leaf: str, wrong: Callable[..., Any]) -> None:
    def fn(weight: Any, bias: Any, x: Any) -> Any:
        return loss(plain(weight, bias, x))

    def hand_written(*args: Any) -> tuple[Any, ...]:
        y, pullback = jax.vjp(loss, plain(*args))
        gradients = wrong(*args, pullback(jnp.ones_like(y))[0])
        return tuple(gradients[k] for k in ("weight", "bias", "x"))

    report = verify.check_gradients(fn, *point(), hand_written=hand_written)
    assert failed(report) == {leaf}
    assert all("hand" in row.verdict for row in report.leaves if row.state == "fail")


def test_right_claim_passes() -> None:
    def fn(weight: Any, bias: Any, x: Any) -> Any:
        return loss(plain(weight, bias, x))

    def hand_written(*args: Any) -> tuple[Any, ...]:
        y, pullback = jax.vjp(loss, plain(*args))
        return tuple(right(*args, pullback(jnp.ones_like(y))[0]).values())

    report = verify.check_gradients(fn, *point(), hand_written=hand_written)
    assert report.ok, str(report)
    report = verify.check_gradients(fn, *point(), hand_written=lambda *args: hand_written(*args)[:1])
    assert report.ok, str(report)
    assert report.leaves[0].deviations["hand"] is not None
    assert report.leaves[1].deviations["hand"] is None


def test_worst_element_and_its_values() -> None:
    x = jnp.linspace(0.1, 1.0, 12).reshape(3, 4)
    report = verify.check_gradients(lambda x: (x**2).sum(), x, hand_written=lambda x: ((2 * x).at[1, 2].add(0.5),))
    worst = report.leaves[0].worst
    assert worst is not None
    assert worst.index == (1, 2)
    np.testing.assert_allclose([worst.got, worst.expected], [2 * x[1, 2] + 0.5, 2 * x[1, 2]], rtol=1e-6)


@pytest.mark.parametrize(
    ("factor", "words"), [(-1.0, "-1 times"), (2.0, "2 times"), (0.125, "0.125 times"), (0.0, "zero")]
)
def test_relation_is_named(factor: float, words: str) -> None:
    x = jnp.linspace(0.1, 1.0, 100)
    report = verify.check_gradients(lambda x: (x**2).sum(), x, hand_written=lambda x: (factor * 2 * x,))
    assert words in (report.leaves[0].diagnosis or "")


def test_wrong_without_a_reference_is_located_by_differences() -> None:
    @jax.custom_vjp
    def total(x: Any) -> Any:
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * 1.5), (0, x))[1].sum()

    total.defvjp(lambda x: (total(x), x), lambda x, dy: (jnp.full_like(x, 1.5**3).at[2].set(3.0) * dy,))
    worst = verify.check_gradients(total, jnp.ones(5)).leaves[0].worst
    assert worst is not None
    assert worst.index == (2,)
    np.testing.assert_allclose([worst.got, worst.expected], [3.0, 1.5**3], rtol=1e-7)


@pytest.mark.parametrize("wrong", [lambda x: jnp.where(x > 0, 1.0, 0.1), lambda x: jnp.where(x >= 0, 1.0, -2.0)])
def test_wrong_at_a_kink_and_beside_it(wrong: Callable[[Any], Any]) -> None:
    relu = jax.custom_vjp(lambda x: jnp.maximum(x, 0))
    relu.defvjp(lambda x: (jnp.maximum(x, 0), x), lambda x, dy: (dy * wrong(x),))
    x = jnp.asarray(np.random.default_rng(0).standard_normal(8), jnp.float32).at[0].set(0.0)
    assert failed(verify.check_gradients(lambda x: relu(x).sum(), x)) == {"x"}


@pytest.mark.parametrize("at_zero", [-0.1, 1.1, 3.0])
def test_no_subgradient_at_the_kink(at_zero: float) -> None:
    relu = jax.custom_vjp(lambda x: jnp.maximum(x, 0))
    slope = lambda x: jnp.where(x == 0, at_zero, jnp.where(x > 0, 1.0, 0.0))  # noqa: E731
    relu.defvjp(lambda x: (jnp.maximum(x, 0), x), lambda x, dy: (dy * slope(x),))
    report = verify.check_gradients(lambda x: relu(x).sum(), jnp.array([0.0, 1.0, -1.0]))
    assert failed(report) == {"x"}
    assert report.leaves[0].worst is not None
    assert report.leaves[0].worst.index == (0,)


def test_rule_whose_forward_returns_another_value() -> None:
    @jax.custom_vjp
    def square(x: Any) -> Any:
        return (x**2).sum()

    square.defvjp(lambda x: ((x**2).sum() + 1e-3, x), lambda x, dy: (2 * x * dy,))
    assert failed(verify.check_gradients(square, jnp.ones(3))) == {"value"}


def test_overflow_in_the_own_dtype() -> None:
    # Right in float64, useless in float16: the sum of squares overflows in the backward pass.
    @jax.custom_vjp
    def norm(x: Any) -> Any:
        return jnp.linalg.norm(x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32))

    norm.defvjp(lambda x: (norm(x), x), lambda x, dy: ((x / jnp.sqrt((x * x).sum()) * dy.astype(x.dtype)),))
    report = verify.check_gradients(norm, jnp.full(8, 300.0, jnp.float16))
    assert failed(report) == {"x"}
    assert "float16" in report.leaves[0].verdict


def test_assert_gradients_holds_the_report() -> None:
    verify.assert_gradients(lambda x: (x**2).sum(), jnp.ones(3))
    with pytest.raises(verify.GradientError, match="-1 times") as caught:
        verify.assert_gradients(lambda x: (x**2).sum(), jnp.ones(3), hand_written=lambda x: (-2 * x,))
    assert isinstance(caught.value, AssertionError)
    assert caught.value.report.state == "fail"
