"""Right gradients pass, whatever traps the function sets for a checker."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import ops, verify
from jaxnet.verify import precision

SEEDS = range(1, 2)


def draw(seed: int, *shape: int, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape) * scale, jnp.float32)


def passes(fn: Any, *args: Any, **options: Any) -> verify.Report:
    report = verify.check_gradients(fn, *args, **options)
    assert report.ok, str(report)
    return report


class Pair(NamedTuple):
    mean: jax.Array
    count: jax.Array


@jax.custom_vjp
def double(x: jax.Array) -> jax.Array:
    return 2 * x


double.defvjp(lambda x: (2 * x, None), lambda _, dy: (2 * dy,))


@jax.custom_jvp
def safe_norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt((x**2).sum())


@safe_norm.defjvp
def _(primals: Any, tangents: Any) -> Any:
    y = safe_norm(primals[0])
    return y, (primals[0] * tangents[0]).sum() / jnp.where(y == 0, 1, y)


@pytest.mark.parametrize("seed", SEEDS)
def test_pytrees_with_leaves_that_cannot_be_differentiated(seed: int) -> None:
    def fn(params: Any, key: Any, state: Any, factor: Any) -> Any:
        noise = jax.random.bernoulli(key, 0.5, (3,))
        y = jnp.where(noise, params["w"] @ params["b"][0] * params["steps"].astype(factor.dtype), 0.0)
        return (
            y * jnp.where(params["mask"], 1.0, 2.0) + state.mean / state.count.astype(factor.dtype)
        ).sum() * factor

    params = {
        "w": draw(seed, 3, 2), "b": [draw(seed + 1, 2), None], "steps": jnp.arange(1, 4), "none": None,
        "mask": jnp.array([True, False, True]), "empty": jnp.zeros((0, 4)),
    }  # fmt: skip
    state = Pair(draw(seed + 2, 3), jnp.array(3))
    report = passes(fn, params, jax.random.key(seed), state, 0.5)
    names = {leaf.name for leaf in report.leaves}
    assert names == {"params['b'][0]", "params['w']", "state.mean", "factor"}


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("seed", SEEDS)
def test_scale_of_the_arguments(seed: int, scale: float) -> None:
    def fn(x: Any, w: Any) -> Any:
        return (jnp.tanh((x / scale) @ w) ** 2).sum()

    passes(fn, draw(seed, 4, 3, scale=scale), draw(seed + 1, 3, 2))


def test_scale_of_the_output() -> None:
    for scale in (1e-6, 1e6):
        passes(lambda x, scale=scale: scale * jnp.sin(x).sum(), draw(0, 5))


@pytest.mark.parametrize("kink", [jax.nn.relu, jnp.abs, lambda x: jnp.maximum(x, 0), jax.nn.leaky_relu])
@pytest.mark.parametrize("seed", SEEDS)
def test_kinks_at_the_point(kink: Any, seed: int) -> None:
    x = draw(seed, 6).at[jnp.array([0, 3])].set(0.0)
    passes(lambda x: (kink(x) * jnp.arange(1.0, 7.0)).sum(), x)


def test_kink_is_told() -> None:
    report = passes(lambda x: jax.nn.relu(x).sum(), jnp.array([0.0, 1.0, -1.0]))
    assert "1 elements on a kink" in report.leaves[0].verdict
    assert any("kink" in remark for remark in report.remarks)


def test_equal_maxima() -> None:
    passes(lambda x: x.max(axis=1).sum(), jnp.array([[1.0, 1.0, 0.0], [2.0, 1.0, 0.5]]))
    passes(lambda x: jnp.maximum(x[0], x[1]).sum(), jnp.ones((2, 3)))


@pytest.mark.parametrize("seed", SEEDS)
def test_relu_network_without_bias(seed: int) -> None:
    def fn(w: Any, b: Any, x: Any) -> Any:
        return (jax.nn.relu(x @ w + b[None]) ** 2).mean() + jax.nn.relu(x @ w + b[None]).sum()

    x = draw(seed, 4, 5).at[1].set(0.0)  # one dead row: exactly at relu's kink
    passes(fn, draw(seed + 1, 5, 7), jnp.zeros(7), x)


@pytest.mark.parametrize("seed", SEEDS)
def test_softmax_of_large_values(seed: int) -> None:
    weights = draw(seed + 1, 4, 9)
    passes(lambda x: (jax.nn.softmax(x) * weights).sum(), draw(seed, 4, 9, scale=30.0) + 1e3)
    passes(lambda x: jax.nn.logsumexp(x, axis=-1).sum(), draw(seed, 4, 9, scale=3.0) - 1e3)


def test_elements_that_are_zero_but_for_rounding_in_a_large_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant added to all keys moves no weight. In large trees the noise of a gradient is known roughly."""
    monkeypatch.setattr(precision, "_MANY", 0)
    query, key, bias = draw(0, 1, 3, 16, 64), draw(1, 1, 4, 16, 64), draw(2, 16, 64)
    passes(lambda query, key, bias: ops.attention(query, key + bias[None, None], key), query, key, bias)


def test_gradient_that_is_zero_but_for_rounding() -> None:
    # Softmax does not see a shift: the bias has no gradient, float32 returns some 1e-8 of it.
    def fn(w: Any, shift: Any, x: Any) -> Any:
        return (jax.nn.softmax(x @ w + shift) ** 2).sum()

    passes(fn, draw(0, 5, 6), jnp.asarray(0.3), draw(1, 4, 5))


@pytest.mark.parametrize("seed", SEEDS)
def test_scan_while_cond_and_remat(seed: int) -> None:
    def fn(w: Any, x: Any) -> Any:
        def step(carry: Any, row: Any) -> Any:
            carry = jnp.tanh(double(carry) @ w + jax.nn.relu(row))
            return carry, carry.sum()

        carry, sums = jax.lax.scan(step, jnp.zeros(3), x)
        carry = jax.lax.fori_loop(0, 3, lambda _, c: jax.nn.silu(c), carry)
        carry = jax.lax.cond(carry.sum() > 0, jax.nn.softplus, double, carry)
        return (jax.checkpoint(lambda c: double(jnp.sin(c)))(carry) * sums.mean()).sum()

    report = passes(fn, draw(seed, 3, 3), draw(seed + 1, 5, 3))
    assert report.leaves[0].deviations["reference"] is not None, str(report)


def test_domain_edges_and_mixed_scale() -> None:
    x = jnp.array([1e-5, 1e-2, 1.0, 1e3])
    passes(lambda x: jnp.log(x).sum(), x)
    passes(lambda x: jnp.sqrt(x).sum(), x)


def test_complex_arguments() -> None:
    z = jax.lax.complex(draw(0, 4), draw(1, 4))
    passes(lambda z: (jnp.abs(jnp.exp(z) * 2j) ** 2).sum(), z)
    passes(lambda z: jnp.exp(z), z)


@pytest.mark.parametrize("seed", SEEDS)
def test_other_outputs_take_a_random_cotangent(seed: int) -> None:
    passes(
        lambda w, x: {"y": x @ w, "n": jnp.arange(3), "s": jnp.sin(w).sum()}, draw(seed, 3, 2), draw(seed, 4, 3)
    )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_low_precision(dtype: Any) -> None:
    w, x = draw(0, 16, 8).astype(dtype), draw(1, 4, 16).astype(dtype)
    report = passes(lambda w, x: jnp.tanh(x @ w).astype(jnp.float32).sum(), w, x)
    errors = [leaf.own_dtype_eps for leaf in report.leaves]
    assert all(error is not None and error < 10 for error in errors)


def test_float64_of_the_caller_stays() -> None:
    with jax.enable_x64(True):
        x = jnp.linspace(0.1, 1.0, 5)
        assert x.dtype == np.float64
        passes(lambda x: jnp.exp(x).sum(), x)
        assert jnp.ones(1).dtype == np.float64
    assert jnp.ones(1).dtype == np.float32


def test_closed_over_data_and_numpy_arguments() -> None:
    data = draw(0, 4, 3)
    passes(lambda w: jnp.sin(data @ w).sum(), np.ones((3, 2), np.float32))
    passes(lambda w, x: jnp.sin(x @ w).sum(), np.ones((3, 2)), np.ones((4, 3)))


def test_random_numbers_whose_dtype_differs() -> None:
    def fn(x: Any, key: Any) -> Any:
        return (x * jax.random.normal(key, x.shape, x.dtype)).sum()

    report = passes(fn, draw(0, 5), jax.random.key(0))
    assert any("random numbers" in remark for remark in report.remarks)


def test_plain_function_is_not_sane_but_its_rule_is() -> None:
    # Autodiff of sqrt(Σx²) at 0 is NaN; the rule's 0 is a subgradient.
    passes(lambda x: safe_norm(x[:2]) + jnp.sin(x).sum(), jnp.array([0.0, 0.0, 1.0]))


def test_function_that_insists_on_its_dtype() -> None:
    def fn(x: Any) -> Any:
        if x.dtype != jnp.float32:
            raise TypeError("float32 only")
        return jnp.sin(x).sum()

    report = verify.check_gradients(fn, draw(0, 5))
    assert report.state != "fail", str(report)
    assert any("float32 only" in remark for remark in report.remarks)


def test_function_that_rounds_inside() -> None:
    report = verify.check_gradients(lambda x: jnp.sin(x.astype(jnp.float32)).sum(), draw(0, 5))
    assert report.state != "fail", str(report)
    assert any("rounds" in remark for remark in report.remarks)


def test_plain_function_without_derivative() -> None:
    @jax.custom_vjp
    def total(x: Any) -> Any:
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * 1.5), (0, x))[1].sum()

    total.defvjp(lambda x: (total(x), x), lambda x, dy: (jnp.full_like(x, 1.5**3) * dy,))
    report = passes(total, draw(0, 5))
    assert report.leaves[0].deviations["reference"] is not None
    assert any(remark.startswith("reference: no reverse mode") for remark in report.remarks)


def test_settings_of_the_caller_are_untouched() -> None:
    names = ("enable_x64", "default_matmul_precision", "default_device", "numpy_dtype_promotion")
    before = {name: getattr(jax.config, f"jax_{name}") for name in names}
    passes(lambda x: jnp.sin(x).sum(), draw(0, 3))
    assert before == {name: getattr(jax.config, f"jax_{name}") for name in names}


def test_two_runs_say_the_same() -> None:
    x = draw(0, 200)
    first, second = (verify.check_gradients(lambda x: jnp.sin(x).sum(), x, seed=3) for _ in range(2))
    assert first.leaves == second.leaves


def test_many_kinks_that_add_up() -> None:
    # Half of the image and the bias are zero: one bias moves hundreds of relus that sit at exactly 0.
    def fn(kernel: Any, bias: Any, x: Any) -> Any:
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return (jax.nn.relu(y + bias[None, None, None]) ** 2 + jax.nn.relu(y + bias[None, None, None])).mean()

    passes(fn, draw(0, 3, 3, 2, 4), jnp.zeros(4), draw(1, 2, 8, 8, 2).at[:, :4].set(0.0))


def test_value_that_is_zero_but_for_rounding() -> None:
    def fn(x: Any) -> Any:
        y = (x - x.mean(axis=0)[None]) / jnp.sqrt(x.var(axis=0)[None] + 1e-5)
        return (y * jnp.arange(4, dtype=y.dtype)[None]).sum()  # each column of y sums to 0

    passes(fn, draw(0, 16, 4))
