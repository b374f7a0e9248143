"""Normalisation: of each example (layer, RMS, group), and over the batch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxnet import ops
from jaxnet.layers.layer import Input, Layer, Params

# What `batch_norm` in training gives as the "gradient" of its population statistics: None, nothing; "statistics",
# those of the batch; "count", 1. Part of jit's cache key. `train.population_statistics` sets it.
recorded = jax.make_user_context(default_value=None)


def layer_norm(
    *,
    axis: int | Sequence[int] = -1,
    eps: float = 1e-5,
    scale: bool = True,
    bias: bool = True,
    implementation: str | None = None,
) -> Layer:
    """y = γ (x − μ) / √(v + ε) + β, μ and v over `axis` of each example: `ops.layer_norm` with parameters.

    `params` is `{"scale": γ, "bias": β}`, those that there are, of the sizes of `axis` in x, in its dtype.

    Raises:
        ValueError: for a negative ε; in `init`, `apply` and `vjp`, for axes that x doesn't have.
    """
    options: dict[str, Any] = {"axis": axis, "eps": eps, "implementation": implementation}

    shape = partial(_sizes, "layer_norm", axis)
    return _affine("layer_norm", ops.layer_norm, ops.layer_norm_vjp, shape, scale, bias, options)


def rms_norm(
    *, axis: int | Sequence[int] = -1, eps: float = 1e-6, scale: bool = True, implementation: str | None = None
) -> Layer:
    """y = γ x / √(Σ x² / n + ε), the sum over `axis` of each example: `ops.rms_norm` with parameters.

    `params` is `{"scale": γ}`, of the sizes of `axis` in x, in its dtype, or `{}`.

    Raises:
        ValueError: for a negative ε; in `init`, `apply` and `vjp`, for axes that x doesn't have.
    """
    options: dict[str, Any] = {"axis": axis, "eps": eps, "implementation": implementation}

    def op(x: Array, scale: Array | None, bias: None, **options: Any) -> Array:
        return ops.rms_norm(x, scale, **options)

    def op_vjp(x: Array, scale: Array | None, bias: None, **options: Any) -> tuple[Array, Partial]:
        return ops.rms_norm_vjp(x, scale, **options)

    return _affine("rms_norm", op, op_vjp, partial(_sizes, "rms_norm", axis), scale, False, options)


def _sizes(name: str, axis: int | Sequence[int], x: Input) -> tuple[int, ...]:
    """Of these axes of x."""
    axes = (axis,) if isinstance(axis, int) else axis
    if any(not -len(x.shape) <= a < len(x.shape) for a in axes):
        raise ValueError(f"{name} over axis {axis} doesn't fit x of shape {x.shape}")
    return tuple(x.shape[a] for a in sorted(a % len(x.shape) for a in axes))


def group_norm(
    groups: int, *, eps: float = 1e-5, scale: bool = True, bias: bool = True, implementation: str | None = None
) -> Layer:
    """y = γ (x − μ) / √(v + ε) + β, μ and v of each example and group of channels: `ops.group_norm`.

    `params` is `{"scale": γ, "bias": β}`, those that there are, (C,), in the dtype of x.

    Raises:
        ValueError: for groups < 1 or a negative ε; in `init`, `apply` and `vjp`, if they don't divide C.
    """
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(f"group_norm needs a whole number of groups ≥ 1; got {groups!r}")
    options: dict[str, Any] = {"groups": groups, "eps": eps, "implementation": implementation}

    def shape(x: Input) -> tuple[int, ...]:
        if len(x.shape) < 2 or x.shape[-1] % groups:
            raise ValueError(f"group_norm needs x (N, S…, C), C a multiple of {groups} groups; got {x.shape}")
        return (x.shape[-1],)

    return _affine("group_norm", ops.group_norm, ops.group_norm_vjp, shape, scale, bias, options)


def batch_norm(
    *, eps: float = 1e-5, scale: bool = True, bias: bool = True, implementation: str | None = None
) -> Layer:
    """y = γ (x − μ) / √(v + ε) + β, for each channel of x (N…, C).

    With a key (training) μ and v are the batch's; the gradient goes through them. Without one (inference) they are
    the population's, which lie in `params`. Training neither reads nor changes those, and their gradient there is
    zero: they are 0 and 1 until `train.population_statistics` calculates them, in one pass over data once the
    other parameters are as they shall be. There is no moving average. Weight decay would only shrink what that
    pass replaces; `layers.trainable` is a mask that leaves them alone.

    Args:
        eps: ε ≥ 0.
        scale: whether there is a γ.
        bias: whether there is a β.
        implementation: see `jaxnet.ops.dispatch`.

    `params` is `{"scale": γ, "bias": β, "mean": μ, "var": v}`, each (C,), in the dtype of x.

    Raises:
        ValueError: for a negative ε; in `init`, for an x without channels.

    Reference: Ioffe and Szegedy, Batch Normalization, 2015, https://arxiv.org/abs/1502.03167; Wu and Johnson,
    Rethinking "Batch" in BatchNorm, 2021, https://arxiv.org/abs/2105.07576
    """
    options: dict[str, Any] = {"eps": eps, "implementation": implementation}
    _check_eps("batch_norm", eps)

    def init(key: Array, x: Input) -> Params:
        if len(x.shape) < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"batch_norm needs a floating-point x (N…, C); got {x.dtype} {x.shape}")
        statistics = {"mean": jnp.zeros(x.shape[-1:], x.dtype), "var": jnp.ones(x.shape[-1:], x.dtype)}
        return _scale_and_bias(scale, bias, x.shape[-1:], x.dtype) | statistics

    def apply(params: Params, x: Array, *, key: Array | None = None) -> Array:
        factors = params.get("scale"), params.get("bias")
        if key is None:
            return ops.batch_norm_inference(x, params["mean"], params["var"], *factors, **options)
        y, mean, variance = ops.batch_norm(x, *factors, **options)
        return y if recorded.value is None else _recording(y, params["mean"], params["var"], mean, variance)

    def vjp(params: Params, x: Array, *, key: Array | None = None) -> tuple[Array, Partial]:
        factors = params.get("scale"), params.get("bias")
        if key is None:
            y, pullback = ops.batch_norm_inference_vjp(x, params["mean"], params["var"], *factors, **options)
            return y, Partial(_inference_pullback, pullback)
        (y, mean, _), pullback = ops.batch_norm_vjp(x, *factors, **options)
        unused = jnp.zeros_like(mean), jnp.zeros_like(params["mean"]), jnp.zeros_like(params["var"])
        return y, Partial(_training_pullback, pullback, *unused)

    return Layer(init, apply, vjp)


def _inference_pullback(pullback: Partial, dy: Array) -> tuple[Params, Array]:
    dx, dmean, dvariance, dscale, dbias = pullback(dy)
    return _named(dscale, dbias) | {"mean": dmean, "var": dvariance}, dx


def _training_pullback(
    pullback: Partial, zero: Array, dmean: Array, dvariance: Array, dy: Array
) -> tuple[Params, Array]:
    """Nothing but y depends on the batch's statistics, and y doesn't on the population's."""
    dx, dscale, dbias = pullback((dy, zero, zero))
    return _named(dscale, dbias) | {"mean": dmean, "var": dvariance}, dx


@jax.custom_vjp
def _recording(y: Array, mean: Array, variance: Array, batch_mean: Array, batch_variance: Array) -> Array:
    """y; the "gradients" of the population's statistics are those of the batch, whatever dy is."""
    return y


def _recording_forward(y: Array, *statistics: Array) -> tuple[Array, tuple[Array, ...]]:
    mean, variance, *of_batch = statistics
    if recorded.value == "count":
        of_batch = [jnp.ones_like(mean), jnp.ones_like(variance)]
    zeros = [jnp.zeros_like(a) for a in statistics[2:]]
    return y, (of_batch[0].astype(mean.dtype), of_batch[1].astype(variance.dtype), *zeros)


def _recording_backward(residuals: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    return dy, *residuals


_recording.defvjp(_recording_forward, _recording_backward)


def trainable(params: Params) -> Params:
    """Returns True for each array of `params`, False for the population's statistics of `batch_norm`.

    Those are an array "mean" and an array "var" in one dictionary. A mask for optimizers.

    Example:
        >>> optimizer = train.adamw(1e-3, weight_decay=0.01, mask=layers.trainable)
    """

    def is_batch_norm(node: Any) -> bool:
        return isinstance(node, dict) and all(hasattr(node.get(name), "shape") for name in ("mean", "var"))

    def mask(node: Any) -> Any:
        return {name: name not in ("mean", "var") for name in node} if is_batch_norm(node) else True

    return jax.tree.map(mask, params, is_leaf=is_batch_norm)


def _affine(
    name: str,
    op: Callable[..., Array],
    op_vjp: Callable[..., tuple[Array, Partial]],
    shape: Callable[[Input], tuple[int, ...]],
    scale: bool,
    bias: bool,
    options: dict[str, Any],
) -> Layer:
    """A normalisation with a γ and a β of `shape(x)`."""
    _check_eps(name, options["eps"])

    def init(key: Array, x: Input) -> Params:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} needs a floating-point x; got {x.dtype}")
        return _scale_and_bias(scale, bias, shape(x), x.dtype)

    def apply(params: Params, x: Array, *, key: Array | None = None) -> Array:
        return op(x, params.get("scale"), params.get("bias"), **options)

    def vjp(params: Params, x: Array, *, key: Array | None = None) -> tuple[Array, Partial]:
        y, pullback = op_vjp(x, params.get("scale"), params.get("bias"), **options)
        return y, Partial(_affine_pullback, pullback)

    return Layer(init, apply, vjp)


def _affine_pullback(pullback: Partial, dy: Array) -> tuple[Params, Array]:
    dx, *dfactors = pullback(dy)
    return _named(*dfactors), dx


def _named(dscale: Array | None, dbias: Array | None = None) -> dict[str, Array]:
    return {name: d for name, d in (("scale", dscale), ("bias", dbias)) if d is not None}


def _scale_and_bias(scale: bool, bias: bool, shape: tuple[int, ...], dtype: Any) -> dict[str, Array]:
    params = {"scale": jnp.ones(shape, dtype)} if scale else {}
    return params | ({"bias": jnp.zeros(shape, dtype)} if bias else {})


def _check_eps(name: str, eps: float) -> None:
    if not eps >= 0:
        raise ValueError(f"{name} needs eps ≥ 0; got {eps}")
