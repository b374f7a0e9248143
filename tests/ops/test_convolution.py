"""The chain of checks of `conv` and `conv_transpose`, each link for one reason."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolutions import Static, arguments, by_autodiff, by_hand, close, draw, geometry_of
from jax import lax

from jaxnet import ops, verify
from jaxnet.ops import convolution, correlation_xla, transposed_convolution

# -------------------------------------------- link 1: backward against autodiff of the reference, every option

CONV = {
    "plain": ({}, {}),
    "without bias": ({"bias": False}, {"padding": "VALID"}),
    "stride": ({"image": (7, 5)}, {"stride": 2}),
    "stride, explicit padding": ({"image": (7, 5)}, {"stride": (3, 2), "padding": ((0, 2), (1, 0))}),
    "stride beyond the window": ({"image": (7, 8), "window": (2, 2)}, {"stride": 3, "padding": "VALID"}),
    "dilation": ({"image": (7, 5)}, {"dilation": (2, 1)}),
    "dilation and stride, coprime": ({"image": (11,), "window": (4,)}, {"stride": 3, "dilation": 2}),
    "dilation and stride, not coprime": (
        {"image": (13,), "window": (4,)},
        {"stride": 4, "dilation": 2, "padding": 3},
    ),
    "causal": ({"image": (7,), "window": (3,)}, {"padding": "CAUSAL", "dilation": 2}),
    "3-D": ({"image": (3, 4, 2), "window": (2, 3, 1)}, {"stride": (2, 1, 2)}),
    "one tap": ({"window": (1, 1)}, {}),
    "one tap, stride and padding": ({"image": (5, 6), "window": (1, 1)}, {"stride": 2, "padding": 1}),
    "one place": ({"image": (1, 1), "window": (1, 1), "channels": (1, 1), "batch": 1}, {}),
    "window larger than the image": ({"image": (2, 3), "window": (5, 4)}, {}),
    "empty batch": ({"batch": 0}, {"stride": 2}),
    "one channel out": ({"channels": (8, 1)}, {"dilation": (1, 2)}),
    "one channel in": ({"channels": (1, 8), "image": (7, 5)}, {"stride": 2}),
    "three channels in": ({"channels": (3, 9), "image": (7,), "window": (5,)}, {"stride": 2, "dilation": 3}),
    "groups": ({"channels": (4, 6), "groups": 2, "image": (7, 5)}, {"groups": 2, "stride": 2}),
    "depthwise": ({"channels": (3, 3), "groups": 3}, {"groups": 3}),
    "depthwise with a multiplier": (
        {"channels": (2, 6), "groups": 2, "image": (7, 5)},
        {"groups": 2, "stride": (2, 1), "dilation": (1, 2)},
    ),
    "few channels, empty batch": ({"channels": (1, 8), "batch": 0}, {"stride": 2}),
    "depthwise, empty batch": ({"channels": (2, 2), "groups": 2, "batch": 0}, {"groups": 2}),
    "depthwise of many taps": ({"channels": (2, 2), "groups": 2, "window": (7, 6)}, {"groups": 2}),
    "depthwise 3-D": ({"channels": (2, 2), "groups": 2, "image": (3, 4, 2), "window": (2, 3, 1)}, {"groups": 2}),
}
each = pytest.mark.parametrize("name", CONV)


@each
def test_backward_for_every_option(name, x64):
    shapes, options = CONV[name]
    args = arguments(**shapes)
    geometry = geometry_of(args, **options)
    dy = draw(args[0].shape[0], *geometry.output, args[1].shape[-1], seed=9)
    functions = [Static(f, geometry) for f in (convolution.forward, convolution.backward)]
    close(by_hand(*functions, args, dy), by_autodiff(Static(convolution.reference, geometry), args, dy))


TRANSPOSED = {
    "plain": ({}, {}),
    "stride": ({}, {"stride": 2}),
    "valid, stride beyond the window": ({"bias": False}, {"stride": 4, "padding": "VALID"}),
    "dilation": ({}, {"stride": (2, 3), "dilation": (1, 2)}),
    "padding": ({}, {"stride": 2, "padding": ((1, 0), (2, 1))}),
    "1-D": ({"image": (5,), "window": (4,)}, {"stride": 3}),
    "3-D": ({"image": (2, 3, 1), "window": (2, 1, 3)}, {"stride": (2, 1, 2)}),
    "one tap": ({"window": (1, 1)}, {"stride": 2}),
    "empty batch": ({"batch": 0}, {"stride": 2}),
    "groups": ({"channels": (4, 6), "groups": 2}, {"groups": 2, "stride": 2}),
}


def transposed_case(name, convention):
    shapes, options = TRANSPOSED[name]
    x, weight, bias = arguments(**shapes)
    groups = options.get("groups", 1)
    if convention == "gradient":
        weight = correlation_xla.transposed(weight, groups)
    defaults = {"stride": 1, "padding": "SAME", "dilation": 1, "output_padding": 0, "groups": 1}
    given = defaults | options | {"convention": convention}
    return (x, weight, bias), transposed_convolution._geometry(x, weight, bias, *given.values()), given


@pytest.mark.parametrize("convention", ["dilated", "gradient"])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_backward_of_the_transposed_for_every_option(name, convention, x64):
    args, geometry, _ = transposed_case(name, convention)
    outputs = args[1].shape[-1] if convention == "dilated" else args[1].shape[-2] * geometry.groups
    dy = draw(args[0].shape[0], *geometry.image, outputs, seed=9)
    module = transposed_convolution
    functions = [Static(f, geometry, convention) for f in (module.forward, module.backward)]
    close(by_hand(*functions, args, dy), by_autodiff(Static(module.reference, geometry, convention), args, dy))


# ---------------------------------------------------------- link 2: finite differences, and the sums written out


def by_loops(x, weight, bias, geometry):
    """The formula of the module, in NumPy."""
    (stride,), (dilation,), (before,) = geometry.stride, geometry.dilation, geometry.before
    groups, c = geometry.groups, weight.shape[1]
    o = weight.shape[2] // groups
    y = np.tile(bias, (x.shape[0], *geometry.output, 1))
    for p in range(geometry.output[0]):
        for k in range(geometry.window[0]):
            q = stride * p + dilation * k - before
            if 0 <= q < x.shape[1]:
                for g in range(groups):
                    out = slice(g * o, g * o + o)
                    y[:, p, out] += x[:, q, g * c : g * c + c] @ weight[k, :, out]
    return y


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CAUSAL", 1, ((2, 0),)], ids=str)
def test_value_against_loops(padding, x64):
    args = arguments((7,), (3,), (4, 6), 2)
    options = {"stride": 2, "dilation": 2, "padding": padding, "groups": 2}
    expected = by_loops(*map(np.asarray, args), geometry_of(args, **options))
    close(ops.conv(*args, **options), jnp.asarray(expected))


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2), (0, 3))], ids=str)
@pytest.mark.parametrize(("stride", "window", "dilation"), [(2, 3, 1), (3, 2, 1), (2, 4, 2)])
def test_transposed_by_the_convention_of_jax(stride, window, dilation, padding, x64):
    x, weight, _ = arguments(window=(window, window), bias=False)
    strides, dilations = (stride,) * 2, (dilation,) * 2
    expected = lax.conv_transpose(x, weight, strides, padding, dilations)
    close(ops.conv_transpose(x, weight, stride=stride, padding=padding, dilation=dilation), expected)
    swapped = jnp.flip(weight, (0, 1)).swapaxes(2, 3)
    if isinstance(padding, str):
        expected = lax.conv_transpose(x, swapped, strides, padding, dilations, transpose_kernel=True)
        options = {"stride": stride, "padding": padding, "dilation": dilation, "convention": "gradient"}
        close(ops.conv_transpose(x, swapped, **options), expected)


def test_transposed_is_the_gradient_of_conv(x64):
    for image in ((7, 8), (8, 9)):
        x, weight, _ = arguments(image, bias=False)
        options = {"stride": (2, 3), "padding": 1, "dilation": (2, 1)}
        y, pullback = ops.conv_vjp(x, weight, **options)
        dy = draw(*y.shape, seed=9)
        shortest = ops.conv_transpose(dy, weight, convention="gradient", **options).shape
        sizes = [n - m for n, m in zip(image, shortest[1:3], strict=True)]
        transposed = partial(ops.conv_transpose, convention="gradient", output_padding=tuple(sizes), **options)
        close(transposed(dy, weight), pullback(dy)[0])


@pytest.mark.parametrize(
    ("f", "vjp", "options"),
    [
        (ops.conv, ops.conv_vjp, {"stride": 2}),
        (ops.conv, ops.conv_vjp, {"groups": 2}),
        (ops.conv_transpose, ops.conv_transpose_vjp, {"stride": 2}),
    ],
)
def test_four_roads(f, vjp, options, x64):
    args = arguments((3, 4), (2, 2), (2, 2), options.get("groups", 1))
    dy = draw(*f(*args, **options).shape, seed=9)

    def total(*args):
        return (dy * f(*args, **options)).sum()

    verify.assert_gradients(total, *args, hand_written=lambda *args: vjp(*args, **options)[1](dy))


# -------------------------------------------------------------------------------- link 3: the public function


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_public_op_in_value_and_gradient(transposed, bias, x64):
    f, vjp = (ops.conv_transpose, ops.conv_transpose_vjp) if transposed else (ops.conv, ops.conv_vjp)
    args = arguments((5, 4), (3, 3), bias=bias)
    module = transposed_convolution if transposed else convolution
    if transposed:
        geometry = module._geometry(*args, 2, "SAME", 1, 0, 1, "dilated")
        reference = partial(module.reference, geometry, "dilated")
    else:
        reference = partial(module.reference, geometry_of(args, stride=2))
    dy = draw(*jax.eval_shape(reference, *args).shape, seed=9)
    expected = by_autodiff(reference, args, dy)
    y, pullback = jax.vjp(partial(f, stride=2, implementation="xla"), *args)
    close((y, pullback(dy)), expected)
    y, pullback = jax.jit(partial(vjp, stride=2))(*args)  # it leaves jit
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(pullback))
    close((y, pullback(dy)), expected)


@pytest.mark.parametrize(("dtype", "groups"), [("float32", 1), ("float32", 8), ("bfloat16", 8), ("float16", 1)])
@pytest.mark.parametrize("transposed", [True, False])
def test_precision_of_each_dtype(dtype, groups, transposed):
    # A sum of n products, each rounded to float32's eps₃₂ in the running sum, errs by about √n · eps₃₂ · √n, in
    # units of the products' size: n · eps₃₂, and a factor 4 for the tails. It is rounded once to its dtype's eps.
    x, weight, bias = arguments((9, 8), (3, 3), (8, 8), groups, batch=4, dtype=dtype)
    f, vjp = (ops.conv_transpose, ops.conv_transpose_vjp) if transposed else (ops.conv, ops.conv_vjp)
    options = {"stride": 2, "groups": groups}
    shape = jax.eval_shape(partial(f, **options), x, weight, bias).shape
    dy = draw(*shape, seed=9, dtype=dtype)

    @jax.jit
    def both(x, weight, bias, dy):
        y, pullback = vjp(x, weight, bias, **options)
        return y, *pullback(dy)

    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in (x, weight, bias, dy)]
        expected = [np.asarray(a) for a in both(*wide)]
    terms = (8 // groups * 9, 8 // groups * 9, dy[..., 0].size, dy[..., 0].size)
    for found, exact, n in zip(both(x, weight, bias, dy), expected, terms, strict=True):
        assert found.dtype == dtype
        error = np.abs(np.asarray(found, np.float64) - exact)
        assert np.all(error <= float(jnp.finfo(dtype).eps) * np.abs(exact) + 4 * n * np.finfo(np.float32).eps)


# ---------------------------------------------------------------------------------------------- errors

X, W, B = arguments(dtype=jnp.float32)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((X[0, 0], W), {}, "conv needs x (N, places…, C) with 1, 2 or 3 axes of places; got shape (4, 2)"),
        ((X, W[0]), {}, "conv needs a weight of 4 axes for an x of 4; got shape (2, 2, 3)"),
        ((X[:, :0], W), {}, "conv needs places, taps and channels; got x (2, 0, 4, 2) and a weight (3, 2, 2, 3)"),
        ((X.astype(int), W), {}, "of one floating-point dtype; got x of int32"),
        ((X, W.astype("bfloat16")), {}, "got weight of bfloat16 beside x of float32"),
        (
            (X, W[:, :, :1]),
            {},
            "a weight (…, C/groups, O) with O a multiple of groups; got (3, 2, 1, 3) for groups 1",
        ),
        ((X, W[:, :, :1]), {"groups": 2}, "got (3, 2, 1, 3) for groups 2 and x of C = 2"),
        ((X, W), {"groups": 0}, "for groups 0"),
        ((X, W, B[:2]), {}, "conv needs a bias (3,) for a weight (3, 2, 2, 3); got (2,)"),
        ((X, W), {"stride": 0}, "conv needs a stride of whole numbers ≥ 1, one or 2; got 0"),
        ((X, W), {"stride": (1, 2, 3)}, "got (1, 2, 3)"),
        ((X, W), {"dilation": (1, 0)}, "conv needs a dilation of whole numbers ≥ 1"),
        ((X, W), {"padding": "same"}, "got 'same'"),
        ((X, W), {"padding": "CAUSAL"}, '"CAUSAL" (for one axis)'),
        ((X, W), {"padding": -1}, "whole numbers ≥ 0: one, or 2, or 2 pairs (before, after); got -1"),
        ((X, W), {"padding": ((1, 2),)}, "got ((1, 2),)"),
        (
            (X, W),
            {"padding": "VALID", "dilation": 3},
            "window of (7, 4) places doesn't fit into an image of (5, 4)",
        ),
    ],
)
def test_errors(args, options, message):
    # Of the checks alone: under the types that are checked in tests, some never reach them.
    with pytest.raises(ValueError, match=re.escape(message)):
        geometry_of((*args, *[None] * (3 - len(args))), **options)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((X, W), {"convention": "torch"}, "needs a convention of ('dilated', 'gradient'); got 'torch'"),
        ((X, W[:, :, :1]), {}, "needs a weight (…, I/groups, O) whose channels"),
        ((X, W), {"convention": "gradient"}, "(…, O/groups, I) whose channels are multiples of groups"),
        ((X, W, B[:2]), {}, "conv_transpose needs a bias (3,)"),
        ((X, W), {"output_padding": 1, "stride": 2}, 'needs convention="gradient" and explicit padding'),
        (
            (X, jnp.swapaxes(W, 2, 3)),
            {"output_padding": 2, "stride": 2, "convention": "gradient", "padding": 0},
            "less than the stride or the dilation; got (2, 2) for stride (2, 2)",
        ),
        (
            (X, jnp.swapaxes(W, 2, 3)),
            {"convention": "gradient", "padding": 3},
            "would leave (1, -1) places of y",
        ),
    ],
)
def test_errors_of_the_transposed(args, options, message):
    defaults = {"stride": 1, "padding": "SAME", "dilation": 1, "output_padding": 0, "groups": 1}
    given = defaults | {"convention": "dilated"} | options
    with pytest.raises(ValueError, match=re.escape(message)):
        transposed_convolution._geometry(*args, *[None] * (3 - len(args)), *given.values())


@pytest.mark.parametrize("f", [ops.conv, ops.conv_vjp, ops.conv_transpose, ops.conv_transpose_vjp])
def test_the_public_functions_check(f):
    name = f.__name__.removesuffix("_vjp")
    for options, message in (
        ({"stride": 0}, f"{name} needs a stride"),
        ({"implementation": "cuda"}, "implementation must be None or one of 'xla'"),
        ({"implementation": "cpu"}, f"{name} has no implementation 'cpu'; it has 'xla'"),
    ):
        with pytest.raises(ValueError, match=message):
            f(X, W, B, **options)
