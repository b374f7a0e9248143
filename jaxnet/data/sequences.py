"""Sequences of many lengths: padded to one, batched by length, cut into windows.

n examples, t time steps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxnet.data.batches import Batch, Batches

Sequences = Sequence[Any]  # each of them a list or an array (t, …)
Padded = tuple[np.ndarray, np.ndarray]


def padded(sequences: Sequences, length: int | None = None, value: int | float = 0) -> Padded:
    """Returns the sequences as one array (n, length, …), filled up with `value`, and their lengths (n,), int32.

    Args:
        sequences: of shape (t, …), each with its own t, which may be 0. Arrays keep their dtype; lists of whole
            numbers become int32, others float32.
        length: of the result; None for that of the longest.
        value: what fills up.

    Raises:
        ValueError: if there is none, one is longer than `length`, or they differ in more than their length.

    Example:
        >>> data.padded([[5, 6, 7], [8]])
        (array([[5, 6, 7], [8, 0, 0]], dtype=int32), array([3, 1], dtype=int32))
    """
    arrays = _arrays(sequences)
    lengths = np.array([len(a) for a in arrays], np.int32)
    length = int(lengths.max()) if length is None else length
    if lengths.max() > length:
        raise ValueError(f"padded to length={length} would cut a sequence of {lengths.max()}; cut it before")
    array = np.full((len(arrays), length, *arrays[0].shape[1:]), value, arrays[0].dtype)
    for row, sequence in zip(array, arrays, strict=True):
        row[: len(sequence)] = sequence
    return array, lengths


class Bucketed(Batches):
    """Mini-batches of sequences of similar length; made by `bucketed`. `boundaries` are the padded lengths."""

    def __init__(
        self,
        columns: Any,
        batch_size: int,
        *,
        key: Array | None,
        boundaries: int | Sequence[int],
        value: int | float,
        arrange: Callable[..., Batch] | None,
        drop_last: bool,
        prefetch: int,
    ) -> None:
        """See `bucketed`."""
        self._columns = [_column(c) for c in (columns if isinstance(columns, tuple) else (columns,))]
        sizes = [len(column) for column in self._columns]
        ragged = [column for column in self._columns if isinstance(column, list)]
        if len(set(sizes)) != 1 or not ragged:
            raise ValueError(f"bucketed needs equally many sequences, and targets if any; got {sizes} of them")
        super().__init__(np.arange(sizes[0]), batch_size, key=key, drop_last=drop_last, prefetch=prefetch)
        self._lengths = np.max([[len(sequence) for sequence in column] for column in ragged], axis=0)
        self.boundaries = _boundaries(self._lengths, boundaries)
        self._value, self._arrange = value, arrange

    def _order(self, epoch: int) -> np.ndarray:
        rows = super()._order(epoch)[: self._length * self.batch_size]  # what drop_last leaves out is any example
        bucket = np.searchsorted(self.boundaries, self._lengths[rows])
        rows = rows[np.argsort(bucket, kind="stable")]  # neighbours make a batch
        if self._key is None:
            return rows
        full = len(rows) // self.batch_size * self.batch_size
        key = jax.random.fold_in(jax.random.fold_in(self._key, epoch), 1)
        turn = np.asarray(jax.random.permutation(key, full // self.batch_size))
        return np.concatenate([rows[:full].reshape(-1, self.batch_size)[turn].ravel(), rows[full:]])

    def _spans(self, order: np.ndarray, start: int, group: int | None) -> list[tuple[int, int]]:
        """A group has one shape: where the next batches haven't, they come one by one."""
        spans = []
        while start < self._length:
            end = start + (group or 1)
            rows = order[start * self.batch_size : end * self.batch_size]
            whole = len(rows) == (group or 1) * self.batch_size
            batches = rows.reshape(-1, self.batch_size) if whole else [rows]
            same = whole and len({self._padded_length(batch) for batch in batches}) == 1
            spans.append((start, end if same else start + 1))
            start = spans[-1][1]
        return spans

    def _padded_length(self, rows: np.ndarray) -> int:
        return int(self.boundaries[np.searchsorted(self.boundaries, self._lengths[rows].max())])

    def _gather(self, rows: np.ndarray, grouped: bool) -> Batch:
        if not grouped:
            return jax.tree.map(jax.device_put, self._batch(rows))
        each = min(self.batch_size, len(rows))
        batches = [self._batch(part) for part in rows.reshape(-1, each)]
        return jax.tree.map(lambda *arrays: jax.device_put(np.stack(arrays)), *batches)

    def _batch(self, rows: np.ndarray) -> Batch:
        length = self._padded_length(rows)
        columns = [
            padded([column[row] for row in rows], length, self._value)
            if isinstance(column, list)
            else column[rows]
            for column in self._columns
        ]
        if self._arrange is not None:
            return self._arrange(*columns)
        return tuple(columns) if len(columns) > 1 else columns[0]


def bucketed(
    columns: Any,
    batch_size: int,
    *,
    key: Array | None = None,
    boundaries: int | Sequence[int] = 8,
    value: int | float = 0,
    arrange: Callable[..., Batch] | None = None,
    drop_last: bool = False,
    prefetch: int = 2,
) -> Bucketed:
    """Returns mini-batches of sequences of similar length, with the methods and the guarantees of `batches`.

    Examples are shuffled, sorted by bucket, cut into batches, and the batches shuffled. Each batch is padded to
    the boundary of its longest sequence, so that a jitted step compiles once for each boundary, and once more for
    a last, partial batch, which comes at the end. In `epoch(…, group=k)`, k batches come at once where the next k
    have one shape; else they come one by one.

    Args:
        columns: sequences (t, …), or a tuple of equally many of them and of targets, such as
            `(sentences, labels)` or `(sentences, translations)`. Sequences become `(array, lengths)` as from
            `padded`, those of one example with the same length; an array (n, …) or numbers stay an array.
        batch_size: examples in a batch.
        key: shuffles, anew for each epoch; None sorts by bucket and shuffles nothing.
        boundaries: the padded lengths, the last at least the longest sequence; or how many, which are then chosen
            so that there is the least padding.
        value: what fills up.
        arrange: makes the batch out of the columns, such as `teacher_forcing`, a decoder's input and target out of
            a translation. None: the columns themselves.
        drop_last: whether the last, partial batch is left out: with a key, other examples in each epoch.
        prefetch: batches made ready ahead by a thread; 0 for none.

    Raises:
        ValueError: if the columns differ in number or have no sequences, there is no batch, a number is out of
            range or a sequence is longer than the last boundary.

    Example:
        >>> batches = data.bucketed(([[1, 2], [3], [4, 5, 6], [7, 8]], [0, 1, 0, 1]), 2, boundaries=[2, 3])
        >>> [x.shape for (x, lengths), label in batches]
        [(2, 2), (2, 3)]
    """
    return Bucketed(
        columns,
        batch_size,
        key=key,
        boundaries=boundaries,
        value=value,
        arrange=arrange,
        drop_last=drop_last,
        prefetch=prefetch,
    )


def teacher_forcing(source: Padded, target: Padded) -> tuple[tuple[Padded, np.ndarray], np.ndarray]:
    """The batch of an encoder and decoder: ((source, target up to each place), the token after it).

    It is an `arrange` for `bucketed`; both are (ids (n, t), lengths (n,)), the decoder gets (n, t − 1).
    (Williams and Zipser, 1989).
    """
    ids, _ = target
    return (source, ids[:, :-1]), ids[:, 1:]


def windows(series: np.ndarray, input: int, horizon: int, *, stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Returns each stretch of `input` steps and the `horizon` steps after it: (n, input, …) and (n, horizon, …).

    n = ⌊(t − input − horizon) / stride⌋ + 1 for a series (t, …). Both are views: no step is copied.

    Raises:
        ValueError: if a number is < 1, or the series shorter than input + horizon.

    Example:
        >>> data.windows(np.arange(5), 3, 1)
        (array([[0, 1, 2], [1, 2, 3]]), array([[3], [4]]))
    """
    if min(input, horizon, stride) < 1 or np.ndim(series) < 1 or len(series) < input + horizon:
        raise ValueError(
            f"windows needs input, horizon and stride ≥ 1 and a series of at least input + horizon steps; got "
            f"{input}, {horizon}, {stride} and shape {np.shape(series)}"
        )
    found = np.lib.stride_tricks.sliding_window_view(series, input + horizon, axis=0)[::stride]
    found = np.moveaxis(found, -1, 1)  # (n, input + horizon, …)
    return found[:, :input], found[:, input:]


def next_tokens(ids: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a long text into pieces (n, length) of tokens, and the token after each of them, (n, length).

    The pieces don't overlap; up to `length` tokens at the end are left out.

    Raises:
        ValueError: for length < 1 or no more than `length` tokens.

    Example:
        >>> data.next_tokens(np.arange(6), 2)
        (array([[0, 1], [2, 3]]), array([[1, 2], [3, 4]]))
    """
    if length < 1 or np.ndim(ids) != 1 or len(ids) <= length:
        raise ValueError(f"next_tokens needs 1 ≤ length < tokens (t,); got {length} and shape {np.shape(ids)}")
    end = (len(ids) - 1) // length * length
    return ids[:end].reshape(-1, length), ids[1 : end + 1].reshape(-1, length)


def scored(ids: np.ndarray, length: int, context: int, *, ignore: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a text into overlapping pieces and the tokens after each place, so that every one counts exactly once.

    n = ⌈(t − context) / length⌉ pieces x and their targets y, both (n, context + length − 1). A target that
    another piece counts, one of the first `context` tokens or what fills up the last piece is `ignore`: all others
    have at least `context` tokens before them.

    Args:
        ids: tokens (t,), the first `context` of which are what comes before the text to measure on.
        length: how many tokens a piece counts.
        context: how many tokens before them it reads.
        ignore: see `losses.cross_entropy`'s `ignore_label`. The mean over a text is the sum of the losses over
            the number of the other targets, t − context.

    Raises:
        ValueError: for a number < 1, or no more than `context` tokens.

    Example:
        >>> data.scored(np.arange(5), 2, 2)
        (array([[0, 1, 2], [2, 3, 0]]), array([[-1, 2, 3], [-1, 4, -1]]))
    """
    ids = np.asarray(ids)
    if min(length, context) < 1 or ids.ndim != 1 or len(ids) <= context:
        raise ValueError(
            f"scored needs a length ≥ 1, 1 ≤ context < tokens (t,); got {length}, {context} and shape {ids.shape}"
        )
    rest = -(len(ids) - context) % length
    seen = np.pad(ids, (0, rest))
    counted = np.concatenate([np.full(context, ignore), ids[context:], np.full(rest, ignore)]).astype(ids.dtype)
    x, y = (np.lib.stride_tricks.sliding_window_view(a, context + length)[::length] for a in (seen, counted))
    y = y[:, 1:].copy()
    y[:, : context - 1] = ignore
    return x[:, :-1], y


class Excerpts(Batches):
    """Mini-batches of pieces from anywhere in a long text; made by `excerpts`."""

    def __init__(
        self, ids: np.ndarray, length: int, batch_size: int, *, steps: int, key: Array, prefetch: int
    ) -> None:
        """See `excerpts`."""
        ids = np.asarray(ids)
        if length < 1 or steps < 1 or ids.ndim != 1 or len(ids) <= length:
            raise ValueError(
                f"excerpts needs steps ≥ 1, 1 ≤ length < tokens (t,); got {steps}, {length} and shape {ids.shape}"
            )
        pieces = np.lib.stride_tricks.sliding_window_view(ids, length + 1)
        super().__init__((pieces[:, :-1], pieces[:, 1:]), batch_size, key=key, drop_last=False, prefetch=prefetch)
        self._start_key, self._starts, self._length, self.examples = key, len(pieces), steps, steps * batch_size

    def _order(self, epoch: int) -> np.ndarray:
        key = jax.random.fold_in(self._start_key, epoch)
        return np.asarray(jax.random.randint(key, (self.examples,), 0, self._starts))


def excerpts(
    ids: np.ndarray, length: int, batch_size: int, *, steps: int, key: Array, prefetch: int = 2
) -> Excerpts:
    """Returns mini-batches (n, length) of tokens, and the token after each, from anywhere in a long text.

    An epoch is `steps` batches, drawn anew for each from the key. No piece is copied before its batch.

    Args:
        ids: tokens (t,).
        length: of a piece.
        batch_size: pieces in a batch.
        steps: batches in an epoch.
        key: where the pieces begin.
        prefetch: batches made ready ahead by a thread; 0 for none.

    Raises:
        ValueError: for a number out of range, or no more than `length` tokens.

    Example:
        >>> batches = data.excerpts(np.arange(100), 8, 4, steps=10, key=jax.random.key(0))
        >>> [x.shape for x, y in batches][:2], len(batches)
        ([(4, 8), (4, 8)], 10)
    """
    return Excerpts(ids, length, batch_size, steps=steps, key=key, prefetch=prefetch)


def _arrays(sequences: Sequences) -> list[np.ndarray]:
    """The sequences as arrays of one dtype and, but for their length, one shape."""
    arrays = [np.asarray(sequence) for sequence in sequences]
    if any(a.ndim == 0 for a in arrays):
        raise ValueError("padded needs sequences (t, …); got a single number among them")
    some = [a for a in arrays if len(a)] or arrays  # an empty list has no dtype and no shape of its own
    shapes = {a.shape[1:] for a in some}
    if len(shapes) != 1:
        raise ValueError(f"padded needs sequences (t, …), equal but for t; got steps of shapes {sorted(shapes)}")
    dtype, shape = np.result_type(*{a.dtype for a in some}), shapes.pop()
    dtype = dtype if any(isinstance(s, np.ndarray | Array) for s in sequences) else _narrow(dtype)
    return [a.astype(dtype, copy=False).reshape(len(a), *shape) for a in arrays]


def _narrow(dtype: np.dtype) -> np.dtype:
    """Of Python's numbers: int32 and float32, as JAX has them."""
    return np.dtype({"i": np.int32, "f": np.float32}.get(dtype.kind, dtype))


def _column(column: Any) -> list[np.ndarray] | np.ndarray:
    """Sequences as a list of arrays, numbers as one."""
    if isinstance(column, np.ndarray | Array) and column.dtype != object:
        return np.asarray(column)
    if len(column) and all(np.ndim(item) == 0 for item in column):
        numbers = np.asarray(list(column))
        return numbers.astype(_narrow(numbers.dtype))
    return _arrays(column) if len(column) else []


def _boundaries(lengths: np.ndarray, boundaries: int | Sequence[int]) -> np.ndarray:
    longest = int(lengths.max())
    if isinstance(boundaries, int):
        if boundaries < 1:
            raise ValueError(f"bucketed needs boundaries ≥ 1 or a list of lengths; got {boundaries}")
        return _least_padding(lengths, boundaries)
    found = np.unique(np.asarray(boundaries, int))
    if not len(found) or found[0] < 0 or found[-1] < longest:
        raise ValueError(
            f"the last boundary must be at least the longest sequence, {longest}; got {found.tolist()}"
        )
    return found


def _least_padding(lengths: np.ndarray, buckets: int) -> np.ndarray:
    """Dynamic programming over the distinct lengths u: A(k, j) = minᵢ A(k−1, i−1) + uⱼ · #{uᵢ ≤ length ≤ uⱼ}."""
    longest = lengths.max()
    step = max(1, -(-longest // 512))  # of very many lengths, as of samples of sound, only each so manyth
    ends, counts = np.unique(np.minimum(-(-lengths // step) * step, longest), return_counts=True)
    buckets, total = min(buckets, len(ends)), np.concatenate([[0], np.cumsum(counts)])
    area = (ends * (total[1:] - total[:-1, None])).astype(float)  # [i, j]: one bucket from i to j
    area[np.tril_indices(len(ends), -1)] = np.inf
    best, firsts = area[0], []
    for _ in range(buckets - 1):
        sums = np.concatenate([[np.inf], best[:-1]])[:, None] + area
        firsts.append(sums.argmin(0))
        best = sums.min(0)
    chosen = [len(ends) - 1]
    for first in reversed(firsts):
        chosen.append(first[chosen[-1]] - 1)
    return ends[chosen[::-1]]
