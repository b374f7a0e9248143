"""The chain of checks of `attention`, each link for one reason. Small tiles, so that there are several."""

import importlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxnet import ops, verify
from jaxnet.ops.attention_tiles import pairs, tiles_of

op = importlib.import_module("jaxnet.ops.attention")
CHUNK = 4


def draw(*shape, seed=0, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def arguments(b=2, t=9, s=11, n=4, k=2, h=3, d=5, dtype=jnp.float64):
    shapes = (b, t, n, h), (b, s, k, h), (b, s, k, d)
    return tuple(draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))


def close(found, expected, rtol=1e-9, atol=1e-11):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


def coins(*shape, probability=0.5):
    return jnp.asarray(np.random.default_rng(3).random(shape) < probability)


def bound(args, options, chunk=CHUNK):
    """The reference and the op of (q, k, v) or (q, k, v, bias), with small tiles."""
    rest = {name: value for name, value in options.items() if name != "bias"}
    setup, others = op._check(*args[:3], bias=options.get("bias"), **rest, chunk=chunk)

    def call(f, q, k, v, bias=None):
        return f(setup, q, k, v, bias, others)

    return partial(call, op.reference), partial(call, op._attention), (setup, others)


def with_bias(args, options):
    return (*args, options["bias"]) if "bias" in options else args


# ------------------------------------------------------------------- link 1: backward against the reference


def check_backward(args, options):
    reference, _, (setup, others) = bound(args, options)
    every = with_bias(args, options)

    @jax.jit
    def both(dy, *every):
        expected, pullback = jax.vjp(reference, *every)
        y, residuals = op.forward(setup, *every[:3], every[3] if len(every) > 3 else None, others)
        found = op.backward(setup, residuals, dy)
        return (y, found[: len(every)]), (expected, pullback(dy))

    dy = draw(*args[0].shape[:3], args[2].shape[3], seed=9)
    close(*both(dy, *every))


# Each names what a tile may be cut by: b 2, t 9, n 4, s 11.
OPTIONS = {
    "nothing": lambda: {},
    "causal": lambda: {"causal": True},
    "window": lambda: {"window": (3, 1)},
    "window to the left": lambda: {"window": (2, None), "scale": 0.3},
    "causal window at an offset": lambda: {"causal": True, "window": 4, "offset": 2},
    "queries before the first key": lambda: {"causal": True, "offset": -3},
    "lengths": lambda: {"lengths": jnp.array([5, 0])},
    "lengths and offsets": lambda: {"causal": True, "lengths": jnp.array([11, 3]), "offset": jnp.array([2, -6])},
    "one offset": lambda: {"causal": True, "window": (1, 1), "offset": jnp.array(1)},
    "mask": lambda: {"mask": coins(2, 4, 9, 11)},
    "mask of keys": lambda: {"mask": coins(2, 1, 1, 11)},
    "bias": lambda: {"bias": draw(2, 4, 9, 11, seed=4), "causal": True},
    "bias of heads and keys": lambda: {"bias": draw(1, 4, 1, 11, seed=4)},
    "bias of examples and queries": lambda: {"bias": draw(2, 1, 9, 1, seed=4), "mask": coins(1, 4, 9, 11)},
    "dropout": lambda: {"dropout_rate": 0.4, "dropout_key": jax.random.key(1), "causal": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_backward_for_every_option(x64, name):
    check_backward(arguments(), OPTIONS[name]())


@pytest.mark.parametrize(
    "sizes",
    [
        {"t": CHUNK - 1, "s": CHUNK},
        {"t": CHUNK, "s": CHUNK + 1, "k": 4},
        {"t": CHUNK + 1, "s": CHUNK - 1, "k": 1},
        {"b": 1, "t": 1, "s": 1, "n": 1, "k": 1, "h": 1, "d": 1},
        {"t": 1, "s": 13, "n": 6, "k": 3},
        {"t": 0},
        {"s": 0},
        {"b": 0},
    ],
    ids=str,
)
def test_backward_for_every_size(x64, sizes):
    args = arguments(**sizes)
    bias = draw(1, args[0].shape[2], args[0].shape[1], args[1].shape[1], seed=4)
    check_backward(args, {"causal": True, "bias": bias, "window": (None, 1)})


# ---------------------------------------------------- link 2: finite differences, and the oracle that JAX has


def test_four_roads(x64):
    args = arguments(b=1, t=5, s=6)
    bias, dy = draw(1, 4, 1, 6, seed=4), draw(1, 5, 4, 5, seed=9)

    def total(*args):
        return (dy * ops.attention(*args[:3], bias=args[3], causal=True)).sum()

    def hand_written(*args):
        return ops.attention_vjp(*args[:3], bias=args[3], causal=True)[1](dy)

    verify.assert_gradients(total, *args, bias, hand_written=hand_written)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"causal": True}, {"is_causal": True}),
        ({"window": (2, 1), "scale": 0.7}, {"local_window_size": (2, 1), "scale": 0.7}),
        ({"lengths": jnp.array([7, 2])}, {"key_value_seq_lengths": jnp.array([7, 2])}),
        ({"mask": coins(2, 1, 5, 7, probability=0.8)}, {"mask": coins(2, 1, 5, 7, probability=0.8)}),
    ],
    ids=lambda options: next(iter(options)),
)
def test_against_jax(ours, theirs):
    args = arguments(t=5, s=7, d=3, dtype=jnp.float32)  # in which JAX calculates the softmax in any case
    dy, (_, f, _) = draw(2, 5, 4, 3, seed=9, dtype=jnp.float32), bound(args, ours)

    @jax.jit
    def both(dy, *args):
        found, expected = (jax.vjp(g, *args) for g in (f, partial(jax.nn.dot_product_attention, **theirs)))
        return (found[0], found[1](dy)), (expected[0], expected[1](dy))

    close(*both(dy, *args), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------ what is claimed in words


def test_queries_that_see_nothing_have_zeros_and_no_gradient(x64):
    args, hidden = arguments(), jnp.where(coins(2, 4, 9, 1), -jnp.inf, 0.0)
    for options in (
        {"lengths": jnp.array([0, 11])},
        {"mask": coins(2, 4, 9, 1)},
        {"bias": hidden},
        {"causal": True, "offset": -4},
    ):
        _, f, _ = bound(args, options)

        @jax.jit
        def road(*every, f=f):
            y, pullback = jax.vjp(f, *every)
            return y, pullback(jnp.ones_like(y))

        y, gradients = road(*with_bias(args, options))
        empty = np.all(np.asarray(y) == 0, -1)
        assert empty.any()
        assert not empty.all()
        assert all(np.isfinite(g).all() for g in gradients)
        assert not np.asarray(gradients[0])[empty].any()
        if "lengths" in options:  # an example without a key has no gradient at all
            assert not any(np.asarray(g[0]).any() for g in gradients)


def test_no_query_sees_what_comes_after_it(x64):
    q, k, v = arguments(t=9, s=9)
    later = k.at[:, 5:].set(jnp.nan), v.at[:, 5:].set(jnp.inf)
    full = ops.attention(q, k, v, causal=True)
    f = jax.jit(bound((q, k, v), {"causal": True})[1])
    # NaN in a tile that is calculated goes through, as 0 · NaN does in the reference: those before it are free.
    close(f(q, *later)[:, :3], full[:, :3])
    moved = k.at[:, 5:].add(1), v.at[:, 5:].add(1)
    close(f(q, *moved)[:, :5], full[:, :5])


def test_decoding_against_a_cache_is_the_causal_whole(x64):
    q, k, v = arguments(t=7, s=7)
    whole = ops.attention(q, k, v, causal=True, window=(4, None))
    cache = [jnp.pad(a, [(0, 0), (0, 4), (0, 0), (0, 0)]) for a in (k, v)]

    # One token, the window by its offset; then three at once, in examples that stand at different places.
    @jax.jit
    def token(q, lengths):
        return ops.attention(q, *cache, lengths=lengths, offset=lengths - 1, window=(4, None))

    for t in (0, 3, 6):
        close(token(q[:, t : t + 1], jnp.full(2, t + 1)), whole[:, t : t + 1])
    lengths = jnp.array([7, 5])
    three = jnp.stack([q[0, 4:7], q[1, 2:5]])
    _, f, _ = bound(
        (three, *cache), {"lengths": lengths, "offset": lengths - 3, "causal": True, "window": (4, None)}
    )
    close(f(three, *cache), jnp.stack([whole[0, 4:7], whole[1, 2:5]]))


def test_only_tiles_that_can_be_seen_are_visited(x64):
    args = arguments(t=16, s=16)

    def visited(**options):
        setup, _ = op._check(*args, chunk=CHUNK, **options)
        return pairs(setup, tiles_of(setup, *args[:2])).tolist()

    assert len(visited()) == 16
    assert visited(causal=True) == [[i, j] for i in range(4) for j in range(i + 1)]
    assert visited(causal=True, window=3) == [[i, j] for i in range(4) for j in (i - 1, i) if j >= 0]
    assert len(visited(causal=True, offset=jnp.array(0))) == 16  # who knows where the queries stand


def sizes_in(jaxpr):
    """Of every array of a program, also inside its loops and calls."""
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from sizes_in(inner)


def test_memory_does_not_grow_with_the_square():
    def largest(t):
        args = [jax.ShapeDtypeStruct((1, t, 1, 8), jnp.float32)] * 3
        gradient = jax.grad(lambda *args: ops.attention(*args, causal=True).sum(), (0, 1, 2))
        return max(sizes_in(jax.make_jaxpr(gradient)(*args).jaxpr))

    tile = op.CHUNK**2
    assert largest(2048) == tile  # of T² = 64 tiles
    assert largest(16384) == 2 * tile  # it is q: T · 8


def test_dropout_keeps_the_mean_and_comes_from_the_key():
    t = 64
    q = k = jnp.zeros((4, t, 2, 1))  # p = 1/t
    v = jnp.ones((4, t, 2, 1))
    draws = partial(ops.attention, q, k, v, dropout_rate=0.25)
    first, again, other = (draws(dropout_key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    # y is a mean of t draws of 0 or 1/(1 − r), of variance r/(1 − r); there are 512 of them.
    assert abs(float(first.mean()) - 1) < 5 * np.sqrt(0.25 / 0.75 / t / first.size)
    np.testing.assert_allclose(np.var(first), 0.25 / 0.75 / t, rtol=5 * np.sqrt(2 / first.size))
    draws = partial(
        ops.attention, q, k, v, dropout_rate=0.25, dropout_key=jax.random.PRNGKey(0)
    )  # of the old kind
    assert np.isfinite(draws()).all()
    np.testing.assert_array_equal(ops.attention(q, k, v, dropout_rate=0.0), v)


# -------------------------------------------------------------------------------- link 5: transformations


def test_transformations(x64):
    args = with_bias(arguments(t=5, s=6, h=2, d=2), {"bias": draw(1, 4, 1, 6, seed=4)})
    options = {"causal": True, "lengths": jnp.array([6, 2]), "bias": args[3], "offset": 1}
    _, f, (setup, others) = bound(args, options)
    weights = draw(2, 5, 4, 2, seed=8)

    def loss(*args):
        return (weights * f(*args) ** 2).sum()

    gradient = jax.grad(loss, (0, 1, 2, 3))
    expected = jax.jit(gradient)(*args)
    close(jax.jit(jax.grad(jax.checkpoint(loss), (0, 1, 2, 3)))(*args), expected)
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), args)

    @jax.jit
    def several(stacked):
        return jax.vmap(gradient)(*stacked), jax.lax.scan(lambda _, a: (None, gradient(*a)), None, stacked)[1]

    mapped, scanned = several(stacked)
    close(mapped, scanned)
    close(jax.tree.map(lambda g: g[0], mapped), expected)

    def apart(q, k, v, bias, length):  # one example each, lengths of their own
        rest = others._replace(lengths=length[None])
        return op._attention(setup, q[None], k[None], v[None], bias, rest)[0]

    close(jax.jit(jax.vmap(apart, (0, 0, 0, None, 0)))(*args, options["lengths"]), f(*args))

    rows, whole = PartitionSpec("batch"), PartitionSpec()
    sharded = jax.shard_map(
        lambda w, lengths, *args: jax.vjp(
            lambda *a: op._attention(setup, *a, others._replace(lengths=lengths)), *args
        )[1](w),
        mesh=jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=(rows, rows, rows, rows, rows, whole),
        out_specs=(rows, rows, rows, whole),
    )
    close(jax.jit(sharded)(weights, options["lengths"], *args), jax.vjp(f, *args)[1](weights))


@pytest.mark.parametrize("name", ["bias", "dropout"])
def test_second_order(x64, name):
    args = arguments(b=1, t=5, s=6, h=2, d=2)
    options = OPTIONS[name]() | ({"bias": draw(1, 4, 5, 6, seed=4)} if name == "bias" else {})
    reference, f, _ = bound(args, options)
    every = with_bias(args, options)
    directions, numbers = [draw(*a.shape, seed=7) for a in every], tuple(range(len(every)))

    def slope(f):
        def along(*args):
            gradients = jax.grad(lambda *args: jnp.square(f(*args)).sum(), numbers)(*args)
            return sum((u * g).sum() for u, g in zip(directions, gradients, strict=True))

        return jax.jit(jax.grad(along, numbers))(*every)

    close(slope(f), slope(reference))


def test_a_pullback_leaves_jit_and_a_second_call_does_not_recompile():
    traced = []

    @jax.jit
    def run(*args):
        traced.append(None)
        return ops.attention_vjp(*args, causal=True)

    args = arguments(dtype=jnp.float32)
    for scale in (1, 2):
        y, pullback = run(*(scale * a for a in args))
    expected, plain = ops.attention_vjp(*(2 * a for a in args), causal=True)
    close((y, pullback(y)), (expected, plain(y)), rtol=1e-4, atol=1e-5)
    assert len(traced) == 1
    assert len(pullback(y)) == 4
    assert pullback(y)[3] is None


# ------------------------------------------------------------------------------------------- precision


def test_half_precision_is_calculated_in_float32():
    args, dy = arguments(t=33, s=40, dtype=jnp.bfloat16), draw(2, 33, 4, 5, seed=9, dtype=jnp.bfloat16)

    @jax.jit
    def road(dy, *args):
        y, pullback = ops.attention_vjp(*args, causal=True)
        return y, *pullback(dy)[:3]

    found = road(dy, *args)
    assert {g.dtype for g in found} == {jnp.dtype("bfloat16")}
    wide = road(*(a.astype("float32") for a in (dy, *args)))
    eps = float(jnp.finfo("bfloat16").eps)
    close(np.asarray(found[0], "f"), wide[0], eps, 1e-6)
    # D is taken from y as it was rounded: an error of eps |dy·y| in each dz, beside the gradient's own rounding.
    close([np.asarray(g, "f") for g in found[1:]], list(wide[1:]), eps, 4 * eps)


def test_large_logits_do_not_overflow():
    q, k, v = arguments(dtype=jnp.float32)
    _, f, _ = bound((q, k, v), {})
    y, pullback = jax.vjp(f, 1e4 * q, 1e4 * k, v)
    assert all(np.isfinite(a).all() for a in (y, *pullback(y)))
    assert np.abs(y).max() <= np.abs(v).max() * (1 + 1e-6)


def test_nan_and_infinity_pass_as_in_the_reference():
    q, k, v = arguments(dtype=jnp.float32)
    reference, f, _ = bound((q, k, v), {"lengths": jnp.array([11, 6])})

    @jax.jit
    def both(*args):
        expected, found = (jax.vjp(g, *args) for g in (reference, f))
        dy = found[0][:, ::-1]
        return (found[0], found[1](dy)), (expected[0], expected[1](dy))

    for value in (jnp.nan, jnp.inf):
        for at in range(3):
            args = [a.at[1, 2, 1, 0].set(value) if i == at else a for i, a in enumerate((q, k, v))]
            found, expected = both(*args)
            close(found, expected, rtol=1e-4, atol=1e-5)
            assert not np.isfinite(found[0][1]).all()
            assert np.isfinite(found[0][0]).all()


# ---------------------------------------------------------------------------------------------- errors

Q, K, V = jnp.ones((2, 3, 4, 5)), jnp.ones((2, 6, 2, 5)), jnp.ones((2, 6, 2, 7))


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((Q[0], K, V), {}, "got (3, 4, 5), (2, 6, 2, 5) and (2, 6, 2, 7)"),
        ((Q, K, V[:, :5]), {}, "a value (B, S, K, D); got"),
        ((Q, K[:1], V[:1]), {}, "attention needs a key (2, S, K, H), H that of the query"),
        ((Q, K[..., :4], V), {}, "for a query (2, 3, 4, 5); got (2, 6, 2, 4)"),
        ((Q[:, :, :3], K, V), {}, "K a divisor of its 3 heads"),
        ((Q, K[:, :, :0], V[:, :, :0]), {}, "K a divisor of its 4 heads"),
        ((Q[..., :0], K[..., :0], V), {}, "H that of the query and ≥ 1"),
        ((Q.astype(int), K, V), {}, "of one floating-point dtype; got query of int32"),
        ((Q, K, V.astype("float16")), {}, "got value of float16 beside a query of float32"),
        ((Q, K, V), {"bias": jnp.ones((2, 4, 3, 6), "float16")}, "got bias of float16"),
        ((Q, K, V), {"bias": Q}, "needs a bias (2, 4, 3, 6), or 1 in place of any; got (2, 3, 4, 5)"),
        (
            (Q, K, V),
            {"mask": jnp.ones((3, 6), bool)},
            "needs a mask (2, 4, 3, 6), or 1 in place of any; got (3, 6)",
        ),
        ((Q, K, V), {"mask": jnp.ones((1, 1, 3, 6))}, "needs a mask of bool; got float32. What is added"),
        ((Q, K, V), {"lengths": jnp.ones(2)}, "needs integer lengths (2,); got float32 (2,)"),
        ((Q, K, V), {"lengths": jnp.array([3])}, "needs integer lengths (2,); got int32 (1,)"),
        ((Q, K, V), {"offset": jnp.ones(2)}, "or integers () or (2,); got float32 (2,)"),
        ((Q, K, V), {"window": -1}, "needs a window (left, right) of whole numbers ≥ 0 or None; got -1"),
        ((Q, K, V), {"window": (2, -1)}, "got (2, -1)"),
        ((Q, K, V), {"dropout_rate": 1.0}, "needs 0 ≤ dropout_rate < 1; got 1.0"),
        ((Q, K, V), {"dropout_rate": 0.1}, "needs a dropout_key for a dropout_rate of 0.1; got None"),
    ],
)
def test_errors(args, options, message):
    # Of the checks alone: under the types that are checked in tests, some never reach them.
    with pytest.raises(ValueError, match=re.escape(message)):
        op._check(*args, **options)


@pytest.mark.parametrize("f", [ops.attention, ops.attention_vjp])
def test_the_public_functions_check(f):
    with pytest.raises(ValueError, match="attention has no implementation 'cpu'; it has 'xla'"):
        f(Q, K, V, implementation="cpu")
    with pytest.raises(ValueError, match="needs 0 ≤ dropout_rate < 1"):
        f(Q, K, V, dropout_rate=-1.0)


def test_a_window_has_two_sides(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would be the first to complain
    with pytest.raises(ValueError, match=r"needs a window \(left, right\) .* got \(1, 2, 3\)"):
        ops.attention(Q, K, V, window=(1, 2, 3))
