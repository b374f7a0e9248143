"""Arguments and results as users have them: trees with leaves of every kind."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .registry import Setup, correct, normal, positive, setup


class State(NamedTuple):
    mean: Any
    count: Any
    name: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Block:
    """A dataclass with a static field, as equinox and flax.struct have them."""

    weight: Any
    bias: Any
    activation: str = dataclasses.field(default="tanh", metadata={"static": True})


@correct()
def integers_booleans_keys_and_none(rng: Any) -> Setup:
    """No gradient may be asked of them."""

    def loss(params: Any, key: Any, tokens: Any) -> Any:
        noise = jax.random.bernoulli(key, 0.5, (3,))
        x = params["table"][tokens] * jnp.where(params["mask"], 1, 2).astype(params["table"].dtype)[None]
        return jnp.where(noise, x.sum(axis=0), 0)

    params = {"table": normal(rng, 5, 3), "mask": jnp.array([True, False, True]), "none": None}
    return setup(loss, params, jax.random.key(int(rng.integers(1000))), jnp.array([0, 3, 3]))


@correct()
def old_style_key(rng: Any) -> Setup:
    """A raw uint32 key."""
    return setup(
        lambda x, key: jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x**2, 0),
        normal(rng, 6),
        jax.random.PRNGKey(int(rng.integers(1000))),
    )


@correct()
def strings_among_the_leaves(rng: Any) -> Setup:
    """A configuration travels with the parameters."""

    def fn(params: Any, mode: str) -> Any:
        activation = jnp.tanh if params["activation"] == "tanh" else jnp.sin
        return activation(params["w"]) * (2 if mode == "double" else 1)

    return setup(fn, {"w": normal(rng, 4), "activation": "tanh"}, "double")


@correct()
def named_tuple_and_dataclass(rng: Any) -> Setup:
    """Names of leaves come from attributes, and a field is static."""

    def fn(block: Block, state: State) -> Any:
        function = getattr(jnp, block.activation)
        return function(block.weight @ state.mean + block.bias) / state.count

    return setup(fn, Block(normal(rng, 3, 2), normal(rng, 3)), State(normal(rng, 2), 4))


@correct()
def empty_arrays(rng: Any) -> Setup:
    """Shapes with a zero in them, in arguments and results."""
    return setup(
        lambda x, empty: {"y": jnp.sin(x), "none": empty @ jnp.zeros((4, 0), empty.dtype), "sum": empty.sum()},
        normal(rng, 3),
        jnp.zeros((0, 4)),
    )


@correct()
def python_numbers(rng: Any) -> Setup:
    """float, int, bool and complex of Python."""
    return setup(
        lambda x, a, n, flag, z: a**2 * jnp.sin(x) ** n + (jnp.abs(z) if flag else 0),
        normal(rng, 3), float(rng.uniform(1, 2)), 3, True, 1 + 2j,
    )  # fmt: skip


@correct()
def numpy_arguments(rng: Any) -> Setup:
    """float64 of NumPy while x64 is off."""
    return setup(lambda w, x: jnp.tanh(w @ x), rng.standard_normal((3, 2)), rng.standard_normal(2))


@correct()
def scalars_and_ones(rng: Any) -> Setup:
    """Shapes (), (1,), (1, 1)."""
    return setup(lambda a, b, c: a * b * c[0] + jnp.sin(a), normal(rng), normal(rng, 1), normal(rng, 1, 1))


@correct()
def tree_of_results(rng: Any) -> Setup:
    """Outputs with integers, booleans and None beside floats."""

    def fn(x: Any) -> Any:
        return {"y": [jnp.sin(x), None], "argmax": x.argmax(), "positive": x > 0, "state": State(x.mean(), 3)}

    return setup(fn, normal(rng, 4))


@correct()
def arguments_with_defaults(rng: Any) -> Setup:
    """Keyword-only and defaulted parameters that aren't given."""

    def fn(x: Any, scale: float = 2.0, *, shift: float = 1.0) -> Any:
        return scale * jnp.sin(x + shift)

    return setup(fn, normal(rng, 4))


@correct()
def many_small_leaves(rng: Any) -> Setup:
    """Forty parameters of two numbers."""
    layers = [{"w": normal(rng, 2), "b": normal(rng, 2)} for _ in range(20)]

    def fn(layers: Any, x: Any) -> Any:
        for layer in layers:
            x = jnp.tanh(layer["w"] * x + layer["b"])
        return x

    return setup(fn, layers, normal(rng, 2))


@correct()
def callable_object(rng: Any) -> Setup:
    """A module with __call__, and a bound method."""

    class Model:
        def __init__(self) -> None:
            self.shift = np.float32(0.5)

        def __call__(self, x: Any) -> Any:
            return jnp.sin(x + jnp.asarray(self.shift, x.dtype))

    return setup(Model(), normal(rng, 4))


@correct()
def closed_over_data(rng: Any) -> Setup:
    """A float32 constant from outside meets float64 arguments."""
    data = normal(rng, 4, 3)
    return setup(lambda w: jnp.sin(data @ w), positive(rng, 3))
