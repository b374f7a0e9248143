"""`jaxnet verify`: checks the functions that a file or a module marks with `@verify.case`."""

import html
import itertools
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from jaxnet.cli.errors import check_folder
from jaxnet.train.files import write_atomically
from jaxnet.verify import outcomes as results
from jaxnet.verify.cases import Case
from jaxnet.verify.junit import to_junit
from jaxnet.verify.mutate import run_cases
from jaxnet.verify.mutation_report import MutationReport
from jaxnet.verify.outcomes import EXIT_CODES, Outcome, attempt, raised
from jaxnet.verify.progress import Progress
from jaxnet.verify.targets import find

_PAGES = (".html", ".htm")


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="FILE|MODULE[:NAME]...")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), help="Of arguments and directions; else each case's own, or 0."
)
@click.option(
    "--order", type=click.IntRange(1, 2), help="2 checks the gradient of the gradient too, in all cases."
)
@click.option(
    "--mutate", is_flag=True, help="Also put mistakes into the derivative rules: do the cases find them?"
)
@click.option(
    "--sample", type=click.IntRange(1), help="With --mutate: stop at so many that are killed or survive."
)
@click.option("--json", metavar="PATH|-", help="Write the reports as JSON; - is the standard output.")
@click.option(
    "--html", "pages", metavar="DIR|PATH", help="Write a page for each case; PATH.html for a single one."
)
@click.option("--junit", metavar="PATH", help="Write the outcomes as JUnit XML, for CI systems.")
def verify(
    targets: tuple[str, ...],
    seed: int | None,
    order: int | None,
    mutate: bool,
    sample: int | None,
    json: str | None,
    pages: str | None,
    junit: str | None,
) -> int:
    """Check the gradients of functions marked with @verify.case.

    FILE is a Python file and MODULE the name of a module; :NAME chooses one of its functions.

    With --mutate each function's custom_vjp and custom_jvp rules, and its hand_written gradients, are
    changed, one mistake at a time. A mutant that its cases pass, though its gradients differ, survived.

    Exit code: 0 all are right, 1 a gradient is wrong or a mutant survived, 2 something couldn't be checked
    or mutated, 3 undecided; of several the worst, 1 before 2 before 3 before 0.
    """
    if sample is not None and not mutate:
        raise click.UsageError("--sample says how many mutants to try: give it with --mutate.")
    for path in (json if json != "-" else None, pages, junit):
        if path is not None:
            check_folder(path)
    began = time.perf_counter()
    out = sys.stderr if json == "-" else sys.stdout
    options = {name: value for name, value in (("seed", seed), ("order", order)) if value is not None}
    done: list[Outcome] = []
    work = list(_work(targets, options, done, partial(_mutated, done, sample) if mutate else None))
    single = pages is not None and Path(pages).suffix in _PAGES
    if single and len(work) > 1:
        raise click.UsageError(f"--html {pages} is one page, and there are {len(work)} cases: name a folder.")
    for outcome in done:
        _show(outcome, out)
    with Progress("verify", len(work)) as progress:
        for place, name, check in work:
            progress.step(f"{place}::{name}")
            outcome = attempt(place, name, check)
            progress.clear()
            _show(outcome, out)
            done.append(outcome)
    seconds = time.perf_counter() - began
    print(results.summary(done, seconds), file=out)
    if pages is not None:
        _write_pages(Path(pages), done, single)
    if junit is not None:
        write_atomically(Path(junit), to_junit(done))
    if json == "-":
        sys.stdout.write(results.to_json(done, seconds))
    elif json is not None:
        write_atomically(Path(json), results.to_json(done, seconds))
    return EXIT_CODES[results.state(done)]


def _work(
    targets: tuple[str, ...],
    options: dict[str, Any],
    refused: list[Outcome],
    mutated: Callable[..., MutationReport] | None,
) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(place, name, check) of every case, then the mutation of its function, if that is wanted.

    A target that can't be taken up goes to `refused`.
    """
    for target in targets:
        try:
            place, _, cases = find(target)
        except (Exception, SystemExit) as error:
            refused.append(raised(target, "", error))
            continue
        for called, group in itertools.groupby(cases, lambda case: case.called):
            of_one = list(group)
            for case in of_one:
                yield place, case.title, partial(case.check, **options)
            if mutated is not None:
                yield place, f"{called}, mutated", partial(mutated, place, of_one, **options)


def _mutated(
    done: list[Outcome], sample: int | None, place: str, cases: list[Case], **options: Any
) -> MutationReport:
    """Mutate the function of `cases`, whose outcomes are done."""
    titles = {case.title for case in cases}
    bad = [o.name for o in done if o.place == place and o.name in titles and o.state != "pass"]
    if bad:
        raise ValueError(f"not mutated, since {', '.join(bad)} doesn't pass on the function as it is.")
    with Progress(f"mutate {cases[0].called}", 1) as progress:
        return run_cases(cases, sample=sample, progress=lambda n, of: progress.at(n, of, ""), **options)


def _show(outcome: Outcome, out: Any) -> None:
    """One line if it passed, else all that is known."""
    if outcome.state == "error":
        print(f"error: {outcome.title}: {outcome.error}", file=sys.stderr)
        if outcome.trace:
            print(outcome.trace, file=sys.stderr)
    elif outcome.state == "pass":
        print(outcome, file=out)
    else:
        resolution = results.resolution(outcome.report)
        print(outcome.report, *([f"  {resolution}"] if resolution else []), sep="\n", end="\n\n", file=out)
    out.flush()


def _write_pages(path: Path, done: list[Outcome], single: bool) -> None:
    """A page for each report and, in a folder, one that lists them."""
    if single:
        for outcome in done:
            _write_page(outcome, path)
        return
    path.mkdir(exist_ok=True)
    rows = []
    for number, outcome in enumerate(done):
        text = html.escape(str(outcome))
        if outcome.report is not None:
            page = path / f"{number:03}-{re.sub(r'[^A-Za-z0-9_.]+', '-', outcome.title).strip('-')}.html"
            _write_page(outcome, page)
            text = f'<a href="{page.name}">{text}</a>'
        rows.append(f'<li class="{outcome.state}">{text}</li>')
    write_atomically(path / "index.html", _INDEX.format(rows="\n".join(rows)))


def _write_page(outcome: Outcome, path: Path) -> None:
    if outcome.report is not None:
        outcome.report.to_html(path)


_INDEX = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>jaxnet verify</title><style>
:root {{ color-scheme: light dark }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem }}
.pass::marker {{ color: #1a7f37 }} .fail::marker, .error::marker {{ color: #cf222e }}
.undecided::marker {{ color: #9a6700 }}
</style></head><body><h1>jaxnet verify</h1><ul>
{rows}
</ul></body></html>
"""
