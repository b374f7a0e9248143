"""How far a longer check is, on one line of the terminal."""

import shutil
import sys
import time
from types import TracebackType

_QUIET_SECONDS = 2.0
_WIDTH = 24


class Progress:
    """A bar on stderr, if that is a terminal, from two seconds on; it leaves nothing behind."""

    def __init__(self, title: str, total: int) -> None:
        """For `total` steps."""
        self._title, self._total, self._done = title, total, -1
        self._began = time.monotonic()
        self._shown = False

    def __enter__(self) -> "Progress":
        """Show nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self.clear()

    def step(self, doing: str) -> None:
        """One more step begins: `doing` says which."""
        self.at(self._done + 1, self._total, doing)

    def at(self, done: int, total: int, doing: str) -> None:
        """`done` of `total` are done, and `doing` is what comes now."""
        self._done, self._total = done, total
        elapsed = time.monotonic() - self._began
        if not sys.stderr.isatty() or elapsed < _QUIET_SECONDS:
            return
        full = _WIDTH * done // total
        left = f", {elapsed / done * (total - done):.0f} s left" if done else ""
        text = f"{self._title} {'━' * full}{'╌' * (_WIDTH - full)} {done}/{total}{left}  {doing}"
        # Erase the line, and end it before the terminal would break it.
        print(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}", end="", file=sys.stderr, flush=True)
        self._shown = True

    def clear(self) -> None:
        """Take the bar away, for something to be printed."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False
