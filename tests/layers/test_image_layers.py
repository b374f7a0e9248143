"""The layers of images but the convolutions: the law, what batch normalisation is, its population's statistics."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers, losses, train, verify
from jaxnet.layers import Layer, batch_norm, dense, dropout, repeat, residual, serial

KEY, TRAINING = jax.random.key(0), jax.random.key(7)

LAYERS = {
    "max_pool": layers.max_pool(2),
    "max_pool with overlap": layers.max_pool(3, stride=2, padding="SAME"),
    "max_pool with holes": layers.max_pool((2, 1), stride=1, dilation=2),
    "avg_pool": layers.avg_pool(2, padding=[(1, 0), (0, 1)]),
    "avg_pool without padding": layers.avg_pool(3, stride=1, padding="SAME", count_include_pad=False),
    "global_max_pool": layers.global_max_pool(),
    "global_avg_pool": layers.global_avg_pool(),
    "upsample": layers.upsample(2),
    "upsample bilinearly": layers.upsample((3, 1), method="bilinear"),
    "layer_norm": layers.layer_norm(),
    "layer_norm of the image": layers.layer_norm(axis=(1, 2, 3), scale=False, eps=0.1),
    "group_norm": layers.group_norm(2),
    "group_norm alone": layers.group_norm(1, scale=False, bias=False),
    "batch_norm": batch_norm(),
    "batch_norm alone": batch_norm(scale=False, bias=False, eps=0.1),
    "batch_norm in a net": serial(
        residual(serial(dense(4), batch_norm())), repeat(serial(batch_norm(), dense(4)), 2)
    ),
}
each = pytest.mark.parametrize("name", LAYERS)


def x_of(*shape, dtype=jnp.float32, seed=5):
    return jax.random.normal(jax.random.key(seed), shape or (3, 5, 4, 4), dtype)


def close(found, expected, **tolerances):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 1e-9, "atol": 1e-11} | tolerances),
        found,
        expected,
    )


# ------------------------------------------------------------------------------------------------ the law


@pytest.mark.parametrize("name", ["max_pool with overlap", "group_norm", "batch_norm"])
def test_the_law_on_four_roads(name):
    report = verify.check_layer(
        LAYERS[name], KEY, x_of(2, 3, 3, 4), training_key=TRAINING if "batch" in name else None
    )
    assert report.ok, report


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name in LAYERS for key in (None, TRAINING) if key is None or "batch" in name]
)
def test_vjp_equals_autodiff_of_apply(x64, name, key):
    layer, x = LAYERS[name], x_of(dtype=jnp.float64)
    params = jax.tree.map(lambda p: p + jnp.linspace(0.1, 0.3, p.size).reshape(p.shape), layer.init(KEY, x))

    @jax.jit
    def roads(params, x):
        (y, pullback), (expected, autodiff) = (
            layer.vjp(params, x, key=key),
            jax.vjp(lambda params, x: layer.apply(params, x, key=key), params, x),
        )
        dy = jax.random.normal(jax.random.key(9), y.shape, y.dtype)
        return (y, pullback(dy)), (expected, autodiff(dy))

    found, expected = roads(params, x)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    close(found, expected)


@each
def test_a_shape_is_enough_and_everything_has_the_dtype_of_x(name):
    layer, x = LAYERS[name], x_of(dtype=jnp.bfloat16)
    params = layer.init(KEY, x)
    jax.tree.map(np.testing.assert_array_equal, params, layer.init(KEY, jax.ShapeDtypeStruct(x.shape, x.dtype)))

    def gradients(params, x):
        y, pullback = layer.vjp(params, x, key=TRAINING)
        return y, pullback(y)

    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(gradients, params, x))} == {
        jnp.dtype("bfloat16")
    }


def test_an_empty_batch_goes_through():
    layer = serial(
        layers.max_pool(2), layers.group_norm(2), batch_norm(), layers.upsample(2), layers.global_avg_pool()
    )
    params = layer.init(KEY, x_of())
    y, pullback = layer.vjp(params, x_of(0, 4, 4, 4))
    assert (y.shape, pullback(y)[1].shape) == ((0, 4), (0, 4, 4, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.max_pool(2).init(KEY, x_of(3, 4)), "max_pool needs a floating-point x"),
        (
            lambda: layers.avg_pool(9).init(KEY, x_of()),
            "avg_pool's windows of extent (9, 9) don't fit x (3, 5, 4, 4)",
        ),
        (lambda: layers.upsample(2, method="cubic").init(KEY, x_of()), "upsample needs a method of"),
        (lambda: layers.global_max_pool().init(KEY, x_of(3, 4)), "global_max_pool needs a floating-point x"),
        (lambda: layers.layer_norm(axis=4).init(KEY, x_of()), "layer_norm over axis 4 doesn't fit x of shape"),
        (lambda: layers.layer_norm(eps=-1.0), "layer_norm needs eps ≥ 0; got -1.0"),
        (lambda: layers.group_norm(0), "group_norm needs a whole number of groups ≥ 1; got 0"),
        (lambda: layers.group_norm(3).init(KEY, x_of()), "C a multiple of 3 groups; got (3, 5, 4, 4)"),
        (lambda: batch_norm(eps=-1.0), "batch_norm needs eps ≥ 0; got -1.0"),
        (lambda: batch_norm().init(KEY, x_of(4)), "batch_norm needs a floating-point x (N…, C)"),
        (
            lambda: layers.layer_norm().init(KEY, jnp.zeros((2, 3), int)),
            "layer_norm needs a floating-point x; got int32",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


# ------------------------------------------------------------------------------------ batch normalisation


def test_training_takes_the_batch_and_inference_the_population(x64):
    layer, x = batch_norm(eps=0.01), x_of(dtype=jnp.float64)
    params = {"scale": x[0, 0, 0], "bias": x[0, 0, 1], "mean": x[0, 0, 2], "var": x[0, 0, 3] ** 2}
    wide = {name: np.asarray(p)[None, None, None] for name, p in params.items()}

    def expected(mean, variance):
        return (np.asarray(x) - mean) / np.sqrt(variance + 0.01) * wide["scale"] + wide["bias"]

    close(layer.apply(params, x), expected(wide["mean"], wide["var"]))
    over = {"axis": (0, 1, 2), "keepdims": True}
    close(layer.apply(params, x, key=TRAINING), expected(np.mean(x, **over), np.var(x, **over)))
    dparams, _ = layer.vjp(params, x, key=TRAINING)[1](x)
    assert not dparams["mean"].any()
    assert not dparams["var"].any()


def test_weight_decay_leaves_the_population_alone_under_the_mask():
    net = serial(dense(3), batch_norm(), residual(batch_norm(scale=False)))
    x = x_of(6, 4)
    params = net.init(KEY, x)
    mask = layers.trainable(params)
    assert mask[0] == {"weight": True, "bias": True}
    assert mask[1] == {"scale": True, "bias": True, "mean": False, "var": False}
    assert mask[2][0] == {"bias": True, "mean": False, "var": False}
    assert layers.trainable({"mean": params[0], "var": params[0]})["var"]["weight"]  # layers of that name
    for masked, moved in ((layers.trainable, False), (None, True)):
        optimizer = train.adamw(0.1, weight_decay=0.5, mask=masked)
        state = train.init(net, optimizer, KEY, x)
        state, _ = train.make_step(net, losses.squared_error, optimizer)(state, (x, jnp.ones((6, 3))))
        assert bool((state.params[1]["var"] != 1).any()) == moved
        assert not state.params[1]["mean"].any()


# ------------------------------------------------------------------------------- the population's statistics


def moments(*batches):
    """Of each channel, over all that the batches have."""
    rows = np.concatenate([np.asarray(b).reshape(-1, b.shape[-1]) for b in batches])
    return {"mean": rows.mean(0), "var": rows.var(0)}


def statistics(params):
    return {name: params[name] for name in ("mean", "var")}


def training(layer, params, *batches):
    return [layer.apply(params, b, key=TRAINING) for b in batches]


def test_population_statistics_through_every_combinator(x64):
    # Batches of unequal size; the reference goes through the layers one by one, as training does.
    first, inner, block = batch_norm(), serial(dense(4), batch_norm(scale=False)), serial(dense(4), batch_norm())
    net = serial(first, residual(inner), repeat(block, 2), layers.global_avg_pool())
    batches = [x_of(4, 3, 2, 4, dtype=jnp.float64), 3 + x_of(2, 3, 2, 4, dtype=jnp.float64, seed=6)]
    params = net.init(KEY, batches[0])
    found = train.population_statistics(net, params, [(x, None) for x in batches], key=TRAINING)

    close(statistics(found[0]), moments(*batches))
    xs = training(first, params[0], *batches)
    hidden = [dense(4).apply(params[1][0][0], x) for x in xs]
    close(statistics(found[1][0][1]), moments(*hidden))
    xs = training(residual(inner), params[1], *xs)
    for i in range(2):
        at = jax.tree.map(lambda p, i=i: p[i], params[2])
        hidden = [dense(4).apply(at[0], x) for x in xs]
        close({name: s[i] for name, s in statistics(found[2][1]).items()}, moments(*hidden))
        xs = training(block, at, *xs)

    rest = [p for p, t in zip(jax.tree.leaves(found), jax.tree.leaves(layers.trainable(found)), strict=True) if t]
    was = [p for p, t in zip(jax.tree.leaves(params), jax.tree.leaves(layers.trainable(params)), strict=True) if t]
    jax.tree.map(np.testing.assert_array_equal, rest, was)
    assert jax.tree.structure(found) == jax.tree.structure(params)


def test_population_statistics_of_sequences_with_lengths(x64):
    # As `train.evaluate` takes them; and a dictionary, of a layer of one's own.
    net = serial(layers.with_lengths(serial(dense(4), batch_norm())), layers.lstm(3, output="last"))
    batches = [x_of(n, 5, 2, dtype=jnp.float64, seed=n) for n in (4, 2)]
    pairs = [(x, jnp.full(len(x), 3)) for x in batches]
    params = net.init(KEY, pairs[0])
    found = train.population_statistics(net, params, [(x, None) for x in pairs], key=TRAINING)
    expected = moments(*(dense(4).apply(params[0][0], x) for x in batches))
    close(statistics(found[0][1]), expected)

    named = Layer(net.init, lambda params, x, key=None: net.apply(params, (x["x"], x["n"]), key=key), None)
    dictionaries = [{"x": x, "n": n} for x, n in pairs]
    close(train.population_statistics(named, params, dictionaries, key=TRAINING), found)
    assert jax.tree.structure(found) == jax.tree.structure(params)


def test_after_it_inference_on_the_one_batch_equals_training(x64):
    net = serial(dense(4, activation="tanh"), batch_norm(), layers.activation("relu"), batch_norm())
    x = x_of(16, 4, dtype=jnp.float64)
    params = net.init(KEY, x)
    assert not np.allclose(net.apply(params, x), net.apply(params, x, key=TRAINING))
    found = train.population_statistics(net, params, [x], key=TRAINING)
    close(net.apply(found, x), net.apply(params, x, key=TRAINING))


def test_a_layer_of_ones_own_and_dtypes_and_other_leaves():
    # A layer that keeps a batch_norm inside, beside leaves that are no floats, with two outputs, one of integers.
    inner = serial(dropout(0.5), batch_norm())

    def init(key, x):
        return {"mean": x.mean(), "count": jnp.asarray(3), "of": inner.init(key, x)}

    def apply(params, x, *, key=None):
        y = inner.apply(params["of"], x * params["mean"], key=key)
        return y, y.argmax(-1)

    net = Layer(init, apply, None)
    x = 1 + x_of(64, 4, dtype=jnp.bfloat16)
    params = net.init(KEY, x)
    found = train.population_statistics(net, params, [x], key=TRAINING)
    assert jax.tree.map(lambda p: p.dtype, found) == jax.tree.map(lambda p: p.dtype, params)
    assert (found["mean"], found["count"]) == (params["mean"], 3)
    dropped = dropout(0.5).apply((), x * params["mean"], key=jax.random.split(jax.random.fold_in(TRAINING, 0))[0])
    expected = moments(np.asarray(dropped, np.float32))
    close(
        jax.tree.map(lambda a: np.asarray(a, np.float32), statistics(found["of"][1])),
        expected,
        rtol=2**-7,
        atol=2**-7,
    )


def test_population_statistics_without_batch_norm_without_data_and_of_one_used_twice():
    x = x_of(6, 4)
    plain = dense(4)
    params = plain.init(KEY, x)
    close(train.population_statistics(plain, params, [x], key=KEY), params)
    with pytest.raises(ValueError, match="at least one batch with an example; got none"):
        train.population_statistics(plain, params, [x[:0]], key=KEY)
    once = batch_norm()
    twice = Layer(
        once.init, lambda params, x, key=None: once.apply(params, once.apply(params, x, key=key), key=key), None
    )
    with pytest.raises(ValueError, match="applied more than once with the same params"):
        train.population_statistics(twice, once.init(KEY, x), [x], key=KEY)


def test_outside_of_that_pass_nothing_is_recorded():
    net, x = batch_norm(), x_of(6, 4)
    params = net.init(KEY, x)
    train.population_statistics(net, params, [x], key=KEY)
    dparams = jax.jit(jax.grad(lambda params: (net.apply(params, x, key=KEY) ** 3).sum()))(params)
    assert not dparams["mean"].any()
    assert not dparams["var"].any()
