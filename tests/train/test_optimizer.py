"""`train.adamw` and `train.adam` against optax."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnet.train.optimizer import FusedTransformation, adam, adamw

BLOCK = 16384  # of the CPU kernel: one element less and more
SHAPES = {
    "matrix": (37, 5),
    "list": [(BLOCK - 1,), (BLOCK,), (BLOCK + 1,)],
    "odd": {"scalar": (), "one": (1,), "none_of_them": (0, 3), "prime": (7, 11, 13)},
}
STEPS = 3


def schedule(count):
    return 0.1 / (1.0 + count.astype(float))


def is_matrix(params):
    return jax.tree.map(lambda w: w.ndim > 1, params)


MASK = {"matrix": True, "list": [False, True, False], "odd": False, "frozen": None, "empty": {}}
OPTIONS = {
    "defaults": {},
    "learning_rate schedule": {"learning_rate": schedule},
    "learning_rate array": {"learning_rate": jnp.float32(0.05)},
    "b1": {"b1": 0.0},
    "b2": {"b2": 0.5},
    "eps": {"eps": 0.3},
    "eps_root": {"eps_root": 0.2},
    "weight_decay": {"weight_decay": 0.7},
    "weight_decay schedule": {"weight_decay": schedule},
    "no weight_decay": {"weight_decay": 0.0},
    "mask prefix": {"weight_decay": 0.7, "mask": MASK},
    "mask function": {"weight_decay": 0.7, "mask": is_matrix},
    "nesterov": {"nesterov": True, "weight_decay": 0.7},
    "mu_dtype": {"mu_dtype": jnp.bfloat16},
}


def tree(seed, dtype):
    rng = np.random.default_rng(seed)
    values = jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), dtype),
        SHAPES,
        is_leaf=lambda s: isinstance(s, tuple),
    )
    return values | {"frozen": None, "empty": {}}


def optax_update(options):
    """optax's update, jitted; optax itself relies on implicit promotion."""
    update = jax.jit(optax.adamw(**{"learning_rate": 0.1} | options).update)

    def run(*args):
        with jax.numpy_dtype_promotion("standard"):
            return update(*args)

    return run


def one_step(optimizer, form):
    def step(params, state, grads):
        if form == "apply":
            return optimizer.apply(grads, state, params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


class Expected(NamedTuple):
    params: Any
    mu: Any
    nu: Any
    update_size: Any  # what the update would be if no terms cancelled: the rule fed with absolute values
    mu_size: Any


@functools.cache
def optax_run(option, dtype):
    """The start, and what optax makes of it in each step."""
    init = optax.adamw(**{"learning_rate": 0.1} | OPTIONS[option]).init
    update = optax_update(OPTIONS[option])
    params = start = tree(0, dtype)
    state = state_of_sizes = init(params)
    steps = []
    for t in range(1, STEPS + 1):
        grads = tree(t, dtype)
        size, state_of_sizes = update(*jax.tree.map(jnp.abs, (grads, state_of_sizes, params)))
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        steps.append(Expected(params, state[0].mu, state[0].nu, size, state_of_sizes[0].mu))
    return start, steps


def check_against_optax(option, implementation, form, dtype, eps):
    """Compares parameters and moments after each step.

    With u the unit roundoff: m takes three roundings a step and passes on its old error, so after t steps
    it is off by 3 t u; v likewise by 4 t u, of which its root keeps half; eight more operations make the
    update of them. Two such computations differ by (5 t + 8) 2u = (5 t + 8) eps, in relation to the sizes of
    the terms.
    """
    optimizer = adamw(**{"learning_rate": 0.1} | OPTIONS[option], implementation=implementation)
    step = one_step(optimizer, form)
    params, steps = optax_run(option, dtype)
    state, bound = optimizer.init(params), jax.tree.map(np.zeros_like, params)
    for t, expected in enumerate(steps, 1):
        params, state = step(params, state, tree(t, dtype))
        bound = jax.tree.map(
            lambda b, u, w, t=t: b + eps * ((5 * t + 8) * np.abs(u) + np.abs(w)),
            bound,
            expected.update_size,
            expected.params,
        )
        assert int(state.count) == t
        jax.tree.map(within, params, expected.params, bound)
        jax.tree.map(within, state.mu, expected.mu, jax.tree.map(lambda m, t=t: 3 * t * eps * m, expected.mu_size))
        jax.tree.map(within, state.nu, expected.nu, jax.tree.map(lambda v, t=t: 4 * t * eps * v, expected.nu))


def within(found, expected, bound):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    found, expected, bound = (np.asarray(x, np.float64) for x in (found, expected, bound))
    excess = np.abs(found - expected) - bound
    assert (excess <= 0).all(), f"off by {excess.max()} more than allowed"


@pytest.mark.parametrize("form", ["update", "apply"])
@pytest.mark.parametrize("implementation", ["xla", "cpu", pytest.param(None, marks=pytest.mark.long)])
@pytest.mark.parametrize("option", OPTIONS)
def test_equals_optax(option, implementation, form):
    if option == "mu_dtype" and implementation == "cpu":
        pytest.skip("the kernel takes one dtype a leaf; see test_kernel_refuses_mu_dtype")
    # A moment kept in bfloat16 may be rounded either way.
    eps = float(jnp.finfo(OPTIONS[option].get("mu_dtype", jnp.float32)).eps)
    check_against_optax(option, implementation, form, jnp.float32, eps)


@pytest.mark.parametrize("form", ["update", "apply"])
@pytest.mark.parametrize("implementation", ["xla", "cpu"])
@pytest.mark.parametrize("option", ["defaults", "weight_decay", "eps_root", "nesterov", "mask prefix"])
def test_equals_optax_in_float64(option, implementation, form):
    with jax.enable_x64(True):
        check_against_optax(option, implementation, form, jnp.float64, float(jnp.finfo(float).eps))


@pytest.mark.parametrize("implementation", ["xla", "cpu"])
def test_leaves_of_two_dtypes(implementation):
    with jax.enable_x64(True):
        params = {"single": jnp.linspace(-1, 1, 21, dtype="float32"), "double": jnp.linspace(-1, 1, 21)}
        optimizer = adamw(0.1, implementation=implementation)
        new, state = optimizer.apply(params, optimizer.init(params), params)
        for name, w in params.items():
            alone, _ = optimizer.apply(w, optimizer.init(w), w)
            assert new[name].dtype == state.mu[name].dtype == w.dtype
            np.testing.assert_array_equal(new[name], alone)


def test_low_precision_is_widened_and_rounded_once():
    params = jnp.linspace(-1, 1, 1001)
    low = params.astype(jnp.bfloat16)
    grads = jnp.cos(9 * params).astype(jnp.bfloat16)
    optimizer = adamw(0.1)
    wide = low.astype(jnp.float32)
    expected, _ = optimizer.apply(grads.astype(jnp.float32), optimizer.init(wide), wide)
    found, state = optimizer.apply(grads, optimizer.init(low), low)
    assert found.dtype == state.mu.dtype == state.nu.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))


@pytest.mark.parametrize("implementation", ["xla", "cpu"])
@pytest.mark.parametrize("form", ["update", "apply"])
def test_nan_and_infinity_go_through(implementation, form):
    bad = [np.nan, np.inf, -np.inf, 1e38, 1e-30, 0.0, 1.0]
    params, grads = (jnp.asarray(x, jnp.float32) for x in np.meshgrid(bad, bad))
    options = {"weight_decay": 0.1}
    theirs = optax.adamw(0.1, **options)
    updates, expected_state = optax_update(options)(grads, theirs.init(params), params)
    optimizer = adamw(0.1, **options, implementation=implementation)
    found, state = one_step(optimizer, form)(params, optimizer.init(params), grads)
    np.testing.assert_allclose(found, optax.apply_updates(params, updates), rtol=2e-6)
    np.testing.assert_allclose(state.mu, expected_state[0].mu, rtol=2e-6)
    np.testing.assert_allclose(state.nu, expected_state[0].nu, rtol=2e-6)


def test_masked_weights_are_not_multiplied_by_zero():
    params = jnp.asarray([np.inf, 1.0], jnp.float32)
    optimizer = adamw(0.1, mask=False, implementation="cpu")
    updates, _ = optimizer.update(jnp.ones(2), optimizer.init(params), params)
    assert np.isfinite(updates).all()


@pytest.mark.parametrize("nesterov", [False, True])
def test_adam_is_adamw_without_decay(nesterov):
    params = jnp.linspace(-1, 1, 7)
    a, b = adam(0.1, nesterov=nesterov), adamw(0.1, weight_decay=0.0, nesterov=nesterov)
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = optax.adam(0.1, nesterov=nesterov).update(params, optax.adam(0.1).init(params))
    found, _ = a.update(params, a.init(params))  # without parameters
    np.testing.assert_array_equal(found, b.update(params, b.init(params), params)[0])
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def small(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(rng.standard_normal((5, 3)), jnp.float32),
        "b": jnp.asarray(rng.standard_normal(3), jnp.float32),
    }


def labels(params):
    return {"w": "first", "b": "second"}


COMPOSITIONS = {
    "inject_hyperparams": lambda adamw: optax.inject_hyperparams(adamw)(learning_rate=0.1, weight_decay=0.3),
    "chain": lambda adamw: optax.chain(optax.clip_by_global_norm(1.0), adamw(0.1)),
    "partition": lambda adamw: optax.partition({"first": adamw(0.1), "second": optax.sgd(0.1)}, labels),
    "masked": lambda adamw: optax.masked(adamw(0.1), {"w": True, "b": False}),
    "MultiSteps": lambda adamw: optax.MultiSteps(adamw(0.1), every_k_schedule=2),
    "apply_if_finite": lambda adamw: optax.apply_if_finite(adamw(0.1), 3),
}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_inside_optax(name):
    def train(optimizer):
        params = small()
        state = optimizer.init(params)
        for t in range(1, 5):
            updates, state = jax.jit(optimizer.update)(small(t), state, params)
            params = optax.apply_updates(params, updates)
        return params

    with jax.numpy_dtype_promotion("standard"):
        found, expected = train(COMPOSITIONS[name](adamw)), train(COMPOSITIONS[name](optax.adamw))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def stack(trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


@pytest.mark.parametrize("implementation", ["xla", "cpu", None])
@pytest.mark.parametrize("form", ["update", "apply"])
def test_ensemble(implementation, form):
    """`vmap` over members that have taken different numbers of steps."""
    optimizer = adamw(schedule, implementation=implementation)
    step = one_step(optimizer, form)
    params = [small(0), small(1), small(2)]
    states = [optimizer.init(p) for p in params]
    params[1], states[1] = step(params[1], states[1], small(3))
    grads = [small(4), small(5), small(6)]
    found = jax.vmap(step)(stack(params), stack(states), stack(grads))
    expected = stack([step(*each) for each in zip(params, states, grads, strict=True)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found, expected)


@pytest.mark.parametrize("implementation", ["xla", "cpu"])
def test_vmap_of_vmap_over_gradients_alone(implementation):
    optimizer = adamw(0.1, implementation=implementation)
    params, state = small(0), optimizer.init(small(0))
    grads = jax.tree.map(lambda g: jnp.stack([jnp.stack([g, 2 * g]), jnp.stack([-g, 3 * g])]), small(1))

    def apply(g):
        return optimizer.apply(g, state, params)[0]

    found = jax.vmap(jax.vmap(apply))(grads)
    for i in range(2):
        for j in range(2):
            expected = apply(jax.tree.map(lambda g, i=i, j=j: g[i, j], grads))
            jax.tree.map(
                lambda a, b, i=i, j=j: np.testing.assert_allclose(a[i, j], b, rtol=1e-6, atol=1e-7),
                found,
                expected,
            )


@pytest.mark.parametrize("implementation", ["xla", "cpu", None])
def test_scan_equals_a_loop(implementation):
    optimizer = adamw(schedule, implementation=implementation)
    params, state = small(), optimizer.init(small())
    grads = jax.tree.map(lambda *g: jnp.stack(g), *(small(t) for t in range(1, 6)))

    def body(carry, g):
        return optimizer.apply(g, carry[1], carry[0]), None

    found, _ = jax.jit(lambda carry, g: jax.lax.scan(body, carry, g))((params, state), grads)
    step = one_step(optimizer, "apply")
    for t in range(5):
        params, state = step(params, state, jax.tree.map(lambda g, t=t: g[t], grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found, (params, state))


def test_second_step_does_not_recompile():
    optimizer = adamw(schedule)
    traces = []

    @jax.jit
    def step(params, state, grads):
        traces.append(None)
        return optimizer.apply(grads, state, params)

    params, state = small(), optimizer.init(small())
    for t in range(3):
        params, state = step(params, state, small(t))
    assert len(traces) == 1


def test_count_saturates():
    optimizer = adamw(0.1)
    params = small()
    last = optimizer.init(params)._replace(count=jnp.asarray(2**31 - 1, jnp.int32))
    params, state = optimizer.apply(small(1), last, params)
    assert int(state.count) == 2**31 - 1
    assert all(np.isfinite(w).all() for w in jax.tree.leaves(params))


def test_is_a_gradient_transformation():
    optimizer = adamw(0.1)
    init, update = optimizer
    assert isinstance(optimizer, FusedTransformation)
    assert isinstance(optimizer, optax.GradientTransformation)
    assert (init, update) == (optimizer.init, optimizer.update)
    assert isinstance(optimizer.init(small()), optax.ScaleByAdamState)
    assert optimizer.apply({}, optimizer.init({}), {})[0] == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -0.1),
        ("learning_rate", float("nan")),
        ("b1", 1.0),
        ("b1", -0.1),
        ("b2", 1),
        ("eps", -1e-8),
        ("eps_root", -1.0),
        ("weight_decay", -1e-4),
    ],
)
def test_hyperparameter_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, .*; got {value}"):
        adamw(**{"learning_rate": 0.1} | {name: value})


def test_parameters_missing():
    optimizer = adamw(0.1)
    state = optimizer.init(small())
    with pytest.raises(ValueError, match="params must be given to an update with weight_decay; got None"):
        optimizer.update(small(1), state)


@pytest.mark.parametrize("dtype", ["int32", "complex64"])
def test_parameters_must_be_floating_point(dtype):
    with pytest.raises(ValueError, match=rf"params\['w'\] is {dtype}"):
        adamw(0.1).init({"w": jnp.ones(3, dtype)})


def test_shapes_must_agree():
    optimizer = adamw(0.1)
    state = optimizer.init({"w": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"mu must have the shapes of grads, \[\(4,\)\]; got \[\(3,\)\]"):
        optimizer.update({"w": jnp.ones(4)}, state, {"w": jnp.ones(4)})


def test_kernel_refuses_mu_dtype():
    optimizer = adamw(0.1, mu_dtype="bfloat16", implementation="cpu")
    with pytest.raises(ValueError, match=r"'cpu' can't serve adamw: .* leaf 0 are float32, bfloat16, float32"):
        optimizer.update(small(1), optimizer.init(small()), small())
