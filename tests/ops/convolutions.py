"""What the tests of the convolutions share."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.ops import convolution


def draw(*shape, seed=0, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(found, expected, rtol=1e-9, atol=1e-11):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


def arguments(image=(5, 4), window=(3, 2), channels=(2, 3), groups=1, batch=2, bias=True, dtype=jnp.float64):
    x = draw(batch, *image, channels[0], dtype=dtype)
    weight = draw(*window, channels[0] // groups, channels[1], seed=1, dtype=dtype)
    return x, weight, draw(channels[1], seed=2, dtype=dtype) if bias else None


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
