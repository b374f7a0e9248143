"""Divergences of distributions, and the loss of a variational autoencoder."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnet.losses.classification import binary_cross_entropy
from jaxnet.losses.loss import derivative, derived, rule, same_shape, times


@rule(
    same_shape,
    lambda log_q, p: -p,
    lambda log_q, p: jnp.log(p) + 1 - log_q,
    reduces=True,
)
def kl_divergence(log_prediction: Array, target: Array) -> Array:
    """KL(p ‖ q) = Σₖ pₖ (ln pₖ − ln qₖ),  ∂/∂ln qₖ = −pₖ,  ∂/∂pₖ = ln pₖ + 1 − ln qₖ.

    Args:
        log_prediction: ln q, shape (…, classes), such as `activations.log_softmax(logits)`.
        target: p, the same shape.

    Returns:
        The divergence of each example, shape (…), in nats.
    """
    positive = jnp.where(target > 0, target, jnp.ones_like(target))
    return jnp.sum(times(target, jnp.log(positive) - log_prediction), -1)


@rule(same_shape, lambda mean, log_variance: mean, lambda mean, log_variance: jnp.expm1(log_variance) / 2)
def gaussian_kl(mean: Array, log_variance: Array) -> Array:
    """KL(N(μ, σ²) ‖ N(0, 1)) = (μ² + σ² − ln σ² − 1)/2,  ∂/∂μ = μ,  ∂/∂ln σ² = (σ² − 1)/2; elementwise, in nats.

    Reference: Kingma and Welling, "Auto-encoding variational Bayes" (2014), appendix B.
    """
    return (jnp.square(mean) + jnp.expm1(log_variance) - log_variance) / 2


def _negative_elbo_derivative(
    prediction: tuple[Array, Array, Array], target: Array, beta: float = 1.0
) -> tuple[Array, Array, Array]:
    logits, mean, log_variance = prediction
    dmean, dlog_variance = beta * mean, beta * jnp.expm1(log_variance) / 2
    dlogits = derivative(binary_cross_entropy)(logits, target)
    return jax.tree.unflatten(jax.tree.structure(prediction), (dlogits, dmean, dlog_variance))


@derived(_negative_elbo_derivative)
def negative_elbo(prediction: tuple[Array, Array, Array], target: Array, beta: float = 1.0) -> Array:
    """L = Σ BCE(logits, x) + β Σ KL(N(μ, σ²) ‖ N(0, 1)): of each example, the negative evidence lower bound.

    Args:
        prediction: (logits, μ, ln σ²) of a `networks.variational_autoencoder`, the first of the target's shape.
        target: x in [0, 1], (batch, …).
        beta: weight of the divergence. (Higgins et al., 2017, for β ≠ 1).

    Raises:
        ValueError: for shapes or dtypes that don't fit, a target outside [0, 1], or β < 0.
    """
    if not beta >= 0:
        raise ValueError(f"negative_elbo needs beta ≥ 0; got {beta}")
    logits, mean, log_variance = prediction
    return _sums(binary_cross_entropy(logits, target)) + beta * _sums(gaussian_kl(mean, log_variance))


def _sums(values: Array) -> Array:
    return jnp.sum(values, tuple(range(1, values.ndim)))
