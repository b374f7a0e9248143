"""Masked words, for a language model that guesses them from both sides. (Devlin et al., 2018).

Axes: B batch · T places · M masked places at most.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnet.data.batches import Batches

Masked = tuple[tuple[Array, Array, Array], Array]


class Masking(NamedTuple):
    """How words are masked; as BERT does it, but for the numbers, which are the tokenizer's."""

    mask: int  # the integer that stands for a masked word
    words: tuple[int, int]  # words are the integers from the first to before the second: others are never masked
    rate: float = 0.15  # of the words of a sequence, at least one
    replaced: float = 0.8  # of those, by the mask
    random: float = 0.1  # of those, by any word; the rest stay as they are, and are guessed all the same


@partial(jax.jit, static_argnums=3)
def mask_words(key: Array, ids: Array, lengths: Array, masking: Masking) -> Masked:
    """Returns (masked ids (B, T), lengths (B,), places (B, M)) and the words that were there, (B, M).

    M = max(1, round(rate T)). A sequence of n words has max(1, round(rate n)) masked, all sets of them equally
    likely; in what is left of its M places the target is −1, which counts nowhere
    (`losses.cross_entropy(…, ignore_label=-1)`), as it is of a sequence without words.

    Args:
        key: draws places and words.
        ids: integers (B, T).
        lengths: of the sequences, (B,).
        masking: which words, how many and how.

    Raises:
        ValueError: for rates outside of [0, 1], no words, or ids and lengths of another form.

    Example:
        >>> masking = data.Masking(mask=1000, words=(4, 1000))
        >>> (masked, lengths, places), target = data.mask_words(key, ids, lengths, masking)
    """
    _check(ids, lengths, masking)
    first, end = masking.words
    place_key, kind_key, word_key = jax.random.split(key, 3)
    inside = jnp.arange(ids.shape[1])[None] < lengths[:, None]
    word = inside & (ids >= first) & (ids < end)
    most = min(ids.shape[1], max(1, round(masking.rate * ids.shape[1])))
    _, places = jax.lax.top_k(jnp.where(word, jax.random.uniform(place_key, ids.shape), -1.0), most)
    count = jnp.sum(word, 1, keepdims=True)
    wanted = jnp.maximum(jnp.round(masking.rate * count.astype("float32")).astype(count.dtype), 1)
    used = jnp.arange(most)[None] < jnp.minimum(wanted, count)
    there = jnp.take_along_axis(ids, places, 1)
    kind = jax.random.uniform(kind_key, places.shape)
    other = jax.random.randint(word_key, places.shape, first, end, ids.dtype)
    put = jnp.where(kind < masking.replaced + masking.random, other, there)
    put = jnp.where(kind < masking.replaced, jnp.asarray(masking.mask, ids.dtype), put)
    rows = jnp.arange(len(ids))[:, None]
    masked = ids.at[rows, places].set(jnp.where(used, put, there))
    return (masked, lengths, places), jnp.where(used, there, jnp.asarray(-1, ids.dtype))


def _check(ids: Array, lengths: Array, masking: Masking) -> None:
    rates = masking.rate, masking.replaced, masking.random
    if not all(0 <= rate <= 1 for rate in (*rates, masking.replaced + masking.random)):
        raise ValueError(f"mask_words needs rates in [0, 1], replaced + random too; got {rates}")
    if not 0 <= masking.words[0] < masking.words[1]:
        raise ValueError(f"mask_words needs words from one integer to before a larger one; got {masking.words}")
    if ids.ndim != 2 or not ids.shape[1] or lengths.shape != ids.shape[:1]:
        raise ValueError(f"mask_words needs ids (B, T), T ≥ 1, and lengths (B,); got {ids.shape}, {lengths.shape}")


class MaskedBatches(Batches):
    """Batches of (ids, lengths), masked anew in each epoch; made by `masked`."""

    def __init__(self, batches: Batches, masking: Masking, *, key: Array) -> None:
        """See `masked`."""
        self._batches, self._masking, self._mask_key = batches, masking, key
        self.examples, self.batch_size, self.prefetch = batches.examples, batches.batch_size, batches.prefetch

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self._batches)

    def epoch(self, epoch: int, *, start: int = 0, group: int | None = None) -> Iterator[Any]:
        """As of `Batches`, one by one: the masks are a function of the key, the epoch and the batch's number.

        Raises:
            ValueError: for a group.
        """
        if group is not None:
            raise ValueError(f"masked batches come one by one, for make_step(steps=None); got group={group}")
        key = jax.random.fold_in(self._mask_key, epoch)
        for number, (ids, lengths) in enumerate(self._batches.epoch(epoch, start=start), start):
            yield mask_words(jax.random.fold_in(key, number), ids, lengths, self._masking)


def masked(batches: Batches, masking: Masking, *, key: Array) -> MaskedBatches:
    """Returns the batches, of (ids, lengths) such as `data.bucketed` makes of sentences, masked by `mask_words`.

    Args:
        batches: of pairs of ids (B, T) and lengths (B,).
        masking: which words, how many and how.
        key: draws other masks for each batch of each epoch; the same whenever it is asked for.

    Example:
        >>> sentences = [tokenizer.encode(text, ends=True) for text in texts]
        >>> masking = data.Masking(mask=len(tokenizer), words=(4, len(tokenizer)))
        >>> batches = data.masked(data.bucketed(sentences, 64, key=key), masking, key=other_key)
    """
    return MaskedBatches(batches, masking, key=key)
