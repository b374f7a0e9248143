"""Outcomes as JUnit XML, as CI systems read it.

Reference: the schema of Jenkins' xUnit plug-in,
https://github.com/jenkinsci/xunit-plugin/blob/master/src/main/resources/org/jenkinsci/plugins/xunit/types/model/xsd/junit-10.xsd
"""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from jaxnet.verify.outcomes import Outcome

# What XML 1.0 cannot hold, not even escaped.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ELEMENTS = {"fail": "failure", "undecided": "failure", "error": "error"}


def to_junit(outcomes: Sequence[Outcome]) -> str:
    """One test case each. Undecided is a failure of that type; what couldn't be checked is an error."""
    kinds = [_ELEMENTS.get(outcome.state) for outcome in outcomes]
    counts = {
        "tests": str(len(outcomes)),
        "failures": str(kinds.count("failure")),
        "errors": str(kinds.count("error")),
        "skipped": "0",
        "time": f"{sum(outcome.seconds for outcome in outcomes):.3f}",
    }
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "jaxnet verify", **counts})
    for outcome, kind in zip(outcomes, kinds, strict=True):
        name = {"classname": _clean(outcome.place), "name": _clean(outcome.name or outcome.place)}
        test = ElementTree.SubElement(suite, "testcase", {**name, "time": f"{outcome.seconds:.3f}"})
        if kind is not None:
            said = {"type": outcome.state, "message": _clean(outcome.why)}
            body = outcome.trace if outcome.report is None else str(outcome.report)
            ElementTree.SubElement(test, kind, said).text = _clean(body)
    ElementTree.indent(suites)
    text: str = ElementTree.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _clean(text: str) -> str:
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)
