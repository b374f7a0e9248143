"""Every witness tells a right function from one that is wrong in its own way; every option does what it says."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import verify

X = jnp.linspace(0.2, 1.4, 6)


def states(report: verify.Report) -> dict[str, str]:
    return {witness.name: witness.state for witness in report.witnesses}


def rule(backward: Callable[[Any, Any], Any], fn: Callable[[Any], Any] = jnp.sin) -> Any:
    op = jax.custom_vjp(fn)
    op.defvjp(lambda x: (fn(x), x), lambda x, dy: (backward(x, dy),))
    return op


def right(x: Any, dy: Any) -> Any:
    return dy * jnp.cos(x)


def test_all_pass_for_a_right_rule() -> None:
    found = states(verify.check_gradients(rule(right), X, order=2, around="all", reference=jnp.sin))
    assert found.pop("adjoint") == "not taken"  # custom_vjp has no forward mode
    assert found.pop("complex step") == "not taken"  # a reference is given
    assert set(found.values()) == {"pass"}, found
    assert set(found) >= {
        "differences",
        "own dtype",
        "determinism",
        "form",
        "reference",
        "linearity",
        "jit",
        "vmap",
    }
    assert set(found) >= {"order 2", "around: negated", "around: small", "around: zeros", "around: ties"}


def test_adjoint_and_complex_step() -> None:
    @jax.custom_jvp
    def op(x: Any) -> Any:
        return jnp.sin(x)

    op.defjvp(lambda x, dx: (op(x[0]), jnp.cos(x[0]) * dx[0]))
    found = states(verify.check_gradients(op, X))
    assert (found["adjoint"], found["complex step"]) == ("pass", "pass")

    # The tangent of one element is transposed into its neighbour's place.
    moved = jax.custom_derivatives.linear_call

    def lopsided(x: Any) -> Any:
        return moved(lambda _, x: 2 * x, lambda _, ct: 2 * jnp.roll(ct, 1), (), x)

    report = verify.check_gradients(lopsided, X)
    assert states(report)["adjoint"] == "fail", str(report)
    assert (
        states(verify.check_gradients(rule(lambda x, dy: dy * (jnp.cos(x) + 1e-8)), X))["complex step"] == "fail"
    )
    kinked = verify.check_gradients(jax.nn.relu, X.at[0].set(0.0))
    assert (kinked.state, states(kinked)["complex step"]) == ("pass", "not taken")


@pytest.mark.parametrize(
    ("fn", "args"),
    [
        (lambda x: jax.nn.logsumexp(x) + jnp.linalg.norm(x) + jnp.abs(x).max(), (X,)),
        (lambda x, w: jax.nn.softmax(jax.nn.gelu(x) @ w), (X, jnp.sin(jnp.arange(18.0)).reshape(6, 3))),
        (lambda x: jnp.where(x > 0.5, jnp.tanh(x), jnp.log1p(x)) * x.at[1].set(2.0) ** 2.5, (X,)),
        (lambda x: jnp.clip(jnp.var(x) * jnp.cumsum(x), 0.01, 10) + jnp.minimum(x, 0.7), (X,)),
    ],
    ids=["reductions", "network", "branches", "bounds"],
)
def test_functions_that_the_complex_step_can_take(fn: Any, args: Any) -> None:
    report = verify.check_gradients(fn, *args)
    assert states(report)["complex step"] == "pass", str(report)


def test_linearity() -> None:
    report = verify.check_gradients(rule(lambda x, dy: jnp.cos(x) * dy * (1 + 1e-3 * dy**2)), X)
    assert states(report)["linearity"] == "fail"


def test_own_dtype() -> None:
    def in_bfloat16(x: Any, dy: Any) -> Any:
        return dy * (jnp.cos(x).astype(jnp.bfloat16).astype(x.dtype) if x.dtype == jnp.float32 else jnp.cos(x))

    report = verify.check_gradients(rule(in_bfloat16), X)
    assert states(report)["own dtype"] == "fail"
    assert report.leaves[0].diagnosis == "right in float64, wrong in float32"


def test_jit_and_vmap() -> None:
    def traced(x: Any) -> bool:
        return isinstance(x, jax.core.Tracer)

    def only_eager(x: Any, dy: Any) -> Any:
        return right(x, dy) * (1 if traced(x) else 2)

    assert states(verify.check_gradients(rule(only_eager), X))["jit"] == "fail"
    data = 1 + X  # in float32, widened silently: no reason to allow float32's rounding
    slightly = rule(lambda x, dy: right(x, dy) * (1 if traced(x) else 1 + 1e-6))
    assert states(verify.check_gradients(lambda x: slightly(x) * data, X))["jit"] == "fail"

    @jax.custom_batching.custom_vmap
    def cosine(x: Any) -> Any:
        return jnp.cos(x)

    cosine.def_vmap(lambda size, batched, x: (jnp.cos(x[:1]).repeat(size, 0), True))
    assert states(verify.check_gradients(rule(lambda x, dy: dy * cosine(x)), X))["vmap"] == "fail"


def noisy(amount: float) -> Any:
    draw = np.random.default_rng(0)

    def factor(x: Any) -> Any:
        return (1 + amount * draw.standard_normal(np.shape(x))).astype(x.dtype)

    def backward(x: Any, dy: Any) -> Any:
        return right(x, dy) * jax.pure_callback(factor, x, x, vmap_method="expand_dims")

    return rule(backward)


def test_determinism_and_its_option() -> None:
    assert states(verify.check_gradients(noisy(1e-5), X))["determinism"] == "fail"
    report = verify.check_gradients(noisy(1e-5), X, nondeterminism=1e-4)
    assert states(report)["determinism"] == "pass", str(report)


def test_form() -> None:
    def has_a_nan(x: Any, dy: Any) -> Any:
        return right(x, dy).at[4].set(jnp.nan)

    report = verify.check_gradients(rule(has_a_nan), X)
    assert states(report)["form"] == "fail"
    assert "first [4]" in next(w.verdict for w in report.witnesses if w.name == "form")


def test_a_rule_that_raises_is_wrong_whatever_is_stated() -> None:
    op = jax.custom_jvp(jnp.sin)
    op.defjvp(lambda x, dx: (op(x[0]), jnp.cos(x[0])[:2] * dx[0]))
    report = verify.check_gradients(lambda x: op(x).sum(), X, hand_written=lambda x: (jnp.cos(x),))
    assert states(report)["form"] == "fail"
    assert "TypeError" in str(report)


def test_reference() -> None:
    only_float32 = rule(right, lambda x: jnp.sin(x) if x.dtype == jnp.float32 else 1 / 0)
    report = verify.check_gradients(only_float32, X, reference=jnp.sin)
    assert (report.state, states(report)["reference"]) == ("pass", "pass"), str(report)
    report = verify.check_gradients(only_float32, X, reference=lambda x: jnp.sin(x) + 1e-3)
    assert states(report)["reference"] == "fail"
    report = verify.check_gradients(only_float32, X, reference=lambda x: jnp.sin(x) * (1 + 1e-3))
    assert {leaf.state for leaf in report.leaves} == {"fail"}


def test_order_two() -> None:
    def hidden(x: Any, dy: Any) -> Any:
        return dy * jnp.cos(jax.lax.stop_gradient(x))

    assert verify.check_gradients(rule(hidden), X).ok
    report = verify.check_gradients(rule(hidden), X, order=2)
    assert (report.state, states(report)["order 2"]) == ("fail", "fail")


@pytest.mark.parametrize("place", ["negated", "large", "zeros", "ties"])
def test_around(place: str) -> None:
    where = {
        "negated": lambda x: x < 0,
        "large": lambda x: jnp.abs(x) > 50,
        "zeros": lambda x: x == 0,
        "ties": lambda x: x == jnp.roll(x, 1),
    }[place]
    op = rule(lambda x, dy: dy * jnp.where(where(x), 3.0, 2 * x + 1), lambda x: x**2 + x)
    assert verify.check_gradients(op, X).ok
    report = verify.check_gradients(op, X, around=place)
    assert (report.state, states(report)[f"around: {place}"]) == ("fail", "fail")


def test_constant_arguments_are_not_moved() -> None:
    op = jax.custom_vjp(lambda x, scale: jnp.sin(x) * scale["a"] * scale["b"])
    op.defvjp(
        lambda x, scale: (op(x, scale), (x, scale)),
        lambda kept, dy: (
            dy * jnp.cos(kept[0]) * kept[1]["a"] * kept[1]["b"],
            {"a": 0 * dy.sum(), "b": 0 * dy.sum()},
        ),
    )
    args = X, {"a": jnp.float32(2), "b": jnp.float32(3)}
    assert {leaf.name: leaf.state for leaf in verify.check_gradients(op, *args).leaves} == {
        "x": "pass", "scale['a']": "fail", "scale['b']": "fail",
    }  # fmt: skip
    for constant in (["scale"], [1], [-1], ["scale['a']", "scale['b']"]):
        report = verify.check_gradients(op, *args, constant=constant)
        assert [leaf.name for leaf in report.leaves] == ["x"]
        assert report.ok


@pytest.mark.parametrize(("option", "bound"), [("rtol", 2e-3), ("atol", 2e-3)])
def test_tolerances_only_widen(option: str, bound: float) -> None:
    op = rule(lambda x, dy: dy * (jnp.cos(x) + 1e-3 * jnp.cos(x) ** (option == "rtol")))
    assert verify.check_gradients(op, X, **{option: bound / 10}).state == "fail"
    assert verify.check_gradients(op, X, **{option: bound}).ok


def matmul(w: Any, m: Any) -> Any:
    return ((m @ w - m @ jnp.ones(4, w.dtype)) ** 2).mean()


M = jnp.asarray(np.random.default_rng(0).standard_normal((4, 4)), jnp.float32)
COMPLEX = jnp.array([1 + 2j, 3 - 1j, 2 + 0.5j, 1 + 0.3j, -2 + 1j, 1.0])


@pytest.mark.parametrize(
    ("fn", "args"),
    [
        (jax.nn.relu, (-jnp.ones(4),)),
        (jax.nn.relu, (jnp.zeros(4),)),
        (lambda x: jnp.floor(x).sum(), (jnp.array([0.3, 0.6]),)),
        (lambda w: ((w - 1) ** 2).mean(), (jnp.ones(4),)),
        (lambda w: (w - 1) ** 2, (jnp.ones(4),)),
        (lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2, (jnp.ones(2),)),
        (matmul, (jnp.ones(4), M)),
        (lambda x: (x * jnp.abs(COMPLEX)).sum(), (X,)),
        (lambda x: (x[x > 0.5] ** 2).sum(), (X,)),
        (lambda x: x[int(jnp.argmax(x))] ** 2, (X,)),
    ],
    ids=[
        "dead", "on the kink", "steps", "minimum", "minima", "Rosenbrock", "solved system", "complex data",
        "boolean index", "Python index",
    ],
)  # fmt: skip
def test_right_where_much_vanishes_or_cannot_be_traced(fn: Any, args: Any) -> None:
    report = verify.check_gradients(fn, *args)
    assert report.ok, str(report)


def test_a_callback_that_knows_one_dtype_is_judged_in_its_own() -> None:
    def square(x: Any) -> Any:
        host = lambda v: np.asarray(v, np.float32) ** 2  # noqa: E731
        return jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")

    assert verify.check_gradients(rule(lambda x, dy: 2 * x * dy, square), X).ok
    assert verify.check_gradients(rule(lambda x, dy: 3 * x * dy, square), X).state == "fail"


def test_a_forward_pass_that_is_wrong_in_the_own_dtype() -> None:
    op = jax.custom_vjp(jnp.sin)
    op.defvjp(lambda x: (jnp.sin(x) * (2 if x.dtype == jnp.float32 else 1), x), lambda x, dy: (dy * jnp.cos(x),))
    assert states(verify.check_gradients(op, X))["own dtype"] == "fail"


def test_what_stop_gradient_excuses_excuses_nothing_else() -> None:
    stop = jax.lax.stop_gradient
    op = rule(lambda y, dy: 2 * y * dy, lambda y: y * stop(y))

    def fn(x: Any, y: Any) -> Any:
        return (x + stop(jnp.round(3 * x) - 3 * x)).sum() + op(y).sum()

    assert {leaf.name: leaf.state for leaf in verify.check_gradients(fn, X, X).leaves} == {
        "x": "pass",
        "y": "pass",
    }


def test_value_that_is_not_finite_has_no_gradient() -> None:
    report = verify.check_gradients(lambda x: (x**2).sum(), X.at[0].set(jnp.nan))
    assert report.state == "undecided", str(report)


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"rtol": -1.0}, ValueError),
        ({"atol": float("nan")}, ValueError),
        ({"nondeterminism": float("inf")}, ValueError),
        ({"order": 3}, ValueError),
        ({"constant": "z"}, ValueError),
    ],
)
def test_options_that_mean_nothing(option: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=str(next(iter(option)))):
        verify.check_gradients(jnp.sin, X, **option)


def test_kernels_keep_their_own_rule_in_the_reference() -> None:
    @jax.custom_jvp
    def kernel(x: Any) -> Any:
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")

    kernel.defjvp(lambda x, dx: (kernel(x[0]), jnp.cos(x[0]) * dx[0]))
    wrong = rule(lambda x, dy: dy * 2, lambda x: kernel(x) ** 2)
    report = verify.check_gradients(wrong, X)
    assert report.leaves[0].deviations["reference"] is not None
    assert report.state == "fail"


def test_undecided_is_not_ok() -> None:
    noise = rule(right, lambda x: jnp.sin(x) + 1e-2 * jnp.sin(1e9 * x))
    report = verify.check_gradients(lambda x: noise(x), X)
    assert not report.ok
