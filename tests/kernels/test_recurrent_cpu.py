"""The compiled loops over time: what is particular to them; the rest is in test_contract.py."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import CONTRACTS

from jaxnet import losses, networks, ops, train
from jaxnet.ops import using


@pytest.mark.parametrize("name", ["lstm", "gru before"])
def test_the_padding_is_not_read(name):
    c = CONTRACTS[name]
    x, *rest, _ = c.arguments((3, 4, 2, 9), "float32")
    lengths = jnp.asarray([0, 2, 4], "int32")
    inside = (jnp.arange(4)[None] < lengths[:, None])[..., None]

    @jax.jit
    def both(x):
        outputs, pullback = c.vjp(x, *rest, lengths, implementation="cpu")
        return outputs, pullback(outputs)

    jax.tree.map(np.testing.assert_array_equal, both(jnp.where(inside, x, jnp.nan)), both(x))


def test_what_is_only_for_a_backward_pass_is_not_written_without():
    *args, lengths = CONTRACTS["lstm"].arguments((3, 3, 2, 5), "float32")
    lowered = jax.jit(partial(ops.lstm, lengths=lengths, implementation="cpu")).lower(*args)
    assert lowered.compile().as_text().count('custom_call_target="jaxnet_lstm"') == 1
    (call,) = (line for line in lowered.as_text().splitlines() if "@jaxnet_lstm(" in line)
    assert call.split("->")[-1].count("tensor<") == 3  # y, h and c


def test_a_hundred_steps_end_where_those_by_xla_end():
    net = networks.lstm(16, 3)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(24, 10, 4)), "float32")
    y = (x.sum((1, 2)) > 0).astype("int32") + (x[:, 0, 0] > 0).astype("int32")
    ends = []
    for implementation in ("cpu", "xla"):
        with using(implementation):
            optimizer = train.adamw(1e-2)
            state = train.init(net, optimizer, jax.random.key(0), x[:1])
            step = train.make_step(net, losses.cross_entropy, optimizer)
            for _ in range(100):
                state, metrics = step(state, (x, y))
        ends.append(float(metrics["loss"]))
    assert ends[0] < 0.2
    assert abs(ends[0] - ends[1]) < 1e-3 * ends[1]
