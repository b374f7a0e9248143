"""Every loss: its value, both derivatives on four roads, its kinks, its limits, what it refuses."""

import re
from functools import partial
from operator import attrgetter

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from jaxnet import activations, losses, networks, verify

ROWS, CLASSES = 5, 4


def draw(seed, *shape, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 2, shape), dtype)


def probabilities(seed):
    return activations.softmax(draw(seed, ROWS, CLASSES))


def signs(seed):
    return jnp.sign(draw(seed, ROWS, CLASSES))


def focal(z, y, gamma):
    return jnp.abs(jax.nn.sigmoid(z) - y) ** gamma * optax.sigmoid_binary_cross_entropy(z, y)


def one_hot(labels):
    return jax.nn.one_hot(labels, CLASSES, dtype=jnp.float64)


LABELS = np.array([0, 3, 1, 1, 2], np.int32)
LOGITS = partial(draw, 0, ROWS, CLASSES)

# name, options -> prediction, target, what optax says of them.
CASES = {
    "squared_error": ({}, LOGITS, partial(draw, 1, ROWS, CLASSES), optax.squared_error),
    "huber": ({}, LOGITS, partial(draw, 1, ROWS, CLASSES), optax.huber_loss),
    "huber delta": ({"delta": 0.3}, LOGITS, partial(draw, 1, ROWS, CLASSES), partial(optax.huber_loss, delta=0.3)),
    "cross_entropy": (
        {},
        LOGITS,
        lambda: jnp.asarray(LABELS),
        optax.softmax_cross_entropy_with_integer_labels,
    ),
    "cross_entropy soft": ({}, LOGITS, partial(probabilities, 1), optax.softmax_cross_entropy),
    "cross_entropy smoothed": (
        {"label_smoothing": 0.2},
        LOGITS,
        lambda: jnp.asarray(LABELS),
        lambda z, y: optax.softmax_cross_entropy(z, optax.smooth_labels(one_hot(y), 0.2)),
    ),
    "cross_entropy soft and smoothed": (
        {"label_smoothing": 0.2},
        LOGITS,
        partial(probabilities, 1),
        lambda z, q: optax.softmax_cross_entropy(z, optax.smooth_labels(q, 0.2)),
    ),
    "cross_entropy unnormalised": ({}, LOGITS, lambda: 3 * probabilities(1), optax.softmax_cross_entropy),
    "binary_cross_entropy": ({}, LOGITS, partial(probabilities, 1), optax.sigmoid_binary_cross_entropy),
    **{
        f"focal {gamma}": ({"gamma": gamma}, LOGITS, partial(probabilities, 1), partial(focal, gamma=gamma))
        for gamma in (1.0, 2.0, 3.5)
    },
    "hinge": ({}, LOGITS, partial(signs, 1), optax.hinge_loss),
    "kl_divergence": (
        {},
        lambda: activations.log_softmax(LOGITS()),
        partial(probabilities, 1),
        optax.kl_divergence,
    ),
    "gaussian_kl": (
        {},
        LOGITS,
        partial(draw, 1, ROWS, CLASSES),
        lambda mean, log_variance: (mean**2 + jnp.exp(log_variance) - log_variance - 1) / 2,
    ),
    "non_saturating.discriminator": (
        {},
        LOGITS,
        partial(draw, 1, ROWS, CLASSES),
        lambda r, f: (
            optax.sigmoid_binary_cross_entropy(r, jnp.ones_like(r))
            + optax.sigmoid_binary_cross_entropy(f, jnp.zeros_like(f))
        ),
    ),
    "non_saturating.generator": (
        {},
        LOGITS,
        partial(draw, 1, ROWS, CLASSES),
        lambda f, r: optax.sigmoid_binary_cross_entropy(f, jnp.ones_like(f)),
    ),
    "least_squares.discriminator": (
        {},
        LOGITS,
        partial(draw, 1, ROWS, CLASSES),
        lambda r, f: optax.l2_loss(r, jnp.ones_like(r)) + optax.l2_loss(f),
    ),
    "least_squares.generator": ({}, LOGITS, partial(draw, 1, ROWS, CLASSES), lambda f, r: optax.l2_loss(f - 1)),
    "adversarial_hinge.discriminator": (
        {},
        LOGITS,
        partial(draw, 1, ROWS, CLASSES),
        lambda r, f: optax.hinge_loss(r, jnp.ones_like(r)) + optax.hinge_loss(f, -jnp.ones_like(f)),
    ),
    "wasserstein.discriminator": ({}, LOGITS, partial(draw, 1, ROWS, CLASSES), lambda r, f: f - r),
    "wasserstein.generator": ({}, LOGITS, partial(draw, 1, ROWS, CLASSES), lambda f, r: -f),
}


def made(case):
    options, prediction, target, oracle = CASES[case]
    loss = attrgetter(case.split()[0])(losses)
    return partial(loss, **options) if options else loss, prediction(), target(), oracle


every_case = pytest.mark.parametrize("case", CASES)


@every_case
def test_value_and_gradients_against_optax(case, x64):
    loss, p, t, oracle = made(case)
    dy = draw(7, *loss(p, t).shape)
    np.testing.assert_allclose(loss(p, t), oracle(p, t), rtol=1e-12, atol=1e-14)
    both = (0, 1) if jnp.issubdtype(t.dtype, jnp.floating) else 0
    found = jax.grad(lambda p, t: (dy * loss(p, t)).sum(), both)(p, t)
    expected = jax.grad(lambda p, t: (dy * oracle(p, t)).sum(), both)(p, t)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13), found, expected)
    by_hand = losses.derivative(loss)(p, t)
    np.testing.assert_allclose(by_hand, jax.grad(lambda p: oracle(p, t).sum())(p), rtol=1e-11, atol=1e-13)


EVERY_DAY = ["huber delta", "cross_entropy smoothed", "cross_entropy soft", "focal 2.0", "kl_divergence"]
EVERY_DAY += ["non_saturating.generator"]  # the others .ci/run proves


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in EVERY_DAY else pytest.mark.long) for case in CASES]
)
def test_four_roads(case, x64):
    loss, p, t, _ = made(case)
    dy = draw(7, *loss(p, t).shape)
    by_hand = losses.derivative(loss)

    def hand_written(p, t):
        # A loss that sums over the classes has the same dy for all of an example's.
        return (by_hand(p, t) * (dy if dy.ndim == p.ndim else dy[:, None]),)

    verify.assert_gradients(lambda p, t: (dy * loss(p, t)).sum(), p, t, hand_written=hand_written)
    verify.assert_gradients(by_hand, p, t)  # second order


@every_case
def test_forward_mode_and_hessian(case, x64):
    loss, p, t, oracle = made(case)
    tangent = draw(8, *p.shape)
    found, expected = (jax.jvp(lambda p, f=f: f(p, t), (p,), (tangent,)) for f in (loss, oracle))
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)
    if jnp.issubdtype(t.dtype, jnp.floating):
        found, expected = (jax.jvp(f, (p, t), (tangent, 2 * tangent)) for f in (loss, oracle))
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)
    p, t = p[0], t[0]
    found, expected = (jax.hessian(lambda p, f=f: f(p, t).sum())(p) for f in (loss, oracle))
    np.testing.assert_allclose(found, expected, atol=1e-12)


@every_case
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_the_predictions_and_the_sum_is_wide(case, dtype):
    with jax.enable_x64(True):
        loss, p, t, _ = made(case)
        p = p.astype(dtype)
        wide = loss(p.astype(jnp.float32), t)
    found, gradient = loss(p, t), jax.grad(lambda p: loss(p, t).astype(jnp.float32).sum())(p)
    assert found.dtype == gradient.dtype == dtype
    assert found.shape == (p.shape[:-1] if case.split()[0] in ("cross_entropy", "kl_divergence") else p.shape)
    np.testing.assert_allclose(found, wide.astype(dtype), rtol=1e-6 if dtype == "float32" else 0)


@every_case
def test_transformations_and_an_empty_batch(case, x64):
    loss, p, t, _ = made(case)
    np.testing.assert_allclose(jax.jit(loss)(p, t), loss(p, t), rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(loss)(p, t), loss(p, t), rtol=1e-12)
    stacked = loss(jnp.stack([p, p]), jnp.stack([t, t]))
    np.testing.assert_allclose(stacked[1], loss(p, t), rtol=1e-12)
    assert loss(p[:0], t[:0]).shape == (0, *loss(p, t).shape[1:])
    assert jax.grad(lambda p: loss(p, t[:0]).sum())(p[:0]).shape == (0, CLASSES)
    assert loss(p[0], t[0]).shape == loss(p, t).shape[1:]


# ---------------------------------------------------------------------------------------- classification


def test_integer_labels_equal_one_hot(x64):
    z = LOGITS()
    for smoothing in (0.0, 0.1):
        for labels in (one_hot(LABELS), one_hot(LABELS).astype(jnp.int32)):
            found = losses.cross_entropy(z, labels, smoothing)
            np.testing.assert_allclose(found, losses.cross_entropy(z, jnp.asarray(LABELS), smoothing), rtol=1e-13)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32"])
def test_labels_narrower_than_the_number_of_classes(dtype):
    z = draw(0, 2, 70_000, dtype=jnp.float32)
    labels = jnp.array([5, 100], dtype)
    np.testing.assert_allclose(
        losses.cross_entropy(z, labels), losses.cross_entropy(z, labels.astype(jnp.int32)), rtol=1e-6
    )


@pytest.mark.parametrize("label", [-1, 4, 100])
def test_a_label_out_of_range(label):
    z, labels = draw(0, 3, 4, dtype=jnp.float32), jnp.array([1, label, 2])
    with pytest.raises(ValueError, match=f"labels 0 to 3 for 4 classes; got the label {label}"):
        losses.cross_entropy(z, labels)
    np.testing.assert_array_equal(jnp.isnan(jax.jit(losses.cross_entropy)(z, labels)), [False, True, False])
    gradient = jax.jit(jax.grad(lambda z, y: losses.cross_entropy(z, y).sum()))(z, labels)
    np.testing.assert_array_equal(jnp.isnan(gradient).all(1), [False, True, False])


@pytest.mark.parametrize("ignored", [-1, 3])
def test_a_label_to_be_ignored(x64, ignored):
    z, labels = LOGITS(), jnp.asarray(LABELS).at[1].set(ignored)
    kept = np.array([0, 2, 3, 4])
    options = {"label_smoothing": 0.2, "ignore_label": ignored}
    loss = losses.cross_entropy(z, labels, **options)
    gradient = jax.grad(lambda z: losses.cross_entropy(z, labels, **options).sum())(z)
    by_hand = losses.derivative(losses.cross_entropy)(z, labels, **options)
    np.testing.assert_allclose(loss[kept], losses.cross_entropy(z[kept], labels[kept], 0.2))
    expected = losses.derivative(losses.cross_entropy)(z[kept], labels[kept], 0.2)
    for found in (gradient, by_hand):
        np.testing.assert_allclose(found[kept], expected)
        assert not found[1].any()
    assert loss[1] == 0
    with pytest.raises(ValueError, match="labels 0 to 3 for 4 classes; got the label 7"):
        losses.cross_entropy(z, labels.at[0].set(7), **options)
    with pytest.raises(ValueError, match=f"integer labels to ignore the label {ignored}; got probabilities"):
        losses.cross_entropy(z, probabilities(1), **options)


@pytest.mark.parametrize("labels", [0, [1.0, 0.0, 0.0], [0.25, 0.0, 0.75]])
def test_a_masked_class(labels, x64):
    z, labels = jnp.array([1.0, -jnp.inf, 2.0]), jnp.asarray(labels)
    kept = jnp.array([0, 2])
    few = labels if labels.ndim == 0 else labels[kept]
    expected, first = jax.value_and_grad(losses.cross_entropy)(z[kept], few)
    np.testing.assert_allclose(losses.cross_entropy(z, labels), expected)
    for derive in (jax.grad, jax.jacfwd):
        gradient = derive(losses.cross_entropy)(z, labels)
        np.testing.assert_allclose(gradient[kept], first)
        assert gradient[1] == 0
    assert jnp.isfinite(jax.hessian(losses.cross_entropy)(z, labels)).all()


def test_the_class_of_a_masked_logit_costs_infinity():
    assert losses.cross_entropy(jnp.array([0.0, -jnp.inf]), jnp.array(1)) == jnp.inf


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_large_logits(size):
    z = jnp.array([[size, -size, 0.0]], jnp.float32)
    for label, expected in ((0, 0.0), (1, 2 * size), (2, size)):
        value, gradient = jax.value_and_grad(lambda z, y: losses.cross_entropy(z, y).sum())(z, jnp.array([label]))
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(gradient[0], np.eye(3)[0] - np.eye(3)[label], atol=1e-6)
    logits, labels = jnp.array([size, -size, size, -size]), jnp.array([1.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(losses.binary_cross_entropy(logits, labels), [0, 0, size, size], rtol=1e-6)
    second = jax.hessian(lambda z: losses.binary_cross_entropy(z, labels).sum())(logits)
    np.testing.assert_allclose(second, 0)
    np.testing.assert_allclose(losses.huber(logits, -logits), np.full(4, 2 * size), rtol=1e-3)


def test_no_cancellation_where_the_loss_is_small():
    z = np.array([20.0, 40.0, 60.0], np.float32)
    expected = np.log1p(np.exp(-z.astype(float)))
    np.testing.assert_allclose(losses.binary_cross_entropy(jnp.asarray(z), jnp.ones(3)), expected, rtol=1e-5)
    np.testing.assert_allclose(losses.binary_cross_entropy(jnp.asarray(-z), jnp.zeros(3)), expected, rtol=1e-5)


def test_focal_with_hard_labels(x64):
    z, y = LOGITS(), (signs(1) + 1) / 2
    np.testing.assert_allclose(losses.focal(z, y), optax.sigmoid_focal_loss(z, y, gamma=2.0), rtol=1e-12)
    z = jnp.array([25.0, -25.0], jnp.float32)
    right, wrong = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    np.testing.assert_allclose(losses.focal(z, right), np.full(2, np.exp(-75.0)), rtol=1e-5)
    np.testing.assert_allclose(losses.derivative(losses.focal)(z, wrong), [1, -1], rtol=1e-6)


def test_kl_divergence_with_zeros(x64):
    log_q, p = jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.array([0.5, 0.5, 0.0])
    np.testing.assert_allclose(losses.kl_divergence(log_q, p), 0.5 * np.log(2))
    for derive in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(derive(losses.kl_divergence)(log_q, p), -p)
    masked = log_q.at[2].set(-jnp.inf)
    np.testing.assert_allclose(losses.kl_divergence(masked, p), 0.5 * np.log(2))
    np.testing.assert_allclose(jax.hessian(losses.kl_divergence)(masked, p), np.zeros((3, 3)))
    q = probabilities(3)
    np.testing.assert_allclose(losses.kl_divergence(jnp.log(q), q), 0, atol=1e-15)


# ---------------------------------------------------------------------------------------------- kinks


def test_hinge_at_its_kink():
    p, t = jnp.array([1.0, -1.0, 0.999, 1.001]), jnp.array([1.0, -1.0, 1.0, 1.0])
    np.testing.assert_allclose(losses.hinge(p, t), [0, 0, 0.001, 0], atol=1e-7)
    np.testing.assert_array_equal(losses.derivative(losses.hinge)(p, t), [0, 0, -1, 0])
    np.testing.assert_array_equal(jax.grad(lambda p: losses.hinge(p, t).sum())(p), [0, 0, -1, 0])


def test_huber_at_its_kink():
    e = jnp.array([-2.0, -0.5, -0.49, 0.0, 0.5, 0.51])
    huber = partial(losses.huber, delta=0.5)
    np.testing.assert_allclose(huber(e, 0 * e), [0.875, 0.125, 0.12005, 0, 0.125, 0.13], rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda e: huber(e, 0 * e).sum())(e), [-0.5, -0.5, -0.49, 0, 0.5, 0.5])


# --------------------------------------------------------------------------------------------- errors

COLUMN, FLAT = jnp.ones((5, 1)), jnp.ones(5)


@pytest.mark.parametrize(
    "name", ["squared_error", "huber", "binary_cross_entropy", "focal", "hinge", "kl_divergence"]
)
def test_shapes_that_would_broadcast_are_refused(name):
    for f in (getattr(losses, name), losses.derivative(getattr(losses, name))):
        with pytest.raises(
            ValueError, match=re.escape(f"{name} needs a prediction and a target of the same shape")
        ):
            f(COLUMN, FLAT)
        with pytest.raises(ValueError, match=re.escape("got (5,) and ()")):
            jax.jit(f)(FLAT, jnp.float32(1))


@pytest.mark.parametrize(
    ("loss", "arguments", "message"),
    [
        (losses.squared_error, (jnp.arange(3), FLAT[:3]), "needs a floating-point prediction; got int32"),
        (losses.huber, (FLAT, FLAT, 0.0), "needs delta > 0; got 0.0"),
        (
            losses.cross_entropy,
            (COLUMN, FLAT),
            "needs integer labels (5,) or probabilities (5, 1); got float32 (5,)",
        ),
        (losses.cross_entropy, (COLUMN, jnp.zeros((4,), int)), "got int32 (4,)"),
        (losses.cross_entropy, (COLUMN, jnp.zeros((5,), int), 1.0), "needs 0 ≤ label_smoothing < 1; got 1.0"),
        (losses.cross_entropy, (jnp.zeros((5, 0)), jnp.zeros((5,), int)), "at least one class; got shape (5, 0)"),
        (losses.cross_entropy, (jnp.float32(1), jnp.int32(0)), "at least one class; got shape ()"),
        (losses.binary_cross_entropy, (FLAT, 2 * FLAT), "needs labels in [0, 1]; got 2.0"),
        (losses.focal, (FLAT, 2 * FLAT), "needs labels in [0, 1]; got 2.0"),
        (losses.focal, (FLAT, FLAT, 0.5), "needs gamma ≥ 1; got 0.5"),
        (losses.hinge, (FLAT, 0 * FLAT), "needs targets −1 or 1; got 0.0"),
        (losses.check_labels, (np.array([0.0]), 3), "needs integer labels; got float64"),
        (losses.check_labels, (np.array([0, 3]), 3), "needs labels 0 to 2 for 3 classes; got the label 3"),
        (losses.derivative, (jnp.sin,), "needs one of jaxnet's losses; got"),
    ],
)
def test_errors(loss, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        loss(*arguments)


@pytest.mark.parametrize("dtype", ["int32", "bool", "float16"])
def test_targets_of_another_dtype(dtype):
    z, y = draw(0, 4, dtype=jnp.float32), jnp.array([0, 1, 1, 0])
    expected = jax.grad(lambda z: losses.binary_cross_entropy(z, y.astype(jnp.float32)).sum())(z)
    found = jax.grad(lambda z: losses.binary_cross_entropy(z, y.astype(dtype)).sum())(z)
    np.testing.assert_allclose(found, expected)


# ------------------------------------------------------------------------------- several arguments


def test_negative_elbo_is_reconstruction_and_divergence(x64):
    logits, x = draw(0, 5, 2, 3), activations.sigmoid(draw(1, 5, 2, 3))
    mean, log_variance = draw(2, 5, 4), draw(3, 5, 4)
    found = losses.negative_elbo((logits, mean, log_variance), x, beta=0.3)
    expected = optax.sigmoid_binary_cross_entropy(logits, x).sum((1, 2))
    expected += 0.3 * losses.gaussian_kl(mean, log_variance).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    loss = partial(losses.negative_elbo, beta=0.3)

    def by_hand(prediction):
        return (losses.derivative(loss)(prediction, x),)

    verify.assert_gradients(lambda p: loss(p, x).sum(), (logits, mean, log_variance), hand_written=by_hand)
    with pytest.raises(ValueError, match=r"needs beta ≥ 0; got -1\.0"):
        losses.negative_elbo((logits, mean, log_variance), x, beta=-1.0)


def test_gradient_penalty(x64):
    g = draw(0, 5, 2, 3).at[2].set(0)
    expected = (jnp.sqrt((g**2).sum((1, 2))) - 1) ** 2
    np.testing.assert_allclose(losses.gradient_penalty(g), expected, rtol=1e-13)
    gradient = jax.grad(lambda g: losses.gradient_penalty(g).sum())(g)
    np.testing.assert_array_equal(gradient[2], 0)
    verify.assert_gradients(lambda g: losses.gradient_penalty(g, slope=0.5).sum(), g[:2], order=2)
    with pytest.raises(ValueError, match=r"needs a gradient \(batch, …\); got float64 \(\)"):
        losses.gradient_penalty(jnp.float64(1))


def test_the_penalty_of_a_critic_by_its_hand_written_backward_pass(x64):
    """Its derivative is of second order: autodiff of the pullback equals autodiff of autodiff."""
    critic = networks.feedforward([6, 5, 1], activation="tanh")
    x = draw(0, 4, 6)
    params = critic.init(jax.random.key(0), x)

    def by_hand(params):
        logits, pullback = critic.vjp(params, x)
        return losses.gradient_penalty(pullback(jnp.ones_like(logits))[1]).sum()

    def by_autodiff(params):
        return losses.gradient_penalty(jax.grad(lambda x: critic.apply(params, x).sum())(x)).sum()

    jax.tree.map(
        partial(np.testing.assert_allclose, atol=1e-12), jax.grad(by_hand)(params), jax.grad(by_autodiff)(params)
    )


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_the_mean_is_over_what_counts(alpha, x64):
    z, labels = draw(1, 2, 3, CLASSES), jnp.array([[1, 0, -1], [3, -1, -1]])
    plain = partial(losses.cross_entropy, label_smoothing=alpha)
    loss = losses.counted(plain, -1)
    counts = np.asarray(labels) != -1
    expected = plain(z[counts], labels[counts]).mean()
    np.testing.assert_allclose(loss(z, labels).mean(), expected, rtol=1e-12)
    autodiff = jax.grad(lambda z: loss(z, labels).sum())(z)
    np.testing.assert_allclose(losses.derivative(loss)(z, labels), autodiff, atol=1e-12)
    nothing = jnp.full((2, 3), -1)
    assert not np.any(loss(z, nothing))
    assert not np.any(losses.derivative(loss)(z, nothing))
    assert loss(z.astype("float32"), labels).dtype == jnp.float32


def test_the_mean_over_what_counts_takes_lists_as_every_loss(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would be the first to complain
    loss, args = losses.counted(losses.cross_entropy, -1), ([[1.0, 2.0], [3.0, 4.0]], [0, -1])
    for function in (loss, losses.derivative(loss)):
        np.testing.assert_array_equal(function(*args), function(*map(jnp.asarray, args)))
