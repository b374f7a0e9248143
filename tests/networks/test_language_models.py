"""Language models: the law of the recurrent one, and that step by step each is what it is all at once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers, losses, train
from jaxnet.networks import (
    recurrent_decoder,
    sequence_to_sequence,
    transformer,
    transformer_decoder,
    transformer_encoder,
)

KEY, TRAINING = jax.random.key(0), jax.random.key(7)
IDS = jnp.array([[2, 0, 2, 5, 1], [4, 4, 1, 3, 6]])
LENGTHS = jnp.array([4, 2])


def close(found, expected, **tolerances):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 1e-5, "atol": 1e-6} | tolerances), found, expected
    )


@pytest.mark.parametrize(
    ("net", "with_lengths"),
    [
        (recurrent_decoder(7, 4, layers=2, dropout_rate=0.3), True),
        (recurrent_decoder(7, 4, cell="gru", hidden=3, tied=False), False),
    ],
)
def test_vjp_equals_autodiff_of_apply(x64, net, with_lengths):
    x = (IDS, LENGTHS) if with_lengths else IDS
    params = jax.tree.map(lambda p: p.astype("float64"), net.init(KEY, x))
    key = TRAINING if with_lengths else None

    @jax.jit
    def roads(params, dy):
        y, pullback = net.vjp(params, x, key=key)
        expected, autodiff = jax.vjp(lambda params: net.apply(params, x, key=key), params)
        return (y, pullback(dy)[0]), (expected, autodiff(dy)[0])

    close(*roads(params, jax.random.normal(KEY, (2, 5, 7), "float64")), rtol=1e-9, atol=1e-11)
    dx = net.vjp(params, x, key=key)[1](jnp.ones((2, 5, 7), "float64"))[1]
    assert jax.tree.map(lambda a: (a.shape, a.dtype), dx) == jax.tree.map(
        lambda a: (a.shape, jax.dtypes.float0), x
    )


def test_what_lies_past_a_length_does_not_matter():
    net = recurrent_decoder(7, 4)
    params = net.init(KEY, (IDS, LENGTHS))
    apply = jax.jit(net.apply)
    y = apply(params, (IDS, LENGTHS))
    close(apply(params, (IDS.at[1, 2:].set(0), LENGTHS)), y, rtol=0, atol=0)
    close(y[1, :2], apply(params, (IDS, LENGTHS + 1))[1, :2])
    assert not jnp.any(y[1, 2:])


def test_the_loss_without_logits_is_that_of_the_logits():
    net = recurrent_decoder(7, 4, cell="rnn")
    params = net.init(KEY, IDS)

    def with_logits(params):
        return losses.cross_entropy(net.apply(params, IDS[:, :-1]), IDS[:, 1:]).mean()

    def without(params):
        hidden = net.hidden.apply(params, IDS[:, :-1])
        return losses.linear_cross_entropy(hidden, net.weight(params), IDS[:, 1:]).mean()

    close(*(jax.jit(jax.value_and_grad(f))(params) for f in (without, with_logits)))


def test_it_learns_a_text_by_heart():
    ids = jax.random.randint(jax.random.key(1), (4, 12), 0, 8)
    net, optimizer = recurrent_decoder(8, 24), train.adamw(0.03)
    state = train.init(net, optimizer, KEY, ids[:, :-1])
    step = train.make_step(net, losses.cross_entropy, optimizer, steps=100)
    batches = jax.tree.map(lambda a: jnp.broadcast_to(a[None], (100, *a.shape)), (ids[:, :-1], ids[:, 1:]))
    _, metrics = step(state, batches)
    assert float(metrics["loss"][-1]) < 0.3 * np.log(8)


SOURCE = jnp.array([[1, 3, 0], [2, 2, 4]])
SOURCE_LENGTHS = jnp.array([3, 1])

TRANSLATORS = {
    "transformer": partial(transformer, depth=2, heads=1, activation="relu", positions="learned", length=5),
    "transformer, after, rotary, a head": partial(
        transformer, depth=1, heads=2, key_value_heads=1, norm_first=False, positions="rotary", tied=False
    ),
    "lstm": partial(sequence_to_sequence, hidden=3, dropout_rate=0.3),
}


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_vjp_of_an_encoder_and_decoder_equals_autodiff_of_apply(x64, name):
    net = TRANSLATORS[name]((5, 7), 4)
    x, key = ((SOURCE, SOURCE_LENGTHS), IDS), TRAINING if name == "lstm" else None
    params = jax.tree.map(lambda p: p.astype("float64"), net.init(KEY, x))

    @jax.jit
    def roads(params, dy):
        expected, autodiff = jax.vjp(lambda params: net.apply(params, x, key=key), params)
        y, pullback = net.vjp(params, x, key=key)
        return (y, pullback(dy)[0]), (expected, autodiff(dy)[0])

    close(*roads(params, jax.random.normal(KEY, (2, 5, 7), "float64")), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", TRANSLATORS)
def test_a_translation_step_by_step_is_all_at_once(name):
    net = TRANSLATORS[name]((5, 7), 4)
    source = SOURCE, SOURCE_LENGTHS
    params = net.init(KEY, (source, IDS))
    whole = jax.jit(net.apply)(params, (source, IDS))
    step_by_step(net, params, whole, partial(net.start, params, source), lambda ids: (source, ids))


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (transformer(7, 4, 2, 2), (2, 2, 2, 5, 3)),
        (transformer(7, 4, 3, 1, norm_first=False, dropout_rate=0.3, positions=None), (3, 2, 1, 5, 3)),
        (sequence_to_sequence(7, 4, dropout_rate=0.3), (1, 2, 1, 5, 3)),
    ],
)
@pytest.mark.parametrize("lengths", [None, jnp.array([3, 1])])
def test_alignments_of_a_target_to_its_source(net, shape, lengths):
    source = jnp.array([[1, 2, 3], [4, 5, 6]])
    x = (source if lengths is None else (source, lengths)), IDS
    params = net.init(KEY, x)
    p = jax.jit(net.alignments)(params, x)
    assert p.shape == shape
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)
    assert (jnp.count_nonzero(p[:, 1] > 0, -1) == (3 if lengths is None else 1)).all()
    close(net.alignments(params, (x[0], IDS[:, :2])), p[:, :, :, :2])  # what comes later has no say


def test_alignments_are_those_that_the_network_uses():
    x = jnp.array([[1, 2, 3]]), IDS[:1]
    net = sequence_to_sequence(7, 4, bidirectional=False)  # y = tanh([s, p m W_v W_o] W + b)
    params = net.init(KEY, x)
    cells, (_, attention), dense = params["decoder"]["body"]
    memory = layers.lstm(4).apply(params["encoder"][1], params["encoder"][0]["table"][x[0]])
    s = layers.lstm(4).apply(cells, params["decoder"]["embedding"]["table"][x[1]])
    c = net.alignments(params, x)[0, :, 0] @ memory @ attention["value"]["weight"] @ attention["output"]["weight"]
    y = layers.dense(4, activation="tanh").apply(dense, jnp.concatenate([s, c], -1))
    close(y, net.hidden.apply(params, x))

    net = transformer(7, 4, 1, 1)  # p = softmax(q kᵀ / √H), q of the normalised x after self-attention
    params = net.init(KEY, x)
    tables = params["encoder"][0]["table"], params["decoder"]["embedding"]["table"]
    source, target = (2 * table[ids] for table, ids in zip(tables, x, strict=True))  # √E
    memory = transformer_encoder(4, 1, 1).apply(params["encoder"][1], source)
    attend, look, _ = jax.tree.map(lambda a: a[0], params["decoder"]["body"][1])
    y = layers.positions("sinusoidal").apply((), target)
    norm, attention = layers.layer_norm(), layers.attention(1, causal=True)
    y = layers.residual(layers.serial(norm, attention)).apply(attend, y)
    q = layers.dense(4).apply(look[1]["query"], norm.apply(look[0], y))
    k = layers.dense(4).apply(look[1]["key"], memory)
    close(jax.nn.softmax(q @ k.mT / 2), net.alignments(params, x)[0, :, 0])


@pytest.mark.parametrize("net", [recurrent_decoder(7, 4), transformer_decoder(7, 4, 1, 1)])
def test_only_a_network_with_a_memory_has_alignments(net):
    with pytest.raises(ValueError, match="such as transformer; this one has none"):
        net.alignments(None, IDS)


def step_by_step(net, params, whole, start, prompt_of):
    """All steps from the start; then those of two lengths at once, and one more of each in another order."""
    step, prefill, cache = jax.jit(net.step), jax.jit(net.prefill), jax.jit(partial(start, 5))()
    for t in range(5):
        logits, cache = step(params, cache, IDS[:, t])
        close(logits, whole[:, t])
    logits, cache = prefill(params, prompt_of((IDS, LENGTHS)))
    close(logits, whole[jnp.arange(2), LENGTHS - 1])
    cache = jax.jit(net.select)(cache, jnp.array([1, 0]))
    logits, _ = step(params, cache, IDS[jnp.arange(2), LENGTHS][::-1])
    close(logits[::-1], whole[jnp.arange(2), LENGTHS])


NETWORKS = {
    "lstm": partial(recurrent_decoder, layers=2, dropout_rate=0.1),
    "gru": partial(recurrent_decoder, cell="gru", hidden=3, tied=False),
    "rnn": partial(recurrent_decoder, cell="rnn", layers=2),
    "rotary, grouped heads": partial(transformer_decoder, depth=2, heads=2, key_value_heads=1, dropout_rate=0.1),
    "learned, window, a head": partial(
        transformer_decoder, depth=2, heads=1, positions="learned", length=5, window=1, tied=False, bias=True
    ),
    "sinusoidal, after": partial(
        transformer_decoder,
        depth=1,
        heads=2,
        positions="sinusoidal",
        norm_first=False,
        normalization="layer",
        activation="gelu",
        dropout_rate=0.1,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_step_by_step_is_all_at_once(name):
    net = NETWORKS[name](7, 4)
    params = net.init(KEY, IDS)
    whole = jax.jit(net.apply)(params, IDS)
    step_by_step(net, params, whole, partial(net.start, params, 2), lambda prompt: prompt)
    logits, cache = jax.jit(net.prefill, static_argnums=2)(params, IDS[:, :1], 4)  # without lengths, with room
    close(logits, whole[:, 0])
    assert jax.tree.map(jnp.shape, cache) == jax.tree.map(
        jnp.shape, jax.eval_shape(partial(net.start, params, 2, 5))
    )


def test_a_piece_more_is_read_from_where_the_last_one_ended():
    layer = layers.attention(2, causal=True, rotary=10.0)
    x = jax.random.normal(KEY, (2, 5, 4))
    params = layer.init(KEY, x)

    @jax.jit
    def roads(params, x):
        first, state = layer.read(params, layer.start(params, x, 5), x[:, :2])
        second, _ = layer.read(params, state, x[:, 2:])
        return jnp.concatenate([first, second], 1), layer.apply(params, x)

    close(*roads(params, x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recurrent_decoder(7, 4, cell="transformer"), "recurrent_decoder needs a cell of 'rnn'"),
        (lambda: recurrent_decoder(7, 4, hidden=3), "hidden = features to tie its maps; got hidden 3"),
        (lambda: recurrent_decoder(0, 4), "vocabulary must be whole numbers ≥ 1; got 0"),
        (lambda: recurrent_decoder(7, 4).step({}, (), IDS), r"ids \(B,\), one for each example; got \(2, 5\)"),
        (lambda: recurrent_decoder(7, 4).prefill({}, IDS[0]), r"ids \(B, T\) of integers.* got int32 \(5,\)"),
        (lambda: recurrent_decoder(7, 4).prefill({}, (IDS, IDS)), r"needs integer lengths \(2,\); got int32"),
        (lambda: layers.lstm(2, reverse=True).start({}, jnp.ones((2, 1, 3)), 5), "this one begins at the end"),
        (lambda: layers.attention(2).start({}, jnp.ones((2, 1, 4)), 5), "if it is causal and of x alone"),
        (
            lambda: layers.positions("learned", length=4).start({}, jnp.ones((2, 1, 4)), 5),
            "up to a length of 4 don't reach one of 5",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
