"""Our RNN in the place of Flax's, Linen's and NNX's: the same parameters, values and gradients."""

import importlib
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

pytest.importorskip("flax", reason="Flax is optional: pip install '.[flax]'")
from flax import errors, nnx, serialization
from flax import linen as nn

from jaxnet import using, verify
from jaxnet.interop import flax as interop
from jaxnet.kernels import ffi

TIME, IN, HIDDEN = 4, 2, 3
CELLS = ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"]
# The names of cells with their options; each in Linen and in NNX.
VARIANTS = {
    **{cell: (cell, {}) for cell in CELLS},
    "relu": ("SimpleCell", {"activation_fn": nn.relu}),
    "residual": ("SimpleCell", {"residual": True}),
}
MODELS = [f"{api} {name}" for api in ("linen", "nnx") for name in VARIANTS]
EVERY_DAY = [
    "linen OptimizedLSTMCell",
    "linen relu",
    "nnx GRUCell",
]  # held to Flax by `make test`, .ci/run holds all


def draw(*shape, seed=0, dtype="float64"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def cell_of(model, param_dtype="float64", **more):
    """A new cell of `linen` or `nnx`."""
    api, name = model.split()
    cell, options = VARIANTS[name]
    options = {"param_dtype": param_dtype, **options, **more}
    if api == "linen":
        return getattr(nn, cell)(HIDDEN, **options)
    return getattr(nnx, cell)(IN, HIDDEN, rngs=nnx.Rngs(0), **{"dtype": None, **options})


def functions(model, x, cell=None, dtype="float64", **options):
    """The parameters that Flax makes, some biases moved from 0; ours and Flax's as functions of them."""
    api = model.split()[0]
    cell = cell or (lambda: cell_of(model, dtype))
    modules = [
        flax.RNN(cell(), **options) for flax in ((interop.linen, nn) if api == "linen" else (interop.nnx, nnx))
    ]
    if api == "linen":
        params = modules[1].init(jax.random.key(0), x)
        runs = [module.apply for module in modules]
    else:
        params = nnx.state(modules[1], nnx.Param)
        runs = [in_nnx(module) for module in modules]
    return jax.tree.map(lambda a: a + 0.1 * draw(*a.shape, seed=a.ndim, dtype=a.dtype), params), *runs


def in_nnx(module):
    graph, _, rest = nnx.split(module, nnx.Param, ...)

    def run(params, x, **call):
        own = jax.tree.map(lambda leaf: leaf, (params, rest))  # variables that no trace is the owner of
        return nnx.merge(graph, *own)(x, **call)

    return run


def assert_same(found, expected, err_msg="", **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected), err_msg
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype, err_msg
        np.testing.assert_allclose(*(np.asarray(c, "float64") for c in (a, b)), err_msg=err_msg, **tolerance)


def with_gradients(function, *args):
    """Values, and gradients of all arguments under random cotangents."""
    outputs, pullback = jax.vjp(function, *args)
    return outputs, pullback(jax.tree.map(lambda a: draw(*a.shape, seed=9, dtype=a.dtype), outputs))


def carry_of(model, *batch):
    h = draw(*batch, HIDDEN, seed=1)
    return (h, draw(*batch, HIDDEN, seed=2)) if "LSTM" in model else h


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        *(pytest.param(m, (5,), marks=[] if m in EVERY_DAY else pytest.mark.long) for m in MODELS),
        *(pytest.param("linen LSTMCell", batch, marks=pytest.mark.long) for batch in [(), (2, 3)]),
    ],
    ids=str,
)
def test_values_and_gradients(x64, model, batch):
    x, carry = draw(*batch, TIME, IN), carry_of(model, *batch)
    lengths = jnp.asarray(np.resize([4, 2, 3, 1, 0], batch))
    params, *modules = functions(model, x)
    calls = {
        "plain": {},
        "reverse": {"reverse": True, "return_carry": True},
        "kept": {"reverse": True, "keep_order": True},
        "lengths": {"seq_lengths": lengths},
        "carry": {"seq_lengths": lengths, "return_carry": True},
        "all": {"seq_lengths": lengths, "reverse": True, "keep_order": True, "return_carry": True},
        "not kept": {"seq_lengths": lengths, "reverse": True, "return_carry": True},
    }
    if len(batch) > 1:  # where Flax can't find the last carries
        calls = {name: {**call, "return_carry": False} for name, call in calls.items()}

    def road(module, call):
        return with_gradients(lambda params, x, h: module(params, x, initial_carry=h, **call), params, x, carry)

    @jax.jit
    def roads():
        return {name: [road(module, call) for module in modules] for name, call in calls.items()}

    for name, (found, expected) in roads().items():
        assert_same(found, expected, name, atol=1e-11)


def test_the_last_carries_of_several_batch_axes(x64):
    x, lengths = draw(2, 3, TIME, IN), jnp.asarray([[4, 2, 3], [1, 4, 2]])
    params, ours, flax = functions("linen LSTMCell", x, return_carry=True)
    found = ours(params, x, seq_lengths=lengths)
    expected = flax(params, x.reshape(6, TIME, IN), seq_lengths=lengths.reshape(6))
    assert_same(found, jax.tree.map(lambda a: a.reshape(2, 3, *a.shape[1:]), expected), atol=1e-11)


@pytest.mark.parametrize("model", ["linen LSTMCell", "nnx GRUCell"])
def test_options_of_the_constructor_and_of_the_call(x64, model):
    x, lengths = draw(TIME, 2, 3, IN), jnp.asarray([[4, 2, 3], [1, 4, 2]])
    params, ours, flax = functions(model, x, time_major=True, reverse=True, keep_order=True, unroll=2)
    for call in {}, {"seq_lengths": lengths}, {"reverse": False}, {"keep_order": False, "return_carry": True}:
        assert_same(ours(params, x, **call), flax(params, x, **call), str(call), atol=1e-11)
    y = ours(params, jnp.moveaxis(x, 0, 2), time_major=False)
    assert_same(y, jnp.moveaxis(flax(params, x), 0, 2), atol=1e-11)


@pytest.mark.parametrize("shape", [(0, TIME, IN), (2, 1, IN), (2, 0, IN)], ids=str)
@pytest.mark.parametrize("model", ["linen OptimizedLSTMCell", "nnx SimpleCell"])
def test_small_shapes(x64, model, shape):
    params, ours, flax = functions(model, draw(2, TIME, IN), return_carry=True)
    assert_same(ours(params, draw(*shape)), flax(params, draw(*shape)), atol=1e-11)


@pytest.mark.long
@pytest.mark.parametrize("model", ["linen LSTMCell", "linen GRUCell", "nnx OptimizedLSTMCell", "nnx SimpleCell"])
@pytest.mark.parametrize("dtype", ["inputs", "cell", "all"])
def test_half_precision(model, dtype):
    """The dtypes are Flax's: of narrow inputs with wide parameters, in narrow cells, and where all is narrow."""
    x = draw(2, TIME, IN, dtype="float32" if dtype == "cell" else "bfloat16")
    carry = jnp.zeros((2, HIDDEN), "bfloat16") if (model, dtype) == ("nnx SimpleCell", "cell") else None
    cell = {"dtype": None, "param_dtype": "float32"} | {
        "inputs": {},
        "cell": {"dtype": "bfloat16"},
        "all": {"param_dtype": "bfloat16"},
    }[dtype]
    if dtype == "all":
        cell["recurrent_kernel_init"] = nn.initializers.lecun_normal()  # the orthogonal one has no narrow form

    def road(module):
        return with_gradients(lambda p, x: module(p, x, initial_carry=carry), params, x)

    with jax.numpy_dtype_promotion("standard"):
        params, ours, flax = functions(model, x, lambda: cell_of(model, **cell), return_carry=True)
        found, expected = road(ours), road(flax)
    # Narrow cells round at each step, products of IN + HIDDEN; else narrow outputs and gradients are rounded.
    largest = max(float(abs(a).max()) for a in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        eps = float(jnp.finfo("bfloat16" if dtype == "cell" else b.dtype).eps)
        assert_same(a, b, atol=TIME * (IN + HIDDEN) * eps * largest)


class InLinen(nn.Module):
    """Cells made in the call and in `setup`."""

    rnn: type

    def setup(self):
        self.after = self.rnn(nn.SimpleCell(HIDDEN, param_dtype="float64"), return_carry=True)

    @nn.compact
    def between(self, x, lengths):
        both = (self.rnn(nn.OptimizedLSTMCell(HIDDEN, param_dtype="float64")) for _ in range(2))
        return nn.Bidirectional(*both)(x, seq_lengths=lengths)

    def __call__(self, x, lengths=None):
        return self.after(self.between(x, lengths), seq_lengths=lengths)


class InNnx(nnx.Module):
    def __init__(self, rnn, rngs):
        one = {"rngs": rngs, "param_dtype": "float64"}
        both = (rnn(nnx.LSTMCell(IN, HIDDEN, **one)) for _ in range(2))
        self.between = nnx.Bidirectional(*both)
        self.after = rnn(nnx.GRUCell(2 * HIDDEN, HIDDEN, **one), return_carry=True, rngs=rngs)

    def __call__(self, x, lengths=None):
        return self.after(self.between(x, seq_lengths=lengths), seq_lengths=lengths)


@pytest.mark.parametrize("model", [f"linen {name}" for name in VARIANTS])
def test_the_same_key_makes_the_same_linen_parameters(model):
    x = draw(2, TIME, IN, dtype="float32")
    ours, flax = (
        rnn(cell_of(model, "float32")).init_with_output(jax.random.key(3), x)
        for rnn in (interop.linen.RNN, nn.RNN)
    )
    assert_same(ours, flax, atol=0)


def test_in_a_linen_model(x64, tmp_path):
    x, lengths = draw(3, TIME, IN), jnp.asarray([4, 2, 3])
    ours, flax = InLinen(interop.linen.RNN), InLinen(nn.RNN)
    params = flax.init(jax.random.key(0), x)
    assert_same(ours.init(jax.random.key(0), x), params, atol=0)
    assert_same(
        with_gradients(lambda *args: ours.apply(*args, lengths), params, x),
        with_gradients(lambda *args: flax.apply(*args, lengths), params, x),
        atol=1e-11,
    )

    fresh = ours.init(jax.random.key(1), x)
    loaded = serialization.from_bytes(fresh, serialization.to_bytes(params))
    assert_same(loaded, params, atol=0)
    with orbax.checkpoint.StandardCheckpointer() as checkpoints:
        checkpoints.save(tmp_path / "linen", params)
        checkpoints.wait_until_finished()
        loaded = checkpoints.restore(tmp_path / "linen", fresh)
    assert_same(ours.apply(loaded, x), flax.apply(params, x), atol=1e-11)


def test_in_an_nnx_model(x64, tmp_path):
    x, lengths = draw(3, TIME, IN), jnp.asarray([4, 2, 3])
    ours, flax = (InNnx(rnn, nnx.Rngs(0)) for rnn in (interop.nnx.RNN, nnx.RNN))
    assert_same(*(nnx.to_pure_dict(nnx.state(model, nnx.Param)) for model in (ours, flax)), atol=0)

    @nnx.jit
    def gradients(model, x):
        return nnx.grad(
            lambda model, x: (model(x, lengths)[1] * draw(3, TIME, HIDDEN, seed=1)).sum(), argnums=(0, 1)
        )(model, x)

    assert_same(*(gradients(model, x) for model in (ours, flax)), atol=1e-11)
    # Random streams too are as far as Flax's.
    counts = [nnx.to_pure_dict(nnx.state(model, nnx.RngCount)) for model in (ours, flax)]
    assert_same(*counts, atol=0)

    with orbax.checkpoint.StandardCheckpointer() as checkpoints:
        checkpoints.save(tmp_path / "nnx", nnx.state(flax, nnx.Param))
        checkpoints.wait_until_finished()
        fresh = InNnx(interop.nnx.RNN, nnx.Rngs(1))
        nnx.update(fresh, checkpoints.restore(tmp_path / "nnx", nnx.state(fresh, nnx.Param)))
    assert_same(fresh(x), flax(x), atol=1e-11)


@pytest.mark.parametrize("model", ["linen OptimizedLSTMCell", "linen SimpleCell", "nnx GRUCell"])
def test_ten_steps_of_training_end_at_the_same_parameters(x64, model):
    x, target = draw(5, TIME, IN), draw(5, TIME, HIDDEN, seed=1)
    optimizer = optax.adam(1e-2)
    params, ours, flax = functions(model, x)

    def trained(module):
        def step(state, _):
            params, moments = state
            loss, gradients = jax.value_and_grad(lambda p: ((module(p, x) - target) ** 2).mean())(params)
            updates, moments = optimizer.update(gradients, moments)
            return (optax.apply_updates(params, updates), moments), loss

        return jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=10))(params)

    with jax.numpy_dtype_promotion("standard"):  # for Adam
        (found, _), losses = trained(ours)
        (expected, _), expected_losses = trained(flax)
    assert losses[-1] < losses[0]
    assert_same((found, losses), (expected, expected_losses), atol=1e-9)


@pytest.mark.parametrize("model", ["linen LSTMCell", "nnx GRUCell"])
def test_transformations(x64, model):
    x = draw(3, 2, TIME, IN)
    params, ours, flax = functions(model, x[0])
    several = jax.tree.map(lambda a: jnp.stack([a, 2 * a, -a]), params)

    def gradients(module):
        return jax.vmap(jax.grad(lambda p, x: (jax.checkpoint(module)(p, x) ** 2).sum()))

    assert_same(gradients(ours)(several, x), gradients(flax)(several, x), atol=1e-10)


def test_lifted_transformations(x64):
    x = draw(2, TIME, IN)
    ours, flax = (
        nn.vmap(
            nn.remat(rnn), variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=3
        )(cell_of("linen GRUCell"))
        for rnn in (interop.linen.RNN, nn.RNN)
    )
    params = flax.init(jax.random.key(0), x)
    assert_same(ours.init(jax.random.key(0), x), params, atol=0)
    assert_same(ours.apply(params, x), flax.apply(params, x), atol=1e-11)


def test_partitioned_parameters(x64):
    x, kernel_init = draw(2, TIME, IN), nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    ours, flax = (rnn(cell_of("linen GRUCell", kernel_init=kernel_init)) for rnn in (interop.linen.RNN, nn.RNN))
    params = ours.init(jax.random.key(0), x)
    assert isinstance(params["params"]["cell"]["ir"]["kernel"], nn.Partitioned)
    assert_same(*(with_gradients(module.apply, params, x) for module in (ours, flax)), atol=1e-11)


def test_a_carry_drawn_at_random(x64):
    x = draw(2, TIME, IN)
    make = partial(cell_of, "linen LSTMCell", carry_init=nn.initializers.normal())
    params, ours, flax = functions("linen LSTMCell", x, make)
    for call in {}, {"init_key": jax.random.key(7)}:
        assert_same(ours(params, x, **call), flax(params, x, **call), atol=1e-11)


@pytest.mark.parametrize("model", ["linen GRUCell", "nnx LSTMCell"])
def test_the_prover(x64, model):
    rnn = interop.linen.RNN if model.startswith("linen") else interop.nnx.RNN
    report = verify.check_module(rnn(cell_of(model)), draw(2, TIME, IN))
    assert report.ok, str(report)


@pytest.mark.skipif(ffi.unavailable() is not None, reason="no compiled kernels")
@pytest.mark.parametrize(("model", "kernel"), [("linen LSTMCell", "lstm"), ("nnx GRUCell", "gru")])
def test_the_kernels_run(model, kernel):
    x = draw(8, 16, IN, dtype="float32")
    params, ours, _ = functions(model, x, dtype="float32")
    text = jax.jit(jax.grad(lambda params: ours(params, x).sum())).lower(params).as_text()
    assert f"jaxnet_{kernel}_backward" in text


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_narrow_lengths(x64, dtype):
    x, lengths = draw(2, 300, IN), jnp.asarray([127, 3], dtype)
    params, ours, flax = functions("linen SimpleCell", x, reverse=True, keep_order=True)
    assert_same(ours(params, x, seq_lengths=lengths), flax(params, x, seq_lengths=lengths.astype(int)), atol=1e-11)


@pytest.mark.parametrize(("used", "loops"), [("y", 2), ("carry", 2), ("both", 4)])
def test_what_is_not_used_is_not_computed(used, loops):
    """Of an LSTM with seq_lengths y and the carry come from two runs, each a loop forwards and one backwards."""
    x, lengths = draw(3, TIME, IN, dtype="float32"), jnp.asarray([4, 2, 3])
    params, ours, _ = functions("linen LSTMCell", x, dtype="float32", return_carry=True)

    def loss(params):
        carry, y = ours(params, x, seq_lengths=lengths)
        return sum((a**2).sum() for a in jax.tree.leaves({"y": y, "carry": carry, "both": (y, carry)}[used]))

    with using("xla"):
        text = jax.jit(jax.value_and_grad(loss)).lower(params).compile().as_text()
    assert text.count(" while(") == loops


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (TypeError, r"got MGUCell of \S+: use flax.linen.RNN", lambda: interop.linen.RNN(nn.MGUCell(3))),
        (TypeError, "no subclass; got Own of ", lambda: interop.linen.RNN(type("Own", (nn.GRUCell,), {})(3))),
        (
            ValueError,
            r"activation_fn jnp.tanh and .*; got relu and sigmoid: use",
            lambda: interop.linen.RNN(nn.GRUCell(3, activation_fn=nn.relu)),
        ),
        (ValueError, "gate_fn", lambda: interop.linen.RNN(nn.LSTMCell(3, gate_fn=nn.hard_sigmoid))),
        (ValueError, "or jax.nn.relu", lambda: interop.linen.RNN(nn.SimpleCell(3, activation_fn=nn.gelu))),
        (ValueError, "variable_axes", lambda: interop.linen.RNN(nn.GRUCell(3), variable_axes={"params": 0})),
        (
            TypeError,
            r"of flax\.nnx\S*, and no subclass; got GRUCell of flax\.linen\S*: use flax.nnx.RNN",
            lambda: interop.nnx.RNN(nn.GRUCell(3)),
        ),
        (
            ValueError,
            "state_axes",
            lambda: interop.nnx.RNN(cell_of("nnx GRUCell", "float32"), state_axes={...: None}),
        ),
        (
            ValueError,
            "promote_dtype; got <lambda>",
            lambda: interop.nnx.RNN(cell_of("nnx GRUCell", "float32", promote_dtype=lambda args, dtype: args)),
        ),
    ],
)
def test_a_cell_or_option_that_no_op_serves_is_refused(error, message, make):
    with pytest.raises(error, match=message):
        make()


def test_what_was_replaced_is_refused():
    cell = cell_of("nnx GRUCell", "float32")
    layer = interop.nnx.RNN(cell)
    cell.dense_i = nnx.LoRALinear(IN, 3 * HIDDEN, lora_rank=1, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="got LoRALinear: use flax"):
        layer(jnp.ones((2, TIME, IN)))
    cell.gate_fn = nnx.hard_sigmoid
    with pytest.raises(ValueError, match="gate_fn"):
        layer(jnp.ones((2, TIME, IN)))


@pytest.mark.parametrize(
    ("message", "shape", "call"),
    [
        (r"inputs \(…, T, I\).*got \(2,\)", (IN,), {}),
        (r"a tuple \(c, h\), each \(2, 3\); got \(2, 3\)", (2, TIME, IN), {"initial_carry": jnp.ones((2, 3))}),
        (r"got \(\(2, 3\), \(1, 3\)\)", (2, TIME, IN), {"initial_carry": (jnp.ones((2, 3)), jnp.ones((1, 3)))}),
        (
            "keeps its dtype; got bfloat16, bfloat16, after a step float32",
            (2, TIME, IN),
            {"initial_carry": 2 * (jnp.ones((2, 3), "bfloat16"),)},
        ),
        (r"seq_lengths \(2,\) of whole numbers; got \(3,\)", (2, TIME, IN), {"seq_lengths": jnp.ones(3, "int32")}),
        ("whole numbers.*float32", (2, TIME, IN), {"seq_lengths": jnp.ones(2)}),
    ],
)
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_a_bad_call(api, message, shape, call):
    _, ours, _ = functions(f"{api} LSTMCell", jnp.ones((2, TIME, IN)), dtype="float32")
    params = functions(f"{api} LSTMCell", jnp.ones((2, TIME, IN)), dtype="float32")[0]
    with jax.numpy_dtype_promotion("standard"), pytest.raises(ValueError, match=message):
        ours(params, jnp.ones(shape), **call)


def test_an_nnx_cell_for_other_features():
    layer = interop.nnx.RNN(cell_of("nnx GRUCell", "float32"))
    with pytest.raises(ValueError, match=r"inputs \(…, 2\) for its cell; got \(2, 4, 3\)"):
        layer(jnp.ones((2, TIME, IN + 1)))


def test_parameters_that_do_not_fit_get_the_error_of_flax():
    params, ours, flax = functions("linen LSTMCell", jnp.ones((2, TIME, IN)), dtype="float32")
    wrong = jax.tree.map(lambda a: a, params)
    del wrong["params"]["cell"]["hf"]
    for module in ours, flax:
        with pytest.raises(errors.ScopeParamNotFoundError, match="hf"):
            module(wrong, jnp.ones((2, TIME, IN)))
        with pytest.raises(errors.ScopeCollectionNotFound):
            module({}, jnp.ones((2, TIME, IN)))
        with pytest.raises(errors.ScopeParamShapeError):
            module(params, jnp.ones((2, TIME, IN + 1)))


def test_without_flax(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)
    for name in [name for name in sys.modules if name.startswith("jaxnet.interop")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.import_module("jaxnet.interop")
    with pytest.raises(ImportError, match=r"pip install 'jaxnet\[flax\]'"):
        importlib.import_module("jaxnet.interop.flax")
