"""Decompositions, solvers and fixed points."""

from typing import Any

import jax
import jax.numpy as jnp

from .registry import Setup, correct, normal, positive, rule, setup


def symmetric(rng: Any, size: int) -> jax.Array:
    a = normal(rng, size, size)
    return a + a.T


def definite(rng: Any, size: int) -> jax.Array:
    a = normal(rng, size, size)
    return a @ a.T + size * jnp.eye(size)


@correct()
def ill_conditioned_solve(rng: Any) -> Setup:
    """Hilbert's matrix of order 5: condition 5e5."""
    i = jnp.arange(5.0)
    return setup(jnp.linalg.solve, 1 / (i[:, None] + i[None] + 1), normal(rng, 5))


@correct()
def cholesky_and_determinant(rng: Any) -> Setup:
    """The factor, and log|det| by it."""

    def loss(a: Any) -> Any:
        factor = jnp.linalg.cholesky(a)
        return factor.sum() + 2 * jnp.log(jnp.diagonal(factor)).sum() + jnp.linalg.slogdet(a)[1]

    return setup(loss, definite(rng, 4))


@correct()
def eigenvalues_of_a_symmetric_matrix(rng: Any) -> Setup:
    """The input is symmetrised inside, so every element may be moved alone."""
    return setup(lambda a: jnp.sin(jnp.linalg.eigh((a + a.T) / 2)[0]), symmetric(rng, 4))


@correct(source="jax-ml/jax #10527")
def function_of_degenerate_eigenvalues(rng: Any) -> Setup:
    """Σλ² at a multiple of one: the gradient of eigh's vectors would be NaN, its values' isn't needed there."""
    return setup(lambda a: (jnp.linalg.eigvalsh(a @ a.T) ** 2).sum(), normal(rng, 3, 3))


@correct()
def singular_values(rng: Any) -> Setup:
    """Sum and smallest singular value of a rectangular matrix."""
    return setup(lambda a: jnp.linalg.svd(a, compute_uv=False), normal(rng, 4, 3))


@correct()
def inverse_and_power(rng: Any) -> Setup:
    """a⁻¹ and a³."""
    return setup(lambda a: jnp.linalg.inv(a) + jnp.linalg.matrix_power(a, 3), definite(rng, 3) / 4)


@correct()
def orthogonal_factor(rng: Any) -> Setup:
    """QR of a tall matrix."""
    return setup(lambda a: jnp.linalg.qr(a)[1], normal(rng, 5, 3))


@correct()
def triangular_solve(rng: Any) -> Setup:
    """Half of the matrix is never read: its gradient is exactly zero."""
    return setup(
        lambda a, b: jax.scipy.linalg.solve_triangular(a, b, lower=True), definite(rng, 4), normal(rng, 4)
    )


@correct()
def matrix_exponential(rng: Any) -> Setup:
    """Scaling and squaring: the number of squarings depends on the norm."""
    return setup(lambda a: jax.scipy.linalg.expm(a), normal(rng, 3, 3))


@correct(order=2)
def implicit_derivative_of_a_fixed_point(rng: Any) -> Setup:
    """z = cos(z)/2 + x by iteration; the rule solves the linearised equation."""

    def settle(x: Any) -> Any:
        return jax.lax.fori_loop(0, 80, lambda _, z: 0.5 * jnp.cos(z) + x, jnp.zeros_like(x))

    op = rule(settle, lambda x, z, dz: (dz / (1 + 0.5 * jnp.sin(z)),))
    return setup(lambda x: op(x), normal(rng, 4))


@correct()
def implicit_derivative_with_while(rng: Any) -> Setup:
    """Newton's method until it stands still: how many steps depends on the argument."""

    def solve(x: Any) -> Any:
        def step(state: Any) -> Any:
            z, _ = state
            new = z - (z**3 + z - x) / (3 * z**2 + 1)
            return new, jnp.abs(new - z).max()

        start = jnp.zeros_like(x), jnp.asarray(jnp.inf, x.dtype)
        return jax.lax.while_loop(lambda state: state[1] > 4 * jnp.finfo(x.dtype).eps, step, start)[0]

    return setup(rule(solve, lambda x, z, dz: (dz / (3 * z**2 + 1),)), positive(rng, 4))


@correct()
def custom_root(rng: Any) -> Setup:
    """lax.custom_root with a bisection in 60 steps."""

    def root(x: Any) -> Any:
        def equation(z: Any) -> Any:
            return z**3 + z - x

        def solve(f: Any, start: Any) -> Any:
            def halve(_: Any, ends: Any) -> Any:
                low, high = ends
                middle = (low + high) / 2
                right = f(middle) < 0
                return jnp.where(right, middle, low), jnp.where(right, high, middle)

            return jax.lax.fori_loop(0, 60, halve, (start - 10, start + 10))[0]

        return jax.lax.custom_root(equation, jnp.zeros_like(x), solve, lambda g, y: y / g(jnp.ones_like(y)))

    return setup(root, positive(rng))


@correct()
def conjugate_gradients(rng: Any) -> Setup:
    """jax.scipy's solver, converged to its tolerance, with custom_linear_solve."""

    def solve(a: Any, b: Any) -> Any:
        return jax.scipy.sparse.linalg.cg(a, b, tol=1e-12, maxiter=40)[0]

    return setup(solve, definite(rng, 4), normal(rng, 4))


@correct()
def ordinary_differential_equation(rng: Any) -> Setup:
    """Twenty steps of Runge and Kutta."""

    def flow(y: Any, k: Any) -> Any:
        def field(y: Any) -> Any:
            return jnp.stack([y[1], -k * jnp.sin(y[0])])

        def step(y: Any, _: Any) -> Any:
            a = field(y)
            b = field(y + 0.05 * a)
            c = field(y + 0.05 * b)
            d = field(y + 0.1 * c)
            return y + 0.1 / 6 * (a + 2 * b + 2 * c + d), None

        return jax.lax.scan(step, y, length=20)[0]

    return setup(flow, normal(rng, 2), positive(rng))
