"""Translations: written by an encoder and decoder, and measured."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxnet.data import BytePairTokenizer, bucketed, padded
from jaxnet.layers.layer import Params
from jaxnet.networks import Decoder, generate

Tokenizers = tuple[BytePairTokenizer, BytePairTokenizer]  # of the source and of the target


class Bleu(NamedTuple):
    """How much translations are like those of people, from 0 to 100, and how exactly that was measured."""

    score: float
    signature: str


class Alignment(NamedTuple):
    """Where the attention to a source of S tokens looks while a target of T is written."""

    target: list[str]  # its tokens, from the first to `end`
    source: list[str]
    p: np.ndarray  # (layers, heads, T, S)


def translate(
    net: Decoder,
    params: Params,
    tokenizers: Tokenizers,
    sentences: Sequence[str],
    *,
    beams: int = 5,
    length_penalty: float = 1.0,
    batch_size: int = 50,
    boundaries: int = 4,
) -> list[str]:
    """Returns the translation of each sentence, by beam search.

    Args:
        net: `networks.transformer` or `networks.sequence_to_sequence`.
        params: its parameters.
        tokenizers: of the source and of the target.
        sentences: each becomes numbers between the source's `beginning` and `end`. At least one.
        beams: see `networks.generate`.
        length_penalty: see `networks.generate`.
        batch_size: sentences of similar length that are translated at once.
        boundaries: how many padded lengths there are: a program is compiled for each.

    A translation ends at the latest at twice the tokens of the longest source of its batch, and 8 more.

    Example:
        >>> train.translate(net, params, (english, german), ["A man is sleeping."])
        ['Ein Mann schläft.']
    """
    source, target = tokenizers
    found = [""] * len(sentences)
    ids = [source.encode(sentence, ends=True) for sentence in sentences]
    numbered = bucketed((ids, np.arange(len(ids))), min(batch_size, len(ids)), boundaries=boundaries)
    for (x, lengths), rows in numbered:
        prompt = (x, lengths), np.full((len(x), 1), target.beginning, np.int32)
        written = generate(
            net, params, prompt, 2 * x.shape[1] + 8, beams=beams, length_penalty=length_penalty, stop=target.end
        )
        for row, line in zip(np.asarray(rows), np.asarray(written.ids), strict=True):
            found[row] = target.decode(line)
    return found


def alignments(
    net: Decoder,
    params: Params,
    tokenizers: Tokenizers,
    sentences: Sequence[str],
    translations: Sequence[str],
) -> list[Alignment]:
    """Returns where the attention to each sentence looks while its translation is written."""
    source, target = tokenizers
    x, lengths = padded([source.encode(sentence, ends=True) for sentence in sentences])
    y, ends = padded([target.encode(translation, ends=True) for translation in translations])
    p = np.asarray(jax.jit(net.alignments)(params, ((x, lengths), y[:, :-1])))
    return [
        Alignment(_words(target, y[i, 1:t]), _words(source, x[i, :s]), p[:, i, :, : t - 1, :s])
        for i, (s, t) in enumerate(zip(lengths, ends, strict=True))
    ]


def _words(tokenizer: BytePairTokenizer, ids: np.ndarray) -> list[str]:
    """Each token; a blank alone as ▁."""
    special = tokenizer.special
    return [special[i] if i < len(special) else tokenizer.decode([i]) or "▁" for i in ids]


def bleu(translations: Sequence[str], references: Sequence[str]) -> Bleu:
    """BLEU of a corpus by sacreBLEU: cased, on plain text, one reference for each translation.

    Raises:
        ValueError: if there isn't one reference for each translation, or sacreBLEU isn't installed.

    Reference: Papineni et al., "BLEU: a method for automatic evaluation of machine translation" (2002); Post, "A
    call for clarity in reporting BLEU scores" (2018).
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise ValueError("BLEU is measured by sacreBLEU, which isn't installed: pip install sacrebleu") from None
    if len(translations) != len(references) or not references:
        raise ValueError(
            f"bleu needs one reference for each translation; got {len(translations)} translations and "
            f"{len(references)} references"
        )
    metric = BLEU()
    score = metric.corpus_score(list(translations), [list(references)]).score
    return Bleu(score, str(metric.get_signature()))
