"""Augmentation: pure functions (key, x) → x of a batch of images (n, h, w, c), each image changed on its own.

They are made with their settings, and can be put together:

    augment = data.augment.compose(data.augment.shift(4), data.augment.flip(), data.augment.cutout(8))
    step = train.make_step(net, loss, optimizer, augment=augment)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

Augment = Callable[[Array, Array], Array]


def compose(*functions: Augment) -> Augment:
    """One after the other, each with a key of its own."""

    def augment(key: Array, x: Array) -> Array:
        for function, k in zip(functions, jax.random.split(key, len(functions)), strict=True):
            x = function(k, x)
        return x

    return augment


def flip() -> Augment:
    """Left and right exchanged, in half of the images."""

    def augment(key: Array, x: Array) -> Array:
        chosen = jax.random.bernoulli(key, 0.5, (len(x), *(1,) * (x.ndim - 1)))
        return jnp.where(chosen, jnp.flip(_images("flip", x), 2), x)

    return augment


def shift(pixels: int, *, mode: str = "constant") -> Augment:
    """Moved by up to `pixels` in each direction: a random crop of the padded image. (He et al., 2015).

    Args:
        pixels: the largest shift.
        mode: what comes in: "constant" (zeros), "reflect" or "edge", as in `jax.numpy.pad`.

    Raises:
        ValueError: for pixels < 0 or another mode.
    """
    if pixels < 0 or mode not in ("constant", "reflect", "edge"):
        raise ValueError(f"shift needs pixels ≥ 0 and constant, reflect or edge; got {pixels} and {mode!r}")

    def augment(key: Array, x: Array) -> Array:
        padded = jnp.pad(_images("shift", x), ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode)
        starts = jax.random.randint(key, (len(x), 2), 0, 2 * pixels + 1)

        def crop(image: Array, start: Array) -> Array:
            return jax.lax.dynamic_slice(image, (start[0], start[1], 0), x.shape[1:])

        return jax.vmap(crop)(padded, starts)

    return augment


def cutout(size: int) -> Augment:
    """A square of `size` pixels set to 0, anywhere, its centre in the image. (DeVries and Taylor, 2017).

    Raises:
        ValueError: for size < 1.
    """
    if size < 1:
        raise ValueError(f"cutout needs size ≥ 1; got {size}")

    def augment(key: Array, x: Array) -> Array:
        n, height, width, _ = _images("cutout", x).shape
        y_key, x_key = jax.random.split(key)
        tops = jax.random.randint(y_key, (n, 1, 1, 1), 0, height) - size // 2
        lefts = jax.random.randint(x_key, (n, 1, 1, 1), 0, width) - size // 2
        rows = jnp.arange(height)[None, :, None, None]
        columns = jnp.arange(width)[None, None, :, None]
        inside = (tops <= rows) & (rows < tops + size) & (lefts <= columns) & (columns < lefts + size)
        return jnp.where(inside, jnp.zeros((), x.dtype), x)

    return augment


def _images(name: str, x: Array) -> Array:
    if x.ndim != 4:
        raise ValueError(f"{name} needs images (n, h, w, c); got {x.shape}")
    return x
