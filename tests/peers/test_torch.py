"""An oracle from outside: PyTorch's network with the same weights has the same loss and the same gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import activations, losses, networks, ops

torch = pytest.importorskip("torch", reason="PyTorch is only compared with: pip install '.[peers]'")
pytestmark = pytest.mark.long

ACTIVATIONS = {
    "relu": torch.nn.ReLU(),
    "tanh": torch.nn.Tanh(),
    "sigmoid": torch.nn.Sigmoid(),
    "leaky_relu": torch.nn.LeakyReLU(),
    "elu": torch.nn.ELU(),
    "selu": torch.nn.SELU(),
    "softplus": torch.nn.Softplus(threshold=1000),  # PyTorch's is linear above 20 by default
    "silu": torch.nn.SiLU(),
    "mish": torch.nn.Mish(),
    "gelu": torch.nn.GELU(approximate="tanh"),
    "hard_swish": torch.nn.Hardswish(),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_classifier_and_all_its_gradients(x64, activation, smoothing):
    rng = np.random.default_rng(0)
    x, y = jax.numpy.asarray(rng.normal(size=(6, 5))), rng.integers(0, 4, 6)
    net = networks.feedforward([5, 8, 7, 4], activation=activation)
    params = net.init(jax.random.key(0), x)

    modules = []
    for layer in params:
        linear = torch.nn.Linear(*layer["weight"].shape, dtype=torch.float64)
        linear.weight.data = torch.tensor(np.array(layer["weight"]).T)
        linear.bias.data = torch.tensor(np.array(layer["bias"]))
        modules += [linear, ACTIVATIONS[activation]]
    inputs = torch.tensor(np.array(x), requires_grad=True)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    expected = loss(torch.nn.Sequential(*modules[:-1])(inputs), torch.tensor(y))
    expected.backward()

    def objective(params, x):
        return losses.cross_entropy(net.apply(params, x), y, label_smoothing=smoothing).mean()

    value, (dparams, dx) = jax.value_and_grad(objective, (0, 1))(params, x)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-12)
    np.testing.assert_allclose(dx, inputs.grad, atol=1e-12)
    for layer, linear in zip(dparams, modules[::2], strict=True):
        np.testing.assert_allclose(layer["weight"], linear.weight.grad.T, atol=1e-12)
        np.testing.assert_allclose(layer["bias"], linear.bias.grad, atol=1e-12)


LOSSES = {
    losses.squared_error: torch.nn.MSELoss(reduction="none"),
    losses.huber: torch.nn.HuberLoss(reduction="none"),
    losses.binary_cross_entropy: torch.nn.BCEWithLogitsLoss(reduction="none"),
}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_an_elementwise_loss_and_its_derivative(x64, loss):
    rng = np.random.default_rng(1)
    p, t = 3 * rng.normal(size=(4, 3)), rng.uniform(size=(4, 3))
    prediction = torch.tensor(p, requires_grad=True)
    expected = LOSSES[loss](prediction, torch.tensor(t))
    expected.sum().backward()
    np.testing.assert_allclose(loss(p, t), expected.detach(), atol=1e-13)
    np.testing.assert_allclose(losses.derivative(loss)(p, t), prediction.grad, atol=1e-13)


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(x64, leading, bias):
    rng = np.random.default_rng(2)
    args = [rng.normal(size=shape) for shape in ((*leading, 3), (3, 4), (4,))][: 2 + bias]
    dy = rng.normal(size=(*leading, 4))
    x, weight, *rest = (torch.tensor(a, requires_grad=True) for a in args)
    expected = torch.nn.functional.linear(x, weight.T, *rest)
    expected.backward(torch.tensor(dy))
    y, pullback = ops.linear_vjp(*map(jnp.asarray, args))
    np.testing.assert_allclose(y, expected.detach(), atol=1e-13)
    for found, tensor in zip(pullback(jnp.asarray(dy)), (x, weight, *rest), strict=False):
        np.testing.assert_allclose(found, tensor.grad, atol=1e-13)


OTHERS = {
    "exact gelu": (partial(activations.gelu, approximate=False), torch.nn.GELU()),
    "elu": (partial(activations.elu, alpha=1.7), torch.nn.ELU(1.7)),
    "softmax": (activations.softmax, torch.nn.Softmax(-1)),
    "softmax of columns": (partial(activations.softmax, axis=0), torch.nn.Softmax(0)),
    "log_softmax": (activations.log_softmax, torch.nn.LogSoftmax(-1)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_activation(x64, name):
    ours, theirs = OTHERS[name]
    rng = np.random.default_rng(3)
    x, dy = 3 * rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    inputs = torch.tensor(x, requires_grad=True)
    expected = theirs(inputs)
    expected.backward(torch.tensor(dy))
    np.testing.assert_allclose(ours(x), expected.detach(), atol=1e-13)
    np.testing.assert_allclose(activations.pullback(ours)(x, dy), inputs.grad, atol=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_of_probabilities_in_both_arguments(x64, smoothing):
    rng = np.random.default_rng(4)
    z, q = 3 * rng.normal(size=(6, 4)), rng.dirichlet(np.ones(4), 6)
    logits, target = torch.tensor(z, requires_grad=True), torch.tensor(q, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="sum", label_smoothing=smoothing)
    expected.backward()
    loss = partial(losses.cross_entropy, label_smoothing=smoothing)
    value, gradients = jax.value_and_grad(lambda z, q: loss(z, q).sum(), (0, 1))(z, q)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-13)
    for found, tensor in zip(gradients, (logits, target), strict=True):
        np.testing.assert_allclose(found, tensor.grad, atol=1e-13)


def test_kl_divergence_in_both_arguments(x64):
    rng = np.random.default_rng(5)
    log_q, p = np.log(rng.dirichlet(np.ones(4), 6)), rng.dirichlet(np.ones(4), 6)
    prediction, target = torch.tensor(log_q, requires_grad=True), torch.tensor(p, requires_grad=True)
    expected = torch.nn.KLDivLoss(reduction="none")(prediction, target).sum(-1)
    expected.sum().backward()
    np.testing.assert_allclose(losses.kl_divergence(log_q, p), expected.detach(), atol=1e-13)
    gradients = jax.grad(lambda log_q, p: losses.kl_divergence(log_q, p).sum(), (0, 1))(log_q, p)
    for found, tensor in zip(gradients, (prediction, target), strict=True):
        np.testing.assert_allclose(found, tensor.grad, atol=1e-13)
