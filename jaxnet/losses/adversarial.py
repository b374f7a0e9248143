"""Losses of generative adversarial networks, games of two: r = D(x) of real examples, f = D(G(z)) of generated.

==================  =================================  =================  ==============================
`non_saturating`    L_D = softplus(−r) + softplus(f)   L_G = softplus(−f)   Goodfellow et al. (2014)
`least_squares`     L_D = ((r − 1)² + f²) / 2          L_G = (f − 1)² / 2   Mao et al. (2017)
`adversarial_hinge` L_D = max(0, 1−r) + max(0, 1+f)    L_G = −f             Lim and Ye (2017)
`wasserstein`       L_D = f − r                        L_G = −f             Arjovsky et al. (2017)
==================  =================================  =================  ==============================

All are elementwise. `wasserstein` needs a critic of slope 1: add `gradient_penalty`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnet.activations import accumulation_dtype, sigmoid, softplus
from jaxnet.losses.loss import Loss, rule, same_shape
from jaxnet.ops.arrays import check_arrays


class Adversarial(NamedTuple):
    """The two sides: `discriminator(real, generated)` and `generator(generated, real)`.

    The generator's loss doesn't vary with its second argument.
    """

    discriminator: Loss
    generator: Loss


def _zero(f: Array, r: Array) -> Array:
    return jnp.zeros_like(r)


@rule(same_shape, lambda r, f: -sigmoid(-r), lambda r, f: sigmoid(f))
def _non_saturating_discriminator(real: Array, generated: Array) -> Array:
    """L = softplus(−r) + softplus(f),  ∂L/∂r = −σ(−r),  ∂L/∂f = σ(f)."""
    return softplus(-real) + softplus(generated)


@rule(same_shape, lambda f, r: -sigmoid(-f), _zero)
def _non_saturating_generator(generated: Array, real: Array) -> Array:
    """L = softplus(−f),  ∂L/∂f = −σ(−f)."""
    return softplus(-generated)


@rule(same_shape, lambda r, f: r - 1, lambda r, f: f)
def _least_squares_discriminator(real: Array, generated: Array) -> Array:
    """L = ((r − 1)² + f²) / 2,  ∂L/∂r = r − 1,  ∂L/∂f = f."""
    return (jnp.square(real - 1) + jnp.square(generated)) / 2


@rule(same_shape, lambda f, r: f - 1, _zero)
def _least_squares_generator(generated: Array, real: Array) -> Array:
    """L = (f − 1)² / 2,  ∂L/∂f = f − 1."""
    return jnp.square(generated - 1) / 2


def _if(condition: Array, value: Array) -> Array:
    return jnp.where(condition, value, jnp.zeros_like(value))


@rule(
    same_shape,
    lambda r, f: _if(r < 1, -jnp.ones_like(r)),
    lambda r, f: _if(f > -1, jnp.ones_like(f)),
)
def _hinge_discriminator(real: Array, generated: Array) -> Array:
    """L = max(0, 1 − r) + max(0, 1 + f),  ∂L/∂r = −[r < 1],  ∂L/∂f = [f > −1]."""
    return jnp.maximum(1 - real, 0) + jnp.maximum(1 + generated, 0)


@rule(same_shape, lambda r, f: -jnp.ones_like(r), lambda r, f: jnp.ones_like(f))
def _wasserstein_discriminator(real: Array, generated: Array) -> Array:
    """L = f − r,  ∂L/∂r = −1,  ∂L/∂f = 1."""
    return generated - real


@rule(same_shape, lambda f, r: -jnp.ones_like(f), _zero)
def _wasserstein_generator(generated: Array, real: Array) -> Array:
    """L = −f,  ∂L/∂f = −1."""
    return -generated


non_saturating = Adversarial(_non_saturating_discriminator, _non_saturating_generator)
least_squares = Adversarial(_least_squares_discriminator, _least_squares_generator)
adversarial_hinge = Adversarial(_hinge_discriminator, _wasserstein_generator)
wasserstein = Adversarial(_wasserstein_discriminator, _wasserstein_generator)


def gradient_penalty(gradient: Array, slope: float = 1.0) -> Array:
    """P = (‖g‖ − s)² of each example, g = ∂D/∂x (batch, …):  ∂P/∂g = 2 (‖g‖ − s) g/‖g‖, 0 for g = 0.

    g is taken at x̂ = ε x + (1 − ε) G(z), ε uniform in [0, 1] for each example, by the discriminator's
    hand-written backward pass: the penalty's derivative is one of second order. (Gulrajani et al., 2017).

    Example:
        >>> logits, pullback = discriminator.vjp(params, x)
        >>> losses.gradient_penalty(pullback(jnp.ones_like(logits))[1]).mean()
    """
    check_arrays("gradient_penalty", {"gradient": gradient})
    if gradient.ndim < 1 or not jnp.issubdtype(gradient.dtype, jnp.floating):
        raise ValueError(f"gradient_penalty needs a gradient (batch, …); got {gradient.dtype} {gradient.shape}")
    g = gradient.astype(accumulation_dtype(gradient.dtype)).reshape(len(gradient), -1)
    return jnp.square(_norm(g) - slope).astype(gradient.dtype)


@jax.custom_jvp
def _norm(g: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(g), -1))


@_norm.defjvp
def _norm_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """d‖g‖ = ⟨g, dg⟩/‖g‖, and 0 at 0, where every unit vector's product is a limit."""
    (g,), (dg,) = primals, tangents
    norm = _norm(g)
    return norm, _if(norm > 0, jnp.sum(g * dg, -1) / jnp.where(norm > 0, norm, jnp.ones_like(norm)))
