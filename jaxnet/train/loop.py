"""The loop over epochs, which can be stopped anywhere and resumed to the same bits."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnet import losses
from jaxnet.data import Batches
from jaxnet.train.nonfinite import NonFiniteError, explain, first_nonfinite
from jaxnet.train.progress import TrainingProgress
from jaxnet.train.run import Row, RunFolder
from jaxnet.train.state import TrainState
from jaxnet.train.step import Batch, Step, augmented

Evaluate = Callable[[Any], Mapping[str, float]]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during `fit`: the run is saved; the message says up to which step."""


def fit(
    state: TrainState,
    step: Step,
    batches: Batches | Sequence[Batch],
    *,
    epochs: int = 1,
    run: str | Path | None = None,
    resume: bool = False,
    config: Mapping[str, Any] | None = None,
    evaluate: Evaluate | None = None,
    checkpoint_every: int | None = None,
    progress: bool = True,
) -> TrainState:
    """Trains to the end of epoch `epochs` and returns the last state.

    The run is a function of `state`, `step`, `batches` and `epochs`: stopped anywhere, by Ctrl-C or
    `kill -9`, and resumed, it ends with the same bits as one that wasn't.

    Args:
        state: from `train.init`. Its buffers are donated: it can't be used again.
        step: from `train.make_step`.
        batches: from `data.batches`, or a sequence of batches `(x, target)`.
        epochs: passes over `batches`, those before a resume included.
        run: a folder for `config.json`, `metrics.csv` and checkpoints; None writes nothing.
        resume: go on from the last whole checkpoint in `run`.
        config: what `config.json` records beside the versions; on a resume it is recorded anew.
        evaluate: called with the parameters after each epoch; its metrics are recorded as `test_…`.
        checkpoint_every: steps between checkpoints (after the call that reaches them); None: each epoch.
        progress: whether to show it.

    Raises:
        NonFiniteError: when the loss or a parameter becomes NaN or infinite; the message names the step and the
            first parameter leaf and activation, and the last good checkpoint stays.
        Interrupted: after Ctrl-C or SIGTERM, once a checkpoint is written.
        FileExistsError, FileNotFoundError: if `run` exists and isn't to be resumed, or the other way round.
        OSError: if a file can't be written.
        ValueError: for an empty batch, labels out of range, epochs or checkpoint_every < 1, fewer epochs than
            a resumed run has behind it.

    Example:
        >>> state = train.fit(state, step, batches, epochs=5, run="runs/digits")
    """
    if epochs < 1 or (checkpoint_every is not None and checkpoint_every < 1):
        raise ValueError(f"fit needs epochs ≥ 1, checkpoint_every ≥ 1; got {epochs} and {checkpoint_every}")
    source = batches if isinstance(batches, Batches) else _Listed(batches)
    folder = None
    if run is not None:
        folder = RunFolder(run, resume=resume)
        state = folder.restore(state) if resume else state
        if int(state.step) > epochs * len(source):
            done = int(state.step) / len(source)
            raise ValueError(f"{run} has {done:g} epochs behind it; resume it to more than epochs={epochs}")
        if config is not None or not resume:
            folder.configure(config or {})
        if not folder.checkpoints.steps():
            folder.save(state)
    trainer = _Trainer(step, source, epochs, folder, evaluate, checkpoint_every or len(source), progress)
    return trainer.train(state)


class _Trainer:
    """One call of `fit`."""

    def __init__(
        self,
        step: Step,
        batches: "Batches | _Listed",
        epochs: int,
        folder: RunFolder | None,
        evaluate: Evaluate | None,
        checkpoint_every: int,
        progress: bool,
    ) -> None:
        self.step, self.batches, self.epochs, self.folder = step, batches, epochs, folder
        self.evaluate, self.checkpoint_every, self.show = evaluate, checkpoint_every, progress
        self.rows: list[Row] = folder.rows if folder else []

    def train(self, state: TrainState) -> TrainState:
        per_epoch, done = len(self.batches), int(state.step)
        total = self.epochs * per_epoch
        seconds_before = (self.rows[-1]["seconds"] or 0.0) if self.rows else 0.0
        self.started = time.monotonic() - seconds_before
        self.good = _copy(state)
        with _interruption() as interrupted, TrainingProgress(total, done, enabled=self.show) as self.bar:
            for epoch in range(done // per_epoch, self.epochs):
                running = None  # the metrics of a call not yet looked at, so that Python and XLA work side by side
                for batch in self.batches.epoch(epoch, start=done % per_epoch, group=self.step.steps):
                    self._check(state, batch)
                    first, done = done, done + (len(_first(batch)) if self.step.steps else 1)
                    state, metrics = self.step(state, batch)
                    if running:
                        self._record(*running)
                    running = (epoch, first, metrics, _examples(batch, self.step))
                    due = done // self.checkpoint_every > first // self.checkpoint_every
                    if done % per_epoch and (due or interrupted.is_set()):
                        self._record(*running)
                        running = None
                        self._save(state)
                        self._stop_if(interrupted, done)
                if running:
                    self._record(*running)
                if self.evaluate:
                    measured = self.evaluate(state.params)
                    self.rows[-1].update({f"test_{name}": float(value) for name, value in measured.items()})
                self._save(state)
                self._stop_if(interrupted, done)
        return state

    def _check(self, state: TrainState, batch: Batch) -> None:
        """What `jit` can't look at: values."""
        (x, target), first = batch, _first(batch)
        if not first.size:
            raise ValueError(f"a batch must have at least one example; got x of shape {first.shape}")
        loss = getattr(self.step.loss, "func", self.step.loss)  # of a partial, as with label smoothing
        ignored = getattr(self.step.loss, "keywords", {}).get("ignore_label")
        if loss is losses.cross_entropy and self.step.net is not None and np.issubdtype(target.dtype, np.integer):
            if not hasattr(self, "classes"):
                inner = 1 if self.step.steps else 0
                one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[inner:], a.dtype), x)
                seen, _ = jax.eval_shape(partial(augmented, self.step.augment), state, one)
                self.classes = jax.eval_shape(self.step.net.apply, state.params, seen).shape[-1]
            labels = np.asarray(target)
            labels = labels if ignored is None else labels[labels != ignored]
            losses.check_labels(labels, self.classes, "cross_entropy")

    def _record(self, epoch: int, first: int, metrics: Mapping[str, Array], examples: int) -> None:
        values = {name: np.atleast_1d(np.asarray(value)) for name, value in metrics.items()}
        seconds = time.monotonic() - self.started
        for i in range(len(values["loss"])):
            row = {name: float(value[i]) for name, value in values.items()}
            if not np.isfinite(row["loss"]):
                self._fail(first + i)
            self.rows.append({"step": first + i + 1, "epoch": epoch, "seconds": seconds, **row})
        latest = {name: float(value.mean()) for name, value in values.items()}
        self.bar.update(epoch + 1, self.epochs, first + len(values["loss"]), examples, latest)

    def _save(self, state: TrainState) -> None:
        if first_nonfinite(state.params) is not None:
            self._fail(int(state.step) - 1)
        self.good = _copy(state)
        if self.folder:
            self.folder.save(state)

    def _fail(self, failed: int) -> None:
        """Goes from the last good state to the failing step again, singly, and says what went wrong first."""
        state, one = self.good, jax.jit(self.step.one)
        what = f"the loss or a parameter became NaN or infinite in step {failed + 1}"
        for number, batch in self._singly(int(state.step), failed):
            before = state
            state, metrics = one(state, batch)
            at = f"in step {number + 1} (epoch {number // len(self.batches) + 1})"
            if not np.isfinite(metrics["loss"]):
                place = explain(self.step, before, batch)
                what = f"the loss became {float(metrics['loss'])} {at}; first not finite: {place}"
                break
            if first_nonfinite(state.params) is not None:
                place = explain(self.step, state, batch)
                what = f"the update {at} left the finite numbers; first not finite: {place}"
                break
        kept = (
            f"; the checkpoint of step {int(self.good.step)} is kept in {self.folder.path}" if self.folder else ""
        )
        raise NonFiniteError(f"{what}{kept}. A smaller learning rate may help")

    def _singly(self, first: int, last: int) -> Iterator[tuple[int, Any]]:
        number = first
        while number <= last:
            for batch in self.batches.epoch(number // len(self.batches), start=number % len(self.batches)):
                if number <= last:
                    yield number, batch
                number += 1

    def _stop_if(self, interrupted: threading.Event, done: int) -> None:
        if interrupted.is_set() and done < self.epochs * len(self.batches):
            where = f"saved in {self.folder.path}" if self.folder else "not saved: fit was given no run folder"
            raise Interrupted(f"stopped after step {done} of {self.epochs * len(self.batches)}, {where}")


class _Listed:
    """A sequence of batches, the same in each epoch, with the methods of `Batches`."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        if not len(batches):
            raise ValueError("fit needs at least one batch; got none")
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, *, start: int = 0, group: int | None = None) -> Iterator[Any]:
        for i in range(start, len(self.batches), group or 1):
            some = self.batches[i : i + (group or 1)]
            yield some[0] if group is None else jax.tree.map(lambda *arrays: np.stack(arrays), *some)


def _examples(batch: Batch, step: Step) -> int:
    shape = _first(batch).shape
    return shape[0] * (shape[1] if step.steps else 1)


def _first(batch: Batch) -> Array | np.ndarray:
    """x, or of a pair (x, lengths) its x."""
    return jax.tree.leaves(batch)[0]


def _copy(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


@contextmanager
def _interruption() -> Iterator[threading.Event]:
    """Turns a first Ctrl-C or SIGTERM into an event that the loop looks at; a second one stops at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signals are the main thread's
        return

    def handle(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
