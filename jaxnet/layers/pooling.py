"""Pooling and upsampling. None has parameters."""

from collections.abc import Callable
from functools import partial
from typing import Any

from jax import Array
from jax.tree_util import Partial

from jaxnet import ops
from jaxnet.layers.layer import Input, Layer, Params, output
from jaxnet.ops.windows import Padding, PerAxis


def max_pool(
    window: PerAxis,
    *,
    stride: PerAxis | None = None,
    padding: Padding = "VALID",
    dilation: PerAxis = 1,
    implementation: str | None = None,
) -> Layer:
    """The maximum of each window of x (N, S…, C): `ops.max_pool`, which says what the arguments are.

    Raises:
        ValueError: in `init`, `apply` and `vjp`, for windows that don't fit x.
    """
    options: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "implementation": implementation,
    }
    return _layer(
        partial(ops.max_pool, window=window, **options), partial(ops.max_pool_vjp, window=window, **options)
    )


def avg_pool(
    window: PerAxis,
    *,
    stride: PerAxis | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
    implementation: str | None = None,
) -> Layer:
    """The mean of each window of x (N, S…, C): `ops.avg_pool`, which says what the arguments are.

    Raises:
        ValueError: in `init`, `apply` and `vjp`, for windows that don't fit x.
    """
    options: dict[str, Any] = {"stride": stride, "padding": padding, "implementation": implementation}
    options["count_include_pad"] = count_include_pad
    return _layer(
        partial(ops.avg_pool, window=window, **options), partial(ops.avg_pool_vjp, window=window, **options)
    )


def global_max_pool(*, implementation: str | None = None) -> Layer:
    """(N, S…, C) → (N, C), the maximum of each channel: `ops.global_max_pool`."""
    options: dict[str, Any] = {"implementation": implementation}
    return _layer(partial(ops.global_max_pool, **options), partial(ops.global_max_pool_vjp, **options))


def global_avg_pool(*, implementation: str | None = None) -> Layer:
    """(N, S…, C) → (N, C), the mean of each channel: `ops.global_avg_pool`."""
    options: dict[str, Any] = {"implementation": implementation}
    return _layer(partial(ops.global_avg_pool, **options), partial(ops.global_avg_pool_vjp, **options))


def upsample(factor: PerAxis, *, method: str = "nearest", implementation: str | None = None) -> Layer:
    """Each spatial axis `factor` times as long, by method "nearest" or "bilinear": `ops.upsample`.

    Raises:
        ValueError: in `init`, `apply` and `vjp`, for a factor that doesn't fit x, or an unknown method.
    """
    options: dict[str, Any] = {"factor": factor, "method": method, "implementation": implementation}
    return _layer(partial(ops.upsample, **options), partial(ops.upsample_vjp, **options))


def _layer(op: Callable[..., Array], op_vjp: Callable[..., tuple[Array, Partial]]) -> Layer:
    def init(key: Array, x: Input) -> Params:
        output(layer, (), x)  # checks x
        return ()

    def apply(params: Params, x: Array, *, key: Array | None = None) -> Array:
        return op(x)

    def vjp(params: Params, x: Array, *, key: Array | None = None) -> tuple[Array, Partial]:
        y, pullback = op_vjp(x)
        return y, Partial(_pullback, pullback)

    layer = Layer(init, apply, vjp)
    return layer


def _pullback(pullback: Partial, dy: Array) -> tuple[Params, Array]:
    (dx,) = pullback(dy)
    return (), dx
