"""An oracle from outside: PyTorch's network with the same weights has the same loss and the same gradients."""

import jax
import numpy as np
import pytest

from jaxnet import losses, networks

torch = pytest.importorskip("torch", reason="PyTorch is only compared with: pip install '.[peers]'")

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
