"""Right derivatives at points where differences mislead: kinks, ties, knots, singularities that are none."""

from typing import Any

import jax
import jax.numpy as jnp

from .registry import Setup, away_from_zero, correct, normal, positive, rule, setup


def with_zeros(rng: Any, size: int = 6) -> jax.Array:
    return away_from_zero(rng, size).at[jnp.array([1, 4])].set(0.0)


def weights(x: Any) -> Any:
    """Not all cotangents may be equal."""
    return jnp.arange(1, x.size + 1, dtype=x.dtype).reshape(x.shape) * x


@correct()
def relu_at_zero(rng: Any) -> Setup:
    """JAX's relu has the slope 0 at 0."""
    return setup(lambda x: weights(jax.nn.relu(x)), with_zeros(rng))


@correct(source="jax-ml/jax #37821")
def maximum_with_zero_at_zero(rng: Any) -> Setup:
    """max(x, 0) has the slope 1/2 at 0."""
    return setup(lambda x: weights(jnp.maximum(x, 0)), with_zeros(rng))


@correct(source="jax-ml/jax #37820")
def abs_at_zero(rng: Any) -> Setup:
    """|x| has the slope 1 at 0 in JAX: an end of the interval."""
    return setup(lambda x: weights(jnp.abs(x)), with_zeros(rng))


@correct()
def relu_with_a_third_at_zero(rng: Any) -> Setup:
    """Any slope between 0 and 1 is a subgradient."""
    slope = lambda x: jnp.where(x == 0, 1 / 3, jnp.where(x > 0, 1.0, 0.0))  # noqa: E731
    return setup(rule(lambda x: jnp.maximum(x, 0), lambda x, y, dy: (dy * slope(x),)), with_zeros(rng))


@correct()
def clip_on_both_bounds(rng: Any) -> Setup:
    """Two elements sit exactly on the bounds."""
    return setup(lambda x: weights(jnp.clip(x, -1, 1)), normal(rng, 6).at[:2].set(jnp.array([-1.0, 1.0])))


@correct(source="jax-ml/jax #14682")
def relu6_at_both_ends(rng: Any) -> Setup:
    """0 and 6."""
    return setup(lambda x: weights(jax.nn.relu6(x)), normal(rng, 6).at[:2].set(jnp.array([0.0, 6.0])))


@correct()
def hard_swish_at_three(rng: Any) -> Setup:
    """The kinks at ±3, where the slope jumps by one half and more."""
    return setup(lambda x: weights(jax.nn.hard_swish(x)), normal(rng, 6).at[:2].set(jnp.array([-3.0, 3.0])))


@correct()
def leaky_relu_and_elu_at_zero(rng: Any) -> Setup:
    """A kink, and beside it a function that is smooth at the same point."""
    return setup(lambda x: jax.nn.leaky_relu(x) + jax.nn.elu(x), with_zeros(rng))


@correct()
def hinge_at_the_margin(rng: Any) -> Setup:
    """max(0, 1 - y·s) where y·s is 1."""
    labels = jnp.array([1.0, -1.0, 1.0, -1.0])
    return setup(
        lambda s: jnp.maximum(0, 1 - labels.astype(s.dtype) * s).sum(),
        normal(rng, 4).at[:2].set(jnp.array([1.0, -1.0])),
    )


@correct()
def equal_maxima_of_an_axis(rng: Any) -> Setup:
    """JAX shares the gradient among equal maxima."""
    x = normal(rng, 3, 4)
    return setup(lambda x: x.max(axis=1), x.at[0, 1].set(x[0].max()).at[0, 2].set(x[0].max()))


@correct()
def first_of_equal_maxima(rng: Any) -> Setup:
    """argmax gives all to the first: as good."""
    x = normal(rng, 3, 4)
    return setup(
        lambda x: jnp.take_along_axis(x, x.argmax(axis=1)[:, None], axis=1)[:, 0],
        x.at[0, 1].set(x[0].max()).at[0, 2].set(x[0].max()),
    )


@correct(source="pytorch/pytorch #56734")
def maximum_of_two_equal_arrays(rng: Any) -> Setup:
    """max(x, y) with x = y everywhere."""
    x = normal(rng, 4)
    return setup(lambda x, y: weights(jnp.maximum(x, y)) - jnp.minimum(y, x), x, x)


@correct()
def sort_with_ties(rng: Any) -> Setup:
    """A sort where three are equal."""
    return setup(lambda x: weights(jnp.sort(x)), normal(rng, 6).at[jnp.array([0, 2, 5])].set(0.25))


@correct(source="pytorch/pytorch #57166")
def top_k_with_ties(rng: Any) -> Setup:
    """The second and the third largest are equal, and two are taken."""
    return setup(lambda x: jax.lax.top_k(x, 2)[0], normal(rng, 5).at[:3].set(jnp.array([3.0, 4.0, 3.0])))


@correct()
def median_of_an_even_number(rng: Any) -> Setup:
    """Two elements share it; both are equal."""
    return setup(lambda x: jnp.median(x), jnp.array([2.0, 1.0, 1.0, -3.0]) + 0 * normal(rng, 4))


@correct()
def max_pool_of_equal_pixels(rng: Any) -> Setup:
    """A window of a flat image: all four are the maximum."""

    def pool(x: Any) -> Any:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 2), (2, 2), "VALID")

    return setup(pool, normal(rng, 4, 4).at[:2, :2].set(0.5))


@correct()
def huber_at_delta(rng: Any) -> Setup:
    """The slope is continuous at δ, the curvature jumps."""
    huber = lambda x: jnp.where(jnp.abs(x) < 0.5, x**2 / 2, 0.5 * (jnp.abs(x) - 0.25))  # noqa: E731
    return setup(huber, away_from_zero(rng, 5).at[:3].set(jnp.array([0.5, -0.5, 0.0])))


@correct()
def interpolation_at_a_knot(rng: Any) -> Setup:
    """Piecewise linear, asked exactly at a knot and at both ends."""

    def sample(x: Any, table: Any) -> Any:
        return jnp.interp(x, jnp.arange(5, dtype=x.dtype), table)

    return setup(sample, jnp.array([0.0, 0.3, 2.0, 4.0]), normal(rng, 5))


@correct(source="jax-ml/jax #2140")
def log_sigmoid_at_zero(rng: Any) -> Setup:
    """Written with max and abs inside, but smooth: a fake kink."""
    return setup(lambda x: jax.nn.log_sigmoid(x) + jax.nn.softplus(x), with_zeros(rng))


@correct()
def two_kinks_that_cancel(rng: Any) -> Setup:
    """relu(x) - relu(-x) is x: no kink at 0, but jax.nn.relu's convention gives the slope 0. So: max and min."""
    return setup(lambda x: weights(jnp.maximum(x, 0) + jnp.minimum(x, 0)), with_zeros(rng))


@correct()
def smooth_pieces(rng: Any) -> Setup:
    """x² below 1, 2x - 1 above: the slope is continuous at 1."""
    return setup(lambda x: jnp.where(x < 1, x**2, 2 * x - 1), normal(rng, 5).at[1].set(1.0))


@correct()
def distance_to_the_nearest_integer(rng: Any) -> Setup:
    """|x - round(x)|: jumps that cancel; at a half both slopes are valid."""
    return setup(lambda x: jnp.abs(x - jnp.round(x)), jnp.array([0.2, 1.5, -0.7, 2.5]) + 0 * normal(rng, 4))


@correct()
def step_away_from_the_jump(rng: Any) -> Setup:
    """The sign is a constant where it is differentiated."""
    return setup(lambda x: jnp.sign(x) * x**2 + jnp.floor(x + 0.01), 0.4 * positive(rng, 5))


@correct(source="jax-ml/jax #29111")
def one_norm_to_the_fourth(rng: Any) -> Setup:
    """(Σ|x|)⁴ + e^x₁ at (1, 0)."""
    return setup(lambda x: jnp.abs(x).sum() ** 4 + jnp.exp(x[1]), jnp.array([1.0, 0.0]) * positive(rng))


@correct()
def guarded_norm_at_zero(rng: Any) -> Setup:
    """The double where: |x| at 0 with the subgradient 0."""

    def norm(x: Any) -> Any:
        square = (x**2).sum(axis=1)
        return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))

    return setup(norm, normal(rng, 3, 2).at[1].set(0.0))


@correct(order=2)
def guarded_root(rng: Any) -> Setup:
    """jax-ml/jax #5798 as its maintainers mend it: the argument of the root is guarded, too."""
    return setup(
        lambda x: jnp.where(x < 0.1, x, jnp.sqrt(jnp.where(x < 0.1, 1, x))), positive(rng, 4).at[1].set(0.0)
    )


@correct()
def x_log_x_at_zero(rng: Any) -> Setup:
    """xlogy(x, y) at x = 0 with y > 0 has the slope log(y)."""
    return setup(lambda x, y: jax.scipy.special.xlogy(x, y), positive(rng, 4).at[1].set(0.0), positive(rng, 4))


@correct()
def dead_network_without_bias(rng: Any) -> Setup:
    """Zero rows: every unit of that row is exactly at relu's kink, and so is the bias that moves them all."""

    def loss(w: Any, b: Any, x: Any) -> Any:
        return (jax.nn.relu(x @ w + b[None]) ** 2).mean() + jax.nn.relu(x @ w + b[None]).sum()

    return setup(loss, normal(rng, 4, 5), jnp.zeros(5), normal(rng, 3, 4).at[1].set(0.0))


@correct()
def total_variation_of_a_flat_image(rng: Any) -> Setup:
    """Σ|x_i - x_j| where neighbours are equal: every difference is at its kink, and elements share them."""
    return setup(lambda x: jnp.abs(jnp.diff(x, axis=1)).sum(), normal(rng, 3, 4).at[1].set(2.0))


@correct()
def largest_minus_smallest(rng: Any) -> Setup:
    """max - min of equal numbers is 0 at its kink."""
    return setup(lambda x: x.max() - x.min(), jnp.full(4, 1.5) * positive(rng))


@correct()
def median_of_equal_numbers(rng: Any) -> Setup:
    """No element moves it alone, yet its derivative along a direction is the direction's median."""
    return setup(jnp.median, jnp.ones(5 + int(rng.integers(2))))
