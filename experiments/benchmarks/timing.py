"""What the comparisons with PyTorch and Flax share: heading, table, PyTorch's products among those of the rate."""

import datetime
import platform
from importlib import metadata

import torch
from rich.console import Console
from rich.table import Table

from jaxnet.cli import timing
from jaxnet.cli.machine import processor, threads
from jaxnet.cli.timing import Contender as Contender
from jaxnet.cli.timing import Times as Times
from jaxnet.cli.timing import measure as measure


def gemm_rate() -> float:
    """GFLOP/s of the fastest float32 product here, PyTorch's included."""
    a = torch.ones(2048, 2048)
    return max(timing.gemm_rate(), timing.rate(2 * 2048**3, lambda: a @ a))


def heading(console: Console, *packages: str) -> None:
    """Date, machine, versions, and the rates that a figure is to be read beside."""
    torch.set_num_threads(threads())
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "torch", *packages))
    console.print(
        f"{datetime.date.today()}, {processor()}, {threads()} threads, Python {platform.python_version()}, "
        f"{versions}; GEMM {gemm_rate():.0f} GFLOP/s, memory {timing.memory_rate():.0f} GB/s in place",
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
