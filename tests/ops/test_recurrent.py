"""The chain of checks of the recurrent ops, each link for one reason."""

import importlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxnet import layers, ops, verify
from jaxnet.ops import recurrence
from jaxnet.ops.recurrence import Weights

rnn, lstm, gru = (importlib.import_module(f"jaxnet.ops.{name}") for name in ("rnn", "lstm", "gru"))

# For each cell the op, its options, the number of gates, its reference and the cell.
CELLS = {
    "tanh": ("rnn", {"activation": "tanh"}, 1, partial(rnn.reference, "tanh"), rnn._CELLS["tanh"]),
    "relu": ("rnn", {"activation": "relu"}, 1, partial(rnn.reference, "relu"), rnn._CELLS["relu"]),
    "lstm": ("lstm", {}, 4, lstm.reference, lstm._CELL),
    "gru after": ("gru", {"reset_after": True}, 3, partial(gru.reference, True), gru._AFTER),
    "gru before": ("gru", {"reset_after": False}, 3, partial(gru.reference, False), gru._BEFORE),
}
each = pytest.mark.parametrize("name", CELLS)
LENGTHS = [2, 0, 3, 1]


def draw(*shape, seed=0, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def arguments(name, sizes=(4, 3, 2, 3), bias=True, initial=True, dtype=jnp.float64):
    """x, the weights of the op one by one, the initial state."""
    b, t, i, h = sizes
    op, options, gates, *_ = CELLS[name]
    weights = draw(i, gates * h, seed=1, dtype=dtype), draw(h, gates * h, seed=2, dtype=dtype)
    biases = [draw(gates * h, seed=3, dtype=dtype) if bias else None]
    if op == "gru":
        biases += [draw(h, seed=4, dtype=dtype) if bias and options["reset_after"] else None]
    states = draw(b, h, seed=5, dtype=dtype), draw(b, h, seed=6, dtype=dtype)
    state = None if not initial else states if op == "lstm" else states[0]
    return draw(b, t, i, dtype=dtype), *weights, *biases, state


def functions(name, **more):
    op, options, *_ = CELLS[name]
    return partial(getattr(ops, op), **options, **more), partial(getattr(ops, f"{op}_vjp"), **options, **more)


def random_like(tree):
    return jax.tree.map(lambda a: draw(*a.shape, seed=9, dtype=a.dtype), tree)


def close(found, expected, rtol=1e-9, atol=1e-11):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


# ------------------------------------------------------------------- link 1: backward against the reference


def check_backward(name, args, reverse, lengths, implementation="xla", remat=False):
    op, _, _, reference, cell = CELLS[name]
    x, *weights, state = args
    loop = recurrence.Loop(op, cell, reverse, implementation, remat)
    lengths = None if lengths is None else jnp.asarray(lengths)
    plain = partial(reference, reverse, lengths=lengths)

    @jax.jit
    def both(x, weights, state, cotangents):
        outputs, residuals = recurrence.forward(loop, x, weights, state, lengths)
        gradients = recurrence.backward(loop, residuals, cotangents)[:3]
        expected, pullback = jax.vjp(plain, x, weights, state)
        return (outputs, gradients), (expected, pullback(cotangents))

    args = x, Weights(*weights), state
    close(*both(*args, random_like(jax.eval_shape(plain, *args))))


@pytest.mark.parametrize(
    ("bias", "initial", "reverse", "lengths", "remat"),
    [
        (True, True, False, None, False),
        (True, True, True, LENGTHS, False),
        (True, True, True, LENGTHS, True),
        (False, False, False, LENGTHS, False),
    ],
)
@pytest.mark.parametrize("implementation", ["xla", "cpu"])
@each
def test_backward(x64, name, implementation, bias, initial, reverse, lengths, remat):
    check_backward(name, arguments(name, bias=bias, initial=initial), reverse, lengths, implementation, remat)


@pytest.mark.parametrize("implementation", ["xla", "cpu"])
@pytest.mark.parametrize(("name", "less"), [("relu", 3), ("lstm", 12), ("gru after", 12), ("gru before", 12)])
def test_remat_keeps_the_states_alone(name, less, implementation):
    """`less`: so many numbers of a row and step of H 3."""
    args = arguments(name, (4, 5, 2, 3), dtype="float32")

    def size(remat):
        op_vjp = functions(name, implementation=implementation, remat=remat)[1]
        pullback = jax.eval_shape(op_vjp, *args)[1]
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    assert size(False) - size(True) == 4 * 5 * less


@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [((0, 2, 3, 2), None), ((2, 1, 1, 1), [1, 0]), ((1, 5, 7, 1), [5])],
    ids=str,
)
@pytest.mark.parametrize("implementation", ["xla", "cpu"])
@pytest.mark.parametrize("name", ["lstm", "gru before"])
def test_backward_for_other_sizes(x64, name, implementation, sizes, lengths):
    check_backward(name, arguments(name, sizes), True, lengths, implementation)


def test_a_sequence_of_no_steps():
    x, *rest = arguments("lstm", (2, 0, 3, 4), dtype="float32")
    (y, state), pullback = ops.lstm_vjp(x, *rest)
    assert y.shape == (2, 0, 4)
    close(state, rest[-1])
    dx, dweight, *_, dstate = pullback((y, state))
    assert dx.shape == x.shape
    assert not dweight.any()
    close(dstate, state)


# ------------------------------------------ links 2 and 3: four roads, which the public functions and steps take


@pytest.mark.parametrize("name", ["tanh", "lstm", "gru after", "gru before"])
def test_four_roads(x64, name):
    op, op_vjp = functions(name, lengths=jnp.asarray(LENGTHS), reverse=True)
    args = arguments(name)
    given = [i for i, a in enumerate(args) if a is not None]
    cotangents = random_like(jax.eval_shape(op, *args))

    def all_of(some):
        whole = dict(zip(given, some, strict=True))
        return [whole.get(i) for i in range(len(args))]

    def total(*some):
        products = jax.tree.map(lambda dy, y: (dy * y).sum(), cotangents, op(*all_of(some), implementation="xla"))
        return sum(jax.tree.leaves(products))

    def hand_written(*some):
        gradients = op_vjp(*all_of(some))[1](cotangents)
        return tuple(gradients[i] for i in given)

    verify.assert_gradients(total, *(args[i] for i in given), hand_written=hand_written)


@each
def test_single_steps_are_the_sequence(x64, name):
    op, options, *_ = CELLS[name]
    x, *weights, state = arguments(name)
    expected_y, expected = functions(name)[0](x, *weights, state)
    step = jax.jit(partial(getattr(ops, f"{op}_step"), **options))
    for t in range(x.shape[1]):
        state = step(x[:, t], state, *weights)
        close(recurrence.hidden(state), expected_y[:, t])
    close(state, expected)


def sigma(z):
    return 1 / (1 + np.exp(-z))


def test_values_of_an_lstm_against_numpy(x64):
    args = arguments("lstm", (1, 2, 2, 3))
    x, w, u, b, (h, c) = jax.tree.map(np.asarray, args)
    for t in range(2):
        z = (x[:, t] @ w + h @ u)[0] + b
        c = (sigma(z[3:6]) * c[0] + sigma(z[:3]) * np.tanh(z[6:9]))[None]
        h = sigma(z[9:])[None] * np.tanh(c)
    y, state = ops.lstm(*args)
    close((y[:, 1], state), (h, (h, c)))


def test_values_of_the_paper_s_gru_against_numpy(x64):
    args = arguments("gru before", (1, 2, 2, 3))
    x, w, u, b, _, h = jax.tree.map(np.asarray, args)
    h = h[0]
    for t in range(2):
        r, z, n = np.split(x[0, t] @ w + b, 3)
        r, z = sigma(r + h @ u[:, :3]), sigma(z + h @ u[:, 3:6])
        h = (1 - z) * np.tanh(n + (r * h) @ u[:, 6:]) + z * h
    y, state = ops.gru(*args, reset_after=False)
    close((y[0, 1], state[0]), (h, h))


@pytest.mark.parametrize("name", ["relu", "lstm", "gru after"])
def test_the_padding_is_not_read_and_gets_no_gradient(name):
    x, *rest = arguments(name, dtype="float32")
    lengths = jnp.asarray(LENGTHS)
    inside = (jnp.arange(3)[None] < lengths[:, None])[..., None]
    op, op_vjp = functions(name, lengths=lengths)
    cotangents = random_like(jax.eval_shape(op, x, *rest))

    @jax.jit
    def road(x):
        outputs, pullback = op_vjp(x, *rest)
        return outputs, pullback(cotangents)

    (y, state), gradients = road(jnp.where(inside, x, jnp.nan))
    assert not jnp.where(inside, 0, y).any()
    assert not jnp.where(inside, 0, gradients[0]).any()
    close(jax.tree.map(lambda s: s[1], state), jax.tree.map(lambda s: s[1], rest[-1]))  # of length 0
    close(((y, state), gradients), road(x))


# ---------------------------------------------------------------------------------- link 5: transformations


@pytest.mark.long
@pytest.mark.parametrize("implementation", ["xla", "cpu"])
@pytest.mark.parametrize("cell", [layers.lstm, layers.gru])
def test_remat_needs_less_memory_for_each_layer(cell, implementation):
    """By the gates, 4 numbers for each of h: XLA can neither merge what is computed twice nor do it early."""
    batch, steps, features = 4, 32, 32
    x = jax.ShapeDtypeStruct((batch, steps, features), "float32")

    def needed(number, remat):
        net = layers.serial(*number * [cell(features, implementation=implementation, remat=remat)])
        params = jax.eval_shape(net.init, jax.random.key(0), x)
        gradient = jax.jit(jax.grad(lambda params, x: jnp.square(net.apply(params, x)).sum()))
        return gradient.lower(params, x).compile().memory_analysis().temp_size_in_bytes

    kept, again = ((needed(4, remat) - needed(2, remat)) / 2 for remat in (False, True))
    assert kept - again >= 0.9 * 4 * batch * steps * features * 4


@pytest.mark.parametrize(
    ("name", "remat"),
    [("relu", False), ("lstm", False), ("lstm", True), ("gru after", False), ("gru before", False)],
)
def test_second_order(x64, name, remat):
    lengths, args = jnp.asarray(LENGTHS), arguments(name, initial=False)
    reference = CELLS[name][3]
    directions = random_like(args)

    def loss(f, *args):
        y, state = f(*args)
        return (y**2).sum() + sum((s**3).sum() for s in jax.tree.leaves(state))

    def slope(f, *args):
        gradients = jax.grad(partial(loss, f), range(len(args) - 1))(*args)
        return sum(jax.tree.leaves(jax.tree.map(lambda d, g: (d * g).sum(), directions[:-1], gradients)))

    def plain(x, *rest):
        return reference(False, x, Weights(*rest[:-1]), None, lengths)

    op = functions(name, lengths=lengths, remat=remat)[0]
    several = tuple(range(len(args) - 1))
    second = jax.jit(jax.grad(partial(slope, op), several))
    close(second(*args), jax.jit(jax.grad(partial(slope, plain), several))(*args))


def test_vmap_scan_and_remat(x64):
    args = arguments("lstm")
    lengths, several = jnp.asarray([LENGTHS, [3, 3, 3, 3]]), tuple(range(1, 6))

    def loss(lengths, *args):
        y, state = ops.lstm(*args, lengths=lengths)
        return (y**2).sum() + sum((s**3).sum() for s in state)

    gradient = jax.grad(loss, several)
    plain = jax.jit(gradient)
    expected = jax.tree.map(lambda *g: jnp.stack(g), *(plain(n, *args) for n in lengths))
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), args)
    close(jax.jit(jax.vmap(gradient))(lengths, *stacked), expected)

    @jax.jit
    def scanned(lengths, args):
        remat = jax.grad(jax.checkpoint(loss), several)
        return jax.lax.scan(lambda _, at: (None, remat(at[0], *at[1])), None, (lengths, args))[1]

    close(scanned(lengths, stacked), expected)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_over_a_mesh(kind):
    # The types of what the loop carries say how it lies on the devices; one device is enough to disagree.
    x, *weights, _ = arguments("lstm", dtype="float32")
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(kind,))
    specs = PartitionSpec("batch"), PartitionSpec("batch"), *[PartitionSpec()] * 3

    def gradients(lengths, *args):
        return jax.grad(lambda *args: ops.lstm(*args, lengths=lengths)[0].sum(), (0, 1, 2, 3))(*args)

    args = jnp.asarray(LENGTHS), x, *weights
    expected = gradients(*args)
    mapped = jax.shard_map(gradients, mesh=mesh, in_specs=specs, out_specs=specs[1:])
    with jax.set_mesh(mesh):
        args = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(args, specs, strict=True)]
        for f in gradients, mapped:
            close(jax.jit(f)(*args), expected, 1e-5, 1e-6)


def test_a_second_call_does_not_trace_again_and_a_pullback_leaves_jit():
    traced = []

    @jax.jit
    def road(*args):
        traced.append(None)
        return ops.gru_vjp(*args)

    args = arguments("gru after", dtype="float32")
    for _ in range(2):
        outputs, pullback = road(*args)
    assert len(traced) == 1
    expected, plain = ops.gru_vjp(*args)
    close((outputs, pullback(outputs)), (expected, plain(expected)), 1e-5, 1e-6)


def products(jaxpr, inside=False):
    """The matrix products of a program: whether each is in a loop."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield inside
        for inner in jax.tree.leaves(equation.params):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from products(getattr(inner, "jaxpr", inner), inside or equation.primitive.name == "scan")


@pytest.mark.parametrize(("name", "inside"), [("tanh", 1), ("lstm", 1), ("gru after", 1), ("gru before", 2)])
def test_one_product_before_the_loop_and_the_gradients_after_it(name, inside):
    args = arguments(name, dtype="float32")
    op, op_vjp = functions(name, implementation="xla")
    outputs, pullback = jax.eval_shape(op_vjp, *args)
    forward = list(products(jax.make_jaxpr(op)(*args).jaxpr))
    assert sorted(forward) == [False] + [True] * inside
    backward = list(products(jax.make_jaxpr(lambda f, dy: f(dy))(pullback, outputs).jaxpr))
    assert sorted(backward) == [False] * (2 + inside) + [True] * inside  # dx, dW, dU


# ------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("name", ["lstm", "gru before"])
def test_half_precision_is_rounded_once(name):
    args = arguments(name, dtype="bfloat16")
    _, op_vjp = functions(name, lengths=jnp.asarray(LENGTHS))

    @jax.jit
    def road(args):
        outputs, pullback = op_vjp(*args)
        return outputs, pullback(jax.tree.map(jnp.ones_like, outputs))

    found = road(args)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("bfloat16")}
    assert jax.tree.map(jnp.shape, found[1]) == jax.tree.map(jnp.shape, args)
    wide = road(jax.tree.map(lambda a: a.astype("float32"), args))
    # Once to eps of the dtype; sums in float32 of numbers of order one err by some of its eps.
    as_float = partial(jax.tree.map, lambda a: np.asarray(a, "f"))
    close(as_float(found), as_float(wide), float(jnp.finfo("bfloat16").eps), 1e-5)


@pytest.mark.parametrize("name", ["tanh", "lstm", "gru after"])
def test_saturated_gates_give_no_nan(name):
    x, *rest = arguments(name, dtype="float32")
    outputs, pullback = functions(name)[1](x * 1e30, *rest)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((outputs, pullback(outputs)[0])))


def test_nan_spoils_its_own_sequence_from_there_on():
    x, *rest = arguments("gru after", dtype="float32")
    y, h = ops.gru(x.at[2, 1, 0].set(jnp.nan), *rest)
    expected = np.zeros(y.shape, bool)
    expected[2, 1:] = True
    np.testing.assert_array_equal(np.isnan(y), expected)
    assert np.isnan(h).any(-1).tolist() == [False, False, True, False]


# ---------------------------------------------------------------------------------------------- errors

X, W, U, B, H0 = arguments("tanh", dtype="float32")
LX, LW, LU, LB, (LH, LC) = arguments("lstm", dtype="float32")
N = jnp.asarray(LENGTHS)


def check_rnn(x=X, weight=W, recurrent_weight=U, bias=B, initial=H0, lengths=None, activation="tanh"):
    return rnn._check(x, weight, recurrent_weight, bias, initial, lengths, activation)


def check_lstm(initial):
    return lstm._check(LX, LW, LU, LB, initial, None)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_rnn(X[0]), "rnn needs x (B, T, I); got (3, 2)"),
        (lambda: check_rnn(X.astype(int)), "rnn needs a floating-point x; got int32"),
        (lambda: check_rnn(recurrent_weight=W), "rnn needs a recurrent_weight (H, H); got (2, 3)"),
        (
            lambda: check_rnn(weight=U),
            "rnn needs weight (2, 3) of float32 for x (4, 3, 2) and H = 3; got (3, 3) of float32",
        ),
        (lambda: check_rnn(bias=B[:2]), "rnn needs bias (3,) of float32"),
        (lambda: check_rnn(bias=B.astype("bfloat16")), "got (3,) of bfloat16"),
        (lambda: check_rnn(initial=H0[:2]), "rnn needs initial h (4, 3) of float32"),
        (lambda: check_rnn(activation="gelu"), "rnn needs an activation 'tanh' or 'relu'; got 'gelu'"),
        (
            lambda: check_rnn(lengths=N[:3]),
            "rnn needs lengths (4,) of whole numbers for x (4, 3, 2); got (3,) of int32",
        ),
        (lambda: check_rnn(lengths=N.astype("float32")), "got (4,) of float32"),
        (lambda: check_rnn(lengths=N + 1), "rnn needs lengths from 0 to T = 3; got 1 to 4"),
        (lambda: check_rnn(lengths=N - 1), "got -1 to 2"),
        (
            lambda: lstm._check(LX, LW, LU[:, :4], LB, None, None),
            "lstm needs a recurrent_weight (H, 4 H); got (3, 4)",
        ),
        (lambda: check_lstm(LH), "lstm needs an initial state (h, c), a tuple of two arrays; got ArrayImpl"),
        (lambda: check_lstm((LH, LC[:, :2])), "lstm needs initial c (4, 3) of float32"),
        (
            lambda: gru._check(X, W, U, None, B, None, None, False),
            "gru has a recurrent_bias only with reset_after=True; put it into bias",
        ),
        (
            lambda: gru._check(*arguments("gru after", dtype="float32")[:4], B[:2], None, None, True),
            "gru needs recurrent_bias (3,) of float32",
        ),
        (lambda: ops.rnn(X, W, U, implementation="gpu"), "rnn has no implementation 'gpu'; it has 'xla', 'cpu'"),
        (lambda: ops.lstm_vjp(LX, LW, LU, implementation="cuda"), "implementation must be None or one of 'xla'"),
        (lambda: recurrence_step(X), "rnn_step needs x (B, I); got (4, 3, 2)"),
    ],
)
def test_errors(check, message):
    # Of the checks alone: under the types that are checked in tests, some never reach them.
    with pytest.raises(ValueError, match=re.escape(message)):
        check()


def recurrence_step(x):
    return importlib.import_module("jaxnet.ops.sequences").one_step("rnn_step", x)


def test_lengths_that_are_traced_are_cut_to_what_there_is():
    args = arguments("tanh", dtype="float32")
    found = jax.jit(lambda n, *args: ops.rnn(*args, lengths=n))(jnp.asarray([-3, 0, 7, 2]), *args)
    close(found, ops.rnn(*args, lengths=jnp.asarray([0, 0, 3, 2])), 1e-5, 1e-6)
