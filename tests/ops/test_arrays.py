"""What is no array is refused by every op, in one sentence; what is one is taken as before."""

import inspect

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxnet import losses, ops

IDS = np.array([1, 0], np.int32)


def draw(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def sequences(gates):
    return {
        "x": draw(2, 3, 2),
        "weight": draw(2, 4 * gates),
        "recurrent_weight": draw(4, 4 * gates),
        "bias": draw(4 * gates),
        "initial": draw(2, 4),
        "lengths": IDS,
    }


def step(gates):
    arguments = sequences(gates)
    del arguments["lengths"]
    return arguments | {"x": draw(2, 2), "state": arguments.pop("initial")}


QUERY, IMAGE, CHANNELS = draw(2, 3, 2, 4), draw(2, 4, 4, 4), draw(4)
CONVOLUTION = {"x": IMAGE, "weight": draw(3, 3, 4, 4), "bias": CHANNELS}
MASKS = {"bias": draw(2, 2, 3, 3), "mask": np.ones((2, 2, 3, 3), bool), "lengths": IDS, "offset": IDS}
STATISTICS = {"mean": CHANNELS, "variance": CHANNELS**2}
NORM = {"x": IMAGE, "scale": CHANNELS, "bias": CHANNELS}
PAIR = draw(2, 4), draw(2, 4)

# The arrays of each op, then its options.
OPS = {
    "attention": ({"query": QUERY, "key": QUERY, "value": QUERY} | MASKS, {}),
    "avg_pool": ({"x": IMAGE}, {"window": 2}),
    "batch_norm": (NORM, {}),
    "batch_norm_inference": (NORM | STATISTICS, {}),
    "conv": (CONVOLUTION, {}),
    "conv_transpose": (CONVOLUTION, {}),
    "embedding": ({"ids": IDS, "table": draw(2, 4)}, {}),
    "global_avg_pool": ({"x": IMAGE}, {}),
    "global_max_pool": ({"x": IMAGE}, {}),
    "group_norm": (NORM, {"groups": 2}),
    "gru": (sequences(3) | {"recurrent_bias": CHANNELS}, {}),
    "gru_step": (step(3) | {"recurrent_bias": CHANNELS}, {}),
    "layer_norm": (NORM, {}),
    "linear": ({"x": draw(2, 3), "weight": draw(3, 4), "bias": CHANNELS}, {}),
    "linear_cross_entropy": ({"x": draw(2, 3), "weight": draw(3, 4), "labels": IDS, "bias": CHANNELS}, {}),
    "lstm": (sequences(4) | {"initial": PAIR}, {}),
    "lstm_step": (step(4) | {"state": PAIR}, {}),
    "max_pool": ({"x": IMAGE}, {"window": 2}),
    "rms_norm": ({"x": IMAGE, "scale": CHANNELS}, {}),
    "rnn": (sequences(1), {}),
    "rnn_step": (step(1), {}),
    "rotary": ({"x": QUERY}, {}),
    "upsample": ({"x": IMAGE}, {"factor": 2}),
}
each = pytest.mark.parametrize("op", OPS)
THINGS = [[[1.0, 2.0]], 3.0, "three"]


@pytest.fixture
def anything_goes(monkeypatch):
    """Annotations aren't checked, as for a user."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def message(op, argument, thing):
    got = f"got {type(thing).__name__}"
    return rf"^{op} needs an array as {argument}; {got}\. jnp\.asarray makes one of lists and numbers$"


def public(op):
    """The op and, where there is one, the form that returns its pullback."""
    return [getattr(ops, name) for name in (op, f"{op}_vjp") if hasattr(ops, name)]


def test_all_ops_are_here():
    names = {name.removesuffix("_vjp") for name, value in vars(ops).items() if inspect.isfunction(value)}
    assert names - {"using"} == set(OPS)


@each
def test_what_is_no_array(op, anything_goes):
    """A `_step` looks at its x, and leaves the rest to the op of whole sequences."""
    arrays, options = OPS[op]
    for function in public(op):
        for name in arrays:
            if isinstance(arrays[name], tuple):
                continue  # below
            argument = "initial h" if name in ("initial", "state") else name
            asked = op if name == "x" else op.removesuffix("_step")
            needed = inspect.signature(function).parameters[name].default is not None and name != "state"
            for thing in [*THINGS, None] if needed else THINGS:
                with pytest.raises(TypeError, match=message(asked, argument, thing)):
                    function(**arrays | {name: thing}, **options)


def test_a_state_of_lists(anything_goes):
    arrays, _ = OPS["lstm"]
    for i, name in enumerate(("initial h", "initial c")):
        for thing in [*THINGS, None]:
            pair = tuple(thing if i == j else PAIR[j] for j in range(2))
            with pytest.raises(TypeError, match=message("lstm", name, thing)):
                ops.lstm(**arrays | {"initial": pair})


def test_a_gradient_penalty(anything_goes):
    for thing in [*THINGS, None]:
        with pytest.raises(TypeError, match=message("gradient_penalty", "gradient", thing)):
            losses.gradient_penalty(thing)


@each
def test_arrays_of_numpy(op, anything_goes):
    arrays, options = OPS[op]
    for function in public(op):
        both = (jax.tree.leaves(function(**a, **options)) for a in (arrays, jax.tree.map(jnp.asarray, arrays)))
        for found, expected in zip(*both, strict=True):
            np.testing.assert_array_equal(found, expected)
