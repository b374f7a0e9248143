"""The networks of images: the law, in inference and in training, their options, shapes and errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnet import data, layers, losses, networks, train, verify

SGD = optax.sgd(0.1)
KEY, TRAINING = jax.random.key(0), jax.random.key(7)
X = jax.random.normal(jax.random.key(1), (3, 8, 8, 2))

NETWORKS = {
    "convolutional": (networks.convolutional([3, (4, 2)], [5, 3], activation="tanh"), X),
    "normalised": (networks.convolutional([4], 3, normalization="batch", pool="average", dropout_rate=0.3), X),
    "strided": (networks.convolutional([(2, 4)], 3, pool="stride", normalization="group", global_pool=True), X),
    "of sequences": (networks.convolutional([2], 3, kernel_size=5, normalization="layer", activation="elu"), X[0]),
    "resnet": (networks.resnet(8, 3, width=2, activation="silu"), X),
    "autoencoder": (networks.autoencoder((8, 8, 2), 3, stages=[2, 3], hidden=[5], activation="gelu"), X),
    "dense autoencoder": (
        networks.autoencoder(4, 2, hidden=[5], output_activation="sigmoid"),
        X[0].reshape(-1, 4)[:3],
    ),
    "variational": (networks.variational_autoencoder((8, 8, 2), 2, stages=[2], normalization="batch"), X),
    "wide window": (
        networks.autoencoder(
            (8, 8, 2), 2, stages=[2, 3], kernel_size=5, normalization="layer", implementation="xla"
        ),
        X,
    ),
    "bottlenecks": (networks.resnet(50, 3, width=1, normalization="group"), X),
    "generator in batches": (
        networks.gan((8, 8, 1), 3, stages=[2, 4], kernel_size=3, normalization="batch", classes=2).generator,
        jnp.concatenate([X[:, 0, :3, 0], jnp.eye(3, 2)], -1),
    ),
    "dense generator": (
        networks.gan(5, 3, hidden=[4], normalization=None, output_activation=None, implementation="xla").generator,
        X[:, 0, :3, 0],
    ),
    "generator": (networks.gan((8, 8, 1), 3, stages=[2, 4], hidden=[5]).generator, X[:, 0, :3, 0]),
    "discriminator": (networks.gan((8, 8, 2), 3, stages=[2, 4], hidden=[5], dropout_rate=0.2).discriminator, X),
}
each = pytest.mark.parametrize("name", NETWORKS)


@pytest.mark.parametrize(
    "name",
    [
        "convolutional",
        "dense autoencoder",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("strided", "variational", "generator")),
    ],
)
def test_the_law(name):
    net, x = NETWORKS[name]
    report = verify.check_layer(net, KEY, x, training_key=TRAINING)
    assert report.ok, report


@pytest.mark.long
@each
def test_vjp_equals_autodiff_of_apply_in_training(x64, name):
    net, x = NETWORKS[name]
    x = x.astype(jnp.float64)
    params = net.init(KEY, x)
    y, pullback = jax.jit(partial(net.vjp, key=TRAINING))(params, x)
    expected, autodiff = jax.vjp(jax.jit(partial(net.apply, key=TRAINING)), params, x)
    dy = jax.tree.map(lambda a: jax.random.normal(KEY, a.shape, a.dtype), y)
    close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)
    jax.tree.map(close, (y, pullback(dy)), (expected, autodiff(dy)))


@pytest.mark.long
def test_the_check_of_an_experiment():
    """Its pictures have equal pixels, so it stands on kinks; it once found a gradient that missed its maximum."""
    digits = data.digits(flat=False)
    net = networks.convolutional([32, 64], [128, 10], normalization="batch")
    params = net.init(jax.random.split(jax.random.split(KEY)[0])[0], digits.train[0][:1])
    report = train.check_gradients(net, losses.cross_entropy, params, tuple(a[:4] for a in digits.train))
    assert report.ok, report


def test_shapes():
    lenet = networks.convolutional([6, 16], [120, 84, 10], kernel_size=5, activation="tanh", pool="average")
    images = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)
    params = jax.eval_shape(lenet.init, KEY, images)
    assert train.count(params) == 6 * 26 + 16 * (150 + 1) + 784 * 120 + 120 + 120 * 84 + 84 + 840 + 10
    assert jax.eval_shape(lenet.apply, params, images).shape == (2, 10)


@pytest.mark.parametrize(
    ("depth", "size", "parameters"),
    [(20, 32, 269_722 + 2_752 + 2 * 784), (18, 224, 11_689_512 + 2 * 4_800), (50, 224, 25_557_032 + 2 * 26_560)],
)
def test_resnets_have_the_published_sizes(depth, size, parameters):
    """Those of PyTorch or the paper; 20 has shortcuts more. Means and variances are no parameters there."""
    net = networks.resnet(depth, 10 if depth == 20 else 1000)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    params = jax.eval_shape(net.init, KEY, images)
    assert train.count(params) == parameters
    assert jax.eval_shape(net.apply, params, images).shape == (2, 10 if depth == 20 else 1000)


def test_an_autoencoder_is_its_halves():
    net, x = NETWORKS["autoencoder"]
    params = net.init(KEY, x)
    code = net.encoder.apply(params[0], x)
    assert code.shape == (3, 3)
    np.testing.assert_allclose(net.decoder.apply(params[1], code), net.apply(params, x), rtol=1e-6)


def test_a_denoising_autoencoder_sees_noise_in_training_only():
    net, x = NETWORKS["autoencoder"]
    denoising = layers.serial(layers.gaussian_noise(0.5), net)
    params = denoising.init(KEY, x)
    np.testing.assert_array_equal(denoising.apply(params, x), net.apply(params[1], x))
    assert (denoising.apply(params, x, key=TRAINING) != net.apply(params[1], x)).any()
    noise = layers.gaussian_noise(0.5).apply((), jnp.zeros((1000, 100)), key=TRAINING)
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 0.5], atol=0.01)
    assert verify.check_layer(layers.gaussian_noise(0.5), KEY, x, training_key=TRAINING).ok


def test_the_reparameterisation():
    net, x = NETWORKS["variational"]
    params = net.init(KEY, x)
    y = net.apply(params, x)
    np.testing.assert_allclose(y.reconstruction, net.decoder.apply(params[1], y.mean), rtol=1e-6)
    np.testing.assert_allclose(jnp.concatenate([y.mean, y.log_variance], -1), net.encoder.apply(params[0], x))
    loss = partial(losses.negative_elbo, beta=0.5)
    target = jax.nn.sigmoid(x)
    assert train.check_gradients(net, loss, params, (x, target)).ok


def played(loss, optimizers, penalty, steps, augment=None):
    """A game over numbers about 3, of class 1 about −3: the GAN, its last state, and all metrics."""
    gan = networks.gan(1, 2, hidden=[16], classes=2, output_activation=None)
    labels = np.arange(128, dtype=np.int32) % 2
    x = np.random.default_rng(0).normal(3, 0.3, (128, 1)).astype("f") * (1 - 2 * labels[:, None]).astype("f")
    step = train.make_gan_step(
        gan, loss, optimizers, penalty=penalty, discriminator_steps=2, augment=augment, steps=steps
    )
    state = train.init_gan(gan, optimizers, KEY, x)
    many = jnp.broadcast_to(x, (steps, *x.shape)), jnp.broadcast_to(labels, (steps, 128))
    return gan, labels, *step(state, many)


@pytest.mark.parametrize("loss", ["non_saturating", "least_squares", "adversarial_hinge", "wasserstein"])
def test_each_side_goes_down_its_loss_while_the_other_rests(loss):
    """Rest is a step size of 0. What the other side is given stays the same distribution."""
    loss, rest, goes = getattr(losses, loss), optax.sgd(0.0), train.adam(1e-2)
    *_, metrics = played(loss, (rest, goes), 0.1, 60)
    assert set(metrics) == {"loss", "generator_loss", "real", "generated"}
    assert metrics["loss"][-10:].mean() < metrics["loss"][:10].mean()
    assert metrics["real"][-10:].mean() > metrics["generated"][-10:].mean()
    *_, metrics = played(loss, (goes, rest), 0.0, 60)
    assert metrics["generator_loss"][-10:].mean() < metrics["generator_loss"][:10].mean()


def test_a_generator_makes_what_it_is_asked_for():
    gan, labels, state, _ = played(losses.wasserstein, (train.adam(3e-3, b1=0.5),) * 2, 1.0, 300)
    made = train.generate(gan, state.params[0], jax.random.normal(TRAINING, (128, 2)), jnp.asarray(labels))
    np.testing.assert_allclose([made[labels == 0].mean(), made[labels == 1].mean()], [3, -3], atol=1)


def test_a_discriminator_sees_what_is_augmented():
    """Of examples turned into zeros it thinks what it thinks of zeros."""
    sides = optax.sgd(0.0), optax.sgd(0.0)
    gan, labels, state, metrics = played(losses.least_squares, sides, 0.0, 1, augment=lambda key, x: 0 * x)
    seen = networks.with_class(jnp.zeros((128, 1)), jnp.asarray(labels), 2)
    expected = gan.discriminator.apply(state.params[1], seen, key=KEY).mean()
    np.testing.assert_allclose(metrics["real"], [expected], rtol=1e-5)


def test_a_game_that_leaves_the_finite_numbers_is_stopped(tmp_path):
    gan = networks.gan(1, 2, hidden=[4], output_activation=None)
    sides = optax.sgd(1e30), optax.sgd(1e30)
    step = train.make_gan_step(gan, losses.least_squares, sides)
    batches = [(np.ones((4, 1), np.float32), np.zeros(4, np.int32))]
    state = train.init_gan(gan, sides, KEY, batches[0][0])
    with pytest.raises(train.NonFiniteError, match=r"in step \d.*; the checkpoint of step 0 is kept"):
        train.fit(state, step, batches, epochs=5, run=tmp_path / "run")


def test_the_penalty_is_felt_through_convolutions(x64):
    """Second order through every layer of a convolutional discriminator."""
    discriminator = networks.gan((8, 8, 2), 3, stages=[2, 3], hidden=[4]).discriminator
    x = X.astype(jnp.float64)
    params = discriminator.init(KEY, x)

    def by_hand(params, x):
        logits, pullback = discriminator.vjp(params, x)
        return losses.gradient_penalty(pullback(jnp.ones_like(logits))[1]).sum()

    def by_autodiff(params, x):
        return losses.gradient_penalty(jax.grad(lambda x: discriminator.apply(params, x).sum())(x)).sum()

    found, expected = (jax.jit(jax.grad(f, (0, 1)))(params, x) for f in (by_hand, by_autodiff))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), found, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networks.convolutional([0], 3), "a stage's features must be whole numbers ≥ 1; got 0"),
        (
            lambda: networks.convolutional([3], 3, pool="min"),
            "pool must be one of max, average, stride; got 'min'",
        ),
        (lambda: networks.convolutional([3], 3, normalization="bach"), "one of batch, group, layer; got 'bach'"),
        (lambda: networks.convolutional([3], 3, activation="rleu"), "did you mean 'relu'"),
        (lambda: networks.resnet(21, 10), r"6n \+ 2 \(20, 32, …\); got 21"),
        (lambda: networks.resnet(20, 0), "classes ≥ 1"),
        (lambda: networks.autoencoder((9, 9, 1), 2, stages=[2]), r"sizes that 2 divides; got shape \(9, 9, 1\)"),
        (lambda: networks.autoencoder(4, 0), "code_size must be whole numbers ≥ 1; got 0"),
        (lambda: networks.autoencoder(4, 2).init(KEY, X), r"needs x \(n, 4\); got \(3, 8, 8, 2\)"),
        (lambda: networks.gan((9, 9, 1), 2, stages=[2]), r"sizes that 2 divides; got shape \(9, 9, 1\)"),
        (lambda: networks.gan(4, 2, classes=-1), "classes ≥ 0; got -1"),
        (lambda: networks.gan(4, 2, stages=[2]), r"stages need a shape \(places…, channels\); got \(4,\)"),
        (lambda: networks.gan(4, 2, normalization="bach"), "one of batch, group, layer; got 'bach'"),
        (lambda: networks.autoencoder(4, 2, normalization="bach"), "one of batch, group, layer; got 'bach'"),
        (lambda: networks.with_class(X, None, 3), "a label for each of 3 examples; got None"),
        (lambda: layers.gaussian_noise(-1.0), r"stddev ≥ 0; got -1\.0"),
        (
            lambda: train.make_gan_step(networks.gan(4, 2), losses.wasserstein, (SGD, SGD), penalty=-1.0),
            r"penalty ≥ 0",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
