"""Every planted mistake of the corpus is found where it is, and no correct function is refused.

An eighth of the cases at seed 0; JAXNET_CORPUS_PART=1/8 takes the next one, 0/1 all. JAXNET_CORPUS_SEEDS=20 takes
all cases at seeds 0 to 19, JAXNET_CORPUS_SEEDS=5:8 at seeds 5 to 7; a seed takes some minutes.
"""

import os
import re

import pytest
from corpus import CASES, Case

from jaxnet import verify

SEEDS = os.environ.get("JAXNET_CORPUS_SEEDS")
PART, PARTS = map(int, os.environ.get("JAXNET_CORPUS_PART", "0/8").split("/"))


def runs(bug: bool) -> pytest.MarkDecorator:
    """Pairs of a case and a seed."""
    cases = [case for case in CASES.values() if case.bug == bug]
    if SEEDS is None:
        pairs = [(case, 0) for case in cases[PART::PARTS]]
    else:
        first, _, stop = SEEDS.rpartition(":")
        pairs = [(case, seed) for seed in range(int(first or 0), int(stop)) for case in cases]
    names = [f"{case.file}-{case.name}-{seed}" for case, seed in pairs]
    return pytest.mark.parametrize(("case", "seed"), pairs, ids=names)


def named(report: verify.Report, case: Case) -> set[str]:
    """The leaves whose rows fail, or those of the case that its witness's verdict names."""
    failed = {leaf.name for leaf in report.leaves if leaf.state == "fail"}
    said = " ".join(w.verdict for w in report.witnesses if w.state == "fail" and w.name == case.witness)
    return failed or {name for name in case.wrong if re.search(rf"(?<!\w)d?{re.escape(name)}(?!\w)", said)}


def check(case: Case, seed: int) -> verify.Report:
    fn, args, options = case.setup(seed)
    return verify.check_gradients(fn, *args, seed=seed, order=case.order, **options)


@runs(bug=True)
def test_bug_is_found_and_placed(case: Case, seed: int) -> None:
    report = check(case, seed)
    assert report.state == "fail", str(report)
    if case.wrong:
        assert named(report, case) == case.wrong, str(report)
    if case.witness is not None:
        assert case.witness in {witness.name for witness in report.witnesses if witness.state == "fail"}, str(
            report
        )
    worst = [leaf.worst for leaf in report.leaves if leaf.state == "fail" and leaf.worst is not None]
    if case.index is not None and case.order == 1:
        assert len(worst) == 1, str(report)
        assert case.has_index(worst[0].index), str(report)


@runs(bug=False)
def test_correct_function_passes(case: Case, seed: int) -> None:
    report = check(case, seed)
    assert report.state == "pass", str(report)


def test_corpus_is_large_enough() -> None:
    bugs = [case for case in CASES.values() if case.bug]
    assert len(bugs) >= 64
    assert len(CASES) - len(bugs) >= 64
    assert sum(bool(case.source) for case in bugs) >= 32
