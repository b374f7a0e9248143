"""The wrong leaf, the wrong index and the mistake, also where no other road knows the right gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import verify
from jaxnet.verify import differences, judge
from jaxnet.verify.leaves import take_apart

SHAPES = {"small": (5, 7), "large": (64, 64)}


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def without_reference(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """Σ sin(1.5·w) + Σ sin(b), computed by a loop that JAX cannot differentiate, with a rule of its own."""

    @jax.custom_vjp
    def total(w: Any, b: Any) -> Any:
        scaled = jax.lax.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, s[1] * 1.5), (0, w))[1]
        return jnp.sin(scaled).sum() + jnp.sin(b).sum()

    def backward(residuals: Any, dy: Any) -> Any:
        w, b = residuals
        return change(1.5 * jnp.cos(1.5 * w) * dy), jnp.cos(b) * dy

    total.defvjp(lambda *args: (total(*args), args), backward)
    return total


def wrong_leaf(report: verify.Report) -> verify.LeafReport:
    (leaf,) = [leaf for leaf in report.leaves if leaf.state == "fail"]
    return leaf


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SHAPES)
def test_one_element_is_found_by_differences_alone(size: str, seed: int) -> None:
    shape = SHAPES[size]
    index = tuple(int(np.random.default_rng(seed).integers(n)) for n in shape)
    w = draw(seed, *shape).at[index].set(0.3)
    fn = without_reference(lambda g: g.at[index].multiply(1 + 1e-3))
    leaf = wrong_leaf(verify.check_gradients(fn, w, draw(9, 4), seed=seed))
    assert leaf.name == "w"
    assert leaf.worst is not None
    assert leaf.worst.index == index
    right = 1.5 * np.cos(1.5 * np.float64(w[index]))
    assert leaf.worst.error is not None
    assert abs(leaf.worst.expected - right) <= 10 * leaf.worst.error + 1e-9
    np.testing.assert_allclose(leaf.worst.got, right * (1 + 1e-3), rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: -g, "sign flipped"),
        (lambda g: g.T, "transposed"),
        (lambda g: jnp.roll(g, 1, 1), "rolled by 1 along axis 1"),
        (lambda g: g / 8, "0.125 times"),
    ],
    ids=["sign", "transposed", "rolled", "factor"],
)
def test_mistakes_of_a_large_leaf_are_named_by_differences_alone(change: Any, words: str) -> None:
    leaf = wrong_leaf(verify.check_gradients(without_reference(change), draw(0, 64, 64), draw(9, 4)))
    assert leaf.name == "w"
    assert words in (leaf.diagnosis or "")


def rule(change: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """A layer's function whose gradients `change` alters."""
    plain = lambda w, b, x: jnp.tanh(x @ w + b[None])  # noqa: E731
    op = jax.custom_vjp(plain)

    def backward(args: Any, dy: Any) -> Any:
        w, _, x = args
        dz = dy * (1 - plain(*args) ** 2)
        return change({"w": x.T @ dz, "b": dz.sum(axis=0), "x": dz @ w.T}, (dz, x))

    op.defvjp(lambda *args: (plain(*args), args), backward)
    return lambda w, b, x: (jnp.sin(op(w, b, x)) * jnp.arange(1.0, 7, dtype=w.dtype)[None]).sum()


@pytest.mark.parametrize(
    ("leaf", "change", "words"),
    [
        ("b", lambda g, s: (g["w"], s[0][0], g["x"]), "the sum over axis 0 of x is missing: only its first"),
        ("b", lambda g, s: (g["w"], s[0].mean(axis=0), g["x"]), "(factor 1/5, axis 0 of x)"),
        ("x", lambda g, s: (g["w"], g["b"], jnp.where(s[1] < 0, 0, g["x"])), "argument is negative"),
        ("x", lambda g, s: (g["w"], g["b"], g["w"].T[:5]), None),
    ],
    ids=["missing sum", "mean", "negative", "unusual"],
)
def test_named_beside_a_road_that_is_right(leaf: str, change: Any, words: str | None) -> None:
    report = verify.check_gradients(rule(change), draw(0, 6, 6), draw(1, 6), draw(2, 5, 6))
    found = wrong_leaf(report)
    assert found.name == leaf
    if words is None:
        assert found.diagnosis is None
    else:
        assert words in (found.diagnosis or "")
    assert found.errors is not None
    assert found.errors.size == ((1, 6) if leaf == "b" else (5, 6))


def test_right_gradients_have_no_diagnosis() -> None:
    fn = rule(lambda g, s: (g["w"], g["b"], g["x"]))
    report = verify.check_gradients(fn, draw(0, 6, 6), draw(1, 6), draw(2, 5, 6))
    assert report.ok, str(report)
    assert all(leaf.diagnosis is None and leaf.worst is None and leaf.errors is None for leaf in report.leaves)


def tree_sum(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """Σ over the leaves of a list, one of which has a rule that `change` alters."""
    square = jax.custom_vjp(lambda v: (jnp.sin(v) ** 2).sum())
    square.defvjp(
        lambda v: ((jnp.sin(v) ** 2).sum(), v), lambda v, dy: (change(2 * jnp.sin(v) * jnp.cos(v)) * dy,)
    )

    def fn(leaves: Any) -> Any:
        return square(leaves[3]) + sum((jnp.sin(v) ** 2).sum() for n, v in enumerate(leaves) if n != 3)

    return fn


@pytest.mark.parametrize(
    "change",
    [lambda g: g, lambda g: g * (1 + 1e-5), lambda g: g.at[2, 5].multiply(1 + 1e-4), lambda g: 0 * g],
    ids=["right", "1e-5", "one element", "zero"],
)
@pytest.mark.parametrize("reference", [True, False])
def test_leaves_in_groups(change: Any, reference: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if 12 leaves were millions of numbers: they move together, and the wrong one is found all the same.
    monkeypatch.setattr(judge, "_MOVED", 30.0 * 13 * 12 * 64)
    leaves = [draw(n, 8, 8) for n in range(12)]
    plain = tree_sum(change)
    looped = jax.custom_vjp(
        lambda leaves: plain(jax.lax.while_loop(lambda s: s[0] < 1, lambda s: (1, s[1]), (0, leaves))[1])
    )
    looped.defvjp(lambda leaves: (looped(leaves), leaves), lambda leaves, dy: (jax.grad(plain)(leaves),))
    fn = plain if reference else looped
    report = verify.check_gradients(fn, leaves)
    named = {leaf.name for leaf in report.leaves if leaf.state == "fail"}
    right = bool((change(jnp.ones((8, 8))) == 1).all())
    assert named == (set() if right else {"leaves[3]"}), str(report)


def test_groups_hold_leaves_of_one_order() -> None:
    labels = differences.along(take_apart(lambda v: 0, ([jnp.ones(2), jnp.ones(3)],)).leaves, [[1], [0]])
    np.testing.assert_array_equal(labels.labels, [1, 1, 0, 0, 0])
    assert set(labels.leaf.tolist()) == {0, 1}
