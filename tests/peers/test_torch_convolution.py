"""An oracle from outside: PyTorch's convolutions with the same weights, in value and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnet import ops

torch = pytest.importorskip("torch", reason="PyTorch is only compared with: pip install '.[peers]'")
pytestmark = pytest.mark.long

# Each example compiles its own shapes: few of them, and small.
modest = settings(max_examples=8)


@st.composite
def setups(draw, transposed):
    axes = draw(st.integers(1, 3))

    def sizes(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    image, window, stride, dilation = sizes(1, 6), sizes(1, 4), sizes(1, 3), sizes(1, 2)
    span = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    extra = (0,) * axes
    if transposed:
        extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        longest = [(n - 1) * s + p + e for n, s, p, e in zip(image, stride, span, extra, strict=True)]
        padding = tuple(draw(st.integers(0, min((n - 1) // 2, 3))) for n in longest)
    else:
        padding = tuple(draw(st.integers(max(-(-(p - n) // 2), 0), 3)) for n, p in zip(image, span, strict=True))
    bias = draw(st.booleans())
    return image, window, stride, dilation, padding, extra, groups, channels, bias, draw(st.integers(0, 99))


def compared(x, weight, bias, order, ours, theirs):
    """`order` takes our weight to PyTorch's."""
    rng = np.random.default_rng(7)
    arrays = [x, weight, *([bias] if bias is not None else [])]
    first, last = (0, x.ndim - 1, *range(1, x.ndim - 1)), (0, *range(2, x.ndim), 1)
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    expected = theirs(tensors[0].permute(first), tensors[1].permute(order), *tensors[2:]).permute(last)
    dy = rng.normal(size=tuple(expected.shape))
    expected.backward(torch.tensor(dy))
    with jax.enable_x64(True):
        y, pullback = ours(*map(jnp.asarray, arrays))
        found = y, *pullback(jnp.asarray(dy))
    for a, b in zip(found, (expected.detach(), *(tensor.grad for tensor in tensors)), strict=False):
        np.testing.assert_allclose(a, b, atol=1e-11)


@modest
@given(setups(transposed=False))
def test_conv(setup):
    image, window, stride, dilation, padding, _, groups, (c, o), bias, seed = setup
    rng, axes = np.random.default_rng(seed), len(image)
    x, weight = rng.normal(size=(2, *image, c)), rng.normal(size=(*window, c // groups, o))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    compared(
        x,
        weight,
        rng.normal(size=o) if bias else None,
        (axes + 1, axes, *range(axes)),
        jax.jit(lambda *args: ops.conv_vjp(*args, **options)),
        lambda *args: getattr(torch.nn.functional, f"conv{axes}d")(*args, **options),
    )


@modest
@given(setups(transposed=True))
def test_conv_transpose(setup):
    image, window, stride, dilation, padding, extra, groups, (i, o), bias, seed = setup
    rng, axes = np.random.default_rng(seed), len(image)
    x, weight = rng.normal(size=(2, *image, i)), rng.normal(size=(*window, o // groups, i))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    options |= {"output_padding": extra}
    compared(
        x,
        weight,
        rng.normal(size=o) if bias else None,
        (axes + 1, axes, *range(axes)),
        jax.jit(lambda *args: ops.conv_transpose_vjp(*args, convention="gradient", **options)),
        lambda *args: getattr(torch.nn.functional, f"conv_transpose{axes}d")(*args, **options),
    )


def test_the_gradient_of_a_gradient(x64):
    """Of a penalty on the slope in x, as a critic is trained by."""
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 6, 5, 2)), rng.normal(size=(3, 3, 2, 4))

    def penalty(x, weight):
        slope = jax.grad(lambda x: jnp.tanh(ops.conv(x, weight, stride=2, padding=1)).sum())(x)
        return jnp.square(slope).sum()

    found = jax.jit(jax.grad(penalty, (0, 1)))(x, weight)
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, weight)]
    images, kernel = tensors[0].permute(0, 3, 1, 2), tensors[1].permute(3, 2, 0, 1)
    y = torch.tanh(torch.nn.functional.conv2d(images, kernel, stride=2, padding=1)).sum()
    (slope,) = torch.autograd.grad(y, tensors[0], create_graph=True)
    slope.square().sum().backward()
    for a, tensor in zip(found, tensors, strict=True):
        np.testing.assert_allclose(a, tensor.grad, atol=1e-11)
