"""An oracle from outside: Flax's convolutional layers with the same weights, in value and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnet import layers

nn = pytest.importorskip("flax.linen", reason="Flax is only compared with: pip install '.[peers]'")
pytestmark = pytest.mark.long

# Each example compiles its own shapes: few of them, and small.
modest = settings(max_examples=7)


@st.composite
def setups(draw, transposed):
    axes = draw(st.integers(1, 3))

    def sizes(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    groups = 1 if transposed else draw(st.sampled_from([1, 2, 3]))
    features, channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    image, window, stride, dilation = sizes(5, 7), sizes(1, 3), sizes(1, 3), sizes(1, 2)
    explicit = tuple((draw(st.integers(0, 2)), draw(st.integers(1, 2))) for _ in range(axes))
    named = ["SAME", "VALID"] + (["CAUSAL"] if axes == 1 and not transposed else [])
    padding = draw(st.sampled_from([*named, explicit]))
    return (2, *image, channels), window, stride, dilation, padding, groups, features, draw(st.booleans())


def compared(ours, theirs, shape):
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=shape))
        params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), ours.init(jax.random.key(0), x))

        def as_in_flax(params, x):
            names = {"weight": "kernel", "bias": "bias"}
            return theirs.apply({"params": {names[name]: p for name, p in params.items()}}, x)

        dy = jnp.asarray(rng.normal(size=jax.eval_shape(ours.apply, params, x).shape))

        @jax.jit
        def both(params, x, dy):
            y, pullback = ours.vjp(params, x)
            expected, autodiff = jax.vjp(as_in_flax, params, x)
            return (y, pullback(dy)), (expected, autodiff(dy))

        found, expected = both(params, x, dy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), found, expected)


@modest
@given(setups(transposed=False))
def test_conv(setup):
    shape, window, stride, dilation, padding, groups, features, bias = setup
    compared(
        layers.conv(features, window, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias),
        nn.Conv(
            features,
            window,
            strides=stride,
            padding=padding,
            kernel_dilation=dilation,
            feature_group_count=groups,
            use_bias=bias,
            param_dtype=jnp.float64,
        ),
        shape,
    )


@pytest.mark.parametrize("convention", ["dilated", "gradient"])
@modest
@given(setups(transposed=True))
def test_conv_transpose(convention, setup):
    shape, window, stride, dilation, padding, _, features, bias = setup
    if convention == "gradient" and not isinstance(padding, str):
        padding = "SAME"  # what Flax pads is the dilated x
    compared(
        layers.conv_transpose(
            features, window, stride=stride, padding=padding, dilation=dilation, bias=bias, convention=convention
        ),
        nn.ConvTranspose(
            features,
            window,
            strides=stride,
            padding=padding,
            kernel_dilation=dilation,
            use_bias=bias,
            transpose_kernel=convention == "gradient",
            param_dtype=jnp.float64,
        ),
        shape,
    )
