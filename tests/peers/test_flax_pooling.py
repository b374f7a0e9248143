"""An oracle from outside: Flax has the same values and the same gradients, for every option."""

from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnet import layers, ops, train

nn = pytest.importorskip("flax.linen", reason="Flax is only compared with: pip install '.[peers]'")
pytestmark = pytest.mark.long


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@contextmanager
def leniently():
    """As Flax needs it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def compare(ours, theirs, *args):
    """Value and all gradients under one random cotangent; ours by hand, theirs by autodiff."""

    @jax.jit
    def roads(args, seed):
        y, hand = ours(*args)
        dy = jax.random.normal(seed, y.shape, y.dtype)
        with leniently():
            expected, autodiff = jax.vjp(theirs, *args)
            return (y, tuple(hand(dy))), (expected, autodiff(dy))

    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-11), *roads(args, jax.random.key(0)))


@settings(max_examples=10)
@given(
    st.integers(1, 3),
    st.sampled_from(["SAME", "VALID", "pairs"]),
    st.data(),
    st.sampled_from(["max", False, True]),
)
def test_pooling(axes, padding, data, kind):
    window, stride = (tuple(data.draw(st.integers(1, 3)) for _ in range(axes)) for _ in range(2))
    if padding == "pairs":
        padding = [tuple(data.draw(st.integers(0, k - 1)) for _ in range(2)) for k in window]
    options = {"strides": stride, "padding": padding}
    with jax.enable_x64(True):
        x = draw(0, 2, *(k + data.draw(st.integers(0, 4)) for k in window), 3)
        if kind == "max":
            ours = partial(ops.max_pool_vjp, window=window, stride=stride, padding=padding)
            compare(ours, lambda x: nn.max_pool(x, window, **options), x)
        else:
            ours = partial(ops.avg_pool_vjp, window=window, stride=stride, padding=padding, count_include_pad=kind)
            compare(ours, lambda x: nn.avg_pool(x, window, **options, count_include_pad=kind), x)


MODULES = {
    "layer_norm": (layers.layer_norm, nn.LayerNorm),
    "group_norm": (partial(layers.group_norm, 2), partial(nn.GroupNorm, 2)),
    "batch_norm": (layers.batch_norm, partial(nn.BatchNorm, use_running_average=False)),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(("scale", "bias"), [(True, True), (False, False)])
def test_normalisation(x64, name, scale, bias):
    ours, theirs = MODULES[name]
    layer = ours(eps=1e-3, scale=scale, bias=bias)
    module = theirs(epsilon=1e-3, use_scale=scale, use_bias=bias, use_fast_variance=False, dtype=jnp.float64)
    x = draw(0, 3, 4, 2, 6)
    trained = {n: draw(s, 6) for n, s, there in (("scale", 1, scale), ("bias", 2, bias)) if there}
    fixed = (
        {n: p for n, p in layer.init(jax.random.key(0), x).items() if n not in trained}
        if name == "batch_norm"
        else {}
    )

    def by_hand(trained, x):
        y, pullback = layer.vjp(trained | fixed, x, key=jax.random.key(0))

        def of_trained(dy):
            dparams, dx = pullback(dy)
            return {n: dparams[n] for n in trained}, dx

        return y, of_trained

    with leniently():
        variables = {"batch_stats": module.init(jax.random.key(0), x).get("batch_stats", {})}
    compare(
        by_hand,
        lambda trained, x: module.apply({"params": trained} | variables, x, mutable=["batch_stats"])[0],
        trained,
        x,
    )


def test_the_population_is_what_flax_averages_to(x64):
    # With the same batch again and again, Flax's moving average converges to its statistics.
    x, layer = draw(0, 8, 3, 4), layers.batch_norm()
    params = train.population_statistics(layer, layer.init(jax.random.key(0), x), [x], key=jax.random.key(1))
    module = nn.BatchNorm(use_running_average=False, momentum=0.0)
    with leniently():
        variables = module.init(jax.random.key(0), x)
        stats = module.apply(variables, x, mutable=["batch_stats"])[1]["batch_stats"]
        state = {"params": variables["params"], "batch_stats": stats}
        inference = nn.BatchNorm(use_running_average=True).apply(state, x)
    np.testing.assert_allclose(params["mean"], stats["mean"], atol=1e-12)
    np.testing.assert_allclose(params["var"], stats["var"], atol=1e-12)
    np.testing.assert_allclose(layer.apply(params, x), inference, atol=1e-7)
