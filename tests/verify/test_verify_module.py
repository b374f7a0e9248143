"""Flax modules, Linen and NNX: every parameter, with state and random streams held fixed."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxnet import verify

pytest.importorskip("flax")
from flax import linen, nnx

X = jax.random.normal(jax.random.key(0), (5, 3))


@jax.custom_vjp
def half_wrong(x: Any) -> Any:
    """tanh, whose rule forgets a factor."""
    return jnp.tanh(x)


half_wrong.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, dy: (dy * (1 - y),))


class Linen(linen.Module):
    """Everything that a call can do: write statistics, draw a mask, note an intermediate."""

    activation: Any = jnp.tanh

    @linen.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(4)(x))
        x = linen.Dropout(0.5, deterministic=not train)(x)
        self.sow("intermediates", "hidden", x)
        return self.activation(linen.Dense(2)(x))


class Nnx(nnx.Module):
    """The same, and a counter."""

    def __init__(self, rngs: nnx.Rngs, activation: Any = jnp.tanh) -> None:
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.activation = activation

    def __call__(self, x: Any) -> Any:
        self.calls[...] = self.calls[...] + 1
        return self.activation(self.layers[1](self.dropout(self.norm(self.layers[0](x)))))


@pytest.mark.parametrize("train", [False, True])
def test_linen(train: bool) -> None:
    report = verify.check_module(Linen(), X, train=train)
    assert report.ok, str(report)
    assert report.title == "Linen"
    names = {leaf.name for leaf in report.leaves}
    weights = {"['BatchNorm_0']['bias']", "['BatchNorm_0']['scale']"}
    weights |= {f"['Dense_{n}']['{name}']" for n in (0, 1) for name in ("bias", "kernel")}
    assert names == {"x"} | {f"params{name}" for name in weights}
    assert all(leaf.own_dtype_eps is not None for leaf in report.leaves)


def test_nnx_is_left_as_it_was() -> None:
    module = Nnx(nnx.Rngs(0))
    before = jax.tree.map(jnp.array, nnx.state(module))
    report = verify.check_module(module, X)
    assert report.ok, str(report)
    assert {leaf.name for leaf in report.leaves} >= {"x", "params['layers'][1]['bias']", "params['norm']['scale']"}
    jax.tree.map(
        lambda a, b: None if (a == b).all() else pytest.fail(f"{a} became {b}"), before, nnx.state(module)
    )


def test_a_wrong_rule_inside_is_found() -> None:
    report = verify.check_module(Linen(half_wrong), X)
    assert {leaf.state for leaf in report.leaves} == {"fail"}
    report = verify.check_module(Nnx(nnx.Rngs(0), half_wrong), X)
    # The normalisation takes away what the first bias adds.
    passed = [leaf.name for leaf in report.leaves if leaf.state != "fail"]
    assert passed == ["params['layers'][0]['bias']"]


def test_given_parameters_and_streams() -> None:
    module = Linen()
    params = jax.tree.map(lambda p: jnp.full_like(p, 0.25), module.init(jax.random.key(1), X)["params"])
    report = verify.check_module(module, X, params=params, rngs={"params": jax.random.key(2)})
    assert report.ok, str(report)

    own = Nnx(nnx.Rngs(0))
    pure = nnx.to_pure_dict(nnx.state(own, nnx.Param))
    zeros = jax.tree.map(jnp.zeros_like, pure)
    norms = {leaf.name: leaf.norm for leaf in verify.check_module(own, X, params=zeros).leaves}
    assert norms["params['layers'][0]['kernel']"] == 0
    assert norms["params['layers'][1]['bias']"] > 0


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        (jnp.tanh, {}, "needs a flax.linen.Module or a flax.nnx.Module; got"),
        (Linen().bind({}), {}, "isn't bound to variables; Linen is"),
        (Nnx(nnx.Rngs(0)), {"rngs": jax.random.key(0)}, "rngs is for Linen modules"),
    ],
    ids=["function", "bound", "rngs"],
)
def test_mistakes(module: Any, options: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        verify.check_module(module, X, **options)
