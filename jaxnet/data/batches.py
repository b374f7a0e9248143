"""Mini-batches whose order is a value: a function of the key and the epoch."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax import Array

Batch = Any  # a pytree of arrays with the batch as first axis


class Batches:
    """The mini-batches of `arrays`, epoch after epoch; made by `batches`."""

    def __init__(
        self, arrays: Batch, batch_size: int, *, key: Array | None, drop_last: bool, prefetch: int
    ) -> None:
        """See `batches`."""
        shapes = [np.shape(a) for a in jax.tree.leaves(arrays)]
        if () in shapes or len({shape[0] for shape in shapes}) != 1:
            raise ValueError(f"batches needs arrays with one first axis in common; got shapes {shapes}")
        if batch_size < 1 or prefetch < 0:
            raise ValueError(f"batches needs batch_size ≥ 1 and prefetch ≥ 0; got {batch_size} and {prefetch}")
        self.examples = shapes[0][0]
        self.batch_size, self.prefetch = batch_size, prefetch
        self._arrays, self._key = jax.tree.map(np.asarray, arrays), key
        self._length = self.examples // batch_size if drop_last else -(-self.examples // batch_size)
        if not self._length:
            raise ValueError(
                f"batches has no batch to give: {self.examples} examples, batch_size={batch_size}, "
                f"drop_last={drop_last}"
            )

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        """The batches of epoch 0."""
        return self.epoch(0)

    def epoch(self, epoch: int, *, start: int = 0, group: int | None = None) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on, in the same order whenever it is asked for.

        With `group`, full batches come `group` at a time along a new first axis, as `make_step(steps=group)`
        takes them; a last, partial batch comes alone.

        Raises:
            ValueError: unless 0 ≤ start ≤ len(self) and group ≥ 1.
        """
        if not 0 <= start <= self._length or (group is not None and group < 1):
            raise ValueError(
                f"epoch needs start from 0 to {self._length} and group ≥ 1 or None; got {start} and {group}"
            )
        return self._gathered(self._order(epoch), start, group)

    def _gathered(self, order: np.ndarray, start: int, group: int | None) -> Iterator[Batch]:
        def gather(span: tuple[int, int]) -> Batch:
            return self._gather(order[span[0] * self.batch_size : span[1] * self.batch_size], group is not None)

        spans = self._spans(order, start, group)
        if not self.prefetch:
            yield from map(gather, spans)
            return
        with ThreadPoolExecutor(1, "jaxnet-batches") as pool:
            waiting: deque[Any] = deque()
            for span in spans:
                waiting.append(pool.submit(gather, span))
                if len(waiting) > self.prefetch:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _spans(self, order: np.ndarray, start: int, group: int | None) -> list[tuple[int, int]]:
        """The batches, from one number to before another, that come at once."""
        full = min(self._length, self.examples // self.batch_size)
        spans = [(i, min(i + (group or 1), full)) for i in range(start, full, group or 1)]
        return spans + ([(full, self._length)] if start < self._length > full else [])

    def _gather(self, rows: np.ndarray, grouped: bool) -> Batch:
        """The examples of a batch, or of a group of batches along a new first axis."""
        shape = (-1, min(self.batch_size, len(rows))) if grouped else (-1,)
        return jax.tree.map(lambda a: jax.device_put(a[rows].reshape(*shape, *a.shape[1:])), self._arrays)

    def _order(self, epoch: int) -> np.ndarray:
        if self._key is None:
            return np.arange(self.examples)
        return np.asarray(jax.random.permutation(jax.random.fold_in(self._key, epoch), self.examples))


def batches(
    arrays: Batch,
    batch_size: int,
    *,
    key: Array | None = None,
    drop_last: bool = False,
    prefetch: int = 2,
) -> Batches:
    """Returns the mini-batches of `arrays`: iterable, with a length, and `epoch(n, start=i)` to go on anywhere.

    Args:
        arrays: a pytree of arrays with the examples along the first axis, such as `(x, y)`.
        batch_size: examples in a batch.
        key: shuffles, anew for each epoch; None keeps the order.
        drop_last: whether a last, partial batch is left out. Kept, it has another shape, so that a jitted
            step compiles a second time.
        prefetch: batches made ready ahead by a thread; 0 for none.

    Raises:
        ValueError: if the first axes differ, there is no batch, or a number is out of range.

    Example:
        >>> [x.shape for x, y in data.batches((np.ones((5, 3)), np.ones(5)), 2)]
        [(2, 3), (2, 3), (1, 3)]
    """
    return Batches(arrays, batch_size, key=key, drop_last=drop_last, prefetch=prefetch)
