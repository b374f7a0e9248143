"""`jaxnet bench`: how fast the implementations of each op are on this machine, and which is chosen."""

import datetime
import itertools
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import jax.numpy as jnp
from jax.stages import Lowered
from rich.console import Console
from rich.table import Table

from jaxnet import using
from jaxnet.cli.errors import check_folder
from jaxnet.cli.machine import OPS, facts, serving
from jaxnet.cli.timing import Contender, Times, gemm_rate, measure, memory_rate, repeats_within
from jaxnet.cli.workloads import Case, cases
from jaxnet.train.files import write_atomically
from jaxnet.verify.progress import Progress


class Row(NamedTuple):
    """What was measured of a case."""

    case: Case
    times: Times  # of each implementation, and of the chosen one if that is a mixture
    chosen: str
    floor: float  # seconds that its work takes at the machine's rate

    @property
    def ratio(self) -> float | None:
        """How many times faster the chosen one is than the best of the others; None if there is none."""
        others = [name for name in self.times.rounds if name != self.chosen]
        best = min(others, key=self.times.seconds, default=None)
        return None if best is None else self.times.ratio(self.chosen, best)

    @property
    def percent(self) -> float:
        """The floor in percent of the chosen one's time."""
        return 100 * self.floor / self.times.seconds(self.chosen)


@click.command()
@click.argument("ops", nargs=-1, type=click.Choice(OPS), metavar="[OP]...")
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    help="How often the implementations take turns.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, 3600),
    default=0.5,
    show_default=True,
    help="To spend on each row; at least one run of each implementation in each round.",
)
@click.option("--json", "path", metavar="PATH|-", help="Write the figures as JSON; - is the standard output.")
def bench(ops: tuple[str, ...], rounds: int, seconds: float, path: str | None) -> None:
    """Measure the implementations of each op here, and show which is chosen.

    OP is an op that has several; without one, all are measured, in float32. The implementations take turns;
    times are medians over rounds, ratios medians of the rounds' ratios.

    The last columns are of the one chosen: how many times faster it is than the best of the others, and the
    part that it reaches of the machine's rate: of the fastest matrix product's, counting the op's own products
    alone, or of the memory's (more than 100 within the caches).
    """
    if path not in (None, "-"):
        check_folder(path)
    began = datetime.datetime.now().astimezone()
    console = Console(file=sys.stderr if path == "-" else sys.stdout)
    work = [case for op in OPS if op in ops or not ops for case in cases(op)]
    with Progress("bench", 1 + len(work)) as progress:
        progress.step("rates of the machine")
        rates = {"GEMM": gemm_rate(), "memory": memory_rate()}
        here = facts() | {
            "rates": f"GEMM {rates['GEMM']:.0f} GFLOP/s, memory {rates['memory']:.0f} GB/s",
            "measured": f"{began:%Y-%m-%d}, {rounds} round{'s' * (rounds > 1)}",
        }
        progress.clear()
        for name, value in here.items():
            console.print(f"{name:<10} {value}", highlight=False, soft_wrap=True)
        rows: list[Row] = []
        for _, group in itertools.groupby(work, lambda case: (case.op, case.what)):
            first = len(rows)
            for case in group:
                progress.step(f"{case.op} {case.size}, {case.what}")
                rows.append(row(case, rates[case.bound], rounds, seconds))
            progress.clear()
            console.print(table(rows[first:]))
    if path is None:
        return
    figures = {
        "began": began.isoformat(timespec="seconds"),
        **facts(),
        "gemm_gflops": rates["GEMM"],
        "memory_gbytes": rates["memory"],
        "rounds": rounds,
        "rows": [as_json(r) for r in rows],
    }
    text = json.dumps(figures, indent=2, ensure_ascii=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
    else:
        write_atomically(Path(path), text)


def row(case: Case, rate: float, rounds: int, seconds: float) -> Row:
    """Measures a case, at a `rate` of 1e9 a second of what it must do."""
    arguments = case.arguments()
    lowered = {name: lower(case, arguments, name) for name in serving(case.op)}
    default = lower(case, arguments, None)
    chosen = choice(default, lowered)
    contenders = {name: contender(case, arguments, program) for name, program in lowered.items()}
    if chosen not in lowered:
        contenders[chosen] = contender(case, arguments, default)
    repeats = repeats_within(contenders, seconds / rounds)
    return Row(case, measure(contenders, rounds, repeats), chosen, case.work / rate / 1e9)


def lower(case: Case, arguments: tuple[Any, ...], implementation: str | None) -> Lowered:
    """The program of a case under an implementation."""
    with using(implementation):
        return jax.jit(case.function, donate_argnums=range(case.carried)).lower(*arguments)


def choice(default: Lowered, named: dict[str, Lowered]) -> str:
    """The implementation that `default` is: the one whose program calls the same kernels.

    An op that calls some of them only, and leaves the rest to XLA, is a mixture: "cpu + xla".
    """
    wanted = _kernels(default)
    called = {name: _kernels(program) for name, program in named.items()}
    same = (name for name, kernels in called.items() if kernels == wanted)
    return next(same, " + ".join([*(name for name, kernels in called.items() if kernels & wanted), "xla"]))


def _kernels(program: Lowered) -> Counter[str]:
    return Counter(re.findall(r"custom_call @([\w$.]+)", program.as_text()))


def contender(case: Case, arguments: tuple[Any, ...], program: Lowered) -> Contender:
    """Runs the program; what it carries on is a copy of its own."""
    compiled = program.compile()
    carried = jax.tree.map(jnp.copy, list(arguments[: case.carried]))
    rest = arguments[case.carried :]

    def run() -> None:
        results = jax.block_until_ready(compiled(*carried, *rest))
        if case.carried:
            carried[:] = results

    return Contender(run)


def table(rows: list[Row]) -> Table:
    """Of an op, forward or forward and backward, in milliseconds."""
    case = rows[0].case
    names = list(dict.fromkeys(name for r in rows for name in r.times.rounds))
    result = Table(title=f"{case.op}, {case.what}, float32", title_justify="left")
    result.add_column("size", no_wrap=True)
    for heading in (*(f"{name} ms" for name in names), "chosen", "times faster", f"% of {case.bound} rate"):
        name = heading == "chosen"
        result.add_column(heading, justify="left" if name else "right", no_wrap=name)
    for r in rows:
        times = (f"{1e3 * r.times.seconds(name):.3f}" if name in r.times.rounds else "" for name in names)
        ratio = "" if r.ratio is None else f"{r.ratio:.2f}"
        result.add_row(r.case.size, *times, r.chosen, ratio, f"{r.percent:.0f}")
    return result


def as_json(r: Row) -> dict[str, Any]:
    """A row in seconds."""
    return {
        "op": r.case.op,
        "size": r.case.size,
        "what": r.case.what,
        "seconds": {name: r.times.seconds(name) for name in r.times.rounds},
        "chosen": r.chosen,
        "times_faster": r.ratio,
        "bound": r.case.bound,
        "floor_seconds": r.floor,
        "percent": r.percent,
    }
