"""Generation: each way of choosing beside a slow plain one on the full forward pass."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxnet.layers import Layer
from jaxnet.networks import (
    Decoder,
    generate,
    recurrent_decoder,
    sequence_to_sequence,
    transformer,
    transformer_decoder,
)

KEY = jax.random.key(0)
PROMPT, LENGTHS = jnp.array([[2, 0, 2], [4, 4, 1], [3, 1, 1]]), jnp.array([3, 1, 2])
TABLE = np.log([[0.5, 0.25, 0.125, 0.0625, 0.0625], [0.2, 0.2, 0.2, 0.2, 0.2]]).astype("float32")


def bigram(table):
    """The logits of the next integer are a row of the table."""

    def prefill(params, prompt, room=0):
        return params[prompt[:, -1]], jnp.zeros((len(prompt), 1))

    def step(params, cache, ids):
        return params[ids], cache

    layer = Layer(lambda key, x: table, lambda params, x, key=None: params[x], lambda *_: None)
    return Decoder.of(layer, prefill=prefill, step=step, select=lambda cache, rows: cache[rows])


def plain(apply, params, prompt, length, choose):
    """Each integer from the full forward pass of all before it."""
    ids = jnp.asarray(prompt)
    found, total = [], []
    for t in range(length):
        whole = jnp.zeros((1, 8), ids.dtype).at[0, : len(ids)].set(ids)  # one shape, one program
        log_probabilities = jax.nn.log_softmax(apply(params, whole)[0, len(ids) - 1])
        found.append(choose(t, log_probabilities))
        total.append(float(log_probabilities[found[-1]]))
        ids = jnp.append(ids, found[-1])
    return found, total


@pytest.fixture(scope="module", name="attending")
def a_transformer():
    net = transformer_decoder(5, 4, 1, 2)
    params = jax.tree.map(lambda a: 4 * a, net.init(KEY, PROMPT))  # far from a uniform distribution
    return net, params, jax.jit(net.apply)


@pytest.fixture(scope="module")
def lstm():
    net = recurrent_decoder(5, 4)
    return net, jax.tree.map(lambda a: 4 * a, net.init(KEY, PROMPT)), jax.jit(net.apply)


@pytest.mark.parametrize("name", ["attending", "lstm"])
def test_greedy_is_the_likeliest_at_each_step(name, request):
    net, params, apply = request.getfixturevalue(name)
    found = generate(net, params, (PROMPT, LENGTHS), 4, temperature=0.0)
    for b, n in enumerate(LENGTHS.tolist()):
        ids, total = plain(apply, params, PROMPT[b, :n], 4, lambda t, p: int(jnp.argmax(p)))
        assert found.ids[b].tolist() == ids
        np.testing.assert_allclose(found.log_probabilities[b], total, rtol=1e-5, atol=1e-5)
    assert found.lengths.tolist() == [4, 4, 4]


def test_a_draw_is_that_of_the_full_forward_pass(lstm):
    net, params, apply = lstm
    found = generate(net, params, PROMPT[:1], 5, key=KEY, temperature=1.5, top_k=3, top_p=0.8)

    def choose(t, log_probabilities):
        order = np.argsort(-log_probabilities, kind="stable")[:3]
        p = np.exp(np.asarray(log_probabilities)[order] / 1.5)
        p /= p.sum()
        n = next(n for n in (1, 2, 3) if p[:n].sum() >= 0.8 or n == 3)  # the fewest that have so much
        z = np.where(np.arange(3) < n, np.log(p), -np.inf)
        return int(order[jax.random.categorical(jax.random.fold_in(KEY, t), z[None])[0]])

    ids, total = plain(apply, params, PROMPT[0], 5, choose)
    assert found.ids[0].tolist() == ids
    np.testing.assert_allclose(found.log_probabilities[0], total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.25, 0.125, 0.0625, 0.0625]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0, 0]),
        ({"top_k": 9}, [0.5, 0.25, 0.125, 0.0625, 0.0625]),
        ({"top_p": 0.75}, [2 / 3, 1 / 3, 0, 0, 0]),  # two have exactly so much
        ({"top_p": 0.76}, [4 / 7, 2 / 7, 1 / 7, 0, 0]),
        ({"top_p": 1e-9}, [1, 0, 0, 0, 0]),
        ({"top_k": 2, "top_p": 0.66}, [1, 0, 0, 0, 0]),  # of these two
        ({"top_k": 4, "top_p": 1.0}, [8 / 15, 4 / 15, 2 / 15, 1 / 15, 0]),  # of equals the first
        ({"temperature": 0.5}, [32 / 43, 8 / 43, 2 / 43, 0.5 / 43, 0.5 / 43]),
    ],
)
def test_a_distribution_made_by_hand(options, expected):
    net = bigram(TABLE)
    prompt = jnp.zeros((40_000, 1), "int32")
    found = generate(net, TABLE, prompt, 1, key=KEY, **options)
    counts = np.bincount(found.ids[:, 0], minlength=5) / len(prompt)
    np.testing.assert_allclose(counts, expected, atol=0.012)  # five standard deviations
    assert not counts[np.array(expected) == 0].any()
    np.testing.assert_allclose(found.log_probabilities[:, 0], TABLE[0, found.ids[:, 0]], rtol=1e-5)


def test_after_a_stop_there_are_stops_and_their_log_probabilities_are_0():
    table = np.log(np.full((3, 3), 1 / 3, "float32"))
    found = generate(bigram(table), table, jnp.zeros((64, 1), "int32"), 5, key=KEY, stop=2)
    assert len(set(found.lengths.tolist())) == 5
    for ids, log_probabilities, n in zip(*map(np.asarray, found), strict=True):
        assert (ids[n:] == 2).all()
        assert 2 not in ids[: n - 1]
        assert n == 5 or ids[n - 1] == 2
        np.testing.assert_allclose(log_probabilities, np.where(np.arange(5) < n, -np.log(3), 0), rtol=1e-6)


def test_the_loop_ends_when_all_have():
    table = np.array([[0, 9, 0], [0, 0, 9], [9, 0, 0]], "float32")
    seen = []

    def step(params, cache, ids):
        jax.debug.callback(lambda ids: seen.append(ids), ids)
        return params[ids], cache

    net = bigram(table)
    net.step = step
    found = generate(net, table, jnp.array([[0], [1]]), 50, temperature=0.0, stop=2)
    jax.effects_barrier()
    assert found.lengths.tolist() == [2, 1]
    assert len(seen) == 1
    found = generate(net, table, jnp.array([[0]]), 50, beams=2, stop=2)
    jax.effects_barrier()
    assert found.lengths.tolist() == [2]
    assert len(seen) < 10


def exhaustive(table, first, length, penalty, stop):
    """The best of all sequences, with its score."""
    log_p, found = np.asarray(jax.nn.log_softmax(table)), {}
    for ids in itertools.product(range(len(table)), repeat=length):
        n = ids.index(stop) + 1 if stop in ids else length
        pairs = itertools.pairwise((first, *ids[:n]))
        found[ids[:n]] = sum(log_p[a, b] for a, b in pairs) / n**penalty
    return max(found.items(), key=lambda item: item[1])


@pytest.mark.parametrize(("penalty", "stop"), [(1.0, 2), (0.0, 2), (1.7, 2), (1.0, None)])
def test_enough_beams_find_the_best_of_all_sequences(penalty, stop):
    tables = [np.random.default_rng(seed).normal(size=(3, 3)).astype("float32") * 2 for seed in range(4)]
    net = bigram(tables[0])
    for table in tables:
        found = generate(net, table, jnp.arange(3)[:, None], 4, beams=27, length_penalty=penalty, stop=stop)
        for first in range(3):
            ids, score = exhaustive(table, first, 4, penalty, stop)
            n = int(found.lengths[first])
            assert tuple(found.ids[first, :n].tolist()) == ids
            np.testing.assert_allclose(found.log_probabilities[first].sum() / n**penalty, score, rtol=1e-5)
            assert set(found.ids[first, n:].tolist()) <= {stop}


def test_few_beams_are_those_of_a_plain_search(attending):
    net, params, apply = attending
    found = generate(net, params, (PROMPT, LENGTHS), 4, beams=2, stop=3)
    for b, prompt_length in enumerate(LENGTHS.tolist()):
        beams, best = [(0.0, ())], (-np.inf, ())
        for n in range(1, 5):
            extended = []
            for total, ids in beams:
                whole = jnp.zeros((1, 8), "int32").at[0, :prompt_length].set(PROMPT[b, :prompt_length])
                whole = whole.at[0, prompt_length : prompt_length + len(ids)].set(jnp.array(ids, "int32"))
                log_p = np.asarray(jax.nn.log_softmax(apply(params, whole)[0, prompt_length + len(ids) - 1]))
                extended += [(total + log_p[i], (*ids, i)) for i in range(5)]
            best = max([best, *((total / n, ids) for total, ids in extended if ids[-1] == 3)])
            beams = sorted((beam for beam in extended if beam[1][-1] != 3), reverse=True)[:2]
        score, ids = max([best, *((total / 4, ids) for total, ids in beams)])
        n = int(found.lengths[b])
        assert tuple(found.ids[b, :n].tolist()) == ids
        np.testing.assert_allclose(found.log_probabilities[b].sum() / n, score, rtol=1e-5)


@pytest.mark.parametrize(
    "make", [partial(sequence_to_sequence, cell="rnn"), partial(transformer, depth=1, heads=1)]
)
def test_a_translation_has_the_log_probabilities_of_the_full_forward_pass(make):
    net, source, begin = make((6, 5), 4), (jnp.array([[3, 1, 5], [2, 4, 0]]), jnp.array([3, 2])), PROMPT[:2, :1]
    params = jax.tree.map(lambda a: 4 * a, net.init(KEY, (source, begin)))
    found = generate(net, params, (source, begin), 4, beams=3)
    target = jnp.concatenate([begin, found.ids[:, :-1]], 1)
    expected = jax.nn.log_softmax(jax.jit(net.apply)(params, (source, target)))
    expected = jnp.take_along_axis(expected, found.ids[..., None], 2)[..., 0]
    np.testing.assert_allclose(found.log_probabilities, expected, rtol=1e-5, atol=1e-5)


def test_one_beam_is_greedy(lstm):
    net, params, _ = lstm
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        generate(net, params, PROMPT, 4, beams=1),
        generate(net, params, PROMPT, 4, temperature=0.0),
    )


@pytest.mark.parametrize(
    ("options", "others"),
    [
        ({"key": KEY, "top_p": 0.9}, {"key": jax.random.key(5), "top_p": 0.5, "temperature": 0.7}),
        ({"beams": 2}, {"beams": 2, "length_penalty": 0.5}),
    ],
)
def test_another_prompt_of_the_same_shape_compiles_nothing(lstm, caplog, options, others):
    net, params, _ = lstm
    prompt = PROMPT[:2], LENGTHS[:2]
    other = jax.tree.map(lambda a: jnp.array(np.asarray(a)[::-1]), prompt)
    with jax.log_compiles():
        generate(net, params, prompt, 3, **options)
        assert "Compiling jit(_s" in caplog.text
        caplog.clear()
        generate(net, params, other, 3, **others)
        assert "Compiling" not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "draws from a key: give one, or temperature=0.0 or beams"),
        ({"key": KEY, "temperature": -1.0}, "a temperature and a length_penalty ≥ 0; got -1.0"),
        ({"key": KEY, "top_k": 0}, "top_k must be whole numbers ≥ 1; got 0"),
        ({"key": KEY, "top_p": 0.0}, r"top_p in \(0, 1\]; got 0.0"),
        ({"key": KEY, "beams": 2, "top_p": 0.5}, "leave out key, top_p, or beams"),
        ({"beams": 2, "length_penalty": -1.0}, "length_penalty ≥ 0; got 1.0 and -1.0"),
        ({"beams": 2, "stop": -1}, "stop that is an integer of the vocabulary; got -1"),
        ({"beams": 2, "stop": 5}, "stop below the vocabulary of 5; got 5"),
        ({"temperature": 0.0, "prompt": (PROMPT, LENGTHS - 1)}, "lengths from 1 to its T; got 0 to 2"),
        ({"temperature": 0.0, "prompt": PROMPT[0]}, r"a prompt needs ids \(B, T\)"),
        ({"temperature": 0.0, "prompt": PROMPT.at[1, 0].set(5)}, "after prompt 1 are NaN: either it has integers"),
        ({"beams": 2, "prompt": PROMPT.at[2, 1].set(5)}, "after prompt 2 are NaN: either it has integers"),
        ({"temperature": 0.0, "length": 0}, "length must be whole numbers ≥ 1; got 0"),
    ],
)
def test_errors(options, message, lstm):
    net, params, _ = lstm
    options = {"prompt": PROMPT, "length": 2} | options
    prompt, length = options.pop("prompt"), options.pop("length")
    with pytest.raises(ValueError, match=message):
        generate(net, params, prompt, length, **options)


def test_beams_whose_later_logits_are_nan_have_no_best():
    table = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.2, 0.2, 0.6]])).at[1].set(jnp.nan)
    with pytest.raises(ValueError, match="after prompt 0 are NaN"):
        generate(bigram(table), table, jnp.array([[0]]), 3, beams=2, stop=2)


def test_within_transformations_nothing_is_looked_at():
    def log_probabilities(table):
        return generate(bigram(None), table, PROMPT, 3, temperature=0.0).log_probabilities

    table = jnp.log(jnp.eye(5) + 0.1)
    expected = log_probabilities(table)
    np.testing.assert_allclose(jax.jvp(log_probabilities, (table,), (table,))[0], expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(log_probabilities)(table), expected, rtol=1e-6)
    assert jnp.isnan(jax.jit(log_probabilities)(table * jnp.nan)).all()


def test_a_length_is_a_whole_number(lstm, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would be the first to complain
    net, params, _ = lstm
    with pytest.raises(ValueError, match=r"length must be whole numbers ≥ 1; got 2\.5"):
        generate(net, params, PROMPT, 2.5, temperature=0.0)


def test_a_prompt_is_an_array(lstm):
    net, params, _ = lstm
    with pytest.raises(TypeError, match="generate needs an array as prompt; got list"):
        generate(net, params, PROMPT.tolist(), 2, temperature=0.0)
