"""`jaxnet bench`: its cases, the implementation that it says is chosen, tables and figures. Nothing is timed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxnet.cli import bench, machine, timing, workloads
from jaxnet.cli.bench import Row
from jaxnet.cli.commands import commands
from jaxnet.cli.errors import guarded
from jaxnet.cli.timing import Contender, Times
from jaxnet.cli.workloads import Case
from jaxnet.ops import dispatch

COMMAND = Path(sys.executable).with_name("jaxnet")
QUICK = ["--rounds", "1", "--seconds", "0"]


@pytest.fixture
def run(capfd):
    """Runs the command in this process."""

    def run(*arguments):
        code = guarded(lambda: commands.main(["bench", *arguments], standalone_mode=False))
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def small(monkeypatch):
    """Small cases, and rates that aren't measured."""
    cases = {
        "linear": [*workloads.linear(32, 24, 40), *workloads.linear(3, 4, 5)],
        "adamw": [workloads.adamw("two", [(3, 2), (4,)])],
    }
    monkeypatch.setattr(bench, "cases", lambda op: sorted(cases[op], key=lambda case: case.what))
    monkeypatch.setattr(bench, "gemm_rate", lambda: 100.0)
    monkeypatch.setattr(bench, "memory_rate", lambda: 10.0)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what is added to it."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


# ------------------------------------------------------------------------------------- the command


@pytest.mark.slow
@pytest.mark.long
def test_a_real_run(tmp_path):
    command = [COMMAND, "bench", "adamw", "linear", *QUICK, "--json", "speed.json"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"COLUMNS": "120"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads((tmp_path / "speed.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]
    wanted = [(case.op, case.size, case.what) for op in ("linear", "adamw") for case in workloads.cases(op)]
    assert [(row["op"], row["size"], row["what"]) for row in figures["rows"]] == wanted
    for row in figures["rows"]:
        assert list(row["seconds"])[: len(machine.serving(row["op"]))] == machine.serving(row["op"])
        assert row["chosen"] in row["seconds"]
        assert row["percent"] == pytest.approx(100 * row["floor_seconds"] / row["seconds"][row["chosen"]])
        assert row["percent"] > 0
    assert figures["gemm_gflops"] > 0
    assert figures["memory_gbytes"] > 0

    lines = done.stdout.splitlines()
    assert f"jaxnet     {figures['jaxnet']}" in lines
    assert f"platform   {figures['platform']}" in lines
    assert jax.default_backend() != "cpu" or f"({machine.processor()}), " in figures["platform"]
    titles = ["linear, forward, float32", "linear, forward + backward, float32", "adamw, step, float32"]
    assert [line.strip() for line in lines if line.rstrip().endswith("float32")] == titles
    shown = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    for cells, row in zip(shown, figures["rows"], strict=True):
        assert cells[0] == row["size"]
        assert row["chosen"] in cells
        assert f"{1e3 * row['seconds'][row['chosen']]:.3f}" in cells
        assert cells[-1] == f"{row['percent']:.0f}"


def test_json_alone_on_the_standard_output(run, small):
    code, out, errors = run("linear", *QUICK, "--json", "-")
    assert code == 0
    assert [row["size"] for row in json.loads(out)["rows"]] == ["B32 24→40", "B3 4→5"] * 2
    assert "linear, forward + backward, float32" in errors


@pytest.mark.parametrize(("rounds", "said"), [("1", "1 round"), ("2", "2 rounds")])
def test_how_many_rounds(run, small, rounds, said):
    _, out, _ = run("adamw", *QUICK, "--rounds", rounds)
    assert re.search(rf"^measured +[\d-]+, {said}$", out, re.MULTILINE)


def test_without_kernels(run, small, monkeypatch):
    monkeypatch.setattr(dispatch.ffi, "unavailable", lambda: "no compiler")
    code, out, errors = run(*["linear", "adamw"], *QUICK, "--json", "-")
    assert code == 0
    assert "kernels    CPU: no compiler" in errors
    for row in json.loads(out)["rows"]:
        assert (list(row["seconds"]), row["chosen"], row["times_faster"]) == (["xla"], "xla", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lstn"], "Invalid value for '[OP]...': 'lstn' is not one of 'linear', 'rnn', 'lstm', 'gru', 'adamw'."),
        (["--rounds", "0"], "Invalid value for '--rounds': 0 is not in the range 1<=x<=1000."),
        (["--seconds", "-1"], "Invalid value for '--seconds': -1.0 is not in the range 0<=x<=3600."),
        (["--json", "nowhere/a.json"], "there is no folder nowhere to write a.json into."),
    ],
)
def test_mistakes(run, arguments, message):
    assert run(*arguments) == (2, "", f"error: {message}\n")


# --------------------------------------------------------------------------------------- the cases


def test_every_op_that_has_a_choice_has_cases():
    written = {path.parent.name for path in (Path(__file__).parent.parent / "kernels").glob("*/?pu.py")}
    assert set(machine.OPS) == written
    for op in machine.OPS:
        cases = workloads.cases(op)
        assert {case.op for case in cases} == {op}
        assert len({(case.size, case.what) for case in cases}) == len(cases) > 1


def test_the_work_of_a_case():
    forward, both = workloads.linear(3, 5, 7)
    assert (forward.work, both.work) == (2 * 3 * 5 * 7, 6 * 3 * 5 * 7)
    forward, both = workloads.recurrent("gru", 2, 3, 5, 7)
    assert (forward.work, both.work) == (2 * 2 * 3 * (5 + 7) * 21, 6 * 2 * 3 * (5 + 7) * 21)
    assert workloads.adamw("", [(3, 5), (7,)]).work == 7 * 4 * 22  # gradients, moments, weights; of those two anew


built = pytest.mark.skipif(
    "cpu" not in machine.serving("linear"), reason="the CPU kernels weren't built, or aren't here"
)


def chosen(case):
    arguments = case.arguments()
    named = {name: bench.lower(case, arguments, name) for name in machine.serving(case.op)}
    return bench.choice(bench.lower(case, arguments, None), named)


@built
@pytest.mark.parametrize(
    ("cases", "names"),
    [
        (workloads.linear(32, 24, 40), ["cpu", "cpu"]),
        (workloads.linear(1, 24, 40), ["xla", "xla"]),  # too small
        (workloads.linear(4, 64, 64), ["xla", "cpu + xla"]),  # too few rows, but for the gradient of the weight
        (workloads.recurrent("lstm", 32, 4, 32, 32), ["cpu", "cpu"]),
        (workloads.recurrent("lstm", 32, 4, 4, 32), ["cpu", "cpu + xla"]),  # few features
        (workloads.recurrent("gru", 1, 1, 8, 8), ["xla", "xla"]),  # one step
        ([workloads.adamw("", [(3, 2), (4,)])], ["cpu"]),
    ],
)
def test_the_choice(cases, names):
    assert [chosen(case) for case in cases] == names


@pytest.mark.parametrize("name", ["xla", pytest.param("cpu", marks=built)])
def test_a_contender_runs_what_it_is_named_after(name):
    for case in [*workloads.recurrent("lstm", 32, 4, 32, 32), workloads.adamw("", [(3, 2), (4,)])]:
        assert bool(bench._kernels(bench.lower(case, case.arguments(), name))) == (name == "cpu")


def test_what_is_carried_goes_on():
    """Donated arguments are the contender's own, and each run starts from the results of the one before."""
    seen = []

    def function(a, b):
        jax.debug.callback(lambda a: seen.append(float(a)), a)
        return (a + b,)

    case = Case("op", "", "step", function, lambda: (jax.numpy.ones(()), jax.numpy.full((), 2.0)), 1, carried=1)
    arguments = case.arguments()
    for _ in range(2):
        contender = bench.contender(case, arguments, bench.lower(case, arguments, "xla"))
        contender.run()
        contender.run()
    jax.effects_barrier()
    assert seen == [1, 3, 1, 3]


@pytest.mark.long
@built
@pytest.mark.parametrize("op", machine.OPS)
def test_contenders_agree(op):
    """At the sizes that are measured, in values and gradients.

    Each rounds otherwise. Roundings of n summands add up as √n, as their sum does; what a step rounds, later
    ones carry on.
    """
    for case in workloads.cases(op):
        arguments = case.arguments()
        programs = [bench.lower(case, arguments, name).compile() for name in ("xla", "cpu", None)]
        copies = (jax.tree.map(jax.numpy.copy, arguments) for _ in programs)  # some are donated
        results = [jax.tree.leaves(program(*copy)) for program, copy in zip(programs, copies, strict=True)]
        steps = arguments[-4].shape[1] if op in workloads.GATES else 1  # of x, before W, U, b
        for expected, *others in zip(*results, strict=True):
            scale = max(1.0, float(np.abs(expected).max()))
            for found in others:
                np.testing.assert_allclose(found, expected, rtol=0, atol=(50 + 10 * steps) * 2**-23 * scale)


# ---------------------------------------------------------------------------------------- the figures


def test_contenders_take_turns(clock):
    turns = []

    def taking(name, *seconds):
        durations = iter(seconds)

        def run():
            turns.append(name)
            clock[0] += next(durations)

        return run

    contenders = {
        "a": Contender(taking("a", 9, 1, 2, 6, 9, 3, 4, 5)),
        "b": Contender(taking("b", 9, 8, 8, 8, 9, 24, 4, 4), steps=4),
    }
    times = timing.measure(contenders, rounds=2, repeats=3)
    assert "".join(turns) == "aaaabbbb" * 2
    assert times.rounds == {"a": [2, 4], "b": [2, 1]}
    assert (times.seconds("a"), times.ratio("b", "a"), times.ratio("a", "b")) == (3, 2.5, 0.625)


@pytest.mark.parametrize(("seconds", "repeats"), [(0.0, 1), (0.6, 1), (1.3, 2), (10.0, 20), (1e9, 100)])
def test_repeats(clock, seconds, repeats):
    def run():
        clock[0] += 0.25

    assert timing.repeats_within({"a": Contender(run), "b": Contender(run)}, seconds) == repeats


def test_a_rate_is_that_of_the_best_run(clock):
    durations = iter([9, 0.25, 0.125, 0.5])

    def run():
        clock[0] += next(durations)

    assert timing.rate(5_000_000_000, run, seconds=0.5) == 40


def test_a_row():
    case = Case("lstm", "B1", "forward", min, tuple, 1)
    times = Times({"xla": [3.0, 8.0, 2.0], "cpu": [1.0, 2.0, 4.0]})
    row = Row(case, times, "cpu", 0.5)
    assert (row.ratio, row.percent) == (3, 25)
    assert Row(case, times, "xla", 0.75).ratio == 1 / 3
    assert Row(case, Times({"xla": [1.0]}), "xla", 0.5).ratio is None
    three = Times({"xla": [8.0], "cpu": [2.0], "cpu + xla": [4.0]})
    assert Row(case, three, "cpu + xla", 1.0).ratio == 0.5
    columns = [list(column.cells) for column in bench.table([row, Row(case, three, "cpu + xla", 1.0)]).columns]
    assert columns == [
        ["B1", "B1"],
        ["3000.000", "8000.000"],
        ["2000.000", "2000.000"],
        ["", "4000.000"],
        ["cpu", "cpu + xla"],
        ["3.00", "0.50"],
        ["25", "25"],
    ]
