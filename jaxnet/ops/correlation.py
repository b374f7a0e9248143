"""Correlation of an image with a window of weights, and its two gradients: three maps of one form.

Axes: N batch · P places in the output · Q places in the image · K taps of the window, each 1, 2 or 3 axes ·
G groups · C channels of the image and O of the output in one group.

    T(x, w, y) = Σ x[n, s p + d k − a, g c] w[k, c, g o] y[n, p, g o]     s stride, d dilation, a padding before

    correlate        ∂T/∂y:  y[n, p, g o] = Σ_kc x[n, s p + d k − a, g c] w[k, c, g o]
    input_gradient   ∂T/∂x:  x[n, q, g c] = Σ_ko w[k, c, g o] y[n, p, g o]  over the (k, p) with s p + d k − a = q
    weight_gradient  ∂T/∂w:  w[k, c, g o] = Σ_np x[n, s p + d k − a, g c] y[n, p, g o]

x is 0 outside of the image. T is linear in each argument, so the gradients of each map are the other two:
they are closed under differentiation, and a backward pass of any order is made of these three alone.

Each is one convolution of XLA's (`correlation_xla`). On a CPU some of those run 10 to 100 times slower than
others: there a strided `input_gradient`, an image or a result of few channels and all groups take another road
(`correlation_cpu`).
"""

from collections.abc import Callable
from functools import partial

from jax import Array, custom_vjp, lax, typeof
from jax.sharding import NamedSharding

from jaxnet.ops import correlation_cpu, correlation_xla
from jaxnet.ops.correlation_xla import Geometry


def correlate(geometry: Geometry, x: Array, weight: Array) -> Array:
    """Returns y (N, P…, G·O) of an image x (N, Q…, G·C) and a weight (K…, C, G·O), in at least float32."""
    return _correlate(geometry, *_alike(x, weight))


def input_gradient(geometry: Geometry, y: Array, weight: Array) -> Array:
    """Returns the image (N, Q…, G·C) of y (N, P…, G·O): the transpose of `correlate` in x."""
    return _input_gradient(geometry, *_alike(y, weight))


def weight_gradient(geometry: Geometry, x: Array, y: Array, sharding: NamedSharding | None = None) -> Array:
    """Returns the weight (K…, C, G·O): the transpose of `correlate` in w. `sharding` is that of the weight."""
    return _weight_gradient(geometry, sharding, *_alike(x, y))


def _alike(a: Array, b: Array) -> tuple[Array, Array]:
    """Two arrays of one dtype: a half-precision one beside a sum of such is widened."""
    if a.dtype == b.dtype:
        return a, b
    dtype = max(a.dtype, b.dtype, key=lambda d: d.itemsize)
    return a.astype(dtype), b.astype(dtype)


@partial(custom_vjp, nondiff_argnums=(0,))
def _correlate(geometry: Geometry, x: Array, weight: Array) -> Array:
    few, (c, outputs) = correlation_cpu.few, weight.shape[-2:]
    from_few = few(geometry, c, outputs) and typeof(x).sharding.spec[0] is None
    to_few = few(geometry, outputs, c) and set(geometry.stride) == {1}
    if geometry.groups == 1 and not from_few and not to_few:
        return correlation_xla.correlate(geometry, x, weight)
    return _on_cpu(correlation_cpu.correlate, correlation_xla.correlate, geometry, x, weight)


@partial(custom_vjp, nondiff_argnums=(0,))
def _input_gradient(geometry: Geometry, y: Array, weight: Array) -> Array:
    few = correlation_cpu.few(geometry, weight.shape[-2], weight.shape[-1])
    if geometry.groups == 1 and set(geometry.stride) == {1} and not few:
        return correlation_xla.input_gradient(geometry, y, weight)
    return _on_cpu(correlation_cpu.input_gradient, correlation_xla.input_gradient, geometry, y, weight)


@partial(custom_vjp, nondiff_argnums=(0, 1))
def _weight_gradient(geometry: Geometry, sharding: NamedSharding | None, x: Array, y: Array) -> Array:
    xla = partial(correlation_xla.weight_gradient, sharding=sharding)
    few = correlation_cpu.few(geometry, x.shape[-1], y.shape[-1])
    # On a CPU images are taken one by one, if there are any and they don't lie on several devices explicitly.
    if (geometry.groups == 1 and not few) or x.shape[0] == 0 or typeof(x).sharding.spec[0] is not None:
        return xla(geometry, x, y)
    return _on_cpu(correlation_cpu.weight_gradient, xla, geometry, x, y)


def _on_cpu(cpu: Callable[..., Array], other: Callable[..., Array], geometry: Geometry, *arrays: Array) -> Array:
    """Which platform a program is lowered for is known only after tracing: the choice is part of it."""
    return lax.platform_dependent(*arrays, cpu=partial(cpu, geometry), default=partial(other, geometry))


def _correlate_backward(geometry: Geometry, residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """dx = ∂T/∂x(w, dy),  dw = ∂T/∂w(x, dy)."""
    x, weight = residuals
    dx, dweight = input_gradient(geometry, dy, weight), weight_gradient(geometry, x, dy)
    return dx.astype(x.dtype), dweight.astype(weight.dtype)


def _input_gradient_backward(geometry: Geometry, residuals: tuple[Array, Array], dx: Array) -> tuple[Array, Array]:
    """dy = ∂T/∂y(dx, w),  dw = ∂T/∂w(dx, y)."""
    y, weight = residuals
    dy, dweight = correlate(geometry, dx, weight), weight_gradient(geometry, dx, y)
    return dy.astype(y.dtype), dweight.astype(weight.dtype)


def _weight_gradient_backward(
    geometry: Geometry, sharding: NamedSharding | None, residuals: tuple[Array, Array], dweight: Array
) -> tuple[Array, Array]:
    """dx = ∂T/∂x(dw, y),  dy = ∂T/∂y(x, dw)."""
    x, y = residuals
    dx, dy = input_gradient(geometry, y, dweight), correlate(geometry, x, dweight)
    return dx.astype(x.dtype), dy.astype(y.dtype)


_correlate.defvjp(lambda g, *args: (_correlate(g, *args), args), _correlate_backward)
_input_gradient.defvjp(lambda g, *args: (_input_gradient(g, *args), args), _input_gradient_backward)
_weight_gradient.defvjp(lambda g, s, *args: (_weight_gradient(g, s, *args), args), _weight_gradient_backward)
