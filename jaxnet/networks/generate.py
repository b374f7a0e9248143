"""How a language model writes on: greedily, by chance, or by beam search.

Axes: B batch · T places of the prompt · L `length`, the integers to write · V vocabulary · K beams.

One compiled program reads the prompt and loops over `net.step`; another prompt of the same shape compiles nothing.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxnet.activations import accumulation_dtype
from jaxnet.layers.layer import Inputs, Params
from jaxnet.networks.blocks import whole_numbers
from jaxnet.networks.decoder import Decoder
from jaxnet.ops.arrays import check_arrays


class Generated(NamedTuple):
    """What was written. From `lengths` on the ids are `stop`, their log-probabilities 0."""

    ids: Array  # (B, L)
    log_probabilities: Array  # (B, L), of each id under the model: ln softmax of its logits, at temperature 1
    lengths: Array  # (B,), how many ids were written, the first `stop` included


class _Choice(NamedTuple):
    """What of the choice of an integer is part of the program."""

    top_k: int | None
    top_p: bool


class _Written(NamedTuple):
    """So far."""

    ids: Array  # (B, L)
    log_probabilities: Array  # (B, L)
    lengths: Array  # (B,)
    ended: Array  # (B,)


class _Beams(NamedTuple):
    """The K best that haven't ended, the best that has, and where they come from."""

    sums: Array  # (B, K), of log-probabilities, the largest first
    ids: Array  # (B, K, L)
    log_probabilities: Array  # (B, K, L)
    rows: Array  # (B K,): which row of the cache each goes on from
    score: Array  # (B,), of `best`
    best: Generated


def generate(
    net: Decoder,
    params: Params,
    prompt: Inputs,
    length: int,
    *,
    key: Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    beams: int | None = None,
    length_penalty: float = 1.0,
    stop: int | None = None,
) -> Generated:
    """Writes up to `length` integers after each prompt.

    By chance each is drawn from softmax(logits / temperature), of which `top_k` and then `top_p` leave the
    likeliest ones, of equals those that come first. Temperature 0 is greedy: always the likeliest.

    Beam search looks for the sequence with the greatest (Σ ln p) / n^length_penalty, n being its length. Of those
    that haven't ended it keeps the `beams` likeliest at each step; of those that have, the best. (Graves, 2012; in
    the normalisation Wu et al., 2016, have a constant more.)

    Args:
        net: a `Decoder`: `transformer_decoder`, `recurrent_decoder`, `transformer`,
            `sequence_to_sequence`.
        params: its parameters.
        prompt: what `net.prefill` takes: ids (B, T), or a pair of that and lengths (B,), each ≥ 1; for an encoder
            and decoder (source, the beginning of the target), each of this form.
        length: L. It ends earlier when all have ended.
        key: what is drawn from; not needed if greedy or by beam search. Step t draws from `fold_in(key, t)`.
        temperature: ≥ 0.
        top_k: how many of the likeliest integers can be drawn. (Fan et al., 2018).
        top_p: in (0, 1]: the likeliest can be drawn that together have at least this probability, given top_k and
            the temperature. (Holtzman et al., 2019).
        beams: K; None is no beam search.
        length_penalty: ≥ 0, of beam search; 0 compares the probabilities of whole sequences.
        stop: the integer that ends a sequence; None: none does.

    A program is compiled for each `net`, shape of the prompt, `length`, `top_k`, `beams` and `stop`: pad prompts
    to few lengths.

    Raises:
        ValueError: for options that don't fit or don't go together, a prompt of another form, and, outside `jit`,
            probabilities that are NaN, as they are for integers beyond the vocabulary.

    Example:
        >>> net = networks.recurrent_decoder(100, 32)
        >>> params = net.init(jax.random.key(0), jnp.zeros((1, 16), int))
        >>> networks.generate(net, params, jnp.zeros((2, 5), int), 20, key=jax.random.key(1), top_p=0.9).ids.shape
        (2, 20)
    """
    _check(length, key, temperature, top_k, top_p, beams, length_penalty, stop)
    prompt = jax.tree.map(jnp.asarray, prompt)
    _check_lengths(prompt)
    if beams is not None:
        return _of_numbers(_searched(net, length, beams, stop, params, prompt, length_penalty))
    choice = _Choice(top_k, top_p is not None)
    key = key if temperature else None  # without one it is greedy
    return _of_numbers(_sampled(net, length, choice, stop, params, prompt, key, temperature, top_p))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _sampled(
    net: Decoder,
    length: int,
    choice: _Choice,
    stop: int | None,
    params: Params,
    prompt: Inputs,
    key: Array | None,
    temperature: Array,
    top_p: Array | None,
) -> Generated:
    """One integer after the other."""
    logits, cache = net.prefill(params, prompt, length - 1)
    logits = logits.astype(accumulation_dtype(logits.dtype))
    _check_stop(stop, logits)
    b, end = len(logits), jnp.asarray(stop or 0, "int32")

    def add(t: Array, logits: Array, written: _Written) -> _Written:
        drawn = _drawn(choice, logits, None if key is None else jax.random.fold_in(key, t), temperature, top_p)
        ids = jnp.where(written.ended, end, drawn)
        log_probabilities = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, None], 1)[:, 0]
        return _Written(
            written.ids.at[:, t].set(ids),
            written.log_probabilities.at[:, t].set(jnp.where(written.ended, 0, log_probabilities)),
            written.lengths + (~written.ended).astype("int32"),
            written.ended if stop is None else written.ended | (ids == end),
        )

    def unfinished(carry: tuple[Array, Any, _Written]) -> Array:
        t, _, written = carry
        return (t < length) & ~jnp.all(written.ended)

    def step(carry: tuple[Array, Any, _Written]) -> tuple[Array, Any, _Written]:
        t, cache, written = carry
        logits, cache = net.step(params, cache, written.ids[:, t - 1])
        return t + 1, cache, add(t, logits.astype(accumulation_dtype(logits.dtype)), written)

    none = _Written(
        jnp.full((b, length), end),
        jnp.zeros((b, length), logits.dtype),
        jnp.zeros(b, "int32"),
        jnp.zeros(b, bool),
    )
    first = jnp.asarray(0, "int32")
    written = lax.while_loop(unfinished, step, (first + 1, cache, add(first, logits, none)))[2]
    return Generated(*written[:3])


def _drawn(choice: _Choice, logits: Array, key: Array | None, temperature: Array, top_p: Array | None) -> Array:
    """One integer for each of the logits (B, V)."""
    if key is None:
        return jnp.argmax(logits, -1).astype("int32")
    z = logits / jnp.asarray(temperature, logits.dtype)
    if choice.top_k is None and not choice.top_p:
        return jax.random.categorical(key, z).astype("int32")
    z, ids = lax.top_k(z, min(choice.top_k or z.shape[-1], z.shape[-1]))  # the likeliest first
    if choice.top_p:
        p = jax.nn.softmax(z)
        z = jnp.where(jnp.cumsum(p, -1) - p < jnp.asarray(top_p, p.dtype), z, -jnp.inf)
    return jnp.take_along_axis(ids, jax.random.categorical(key, z)[:, None], 1)[:, 0]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _searched(
    net: Decoder, length: int, k: int, stop: int | None, params: Params, prompt: Inputs, penalty: Array
) -> Generated:
    """Beam search. A row of the cache is a beam: example b has the rows b K to b K + K − 1."""
    logits, cache = net.prefill(params, prompt, length - 1)
    dtype = accumulation_dtype(logits.dtype)
    _check_stop(stop, logits)
    (b, v), penalty = logits.shape, jnp.asarray(penalty, dtype)

    def add(t: Array, logits: Array, beams: _Beams) -> _Beams:
        log_probabilities = jax.nn.log_softmax(logits.astype(dtype)).reshape(b, k, v)
        sums = beams.sums[..., None] + log_probabilities
        if stop is not None:
            last = beams._replace(
                sums=sums[..., stop],
                log_probabilities=beams.log_probabilities.at[..., t].set(log_probabilities[..., stop]),
            )
            beams = beams._replace(**_ended(last, t + 1, penalty))
            sums = sums.at[..., stop].set(-jnp.inf)
        sums, at = lax.top_k(sums.reshape(b, k * v), k)
        parents, ids = at // v, at % v
        parts = (beams.ids, beams.log_probabilities)
        before, before_log = (jnp.take_along_axis(a, parents[..., None], 1) for a in parts)
        log_probabilities = jnp.take_along_axis(log_probabilities.reshape(b, k * v), at, 1)
        return beams._replace(
            sums=sums,
            ids=before.at[..., t].set(ids),
            log_probabilities=before_log.at[..., t].set(log_probabilities),
            rows=(jnp.arange(b, dtype=at.dtype)[:, None] * k + parents).reshape(-1),
        )

    def unfinished(carry: tuple[Array, Any, _Beams]) -> Array:
        """Sums only fall: none that goes on can get a greater score than it would have now at the full length."""
        t, _, beams = carry
        return (t < length) & jnp.any(beams.sums[:, 0] / length**penalty > beams.score)

    def step(carry: tuple[Array, Any, _Beams]) -> tuple[Array, Any, _Beams]:
        t, cache, beams = carry
        ids = beams.ids[..., t - 1].reshape(-1)
        logits, cache = net.step(params, net.select(cache, beams.rows), ids)
        return t + 1, cache, add(t, logits, beams)

    ids, zeros = jnp.full((b, k, length), stop or 0, "int32"), jnp.zeros((b, k, length), dtype)
    same = jnp.where(jnp.arange(k) == 0, 0.0, -jnp.inf).astype(dtype)  # all beams are one as yet
    none = Generated(ids[:, 0], zeros[:, 0], jnp.zeros(b, "int32"))
    rows = jnp.repeat(jnp.arange(b, dtype="int32"), k)
    beams = _Beams(jnp.tile(same[None], (b, 1)), ids, zeros, rows, jnp.full(b, -jnp.inf, dtype), none)
    first = jnp.asarray(0, "int32")
    beams = add(first, logits[rows], beams)
    cache = net.select(cache, rows)
    beams = lax.while_loop(unfinished, step, (first + 1, cache, beams))[2]
    best = beams._replace(**_ended(beams, jnp.asarray(length, "int32"), penalty)).best
    known = ~jnp.isnan(beams.sums).any(-1, keepdims=True)  # where they are NaN, none is known to be the best
    return best._replace(log_probabilities=jnp.where(known, best.log_probabilities, jnp.nan))


def _ended(beams: _Beams, n: Array, penalty: Array) -> dict[str, Any]:
    """`score` and `best`, now that these beams end at a length of n."""
    scores = beams.sums / n.astype(penalty.dtype) ** penalty
    at = jnp.argmax(scores, -1)[:, None]
    score = jnp.take_along_axis(scores, at, 1)[:, 0]
    ids, log_probabilities = (
        jnp.take_along_axis(a, at[..., None], 1)[:, 0] for a in (beams.ids, beams.log_probabilities)
    )
    found = Generated(ids, log_probabilities, jnp.full(len(score), n))
    better = score > beams.score

    def of(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return {"score": of(score, beams.score), "best": jax.tree.map(of, found, beams.best)}


def _check(
    length: int,
    key: Array | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    beams: int | None,
    length_penalty: float,
    stop: int | None,
) -> None:
    for name, n in {"length": length, "top_k": top_k, "beams": beams}.items():
        if n is not None:
            whole_numbers(name, n)
    if not temperature >= 0 or not length_penalty >= 0:
        raise ValueError(
            f"generate needs a temperature and a length_penalty ≥ 0; got {temperature} and {length_penalty}"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"generate needs a top_p in (0, 1]; got {top_p}")
    if stop is not None and (not isinstance(stop, int) or stop < 0):
        raise ValueError(f"generate needs a stop that is an integer of the vocabulary; got {stop!r}")
    chance = {"key": key, "top_k": top_k, "top_p": top_p, "temperature": None if temperature == 1 else temperature}
    given = [name for name, option in chance.items() if option is not None]
    if beams is not None and given:
        raise ValueError(f"beam search draws nothing: leave out {', '.join(given)}, or beams")
    if beams is None and temperature and key is None:
        raise ValueError("generate draws from a key: give one, or temperature=0.0 or beams")


def _of_numbers(found: Generated) -> Generated:
    """Raises a `ValueError` for probabilities that are NaN, if they can be looked at."""
    p = found.log_probabilities
    if not isinstance(p, jax.core.Tracer) and p.is_fully_addressable and (wrong := np.isnan(p).any(-1)).any():
        raise ValueError(
            f"the probabilities after prompt {wrong.argmax()} are NaN: either it has integers beyond the "
            "vocabulary, or the logits aren't finite"
        )
    return found


def _check_stop(stop: int | None, logits: Array) -> None:
    if stop is not None and stop >= logits.shape[-1]:
        raise ValueError(f"generate needs a stop below the vocabulary of {logits.shape[-1]}; got {stop}")


def _check_lengths(prompt: Inputs) -> None:
    """As far as they are known."""
    for part in prompt if isinstance(prompt, tuple) else ():
        _check_lengths(part)  # a source and the beginning of its target
    if not isinstance(prompt, tuple):
        check_arrays("generate", {"prompt": prompt})
    shape, lengths = jax.tree.leaves(prompt)[0].shape, prompt[-1] if isinstance(prompt, tuple) else None
    if isinstance(lengths, jax.Array) and lengths.ndim == 1 and not isinstance(lengths, jax.core.Tracer):
        known = np.asarray(lengths)
        if known.size and (known.min() < 1 or known.max() > shape[1]):
            raise ValueError(f"a prompt {shape} needs lengths from 1 to its T; got {known.min()} to {known.max()}")
