"""Transformers: the law, what encoder and decoder claim, and that a decoder learns."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import losses, networks, train
from jaxnet.networks import transformer_decoder, transformer_encoder

KEY, TRAINING = jax.random.key(0), jax.random.key(7)
IDS = jnp.array([[2, 0, 2, 5], [4, 4, 1, 3]])


def x_of(dtype=jnp.float64):
    return jax.random.normal(jax.random.key(5), (2, 4, 6), dtype)


NETWORKS = {
    "encoder": (transformer_encoder(6, 2, 2), x_of),
    "encoder of integers": (
        transformer_encoder(
            6, 1, 2, vocabulary=7, norm_first=False, positions="learned", length=5, activation="relu", window=1
        ),
        lambda: IDS,
    ),
    "decoder": (transformer_decoder(7, 4, 2, 2, dropout_rate=0.3), lambda: IDS),
    "decoder with a head": (
        transformer_decoder(7, 4, 1, 4, key_value_heads=2, tied=False, positions=None, bias=True, hidden=3),
        lambda: IDS,
    ),
}


def close(found, expected, **tolerances):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 1e-9, "atol": 1e-11} | tolerances),
        found,
        expected,
    )


@pytest.mark.parametrize("name", [*NETWORKS, "decoder's hidden part"])
def test_vjp_equals_autodiff_of_apply(x64, name):
    net, make = NETWORKS.get(name, NETWORKS["decoder with a head"])
    x, params = make(), jax.tree.map(lambda p: p.astype("float64"), net.init(KEY, make()))
    layer, key = net.hidden if "hidden" in name else net, TRAINING if name == "decoder" else None

    @jax.jit
    def roads(params, x):
        y, pullback = layer.vjp(params, x, key=key)
        expected, autodiff = jax.vjp(lambda params, x: layer.apply(params, x, key=key), params, x)
        dy = jax.random.normal(jax.random.key(9), y.shape, y.dtype)
        return (y, pullback(dy)), (expected, autodiff(dy))

    (y, (dparams, dx)), (expected, (dparams_autodiff, dx_autodiff)) = roads(params, x)
    close((y, dparams), (expected, dparams_autodiff))
    assert jax.tree.structure(dparams) == jax.tree.structure(params)
    assert dx.dtype == dx_autodiff.dtype
    if dx.dtype == jnp.float64:
        close(dx, dx_autodiff)


def test_a_decoder_does_not_see_the_future_and_an_encoder_does(x64):
    net = transformer_decoder(7, 4, 2, 2)
    params = net.init(KEY, IDS)
    other = IDS.at[:, 2].set(6)
    apply = jax.jit(net.apply)
    close(apply(params, other)[:, :2], apply(params, IDS)[:, :2], rtol=1e-5, atol=1e-6)
    assert not np.allclose(apply(params, other)[:, 2:], apply(params, IDS)[:, 2:])
    net = transformer_encoder(4, 1, 2, vocabulary=7)
    params = net.init(KEY, IDS)
    apply = jax.jit(net.apply)
    assert not np.allclose(apply(params, other)[:, :2], apply(params, IDS)[:, :2])


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_without_logits_is_that_of_the_logits(x64, tied):
    net = transformer_decoder(7, 4, 1, 2, tied=tied)
    params = jax.tree.map(lambda p: p.astype("float64"), net.init(KEY, IDS))

    def with_logits(params):
        return losses.cross_entropy(net.apply(params, IDS[:, :-1]), IDS[:, 1:]).mean()

    def without(params):
        hidden = net.hidden.apply(params, IDS[:, :-1])
        return losses.linear_cross_entropy(hidden, net.weight(params), IDS[:, 1:]).mean()

    close(*(jax.jit(jax.value_and_grad(f))(params) for f in (without, with_logits)))


def test_a_decoder_learns_to_copy():
    # The second half of each sequence repeats the first: only attention can know.
    ids = jax.random.randint(jax.random.key(1), (32, 6), 0, 8)
    ids = jnp.concatenate([ids, ids], 1)
    net, optimizer = transformer_decoder(8, 16, 2, 2), train.adamw(1e-2)
    state = train.init(net, optimizer, KEY, ids[:, :-1])

    step = train.make_step(net, partial(losses.cross_entropy, ignore_label=-1), optimizer)
    labels = ids[:, 1:].at[:, :5].set(-1)  # what can't be known doesn't count
    for _ in range(100):
        state, metrics = step(state, (ids[:, :-1], labels))
    assert float(metrics["loss"]) < 0.1 * np.log(8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transformer_encoder(6, 1, 4), "features that its 4 heads divide; got 6"),
        (lambda: transformer_encoder(6, 0, 2), "depth must be whole numbers ≥ 1; got 0"),
        (lambda: transformer_encoder(6, 1, 2, normalization="batch"), "one of layer, rms; got 'batch'"),
        (lambda: transformer_encoder(6, 1, 2, positions="absolute"), "'rotary' or None; got 'absolute'"),
        (lambda: transformer_encoder(6, 1, 2, positions="learned"), "learned positions need a length"),
        (lambda: transformer_encoder(6, 1, 2).init(KEY, jnp.ones((2, 6))), r"needs x \(B, T, 6\); got \(2, 6\)"),
        (lambda: transformer_decoder(0, 4, 1, 2), "vocabulary must be whole numbers ≥ 1; got 0"),
        (lambda: transformer_decoder(7, 4, 1, 2, activation="swigly"), "did you mean"),
        (lambda: networks.transformer_decoder(7, 4, 1, 2).init(KEY, x_of(jnp.float32)), "an x of integers"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
