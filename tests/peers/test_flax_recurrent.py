"""An oracle from outside: Flax's recurrent cells with the same weights, in value and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import ops

nn = pytest.importorskip("flax.linen", reason="Flax is only compared with: pip install '.[peers]'")
pytestmark = pytest.mark.long

BATCH, TIME, IN, HIDDEN = 3, 4, 2, 3


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def beside(weights, gates):
    """Our gates, which lie side by side, one by one."""
    return [jnp.split(w, gates, -1) for w in weights]


def as_simple(weight, recurrent, bias):
    return {"i": {"kernel": weight, "bias": bias}, "h": {"kernel": recurrent}}


def as_lstm(weight, recurrent, bias):
    ws, us, bs = beside((weight, recurrent, bias), 4)
    params = {f"i{gate}": {"kernel": w} for gate, w in zip("ifgo", ws, strict=True)}
    return params | {f"h{gate}": {"kernel": u, "bias": b} for gate, u, b in zip("ifgo", us, bs, strict=True)}


def as_gru(weight, recurrent, bias, inner):
    ws, us, bs = beside((weight, recurrent, bias), 3)
    params = {f"i{gate}": {"kernel": w, "bias": b} for gate, w, b in zip("rzn", ws, bs, strict=True)}
    params |= {f"h{gate}": {"kernel": u} for gate, u in zip("rzn", us, strict=True)}
    params["hn"]["bias"] = inner
    return params


CELLS = {
    "rnn": ("SimpleCell", 1, 1, as_simple),
    "lstm": ("OptimizedLSTMCell", 4, 1, as_lstm),
    "gru": ("GRUCell", 3, 2, as_gru),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("op", CELLS)
def test_values_and_gradients(x64, op, reverse):
    cell, gates, biases, renamed = CELLS[op]
    x, lengths = draw(BATCH, TIME, IN), jnp.asarray([4, 2, 3])
    weights = draw(IN, gates * HIDDEN, seed=1), draw(HIDDEN, gates * HIDDEN, seed=2)
    weights += (draw(gates * HIDDEN, seed=3), draw(HIDDEN, seed=4))[:biases]
    run = nn.RNN(getattr(nn, cell)(HIDDEN), return_carry=True, reverse=reverse, keep_order=True)
    states = draw(BATCH, HIDDEN, seed=5), draw(BATCH, HIDDEN, seed=6)
    ours = states if op == "lstm" else states[0]
    inside = (jnp.arange(TIME)[None] < lengths[:, None])[..., None]

    def as_in_flax(x, weights, state):
        carry = state[::-1] if op == "lstm" else state  # Flax's is (c, h)
        params = {"cell": renamed(*weights)}
        # What Flax returns of the padding means nothing.
        carry, y = run.apply({"params": params}, x, initial_carry=carry, seq_lengths=lengths)
        return jnp.where(inside, y, 0), carry[::-1] if op == "lstm" else carry

    def as_ours(x, weights, state):
        return getattr(ops, op)(x, *weights, state, reverse=reverse, lengths=lengths)

    @jax.jit
    def road(*args):
        results = []
        for f in as_ours, as_in_flax:
            outputs, pullback = jax.vjp(f, *args)
            cotangents = jax.tree.map(lambda a: draw(*a.shape, seed=9), outputs)
            results.append((outputs, pullback(cotangents)))
        return results

    found, expected = road(x, weights, ours)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), found, expected)
