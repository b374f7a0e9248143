"""Mistakes in the derivatives of products, sums and broadcasts."""

from typing import Any

import jax
import jax.numpy as jnp

from .registry import Setup, normal, planted, rule, setup


def affine(x: Any, w: Any, b: Any) -> Any:
    return x @ w + b[None]


def point(rng: Any) -> tuple[Any, ...]:
    return normal(rng, 6, 4), normal(rng, 4, 4), normal(rng, 4)


@planted("y", source="jax-ml/jax #3213")
def sign_in_the_documentation(rng: Any) -> Setup:
    """The derivative of sin(x)·y by y is sin(x), not -sin(x)."""
    op = rule(lambda x, y: jnp.sin(x) * y, lambda x, y, z, dz: (jnp.cos(x) * y * dz, -jnp.sin(x) * dz))
    return setup(op, normal(rng, 5), normal(rng, 5))


@planted("w")
def weight_transposed(rng: Any) -> Setup:
    """dw = dyᵀx where w is square: the shape doesn't tell."""
    return setup(rule(affine, lambda x, w, b, y, dy: (dy @ w.T, dy.T @ x, dy.sum(axis=0))), *point(rng))


@planted("x")
def input_through_the_weight_untransposed(rng: Any) -> Setup:
    """dx = dy·w in place of dy·wᵀ."""
    return setup(rule(affine, lambda x, w, b, y, dy: (dy @ w, x.T @ dy, dy.sum(axis=0))), *point(rng))


@planted("b", source="deeplearning4j/nd4j #2424")
def bias_without_the_sum_over_the_batch(rng: Any) -> Setup:
    """The gradient of what was broadcast is a row instead of the sum of rows."""
    return setup(rule(affine, lambda x, w, b, y, dy: (dy @ w.T, x.T @ dy, dy[0])), *point(rng))


@planted("b", source="jimfleming/differentiation #1")
def bias_mean_for_sum(rng: Any) -> Setup:
    """db is the mean over the batch: 1/N of the right one."""
    return setup(rule(affine, lambda x, w, b, y, dy: (dy @ w.T, x.T @ dy, dy.mean(axis=0))), *point(rng))


@planted("b", source="pymc-devs/pytensor #2217")
def bias_rolled(rng: Any) -> Setup:
    """Every entry of the gradient sits one place too far."""
    return setup(
        rule(affine, lambda x, w, b, y, dy: (dy @ w.T, x.T @ dy, jnp.roll(dy.sum(axis=0), 1))), *point(rng)
    )


@planted("x", source="jax-ml/jax #17496")
def input_without_gradient(rng: Any) -> Setup:
    """Only the parameters get a gradient; a chain of two such layers stops learning in the first."""
    return setup(rule(affine, lambda x, w, b, y, dy: (0 * x, x.T @ dy, dy.sum(axis=0))), *point(rng))


@planted("b")
def none_for_a_gradient(rng: Any) -> Setup:
    """A None in the tuple of a custom_vjp means zero, silently."""
    return setup(rule(affine, lambda x, w, b, y, dy: (dy @ w.T, x.T @ dy, None)), *point(rng))


@planted("x", "y", source="PaddlePaddle/Paddle #48656")
def gradients_in_the_wrong_order(rng: Any) -> Setup:
    """Two arguments of one shape, the gradients swapped."""
    op = rule(lambda x, y: x * y**2, lambda x, y, z, dz: (2 * x * y * dz, y**2 * dz))
    return setup(op, normal(rng, 3, 2), normal(rng, 3, 2))


@planted("params['a']", "params['b']", source="PaddlePaddle/Paddle #48656")
def claim_with_two_leaves_swapped(rng: Any) -> Setup:
    """The same mistake in a hand-written gradient of a dictionary."""

    def loss(params: Any, x: Any) -> Any:
        return (jnp.sin(x * params["a"]) + params["b"] * params["c"]).sum()

    def claim(params: Any, x: Any) -> Any:
        a = jnp.cos(x * params["a"]) * x
        return {"a": params["c"], "b": a, "c": params["b"]}, jnp.cos(x * params["a"]) * params["a"]

    params = {name: normal(rng, 4) for name in "abc"}
    return setup(loss, params, normal(rng, 4), hand_written=claim)


@planted("scale")
def scalar_times_array(rng: Any) -> Setup:
    """The gradient of a broadcast scalar is a mean instead of a sum."""
    op = rule(lambda scale, x: scale * x, lambda scale, x, y, dy: ((x * dy).mean(), scale * dy))
    return setup(op, normal(rng), normal(rng, 3, 4))


@planted("w", index=(17, 5))
def one_element_of_1024(rng: Any) -> Setup:
    """A single element is off by 1e-4 of itself."""

    def backward(x: Any, w: Any, y: Any, dy: Any) -> Any:
        dw = x.T @ dy
        return dy @ w.T, dw.at[17, 5].multiply(1 + 1e-4)

    return setup(rule(lambda x, w: x @ w, backward), normal(rng, 8, 32), normal(rng, 32, 32))


@planted("w")
def whole_leaf_by_1e_5(rng: Any) -> Setup:
    """The whole gradient is 1 + 1e-5 times the right one."""
    op = rule(lambda x, w: x @ w, lambda x, w, y, dy: (dy @ w.T, (1 + 1e-5) * (x.T @ dy)))
    return setup(op, normal(rng, 6, 5), normal(rng, 5, 3))


@planted("w", index=(None, 6), source="flagos-ai/FlagGems #898")
def last_column_is_cut_off(rng: Any) -> Setup:
    """A kernel whose last block isn't full forgets the rest of the columns."""

    def backward(x: Any, w: Any, y: Any, dy: Any) -> Any:
        return dy @ w.T, (x.T @ dy).at[:, 6:].set(0.0)

    return setup(rule(lambda x, w: x @ w, backward), normal(rng, 4, 3), normal(rng, 3, 7))


@planted("x", index=(0, None), source="pytorch/pytorch #188344")
def first_row_twice(rng: Any) -> Setup:
    """The border belongs to two windows of a padded pass."""
    op = rule(lambda x, w: x @ w, lambda x, w, y, dy: ((dy @ w.T).at[0].multiply(2.0), x.T @ dy))
    return setup(op, normal(rng, 5, 3), normal(rng, 3, 4))


@planted("w", "b", source="linkedin/Liger-Kernel #1298")
def first_cotangent_for_all_rows(rng: Any) -> Setup:
    """Right under .mean() and .sum(), where all cotangents are equal: here row 0's serves for all."""

    def loss(x: Any, w: Any, b: Any) -> Any:
        return jax.nn.logsumexp(affine(x, w, b), axis=1)

    def backward(x: Any, w: Any, b: Any, y: Any, dy: Any) -> Any:
        p = jax.nn.softmax(affine(x, w, b))
        dz, wrong = p * dy[:, None], p * dy[0]
        return dz @ w.T, x.T @ wrong, wrong.sum(axis=0)

    return setup(rule(loss, backward), *point(rng))


@planted("x", source="elixir-nx/nx #1779")
def cotangent_twice(rng: Any) -> Setup:
    """clip's rule multiplies by the cotangent twice: dy², which is right for dy = 1."""
    op = rule(lambda x: jnp.clip(x, -1, 1), lambda x, y, dy: (jnp.where(jnp.abs(x) < 1, dy * dy, 0.0),))
    return setup(op, normal(rng, 9))


@planted("x")
def cotangent_ignored(rng: Any) -> Setup:
    """The derivative itself is returned, as if it were the last function before the loss."""
    return setup(rule(jnp.sin, lambda x, y, dy: (jnp.cos(x),)), normal(rng, 6))


@planted("x", source="facebookresearch/shumai #74")
def mean_over_an_axis(rng: Any) -> Setup:
    """The mean's gradient is copied along the axis, but not divided by its length."""
    op = rule(lambda x: x.mean(axis=1), lambda x, y, dy: (jnp.broadcast_to(dy[:, None], x.shape),))
    return setup(op, normal(rng, 3, 5))


@planted("mean", source="probcomp/Gen.jl #432")
def sum_over_the_wrong_axis(rng: Any) -> Setup:
    """x is square, so the gradient of what was broadcast has the right shape either way."""
    op = rule(lambda x, mean: (x - mean[None]) ** 2 / 2, lambda x, mean, y, dy: (
        (x - mean[None]) * dy, -((x - mean[None]) * dy).sum(axis=1)))  # fmt: skip
    return setup(op, normal(rng, 4, 4), normal(rng, 4))


@planted("y", source="HIPS/autograd #376")
def einsum_with_an_axis_missing(rng: Any) -> Setup:
    """bij,bjk→bik: y's gradient takes the first of the batch's factors for all."""

    def backward(x: Any, y: Any, z: Any, dz: Any) -> Any:
        return jnp.einsum("bik,bjk->bij", dz, y), jnp.einsum("ij,bik->bjk", x[0], dz)

    op = rule(lambda x, y: jnp.einsum("bij,bjk->bik", x, y), backward)
    return setup(op, normal(rng, 3, 2, 4), normal(rng, 3, 4, 2))


@planted("x")
def convolution_with_the_kernel_unflipped(rng: Any) -> Setup:
    """dx is the correlation of dy with the kernel where it should be the convolution."""

    def slide(x: Any, k: Any) -> Any:
        return sum(k[i] * jax.lax.dynamic_slice(jnp.pad(x, 1), (i,), x.shape) for i in range(3))

    def backward(x: Any, k: Any, y: Any, dy: Any) -> Any:
        dk = [(dy * jax.lax.dynamic_slice(jnp.pad(x, 1), (i,), x.shape)).sum() for i in range(3)]
        return slide(dy, k), jnp.stack(dk)

    return setup(rule(slide, backward), normal(rng, 8), normal(rng, 3))


@planted("a")
def solve_with_the_matrix_untransposed(rng: Any) -> Setup:
    """da = -(a⁻¹dy)·xᵀ, where a⁻ᵀdy belongs; db is right."""

    def backward(a: Any, b: Any, x: Any, dx: Any) -> Any:
        return -jnp.outer(jnp.linalg.solve(a, dx), x), jnp.linalg.solve(a.T, dx)

    a = normal(rng, 4, 4) + 4 * jnp.eye(4)
    return setup(rule(jnp.linalg.solve, backward), a, normal(rng, 4))


@planted("a")
def logarithm_of_a_determinant(rng: Any) -> Setup:
    """The gradient of log|det a| is a⁻ᵀ, not a⁻¹."""
    op = rule(lambda a: jnp.linalg.slogdet(a)[1], lambda a, y, dy: (dy * jnp.linalg.inv(a),))
    return setup(op, normal(rng, 3, 3) + 3 * jnp.eye(3))


@planted("value")
def forward_of_the_rule_returns_another_value(rng: Any) -> Setup:
    """Without grad the function returns Σx², under grad half of it."""
    op = jax.custom_vjp(lambda x: (x**2).sum())
    op.defvjp(lambda x: ((x**2).sum() / 2, x), lambda x, dy: (2 * x * dy,))
    return setup(op, normal(rng, 5))
