"""An oracle from outside: PyTorch's recurrent networks with the same weights, in value and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers, ops

torch = pytest.importorskip("torch", reason="PyTorch is only compared with: pip install '.[peers]'")
pytestmark = pytest.mark.long

BATCH, TIME, IN, HIDDEN = 3, 4, 2, 3
LENGTHS = [4, 1, 3]  # PyTorch has none of 0
GATES = {"rnn": 1, "lstm": 4, "gru": 3}


def network(op, **options):
    torch.manual_seed(0)
    return getattr(torch.nn, op.upper())(IN, HIDDEN, batch_first=True, **options).double()


def parameters(module, suffix, bias=True):
    """PyTorch's parameters of one layer and direction, which are as many of ours."""
    named = dict(module.named_parameters())
    return [named[f"{name}_{suffix}"] for name in ("weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] * bias))]


def arranged(op, weight, recurrent, first=None, second=None, *, gradient=False):
    """As {name: array}. Of PyTorch's two biases ours is the sum, whose gradient is that of each of them.

    In the reset of a GRU the second has an effect of its own: there it is `recurrent_bias`.
    """
    arrays = {"weight": weight.T, "recurrent_weight": recurrent.T}
    if first is not None:
        both = first if gradient else first + second
        if op == "gru":
            both = torch.cat([both[: 2 * HIDDEN], first[2 * HIDDEN :]])
            arrays["recurrent_bias"] = second[2 * HIDDEN :]
        arrays["bias"] = both
    return {name: jnp.asarray(a.detach().numpy()) for name, a in arrays.items()}


def packed(x, lengths):
    if lengths is None:
        return x
    return torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)


def unpacked(y, lengths):
    return y if lengths is None else torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0]


def close(found, expected):
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-11)


@pytest.mark.parametrize(
    ("op", "options", "bias", "lengths"),
    [
        ("rnn", {"activation": "tanh"}, True, LENGTHS),
        ("rnn", {"activation": "relu"}, False, None),
        ("lstm", {}, True, None),
        ("lstm", {}, False, LENGTHS),
        ("gru", {}, True, LENGTHS),
        ("gru", {}, False, None),
    ],
)
def test_values_and_gradients(x64, op, options, bias, lengths):
    nonlinearity = {"nonlinearity": options["activation"]} if options else {}
    module, rng = network(op, bias=bias, **nonlinearity), np.random.default_rng(0)
    tensors = [
        torch.tensor(rng.normal(size=s), requires_grad=True)
        for s in ((BATCH, TIME, IN), (1, BATCH, HIDDEN), (1, BATCH, HIDDEN))
    ]
    x, h, c = tensors
    y, state = module(packed(x, lengths), (h, c) if op == "lstm" else h)
    y, states = unpacked(y, lengths), state if op == "lstm" else (state,)
    cotangents = [torch.tensor(rng.normal(size=a.shape)) for a in (y, *states)]
    torch.autograd.backward([y, *states], cotangents)
    parts = parameters(module, "l0", bias)
    weights = arranged(op, *parts)
    names = ["weight", "recurrent_weight", "bias"] + ["recurrent_bias"] * (op == "gru")
    initial = [jnp.asarray(a.detach().numpy()[0]) for a in (h, c)[: len(states)]]

    def like_the_state(arrays):
        return tuple(arrays) if op == "lstm" else arrays[0]

    options = options | {"lengths": None if lengths is None else jnp.asarray(lengths)}
    (found_y, found), pullback = getattr(ops, f"{op}_vjp")(
        jnp.asarray(x.detach().numpy()), *map(weights.get, names), like_the_state(initial), **options
    )
    close(found_y, y)
    for a, b in zip(jax.tree.leaves(found), states, strict=True):
        close(a, b[0])
    dy, *dstates = [jnp.asarray(a.numpy()) for a in cotangents]
    dx, *gradients, dinitial = pullback((dy, like_the_state([d[0] for d in dstates])))
    close(dx, x.grad)
    expected = arranged(op, *(p.grad for p in parts), gradient=True)
    for name, gradient in zip(names, gradients, strict=True):
        assert (gradient is None) == (name not in expected)
        if gradient is not None:
            np.testing.assert_allclose(gradient, expected[name], atol=1e-11, err_msg=name)
    for a, b in zip(jax.tree.leaves(dinitial), (h, c), strict=False):
        close(a, b.grad[0])


@pytest.mark.parametrize("op", GATES)
def test_stacked_in_both_directions_with_lengths(x64, op):
    module, rng = network(op, num_layers=2, bidirectional=True), np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(BATCH, TIME, IN)), requires_grad=True)
    y, state = module(packed(x, LENGTHS))
    y, h = unpacked(y, LENGTHS), state[0] if op == "lstm" else state
    last = torch.cat([h[2], h[3]], -1)  # of the second layer, one direction and the other
    dy, dlast = (torch.tensor(rng.normal(size=a.shape)) for a in (y, last))
    torch.autograd.backward([y, last], [dy, dlast])
    suffixes = ("l0", "l0_reverse"), ("l1", "l1_reverse")
    parts = [[parameters(module, suffix) for suffix in pair] for pair in suffixes]
    params = tuple(tuple(arranged(op, *p) for p in pair) for pair in parts)

    options = {"layers": 2, "bidirectional": True}
    sequence, end = (getattr(layers, op)(HIDDEN, **options, output=output) for output in ("sequence", "last"))

    @jax.jit
    def road(params, x, dy, dlast):
        (y, first), (last, second) = sequence.vjp(params, x), end.vjp(params, x)
        (dparams, (dx, _)), (others, (other, _)) = first(dy), second(dlast)
        return y, last, jax.tree.map(jnp.add, dparams, others), dx + other

    arrays = [jnp.asarray(a.detach().numpy()) for a in (x, dy, dlast)]
    found_y, found_last, dparams, dx = road(params, (arrays[0], jnp.asarray(LENGTHS)), *arrays[1:])
    close(found_y, y)
    close(found_last, last)
    close(dx, x.grad)
    expected = tuple(tuple(arranged(op, *(q.grad for q in p), gradient=True) for p in pair) for pair in parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), dparams, expected)


def test_the_gradient_of_a_gradient(x64):
    """Of a penalty on the slope in x, as a critic is trained by."""
    module, rng = network("lstm"), np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(BATCH, TIME, IN)), requires_grad=True)
    (slope,) = torch.autograd.grad((module(x)[0] ** 2).sum(), x, create_graph=True)
    slope.square().sum().backward()
    parts = parameters(module, "l0")
    weights = arranged("lstm", *parts)

    @jax.jit
    @jax.grad
    def penalty(weights, x):
        args = weights["weight"], weights["recurrent_weight"], weights["bias"]
        return jnp.square(jax.grad(lambda x: (ops.lstm(x, *args)[0] ** 2).sum())(x)).sum()

    found = penalty(weights, jnp.asarray(x.detach().numpy()))
    expected = arranged("lstm", *(p.grad for p in parts), gradient=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), found, expected)
