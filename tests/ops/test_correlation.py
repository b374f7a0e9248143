"""The three maps of a convolution on each of their roads."""

import random
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from convolutions import Static, arguments, by_autodiff, close, draw, geometry_of

from jaxnet import ops
from jaxnet.ops import convolution, correlation, correlation_cpu, correlation_xla
from jaxnet.ops.correlation_xla import Geometry


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


@pytest.mark.parametrize("seed", range(4))
def test_an_image_of_few_channels_for_random_geometry(seed, x64):
    """What its taps see side by side."""
    rng = random.Random(seed)
    axes, channels = rng.choice([1, 2, 3]), (rng.choice([1, 2]), 40)
    choices = [3, 5, 7], [1, 2, 3], [1, 2, 3], [1, 2]
    image, window, stride, dilation = (tuple(rng.choice(c) for _ in range(axes)) for c in choices)
    args = arguments(image, window, channels, bias=False)
    geometry = geometry_of(args, stride, "SAME", dilation)
    dy = draw(2, *geometry.output, 40, seed=9)
    y, (_, dweight, *_) = by_autodiff(Static(convolution.reference, geometry), args, dy)
    assert correlation_cpu.few(geometry, *channels) or window == (1,) * axes or axes == 3
    close(jax.jit(partial(correlation_cpu.correlate, geometry))(*args[:2]), y)
    close(jax.jit(partial(correlation_cpu.weight_gradient, geometry))(args[0], dy), dweight)


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


def test_a_geometry_says_what_is_added_and_cut_off():
    geometry = Geometry((7,), (3,), (2,), (0,), (2,), (1,), 1)
    assert (geometry.extent, geometry.padding) == ((6,), ((0, -1),))
