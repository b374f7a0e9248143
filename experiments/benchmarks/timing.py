"""Timing contenders side by side on a shared machine.

They take turns, round after round. A contender's time is the median over rounds of its median repeat; a ratio
is the median of the rounds' ratios, so that what slows a whole round down slows both sides of it.
"""

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table


class Contender(NamedTuple):
    run: Callable[[], object]  # does `steps` steps and waits for them
    steps: int = 1


class Times(NamedTuple):
    rounds: dict[str, list[float]]  # seconds a step, for each contender and round

    def seconds(self, name: str) -> float:
        return statistics.median(self.rounds[name])

    def ratio(self, name: str, other: str) -> float:
        """How many times faster `name` is than `other`."""
        return statistics.median(b / a for a, b in zip(self.rounds[name], self.rounds[other], strict=True))


def measure(contenders: dict[str, Contender], rounds: int, repeats: int) -> Times:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (run, steps) in contenders.items():
            run()  # brings the contender's own buffers and threads back
            times[name].append(statistics.median(timed(run) for _ in range(repeats)) / steps)
    return Times(times)


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def gemm_rate(repeats: int = 15) -> float:
    """GFLOP/s of PyTorch's float32 matrix product at 2048³."""
    a = torch.ones(2048, 2048)
    return 2 * 2048**3 / statistics.median(timed(lambda: a @ a) for _ in range(repeats)) / 1e9


def copy_rate(repeats: int = 50) -> float:
    """GB/s of PyTorch's copy of 80 MB, reading and writing counted."""
    source, target = torch.ones(20_000_000), torch.zeros(20_000_000)
    return 2 * source.nbytes / statistics.median(timed(lambda: target.copy_(source)) for _ in range(repeats)) / 1e9


def heading(console: Console, *packages: str) -> None:
    """Date, machine, versions, and the rates that a figure is to be read beside."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "torch", *packages))
    console.print(
        f"{datetime.date.today()}, {model}, {torch.get_num_threads()} threads, Python "
        f"{platform.python_version()}, {versions}; GEMM {gemm_rate():.0f} GFLOP/s, copy {copy_rate():.0f} GB/s",
        highlight=False,
        soft_wrap=True,
    )


def table(console: Console, title: str, times: Times, peers: list[str]) -> None:
    """Milliseconds a step of each contender, and how many times faster it is than each of the `peers`."""
    result = Table(title=title)
    result.add_column("")
    for column in ("ms a step", *(f"times faster than {peer}" for peer in peers)):
        result.add_column(column, justify="right")
    for name in times.rounds:
        ratios = (f"{times.ratio(name, peer):.2f}" for peer in peers)
        result.add_row(name, f"{times.seconds(name) * 1e3:.3f}", *ratios)
    console.print(result)


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
