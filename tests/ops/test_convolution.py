"""The chain of checks of `conv` and `conv_transpose`, each link for one reason."""

import os
import random
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnet import ops, verify
from jaxnet.ops import convolution, correlation, correlation_cpu, correlation_xla, transposed_convolution
from jaxnet.ops.correlation_xla import Geometry


def draw(*shape, seed=0, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(found, expected, rtol=1e-9, atol=1e-11):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


def arguments(image=(5, 4), window=(3, 2), channels=(2, 3), groups=1, batch=2, bias=True, dtype=jnp.float64):
    x = draw(batch, *image, channels[0], dtype=dtype)
    weight = draw(*window, channels[0] // groups, channels[1], seed=1, dtype=dtype)
    return x, weight, draw(channels[1], seed=2, dtype=dtype) if bias else None


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


def geometry_of(args, stride=1, padding="SAME", dilation=1, groups=1):
    return convolution._geometry(*args, stride, padding, dilation, groups)


@jax.jit(static_argnums=0)
def by_autodiff(reference, args, dy):
    y, pullback = jax.vjp(reference, *args)
    return y, pullback(dy)


@jax.jit(static_argnums=(0, 1))
def by_hand(forward, backward, args, dy):
    y, residuals = forward(*args)
    return y, backward(residuals, dy)


class Static(partial):
    """A function that jit can compare: of hashable arguments."""

    def __eq__(self, other):
        return isinstance(other, Static) and (self.func, self.args) == (other.func, other.args)

    def __hash__(self):
        return hash((self.func, self.args))


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


@pytest.mark.parametrize("seed", range(8))
def test_every_road_of_the_three_maps_for_random_geometry(seed, x64, monkeypatch):
    """As one convolution, on a CPU by group, tap by tap, with a rest of rows."""
    rng = random.Random(seed)
    axes, groups = rng.choice([1, 2, 2]), rng.choice([2, 3])
    sizes = [tuple(rng.choice(choice) for _ in range(axes)) for choice in ([3, 5, 7], [1, 2, 3, 4], [1, 2, 3])]
    channels = groups * rng.choice([1, 2]), groups * rng.choice([1, 2])
    args = arguments(*sizes[:2], channels, groups, bias=False)
    options = {"stride": sizes[2], "dilation": rng.choice([1, 2]), "padding": "SAME", "groups": groups}
    geometry = geometry_of(args, **options)
    dy = draw(2, *geometry.output, channels[1], seed=9)
    monkeypatch.setattr(correlation_cpu, "_CACHE", rng.choice([1, 1000, 3000]))
    monkeypatch.setattr(correlation_cpu, "_TERMS_A_LOOP", 3)
    y, gradients = by_autodiff(Static(convolution.reference, geometry), args, dy)

    def maps(module, x, weight, dy):
        return (
            module.correlate(geometry, x, weight),
            module.input_gradient(geometry, dy, weight),
            module.weight_gradient(geometry, x, dy),
        )

    close(jax.jit(partial(maps, correlation_xla))(*args[:2], dy), (y, *gradients[:2]))
    close(jax.jit(partial(maps, correlation_cpu))(*args[:2], dy), (y, *gradients[:2]))
    monkeypatch.setattr(correlation_cpu, "_SMALL_GROUP", 0)
    close(jax.jit(partial(maps, correlation_cpu))(*args[:2], dy), (y, *gradients[:2]))
    monkeypatch.setattr(correlation_cpu, "_MOST_GROUPS", 0)
    close(jax.jit(partial(maps, correlation_cpu))(*args[:2], dy), (y, *gradients[:2]))


@pytest.mark.parametrize("seed", range(8))
def test_sub_pixel_phases_for_random_geometry(seed, x64):
    """A window for each, and all taps' products first."""
    rng = random.Random(seed)
    axes = rng.choice([1, 2, 2])
    choices = [3, 5, 7], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3], [0, 1, 2]
    image, window, stride, dilation, extra = (tuple(rng.choice(c) for _ in range(axes)) for c in choices)
    padding = tuple(((k - 1) * d, e) for k, d, e in zip(window, dilation, extra, strict=True))
    args = arguments(image, window, bias=False)
    geometry = geometry_of(args, stride, padding, dilation)
    dy = draw(2, *geometry.output, 3, seed=9)
    _, (expected, *_) = by_autodiff(Static(convolution.reference, geometry), args, dy)
    for road in correlation_cpu.input_gradient, correlation_cpu._multiplied_first:
        close(jax.jit(partial(road, geometry))(dy, args[1]), expected)


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


# -------------------------------------------------------------------------------- link 5: transformations

OPTIONS = {
    "conv": partial(ops.conv, stride=2),
    "depthwise": partial(ops.conv, groups=4),
    "transposed": partial(ops.conv_transpose, stride=2),
}
every_op = pytest.mark.parametrize("op", OPTIONS)


def small(op, batch=3, dtype=jnp.float64):
    return arguments((3, 4), (2, 3), (4, 4), 4 if op == "depthwise" else 1, batch, dtype=dtype)


def loss(op, x, weight, bias):
    return jnp.square(jnp.tanh(OPTIONS[op](x, weight, bias))).sum()


@every_op
def test_jit_vmap_remat_and_grad_of_vmap(op, x64):
    args = small(op)
    f = partial(loss, op)
    expected = jax.jit(jax.grad(f, (0, 1, 2)))(*args)
    close(jax.jit(jax.grad(jax.checkpoint(f), (0, 1, 2)))(*args), expected)
    by_image = jax.vmap(lambda x, *rest: f(x[None], *rest), (0, None, None))
    close(jax.jit(jax.grad(lambda *args: by_image(*args).sum(), (0, 1, 2)))(*args), expected)
    images = jax.jit(jax.vmap(jax.grad(lambda x, *rest: f(x[None], *rest), (0, 1, 2)), (0, None, None)))(*args)
    close((images[0], images[1].sum(0), images[2].sum(0)), expected)
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), args)  # a weight for each
    close(jax.jit(jax.vmap(jax.grad(f, (0, 1, 2))))(*stacked)[1][0], expected[1])


@every_op
def test_scan(op, x64):
    x, weight, _ = small(op)
    f = partial(ops.conv_transpose if op == "transposed" else ops.conv, groups=4 if op == "depthwise" else 1)
    weights = jnp.stack([weight, 0.5 * weight, -weight])

    def scanned(x, weights):
        return lax.scan(lambda x, w: (jnp.tanh(f(x, w)), None), x, weights)[0].sum()

    def plain(x, weights):
        for w in weights:
            x = jnp.tanh(f(x, w))
        return x.sum()

    close(jax.jit(jax.grad(scanned, (0, 1)))(x, weights), jax.jit(jax.grad(plain, (0, 1)))(x, weights))


@every_op
def test_second_and_third_order(op, x64):
    args = small(op, 2)
    f = OPTIONS[op]
    if op == "transposed":
        geometry = transposed_convolution._geometry(*args, 2, "SAME", 1, 0, 1, "dilated")
        reference = partial(transposed_convolution.reference, geometry, "dilated")
    else:
        reference = partial(convolution.reference, geometry_of(args, **f.keywords))

    def penalty(f, *args):
        slopes = jax.grad(lambda *args: jnp.tanh(f(*args)).sum(), (0, 1, 2))(*args)
        return sum(jnp.square(s).sum() for s in slopes)

    def third(f, *args):
        return sum(s.sum() for s in jax.grad(lambda *args: penalty(f, *args), (0, 1))(*args))

    for order in penalty, third:
        found, expected = (jax.jit(jax.grad(partial(order, g), (0, 1, 2)))(*args) for g in (f, reference))
        close(found, expected)


def test_the_maps_are_each_others_gradients(x64):
    """T(x, w, y) from each map, and its gradient in each argument."""
    args = arguments((5, 4), (3, 2), (2, 4), 2, bias=False)
    geometry = geometry_of(args, stride=2, groups=2)
    x, weight = args[:2]
    y = draw(2, *geometry.output, 4, seed=9)
    forms = (
        lambda x, w, y: (correlation.correlate(geometry, x, w) * y).sum(),
        lambda x, w, y: (correlation.input_gradient(geometry, y, w) * x).sum(),
        lambda x, w, y: (correlation.weight_gradient(geometry, x, y) * w).sum(),
    )
    values, gradients = zip(*(jax.jit(jax.value_and_grad(f, (0, 1, 2)))(x, weight, y) for f in forms), strict=True)
    close(values[1:], values[:1] * 2)
    close(gradients[1:], gradients[:1] * 2)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from functools import partial
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxnet import ops

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
CASES = {
    "conv": (ops.conv, ops.conv_vjp, {"stride": 2}, (3, 2, 4, 4)),
    "one tap": (ops.conv, ops.conv_vjp, {}, (1, 1, 4, 4)),
    "depthwise": (ops.conv, ops.conv_vjp, {"groups": 4}, (3, 2, 1, 4)),
    "transposed": (ops.conv_transpose, ops.conv_transpose_vjp, {"stride": 2}, (3, 2, 4, 4)),
}
for name, (f, vjp, options, shape) in CASES.items():
    args = [jnp.asarray(rng.normal(size=size)) for size in ((8, 5, 4, 4), shape, (4,))]
    dy = jnp.asarray(rng.normal(size=f(*args, **options).shape))

    def by_autodiff(dy, *args):
        return jax.vjp(lambda *args: f(*args, **options), *args)[1](dy)

    def by_hand(dy, *args):
        return vjp(*args, **options)[1](dy)

    for kind in KINDS:
        mesh = jax.make_mesh((4,), ("batch",), axis_types=(kind,))
        specs = P("batch"), P("batch"), P(), P()
        for gradient in (by_autodiff,) if kind == AxisType.Auto else (by_hand,):
            expected = jax.jit(gradient)(dy, *args)
            mapped = jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=specs[1:])
            with jax.set_mesh(mesh):
                shards = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip((dy, *args), specs)]
                for g in gradient, mapped:
                    found = jax.jit(g)(*shards)
                    assert len(found[0].sharding.device_set) == 4
                    for a, b in zip(found, expected, strict=True):
                        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-9, atol=1e-12)
                    print(name, kind, gradient.__name__, g is mapped)
"""


def test_sharded_over_the_batch():
    # Four devices of one CPU: only a process of its own can have them.
    flags = ["--xla_force_host_platform_device_count=4", "--xla_backend_optimization_level=0"]
    flags += ["--xla_cpu_parallel_codegen_split_count=1"]
    environment = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    program = SHARDED.replace("KINDS", "AxisType.Auto, AxisType.Explicit")
    child = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert len(child.stdout.splitlines()) == 4 * 4


def test_a_second_call_does_not_recompile():
    traced = []

    @jax.jit
    def step(x, weight, bias):
        traced.append(x.shape)
        return jax.grad(partial(loss, "depthwise"), (0, 1, 2))(x, weight, bias)

    for _ in range(3):
        step(*small("depthwise", dtype="float32"))
    assert traced == [(3, 3, 4, 4)]


def test_on_a_cpu_no_image_is_dilated_and_no_convolution_is_grouped():
    """What XLA runs slowly there isn't in the program; it is in the one for a GPU."""
    args = arguments((5, 4), (3, 3), (4, 4), 4, dtype="float32")

    def text(f, args, platform):
        gradient = jax.jit(jax.value_and_grad(lambda *args: jnp.square(f(*args)).sum(), (0, 1)))
        return str(gradient.trace(*args).lower(lowering_platforms=(platform,)).as_text())

    grouped = partial(ops.conv, groups=4)
    assert "stablehlo.convolution" not in text(grouped, args, "cpu")
    assert "feature_group_count = 4" in text(grouped, args, "cuda")
    args, transposed = arguments((5, 4), (3, 3), (4, 4), dtype="float32"), partial(ops.conv_transpose, stride=2)
    assert "lhs_dilate = [2, 2]" not in text(transposed, args, "cpu")
    assert "lhs_dilate = [2, 2]" in text(transposed, args, "cuda")


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
@every_op
def test_nan_and_infinity_reach_what_the_reference_lets_them_reach(op, value, x64):
    f = OPTIONS[op]
    x, weight, bias = small(op)
    dy = draw(*jax.eval_shape(f, x, weight, bias).shape, seed=9)

    @jax.jit
    def everything(x, dy):
        y, pullback = jax.vjp(f, x, weight, bias)
        return y, *pullback(dy)[:2]

    def touched(by):
        x_there, dy_there = x.at[1, 2, 1, 0], dy.at[0, 1, 1, 1]
        y, _, dweight = everything(getattr(x_there, by)(step), dy)
        return y, dweight, everything(x, getattr(dy_there, by)(step))[1]

    y, dx, dweight = everything(x, dy)
    step = 1.0
    moved = touched("add")
    step = value
    for found, before, after in zip(touched("set"), (y, dweight, dx), moved, strict=True):
        np.testing.assert_array_equal(np.isfinite(found), np.abs(np.asarray(after - before)) < 1e-12)


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


def test_a_geometry_says_what_is_added_and_cut_off():
    geometry = Geometry((7,), (3,), (2,), (0,), (2,), (1,), 1)
    assert (geometry.extent, geometry.padding) == ((6,), ((0, -1),))
