"""Proof by mutation: does a check find the mistakes that are put into a backward pass?

    report = verify.mutate.run(op, [(x, weight)])          # the rules of op, checked at these arguments
    report = verify.mutate.mutate([backward], [trial])     # any function, any check

Every mutant is one mistake in the source (`mutation_operators`), put in the place of the function for
as long as the checks run. A mutant that the checks pass is *equivalent* only if its gradients are those
of the function as it is, compared in float64 at other arguments under other cotangents; else it *survived*,
and either the check's cases or the prover have a gap.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

from jaxnet.verify.cases import Case
from jaxnet.verify.mutants import Mutation, mutations, plain_function, unchanged
from jaxnet.verify.mutation_place import in_place
from jaxnet.verify.mutation_place import programs_kept as programs_kept
from jaxnet.verify.mutation_report import STATES as STATES
from jaxnet.verify.mutation_report import Mutant, MutationReport
from jaxnet.verify.mutation_rules import rules_of
from jaxnet.verify.report import Report
from jaxnet.verify.roads import brief
from jaxnet.verify.trials import Gradients, Trial, difference, trial

Progress = Callable[[int, int], None]  # mutants that count, of how many

_DRAWS = range(12)  # each of the six ways to draw arguments twice, with other cotangents


def run(
    fn: Callable[..., Any],
    cases: Sequence[Sequence[Any]],
    *,
    options: Mapping[str, Any] | None = None,
    rules: Sequence[Callable[..., Any]] | None = None,
    sample: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> MutationReport:
    """Mutate the derivative rules of `fn` and check each mutant by `check_gradients` at every case.

    Args:
        fn: a function with a `custom_vjp` or `custom_jvp`, itself or inside.
        cases: for each case the arguments, a tuple as for `check_gradients(fn, *args)`.
        options: of `check_gradients`, the same for all cases.
        rules: the functions to mutate; None takes those that `fn` reaches (`rules_of`).
        sample: stop when so many mutants are killed or survive, drawn evenly from the kinds of mistake; None
            tries all. One that is equivalent or invalid says nothing about the check: another takes its place.
        seed: of the sample.
        progress: called with the numbers of mutants that count and that are asked for.

    Raises:
        ValueError: no rule is found or runs, a check doesn't pass on `fn` as it is, or sample < 1.

    Example:
        >>> print(mutate.run(op, [(x, weight), (x, None)], sample=20))
    """
    title = getattr(fn, "__name__", type(fn).__name__)
    trials = [trial(fn, *args, **(options or {})) for args in cases]
    found = _rules(fn, title, [options or {}]) if rules is None else rules
    return mutate(found, trials, title=title, unused=rules is None, sample=sample, seed=seed, progress=progress)


def run_cases(
    cases: Sequence[Case], *, sample: int | None = None, progress: Progress | None = None, **options: Any
) -> MutationReport:
    """`run` for the marked cases of one function; `options` go before those of each case."""
    first = cases[0]
    found = _rules(first.function, first.called, [case.options for case in cases])
    trials = [trial(case.function, *case.build(**options), **{**case.options, **options}) for case in cases]
    seed = first.seed(**options)
    return mutate(found, trials, title=first.called, unused=True, sample=sample, seed=seed, progress=progress)


def _rules(fn: Callable[..., Any], title: str, options: Sequence[Mapping[str, Any]]) -> Sequence[FunctionType]:
    stated = [each["hand_written"] for each in options if "hand_written" in each]
    if found := rules_of(fn, *stated):
        return found
    raise ValueError(
        f"mutation finds no derivative rule in {title}: it reaches no custom_vjp or custom_jvp whose rule is "
        "written in Python outside of installed packages. Choose a function that has one, or name the "
        "functions of its backward pass, verify.mutate.run(fn, cases, rules=[backward])."
    )


def mutate(
    functions: Sequence[Callable[..., Any] | tuple[Callable[..., Any], str]],
    trials: Sequence[Trial],
    *,
    title: str | None = None,
    unused: bool = False,
    sample: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> MutationReport:
    """Mutate `functions`, one mistake at a time, and try each mutant by all `trials`.

    Args:
        functions: of a backward pass, each found through `partial`, `jit` and other wrappers. A pair
            (function, name) stands for the function of that name that is defined inside of it.
        trials: see `Trial`, `trial` and `layer_trial`.
        title: of the report; by default the functions' names.
        unused: whether functions that no trial runs are left out, with a remark, instead of refused.
        sample: as in `run`.
        seed: as in `run`.
        progress: as in `run`.

    Raises:
        TypeError: a function isn't written in Python.
        ValueError: its source can't be read, nothing in it can be mutated, no trial runs it, a check doesn't
            pass on it as it is, or sample < 1.
    """
    if sample is not None and sample < 1:
        raise ValueError(f"sample must be at least 1, or None for all mutants; got {sample}")
    began = time.perf_counter()
    targets = _targets(functions)
    with programs_kept():
        ran = _runs(targets, trials)
        right = functools.cache(lambda: [each.gradients(_DRAWS) for each in trials])  # only if they are needed
        idle = [name for (*_, name), runs in zip(targets, ran, strict=True) if not runs]
        if idle and not (unused and any(ran)):
            raise ValueError(
                f"no check runs {', '.join(idle)}: its mutants would all survive. Give a case that does."
            )
        every = [
            (target, mutation)
            for target, runs in zip(targets, ran, strict=True)
            if runs
            for mutation in mutations(target.functions[0], target.inside)
        ]
        if not every:
            names = ", ".join(target.name for target in targets)
            raise ValueError(f"mutation finds nothing to change in {names}.")
        fates: dict[int, Mutant] = {}
        for i in range(len(every)) if sample is None else _in_turns(every, seed):
            fates[i] = _fate(*every[i], trials, right)
            done = len(fates) if sample is None else sum(fate.decided for fate in fates.values())
            if progress is not None:
                progress(done, min(sample or len(every), len(every)))
            if done == sample:
                break
    remarks = tuple(f"{name} is run by no check and was left alone" for name in idle)
    seconds = time.perf_counter() - began
    title = title or ", ".join(target.name for target in targets)
    return MutationReport(title, tuple(fates[i] for i in sorted(fates)), len(every), remarks, seconds)


class _Target(NamedTuple):
    functions: Sequence[
        FunctionType
    ]  # of one source: a factory's closures, in each of which another branch is dead
    inside: str | None
    name: str


def _targets(functions: Sequence[Any]) -> list[_Target]:
    groups: dict[Any, list[FunctionType]] = {}
    for function in functions:
        outer, inside = function if isinstance(function, tuple) else (function, None)
        plain = plain_function(outer)
        groups.setdefault((id(plain.__code__), inside), []).append(plain)
    return [
        _Target(group, inside, ".".join([group[0].__qualname__, *([inside] if inside else [])]))
        for (_, inside), group in groups.items()
    ]


def _runs(targets: Sequence[_Target], trials: Sequence[Trial]) -> list[bool]:
    """Whether the trials run each target; their checks must pass on the functions as they are."""
    ran: list[bool] = []
    for target in targets:
        with in_place(target.functions, unchanged(target.functions[0], target.inside)) as mark:
            for each in trials:
                if ran and mark.reached:
                    break  # the checks have passed for the first target, and this one runs
                report = each.check()
                if report is not None and report.state != "pass":
                    raise ValueError(f"mutation needs checks that pass on the function as it is; got\n{report}")
        ran.append(mark.reached)
    return ran


def _fate(
    target: _Target, mutation: Mutation, trials: Sequence[Trial], right: Callable[[], list[Gradients]]
) -> Mutant:
    began = time.perf_counter()
    with in_place(target.functions, mutation.code) as mark:
        state, detail = _checked(trials)
    if state != "invalid" and not mark.reached:
        state, detail = "survived", "no check runs this place: give a case that does"
    elif state == "survived":
        expected = right()
        with in_place(target.functions, mutation.code):
            state, detail = _compared(trials, expected, detail)
    seconds = time.perf_counter() - began
    return Mutant(_file(target.functions[0]), mutation.line, target.name, str(mutation), state, detail, seconds)


def _file(function: FunctionType) -> str:
    """The file of a function, as seen from the working directory if it lies there."""
    file = Path(function.__code__.co_filename)
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def _checked(trials: Sequence[Trial]) -> tuple[str, str]:
    """What the prover says."""
    undecided = ""
    for each in trials:
        try:
            report = each.check()
        except AssertionError as error:
            report = getattr(error, "report", None)
            if not isinstance(report, Report):
                return "killed", brief(error)
        except Exception as error:  # the mutant's, of any type; a user sees it at the first call
            return "invalid", brief(error)
        if report is not None and report.state == "fail":
            return "killed", _verdict(report)
        if report is not None and report.state == "undecided":
            undecided = f"undecided ({_verdict(report)}); "
    return "survived", undecided


def _verdict(report: Report) -> str:
    rows: list[Any] = [*report.leaves, *getattr(report, "witnesses", ())]
    return next((f"{row.name}: {row.verdict}" for row in rows if row.state == report.state), report.state)


def _compared(trials: Sequence[Trial], right: list[Gradients], detail: str) -> tuple[str, str]:
    """Whether the gradients of a mutant that no check found are the right ones.

    Equal up to rounding: a change of the order of n terms moves their sum by at most n·eps of its largest
    partial sum, and n stays below 4096 in what is differentiated by hand here.
    """
    worst = 0.0
    for each, expected in zip(trials, right, strict=True):
        try:
            found = each.gradients(_DRAWS)
        except Exception as error:
            return "invalid", f"{detail}the checks pass, but the gradient raises {brief(error)}"
        gap = difference(found, expected)
        eps = max(
            (float(np.finfo(leaf.dtype).eps) for leaf in expected[0] if leaf.dtype.kind in "fc"), default=0.0
        )
        if not gap <= 4096 * eps:
            return "survived", f"{detail}its gradients differ by {gap:.2g} of the largest element"
        worst = max(worst, gap)
    return "equivalent", f"{detail}its gradients differ by at most {worst:.1g} at {len(_DRAWS)} draws a case"


def _in_turns(every: list[tuple[_Target, Mutation]], seed: int) -> list[int]:
    """Their places shuffled, then one of each operator after another."""
    turns: dict[str, Iterator[int]] = {}
    order = np.random.default_rng(seed).permutation(len(every)).tolist()
    turn = {i: next(turns.setdefault(every[i][1].operator, itertools.count())) for i in order}
    return sorted(order, key=turn.__getitem__)
