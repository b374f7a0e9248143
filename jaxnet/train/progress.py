"""Progress of a run: a bar in a terminal, now and then a line elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 2.0


class TrainingProgress:
    """Shows the epoch, metrics, examples per second and the time left."""

    def __init__(self, steps: int, done: int, *, enabled: bool) -> None:
        """For a run of `steps`, `done` of them before now."""
        self._console = Console(quiet=not enabled)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[metrics]}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=steps, completed=done, metrics="")
        self._steps, self._examples = steps, 0
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> "TrainingProgress":
        """Starts the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Leaves the last state on the screen."""
        self._bar.stop()

    def update(self, epoch: int, epochs: int, step: int, examples: int, metrics: dict[str, float]) -> None:
        """After the step `step`, with the examples since the last call."""
        now = time.monotonic()
        self._examples += examples
        rate = self._examples / max(now - self._start, 1e-9)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        shown, head = f"{shown}  {rate:,.0f} examples/s", f"epoch {epoch}/{epochs}"
        self._bar.update(self._task, completed=step, description=head, metrics=shown)
        if not self._console.is_terminal and (
            now - self._last_line > _SECONDS_BETWEEN_LINES or step == self._steps
        ):
            self._last_line = now
            self._console.print(f"{head}  {shown}", highlight=False, soft_wrap=True)
