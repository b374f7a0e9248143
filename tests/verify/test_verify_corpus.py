"""Every planted mistake of the corpus is found where it is, and no correct function is refused.

Seed 0 by default; JAXNET_CORPUS_SEEDS=20 takes seeds 0 to 19, JAXNET_CORPUS_SEEDS=5:8 seeds 5 to 7.
"""

import os

import pytest
from corpus import CASES, Case

from jaxnet import verify


def seeds() -> list[int]:
    """A number of seeds, or `first:stop`."""
    first, _, stop = os.environ.get("JAXNET_CORPUS_SEEDS", "1").rpartition(":")
    return list(range(int(first or 0), int(stop)))


def cases(bug: bool) -> pytest.MarkDecorator:
    chosen = [case for case in CASES.values() if case.bug == bug]
    return pytest.mark.parametrize("case", chosen, ids=[f"{case.file}-{case.name}" for case in chosen])


def check(case: Case, seed: int) -> verify.Report:
    fn, args, options = case.setup(seed)
    return verify.check_gradients(fn, *args, seed=seed, order=case.order, **options)


@pytest.mark.parametrize("seed", seeds())
@cases(bug=True)
def test_bug_is_found_and_placed(case: Case, seed: int) -> None:
    report = check(case, seed)
    assert report.state == "fail", str(report)
    failed = [leaf for leaf in report.leaves if leaf.state == "fail"]
    if case.wrong:
        assert {leaf.name for leaf in failed} == case.wrong, str(report)
    if case.witness is not None:
        assert case.witness in {witness.name for witness in report.witnesses if witness.state == "fail"}, str(
            report
        )
    if case.index is not None:
        (leaf,) = failed
        assert leaf.worst is not None, str(report)
        assert case.has_index(leaf.worst.index), str(report)


@pytest.mark.parametrize("seed", seeds())
@cases(bug=False)
def test_correct_function_passes(case: Case, seed: int) -> None:
    report = check(case, seed)
    assert report.state == "pass", str(report)


def test_corpus_is_large_enough() -> None:
    bugs = [case for case in CASES.values() if case.bug]
    assert len(bugs) >= 64
    assert len(CASES) - len(bugs) >= 64
    assert sum(bool(case.source) for case in bugs) >= 32
