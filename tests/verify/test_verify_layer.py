"""The law of a layer: right ones pass, each way of breaking it is named."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from jaxnet import verify


class Layer(NamedTuple):
    init: Any
    apply: Any
    vjp: Any


def scaled(**changes: Any) -> Layer:
    """y = tanh(scale · (x @ w)), dropping half in training; `changes` replace parts of its vjp."""

    def init(key: Any, x: Any) -> Any:
        return {"scale": jnp.ones(4), "w": jax.random.normal(key, (x.shape[-1], 4)), "table": jnp.arange(3)}

    def mask(key: Any, x: Any) -> Any:
        return jnp.ones(4, x.dtype) if key is None else 2 * jax.random.bernoulli(key, 0.5, (4,)).astype(x.dtype)

    def apply(params: Any, x: Any, *, key: Any = None) -> Any:
        return jnp.tanh((x @ params["w"]) * params["scale"][None]) * mask(key, x)[None]

    def vjp(params: Any, x: Any, *, key: Any = None) -> Any:
        h = x @ params["w"]
        y = jnp.tanh(h * params["scale"][None])

        def pullback(dy: Any) -> Any:
            dz = dy * (1 - y**2) * changes.get("mask", mask)(key, x)[None]
            dh = changes.get("dh", lambda dz, scale: dz * scale[None])(dz, params["scale"])
            dparams = {"scale": (dz * h).sum(axis=0), "w": x.T @ dh, "table": None}
            return changes.get("after", lambda dparams, dx: (dparams, dx))(dparams, dh @ params["w"].T)

        return changes.get("y", lambda y: y)(y * mask(key, x)[None]), pullback

    return Layer(init, apply, vjp)


def check(layer: Layer, **options: Any) -> verify.Report:
    x = jax.random.normal(jax.random.key(1), (5, 3))
    return verify.check_layer(layer, jax.random.key(0), x, **options)


@pytest.mark.parametrize("seed", range(3))
def test_right_layer_passes_with_and_without_training(seed: int) -> None:
    report = check(scaled(), training_key=jax.random.key(5), seed=seed)
    assert report.ok, str(report)
    names = [leaf.name for leaf in report.leaves]
    assert names[:4] == ["y", "params['scale']", "params['w']", "x"]
    assert names[4:] == [f"{name} (training)" for name in names[:4]]
    assert all(leaf.deviations["hand"] is not None for leaf in report.leaves if not leaf.name.startswith("y"))


def test_missing_scale_shows_although_scale_starts_at_one() -> None:
    report = check(scaled(dh=lambda dz, scale: dz))
    assert {leaf.name for leaf in report.leaves if leaf.state == "fail"} == {"params['w']", "x"}


def test_parameters_given_are_used_as_they_are() -> None:
    layer = scaled(dh=lambda dz, scale: dz)
    params = layer.init(jax.random.key(0), jnp.ones((5, 3)))
    assert check(layer, params=params).ok


def test_wrong_only_in_training() -> None:
    layer = scaled(mask=lambda key, x: jnp.ones(4, x.dtype))
    assert check(layer).ok
    report = check(layer, training_key=jax.random.key(5))
    assert report.state == "fail"
    assert all(leaf.name.endswith("(training)") for leaf in report.leaves if leaf.state == "fail")


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"y": lambda y: y * 1.001}, "y", "differ by"),
        ({"y": lambda y: y.astype(jnp.float16)}, "y", "float16"),
        ({"y": lambda y: (y,)}, "y", "vjp returns"),
        ({"after": lambda dp, dx: (dp, dx.astype(jnp.bfloat16))}, "dx", "bfloat16"),
        ({"after": lambda dp, dx: (dp, dx[None])}, "dx", r"[1, 5, 3]"),
        ({"after": lambda dp, dx: ({"w": dp["w"]}, dx)}, "dparams['scale']", "missing"),
        ({"after": lambda dp, dx: (dp | {"more": dx}, dx)}, "dparams['more']", "no such leaf"),
    ],
)
def test_structure(changes: Any, name: str, words: str) -> None:
    rows = {leaf.name: leaf for leaf in check(scaled(**changes)).leaves if leaf.state == "fail"}
    assert words in rows[name].verdict
