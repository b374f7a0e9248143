"""Right derivatives of which the numbers are hard: tiny, huge, mixed, cancelling, ill-conditioned."""

from typing import Any

import jax
import jax.numpy as jnp

from .registry import Setup, away_from_zero, correct, normal, positive, setup


@correct(source="pasteurlabs/tesseract-core #712")
def arguments_of_order_1e6(rng: Any) -> Setup:
    """A step of 1e-4 is lost in them."""
    return setup(lambda x: jnp.tanh(x / 1e6) ** 2, 1e6 * normal(rng, 5))


@correct()
def arguments_of_order_1e_6(rng: Any) -> Setup:
    """A step of 1e-4 is a hundred times as large as they are."""
    return setup(lambda x: jnp.tanh(x * 1e6) ** 2, 1e-6 * normal(rng, 5))


@correct()
def eighteen_orders_in_one_leaf(rng: Any) -> Setup:
    """Elements from 1e-9 to 1e9, each with a derivative of its own size."""
    return setup(
        lambda x: jnp.log(x).sum() + jnp.sqrt(x).sum() * 1e-3, 10.0 ** jnp.arange(-9, 10, 3.0) * positive(rng, 7)
    )


@correct(source="pasteurlabs/tesseract-core #713")
def arguments_of_different_order(rng: Any) -> Setup:
    """One leaf of order 1e-8, one of order 1e8."""
    return setup(lambda a, b: jnp.sin(a * b).sum(), 1e-8 * normal(rng, 4), 1e8 * normal(rng, 4))


@correct()
def one_small_element_that_matters(rng: Any) -> Setup:
    """Its neighbours are of order 1,000; the function feels it a million times more."""
    return setup(
        lambda x: jnp.sin(x[0] * 1e4) + jnp.cos(x[1:] / 1e3).sum(), (1e3 * normal(rng, 5)).at[0].set(2e-4)
    )


@correct()
def root_near_zero(rng: Any) -> Setup:
    """√x at 1e-12 and 1e-30: the domain ends just beside."""
    return setup(lambda x: jnp.sqrt(x), jnp.array([1e-12, 1e-30, 1e-3, 1.0]) * positive(rng, 4))


@correct()
def logarithm_of_tiny_numbers(rng: Any) -> Setup:
    """log(1e-30): a slope of 1e30."""
    return setup(lambda x: jnp.log(x), jnp.array([1e-30, 1e-10, 1e-3, 1.0]) * positive(rng, 4))


@correct()
def reciprocal_near_zero(rng: Any) -> Setup:
    """1/x at 1e-4 beside 1/x at 100."""
    return setup(lambda x: 1 / x, jnp.array([1e-4, -1e-2, 1.0, 100.0]) * positive(rng, 4))


@correct()
def sum_that_cancels(rng: Any) -> Setup:
    """A million minus a million, in the value; the derivative is of order 1."""
    return setup(lambda x: (1e6 + jnp.sin(x)).sum() - 1e6 * x.size, normal(rng, 5))


@correct()
def small_loss_on_a_large_offset(rng: Any) -> Setup:
    """1e8 + sin: float64 leaves eight digits for the differences."""
    return setup(lambda x: 1e8 + jnp.sin(x).sum(), normal(rng, 5))


@correct(source="jax-ml/jax #3130")
def a_hundred_thousand_terms(rng: Any) -> Setup:
    """The value is large because there are many terms."""
    return setup(
        lambda x: (1 + jnp.sin(x[:, None] * jnp.linspace(0, 1, 20_000, dtype=x.dtype)[None])).sum(), normal(rng, 5)
    )


@correct()
def saturated_tanh(rng: Any) -> Setup:
    """At 15 the slope is 4e-13, beside slopes of order 1."""
    return setup(lambda x: jnp.tanh(x), normal(rng, 6).at[:2].set(jnp.array([15.0, -9.0])))


@correct()
def everything_saturated(rng: Any) -> Setup:
    """All slopes are below 1e-10, and right."""
    return setup(lambda x: jax.nn.sigmoid(x), -25 - positive(rng, 4))


@correct()
def argument_without_influence(rng: Any) -> Setup:
    """Exactly zero, and that is right."""
    return setup(lambda x, unused: jnp.sin(x).sum() + 0 * unused.sum(), normal(rng, 4), normal(rng, 3))


@correct()
def constant_function(rng: Any) -> Setup:
    """Every gradient is zero."""
    return setup(lambda x: (x - x).sum() + 3, normal(rng, 4))


@correct()
def zero_but_for_rounding(rng: Any) -> Setup:
    """Softmax doesn't see a shift: its gradient is 0, float32 returns 1e-8."""

    def loss(x: Any, shift: Any) -> Any:
        return (jax.nn.softmax(x + shift) ** 2).sum()

    return setup(loss, normal(rng, 4, 5), jnp.asarray(0.3))


@correct()
def weight_before_a_normalisation(rng: Any) -> Setup:
    """x/|x| doesn't see the scale: the gradient is orthogonal to x, and its sum with x is rounding."""
    return setup(lambda x, scale: (scale * x) / jnp.linalg.norm(scale * x), normal(rng, 6), jnp.asarray(2.0))


@correct()
def logsumexp_of_large_numbers(rng: Any) -> Setup:
    """Around 10,000 and -10,000."""
    return setup(lambda x: jax.nn.logsumexp(x, axis=1), normal(rng, 2, 5) + jnp.array([[1e4], [-1e4]]))


@correct()
def softmax_of_large_numbers(rng: Any) -> Setup:
    """Most probabilities are 0 or 1 to all digits."""
    return setup(lambda x: jax.nn.softmax(x), 300 * normal(rng, 3, 4))


@correct()
def cross_entropy_of_sure_predictions(rng: Any) -> Setup:
    """Right with a probability of 1 - 1e-9: the gradient is of that size."""
    return setup(
        lambda x: -jax.nn.log_softmax(x)[jnp.arange(3), jnp.arange(3)], normal(rng, 3, 4) + 20 * jnp.eye(3, 4)
    )


@correct()
def fast_oscillation(rng: Any) -> Setup:
    """sin(1000·x): differences need a step far below the scale of x."""
    return setup(lambda x: jnp.sin(1000 * x), normal(rng, 4))


@correct()
def exponential_of_thirty(rng: Any) -> Setup:
    """Values of 1e13 beside values of 1e-13."""
    return setup(lambda x: jnp.exp(x), 30 * away_from_zero(rng, 4))


@correct()
def variance_around_a_large_mean(rng: Any) -> Setup:
    """A mean of 1,000 and a deviation of 1, taken in two passes."""
    return setup(lambda x: jnp.var(x), 1000 + normal(rng, 16))


@correct()
def narrow_bump(rng: Any) -> Setup:
    """A gaussian of width 1e-3 around the argument."""
    centre = 1.25
    return setup(lambda x: jnp.exp(-(((x - centre) / 1e-3) ** 2) / 2), centre + 1e-3 * normal(rng, 4))


@correct()
def high_power(rng: Any) -> Setup:
    """x⁴⁰ for |x| from 1/2 to 2: 24 orders of magnitude in the value."""
    return setup(lambda x: x**40, away_from_zero(rng, 5))


@correct()
def special_functions(rng: Any) -> Setup:
    """Γ, ψ, erf, Bessel: derivatives by other series than the values."""
    special = jax.scipy.special
    return setup(
        lambda x: special.gammaln(x) + special.digamma(x) + special.erf(x) + special.i0e(x) + special.i1(x),
        positive(rng, 4),
    )


@correct()
def tail_of_the_normal_distribution(rng: Any) -> Setup:
    """log Φ down to -12, with its own series in the tail. Its rule is exp(-x²/2 - log Φ): x² eps/2 of rounding."""
    return setup(lambda x: jax.scipy.stats.norm.logcdf(x), -6 * positive(rng, 4))
