"""The pytest plug-in: a fixture `assert_gradients`, and functions marked with `@verify.case` as tests.

It stands outside `jaxnet.verify` and imports that when a test asks: starting pytest must not import JAX.
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def assert_gradients() -> Callable[..., Any]:
    """`verify.assert_gradients`, which returns the report; a failure shows nothing but that."""

    def check(fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        from jaxnet import verify

        report = verify.check_gradients(fn, *args, **options)
        if not report.ok:
            raise verify.GradientError(report)
        return report

    return check


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> Any:
    """A test for each case of a function that the file defines, or imports under the name of a test."""
    cases = sys.modules.get("jaxnet.verify.cases")
    if cases is None or not isinstance(collector, pytest.Module):
        return None  # without an import of jaxnet.verify nothing can be marked
    marked = cases.cases_of(obj, name)
    if not marked or not (cases.defined_in(collector.obj, obj) or collector.funcnamefilter(name)):
        return None
    return [pytest.Function.from_parent(collector, name=case.title, callobj=_test(case)) for case in marked]


def _test(case: Any) -> Callable[[], None]:
    """A test function that pytest sees in the place, and with the pytest marks, of the marked function."""

    def test() -> None:
        from jaxnet.verify.outcomes import explain

        try:
            report = case.check()
        except Exception as error:
            line, frames = explain(error)
            pytest.fail(f"{frames}\n{line}".lstrip(), pytrace=False)
        if not report.ok:
            pytest.fail(f"{report}", pytrace=False)

    test.place_as = inspect.unwrap(case.function)  # type: ignore[attr-defined]
    test.pytestmark = list(getattr(case.function, "pytestmark", ()))  # type: ignore[attr-defined]
    return test
