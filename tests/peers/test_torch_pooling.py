"""Oracles from outside: PyTorch and Flax have the same values and the same gradients, for every option."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnet import layers, ops

torch = pytest.importorskip("torch", reason="PyTorch is only compared with: pip install '.[peers]'")
pytestmark = pytest.mark.long
F = torch.nn.functional


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def first(x):
    """Channels first, as PyTorch has them."""
    return np.moveaxis(x, -1, 1)


def last(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def compare(ours, theirs, *args, layout=(first, last)):
    """Value and all gradients of Σ w y, of our function with a pullback and of PyTorch's."""
    to_torch, back = layout
    tensors = [torch.tensor(to_torch(a) if i == 0 else a, requires_grad=True) for i, a in enumerate(args)]
    expected = theirs(*tensors)
    w = draw(9, *back(expected).shape)
    expected.backward(torch.tensor(to_torch(w)))

    @jax.jit
    def road(args, w):
        y, pullback = ours(*args)
        return y, pullback(w)

    y, gradients = road(tuple(map(jnp.asarray, args)), jnp.asarray(w))
    np.testing.assert_allclose(y, back(expected), atol=1e-11)
    for i, (found, tensor) in enumerate(zip(gradients, tensors, strict=True)):
        grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        np.testing.assert_allclose(found, back(grad) if i == 0 else grad, atol=1e-11)


@st.composite
def windows(draw_, dilated):
    """A shape and windows that both take: padding the same on both sides, at most half a window."""
    axes = draw_(st.integers(1, 3))
    window, stride, dilation = (tuple(draw_(st.integers(1, 3)) for _ in range(axes)) for _ in range(3))
    dilation = dilation if dilated else (1,) * axes
    padding = tuple(draw_(st.integers(0, k // 2)) for k in window)
    spatial = tuple((k - 1) * d + 1 + draw_(st.integers(0, 4)) for k, d in zip(window, dilation, strict=True))
    shape = (draw_(st.integers(1, 2)), *spatial, draw_(st.integers(1, 3)))
    return shape, window, stride, padding, dilation


@settings(max_examples=10)
@given(windows(dilated=True), st.integers(0, 9))
def test_max_pool(case, seed):
    shape, window, stride, padding, dilation = case
    pairs = [(p, p) for p in padding]
    ours = partial(ops.max_pool_vjp, window=window, stride=stride, padding=pairs, dilation=dilation)
    theirs = partial(
        getattr(F, f"max_pool{len(window)}d"),
        kernel_size=window,
        stride=stride,
        padding=padding,
        dilation=dilation,
    )
    with jax.enable_x64(True):
        compare(ours, theirs, draw(seed, *shape))


@settings(max_examples=10)
@given(windows(dilated=False), st.booleans(), st.integers(0, 9))
def test_avg_pool(case, count_include_pad, seed):
    shape, window, stride, padding, _ = case
    pairs = [(p, p) for p in padding]
    ours = partial(
        ops.avg_pool_vjp, window=window, stride=stride, padding=pairs, count_include_pad=count_include_pad
    )
    theirs = partial(
        getattr(F, f"avg_pool{len(window)}d"),
        kernel_size=window,
        stride=stride,
        padding=padding,
        count_include_pad=count_include_pad,
    )
    with jax.enable_x64(True):
        compare(ours, theirs, draw(seed, *shape))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_global_pooling(x64, axes):
    x = draw(0, 2, *(3, 4, 2)[:axes], 3)
    for kind in ("max", "avg"):
        theirs = getattr(F, f"adaptive_{kind}_pool{axes}d")
        ours = getattr(ops, f"global_{kind}_pool_vjp")
        both = first, lambda a: last(a).reshape(2, 3) if a.shape[-1] == 1 else last(a)
        compare(
            ours,
            lambda x, f=theirs: f(x, 1).reshape(2, 3),
            x,
            layout=(lambda a: first(a) if a.ndim > 2 else a, both[1]),
        )


MODES = {"nearest": [None, "nearest"] + ["nearest"] * 2, "bilinear": [None, "linear", "bilinear", "trilinear"]}


@settings(max_examples=10)
@given(st.integers(1, 3), st.sampled_from(["nearest", "bilinear"]), st.data(), st.integers(0, 9))
def test_upsample(axes, method, data, seed):
    factor = tuple(data.draw(st.integers(1, 4)) for _ in range(axes))
    spatial = tuple(data.draw(st.integers(1, 4)) for _ in range(axes))
    options = {} if method == "nearest" else {"align_corners": False}
    theirs = partial(F.interpolate, scale_factor=factor, mode=MODES[method][axes], **options)
    with jax.enable_x64(True):
        compare(partial(ops.upsample_vjp, factor=factor, method=method), theirs, draw(seed, 2, *spatial, 3))


EPS = st.sampled_from([1e-5, 1e-3, 0.5])
same = (lambda a: a, lambda a: a.detach().numpy())


@settings(max_examples=8)
@given(st.integers(1, 3), st.data(), EPS, st.sampled_from([0, 1, 2]))
def test_layer_norm(rank, data, eps, factors):
    shape = (*(data.draw(st.integers(1, 4)) for _ in range(rank)), 5)
    axes = data.draw(st.integers(1, rank))
    rest = [draw(s, *shape[-axes:]) for s in (1, 2)][:factors]
    ours = partial(ops.layer_norm_vjp, axis=tuple(range(-axes, 0)), eps=eps)
    with jax.enable_x64(True):
        wanted = trimmed(ours, 1 + factors)
        compare(
            wanted, lambda x, *f: F.layer_norm(x, shape[-axes:], *f, eps=eps), draw(0, *shape), *rest, layout=same
        )


def trimmed(vjp, n):
    """Without the None of what wasn't given."""

    def call(*args):
        y, pullback = vjp(*args)
        return y, lambda dy: pullback(dy)[:n]

    return call


@settings(max_examples=8)
@given(
    st.integers(0, 3),
    st.sampled_from([(1, 4), (2, 4), (3, 6), (5, 5)]),
    EPS,
    st.sampled_from([0, 1, 2]),
    st.data(),
)
def test_group_norm(axes, sizes, eps, factors, data):
    groups, channels = sizes
    shape = (2, *(data.draw(st.integers(2, 4)) for _ in range(axes)), channels)
    rest = [draw(s, channels) for s in (1, 2)][:factors]
    ours = partial(ops.group_norm_vjp, groups=groups, eps=eps)
    with jax.enable_x64(True):
        wanted = trimmed(ours, 1 + factors)
        compare(wanted, lambda x, *f: F.group_norm(x, groups, *f, eps=eps), draw(0, *shape), *rest)


@settings(max_examples=8)
@given(st.integers(0, 3), EPS, st.sampled_from([0, 1, 2]), st.booleans(), st.data())
def test_batch_norm(axes, eps, factors, training, data):
    shape = (3, *(data.draw(st.integers(2, 3)) for _ in range(axes)), 4)
    rest = [draw(s, 4) for s in (1, 2)][:factors]
    mean, variance = draw(3, 4), draw(4, 4) ** 2
    layer = layers.batch_norm(eps=eps, scale=factors > 0, bias=factors > 1)
    names = ["scale", "bias"][:factors]

    def ours(x, *factors):
        params = dict(zip(names, factors, strict=True)) | {"mean": jnp.asarray(mean), "var": jnp.asarray(variance)}
        y, pullback = layer.vjp(params, x, key=jax.random.key(0) if training else None)

        def ordered(dy):
            dparams, dx = pullback(dy)
            return [dx, *(dparams[name] for name in names)]

        return y, ordered

    def theirs(x, *factors):
        return F.batch_norm(x, torch.tensor(mean), torch.tensor(variance), *factors, training=training, eps=eps)

    with jax.enable_x64(True):
        compare(ours, theirs, draw(0, *shape), *rest)
