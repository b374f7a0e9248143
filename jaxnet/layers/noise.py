"""Noise on the input, for denoising and as a regulariser."""

import jax
from jax import Array
from jax.tree_util import Partial

from jaxnet.layers.layer import Input, Layer, Params


def gaussian_noise(stddev: float) -> Layer:
    """In training y = x + σ ε, ε ~ N(0, 1) drawn from `key`; without a key y = x. dx = dy. No parameters.

    Put before a network whose target is the clean x, it makes a denoising one. (Vincent et al., 2008).

    Raises:
        ValueError: unless 0 ≤ stddev.
    """
    if not stddev >= 0:
        raise ValueError(f"gaussian_noise needs stddev ≥ 0; got {stddev}")

    def init(key: Array, x: Input) -> Params:
        return ()

    def apply(params: Params, x: Array, *, key: Array | None = None) -> Array:
        return x if key is None else x + stddev * jax.random.normal(key, x.shape, x.dtype)

    def vjp(params: Params, x: Array, *, key: Array | None = None) -> tuple[Array, Partial]:
        return apply(params, x, key=key), Partial(_pullback)

    return Layer(init, apply, vjp)


def _pullback(dy: Array) -> tuple[Params, Array]:
    return (), dy
