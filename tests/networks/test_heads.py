"""What is put on an encoder: the law, which places count, what the two have in common, their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import data, layers, losses, networks, train

KEY, TRAINING = jax.random.key(0), jax.random.key(7)
IDS, LENGTHS = jnp.array([[2, 0, 2, 5], [4, 4, 1, 3]]), jnp.array([2, 4])
PLACES = jnp.array([[1, 0, 1], [3, 3, 0]])  # one twice, as where fewer words are masked than there are places
ENCODER = networks.transformer_encoder(4, 1, 2, vocabulary=7, dropout_rate=0.3)

NETWORKS = {
    "masked words": (networks.masked_language_model(ENCODER, 4), (IDS, LENGTHS, PLACES), (2, 3, 7)),
    "a class by the mean": (networks.sequence_classifier(ENCODER, 3, dropout_rate=0.3), (IDS, LENGTHS), (2, 3)),
    "a class by the mean of all": (networks.sequence_classifier(ENCODER, [5, 3]), IDS, (2, 3)),
    "a class by the first": (networks.sequence_classifier(ENCODER, 3, pool="first"), (IDS, LENGTHS), (2, 3)),
}


@pytest.mark.long
@pytest.mark.parametrize("name", NETWORKS)
def test_vjp_equals_autodiff_of_apply_in_training(x64, name):
    net, x, shape = NETWORKS[name]
    params = jax.tree.map(lambda p: p.astype("float64"), net.init(KEY, x))

    @jax.jit
    def both(params, dy):
        expected, autodiff = jax.vjp(lambda params: net.apply(params, x, key=TRAINING), params)
        y, pullback = net.vjp(params, x, key=TRAINING)
        dparams, dx = pullback(dy)
        assert jax.tree.map(jnp.shape, dx) == jax.tree.map(jnp.shape, x)
        return (y, dparams), (expected, *autodiff(dy))

    found, expected = both(params, jax.random.normal(jax.random.key(9), shape, jnp.float64))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, expected)


@pytest.mark.long
def test_the_gradient_of_guessing_on_four_roads():
    net, x, _ = NETWORKS["masked words"]
    batch = x, jnp.array([[1, 6, 2], [0, 3, 5]])
    report = train.check_gradients(net, losses.cross_entropy, net.init(KEY, x), batch)
    assert report.ok, report


def test_padding_is_not_seen():
    other = IDS.at[0, 2:].set(6)
    for name in ("masked words", "a class by the mean", "a class by the first"):
        net, (_, *rest), _ = NETWORKS[name]
        params = net.init(KEY, (IDS, *rest))
        apply = jax.jit(net.apply)
        np.testing.assert_array_equal(apply(params, (other, *rest)), apply(params, (IDS, *rest)))


def test_the_mean_is_over_the_lengths_and_nothing_of_nothing():
    nothing = layers.serial()
    identity = nothing._replace(apply=lambda params, x, *, key=None: x[0])
    net = networks.sequence_classifier(identity, 2)
    y = jax.random.normal(KEY, (2, 3, 2))
    params = {"encoder": (), "head": ({"weight": jnp.eye(2), "bias": jnp.zeros(2)},)}
    found = net.apply(params, (y, jnp.array([2, 0])))
    np.testing.assert_allclose(found, jnp.stack([y[0, :2].mean(0), jnp.zeros(2)]), atol=1e-6)


@pytest.mark.long
def test_guessing_is_learnt_and_its_encoder_serves_the_classifier():
    # Each sentence is one word throughout: a masked word is what the others are, and so is the class.
    word = jax.random.randint(jax.random.key(1), (32, 1), 1, 5)
    ids, lengths = jnp.tile(word, (1, 6)), jnp.full(32, 6)
    encoder = networks.transformer_encoder(8, 1, 2, vocabulary=6)
    net, optimizer = networks.masked_language_model(encoder, 8), train.adamw(2e-2)
    masking = data.Masking(mask=5, words=(1, 5), replaced=1.0, random=0.0)
    batches = data.masked(data.batches((ids, lengths), 32), masking, key=KEY)
    step = train.make_step(net, losses.cross_entropy, optimizer)
    state = train.init(net, optimizer, KEY, next(iter(batches))[0])
    state = train.fit(state, step, batches, epochs=150, progress=False)
    found = train.evaluate(net, state.params, batches, {"accuracy": train.accuracy})
    assert found["accuracy"] == 1
    classifier = networks.sequence_classifier(encoder, 2)
    params = classifier.init(KEY, (ids, lengths)) | {"encoder": state.params["encoder"]}
    assert np.isfinite(classifier.apply(params, (ids, lengths))).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networks.masked_language_model(ENCODER, 0), "features ≥ 1; got 0"),
        (
            lambda: networks.masked_language_model(ENCODER, 4).init(KEY, (IDS, LENGTHS)),
            r"needs \(ids, lengths, places\); got shapes \(\(2, 4\), \(2,\)\)",
        ),
        (lambda: networks.sequence_classifier(ENCODER, 2, pool="max"), "a pool 'first' or 'mean'; got 'max'"),
        (lambda: networks.sequence_classifier(ENCODER, 0), "sizes must be whole numbers ≥ 1; got 0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
