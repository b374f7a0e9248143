"""What a report says, in each of its forms, and what the caller's mistakes get as an answer."""

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from jaxnet import verify


@pytest.fixture(scope="module")
def report() -> verify.Report:
    def loss(params: Any, x: Any) -> Any:
        return jnp.tanh(x @ params["<w>"] + params["b"][None]).sum()

    params = {"<w>": jnp.full((3, 2), 0.2), "b": jnp.full(2, 0.1)}
    return verify.check_gradients(
        loss,
        params,
        jnp.ones((4, 3)),
        hand_written=lambda p, x: ({"<w>": 0 * p["<w>"], "b": 0 * p["b"] + jnp.nan},),
    )


def test_text_is_an_aligned_table(report: verify.Report) -> None:
    lines = str(report).splitlines()
    assert lines[0].startswith("FAIL  loss")
    column = lines[1].index("shape")
    assert [lines[i][column] for i in (2, 3, 4)] == ["("] * 3
    assert "params['<w>']" in lines[2]
    assert any(line.startswith("  worst: params['<w>'][") and "hand gives 0" in line for line in lines)
    assert not any(line != line.rstrip() for line in lines)


def test_html_is_well_formed_escaped_and_whole(report: verify.Report, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    report.to_html(path)
    page = path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert report.table_html() in page
    assert "&lt;w&gt;" in page
    assert "<w>" not in page
    assert "http" not in page

    open_tags: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag not in ("meta", "br", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Parser().feed(page)
    assert not open_tags


def test_html_that_cannot_be_written_leaves_nothing(report: verify.Report, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        report.to_html(tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_json_has_every_leaf(report: verify.Report) -> None:
    content = json.loads(report.to_json(), parse_constant=pytest.fail)
    assert content["state"] == "fail"
    assert content["ok"] is False
    assert [leaf["name"] for leaf in content["leaves"]] == ["params['<w>']", "params['b']", "x"]
    assert content["leaves"][1]["worst"]["got"] == "nan"
    assert content["leaves"][0]["shape"] == [3, 2]


def test_state_is_the_worst_of_the_leaves(report: verify.Report) -> None:
    def state(*states: str) -> tuple[str, bool]:
        leaf = report.leaves[0]
        leaves = tuple(verify.LeafReport(**{**vars(leaf), "state": s}) for s in states)
        made = verify.Report("t", leaves, (), 0.0)
        return made.state, made.ok

    assert state("pass", "pass") == ("pass", True)
    assert state("pass", "undecided") == ("undecided", False)
    assert state("undecided", "fail", "pass") == ("fail", False)


def test_witnesses_diagnosis_and_error_are_shown_everywhere(report: verify.Report) -> None:
    worst = verify.Worst("hand", (1, 0), 2.0, 1.0, 1e-9)
    leaf = dataclasses.replace(report.leaves[0], worst=worst, diagnosis="sign <flipped>")
    witnesses = (verify.WitnessReport("adjoint", "not taken", "no jvp"),)
    made = dataclasses.replace(report, leaves=(leaf,), witnesses=witnesses)
    for text in (str(made), made.table_html(), made.to_json()):
        for words in ("adjoint", "not taken", "no jvp", "flipped", "1e-09"):
            assert words in text
    assert "<flipped>" not in made.table_html()


@pytest.mark.parametrize(
    ("state", "overall"),
    [("pass", "pass"), ("not taken", "pass"), ("undecided", "undecided"), ("fail", "fail")],
)
def test_witnesses_count(report: verify.Report, state: str, overall: str) -> None:
    leaf = dataclasses.replace(report.leaves[2], state="pass")
    witness = verify.WitnessReport("determinism", state, "words")
    assert verify.Report("t", (leaf,), (), 0.0, (witness,)).state == overall


def test_value_that_is_not_finite_is_undecided() -> None:
    report = verify.check_gradients(lambda x: jnp.log(x).sum(), jnp.array([-1.0, 1.0]))
    assert report.state == "undecided"


def test_finite_value_with_a_gradient_that_is_not() -> None:
    report = verify.check_gradients(lambda x: jnp.sqrt((x**2).sum()), jnp.zeros(2))
    assert report.state == "fail"
    assert "not finite at 2 of 2" in report.leaves[0].verdict


def test_derivative_below_rounding_noise_is_undecided_or_negligible() -> None:
    report = verify.check_gradients(lambda x, y: 1e9 + (x * y).sum(), jnp.ones(3), jnp.ones(3))
    assert report.state in ("pass", "undecided")


@pytest.mark.parametrize(
    ("fn", "args", "hand_written", "error", "words"),
    [
        (lambda x: jnp.arange(3), (jnp.ones(2),), None, ValueError, "float output"),
        (lambda x: None, (jnp.ones(2),), None, ValueError, "float output"),
        (lambda n: 1.0 * n, (jnp.arange(2),), None, ValueError, "at least one"),
        (lambda: jnp.ones(()), (), None, ValueError, "at least one"),
        (lambda x, y: x.sum(), (jnp.ones(2),), None, TypeError, "missing a required argument"),
        (lambda x: x.sum(), (jnp.ones(2),), lambda x: jnp.ones(2), TypeError, "tuple"),
        (lambda x: x.sum(), (jnp.ones(2),), lambda x: (x, x), ValueError, "2 gradients for 1"),
        (lambda x: x.sum(), (jnp.ones(2),), lambda x: (x[:1],), ValueError, r"shape \(1,\) for x"),
        (lambda x: x.sum(), (jnp.ones(2),), lambda x: (None,), ValueError, "no gradient for x"),
        (lambda p: p["a"].sum(), ({"a": jnp.ones(2)},), lambda p: (p | {"b": p["a"]},), ValueError, "'b'"),
        (lambda x: x, (jnp.ones(2),), lambda x: (x,), ValueError, "gradient of a scalar"),
        (lambda x: 1 / 0, (jnp.ones(2),), None, ZeroDivisionError, "division"),
    ],
)
def test_mistakes(fn: Any, args: Any, hand_written: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        verify.check_gradients(fn, *args, hand_written=hand_written)
