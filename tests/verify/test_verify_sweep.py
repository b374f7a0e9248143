"""A sweep: every combination, its row, and the reports of those that fail."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import verify
from jaxnet.verify import progress


def wrong_when(condition: Any) -> Any:
    """x·factor, whose rule loses the sign if `condition(x, factor)`."""

    def scaled(x: Any, *, factor: float = 1.0, block: int = 1) -> Any:
        if x.shape[0] % block:
            raise ValueError(f"block {block} does not divide {x.shape[0]}\nat all")

        @jax.custom_vjp
        def call(x: Any) -> Any:
            return x * jnp.asarray(factor, x.dtype)

        sign = -1 if condition(x, factor) else 1
        call.defvjp(lambda x: (call(x), None), lambda _, dy: (dy * jnp.asarray(sign * factor, dy.dtype),))
        return call(x)

    return scaled


def test_every_combination_is_checked() -> None:
    fn = wrong_when(lambda x, factor: False)
    report = verify.sweep(fn, shapes=[(2, 3), (4,)], dtypes=["float32", "float16"], options={"factor": [1.0, 3.0]})
    assert report.ok, str(report)
    rows = [(c.shape, c.dtype, c.options["factor"]) for c in report.combinations]
    assert rows == [(s, d, f) for s in ("(2, 3)", "(4,)") for d in ("float32", "float16") for f in (1.0, 3.0)]
    lines = str(report).splitlines()
    assert lines[0].startswith("PASS  scaled  8 combinations: 8 pass")
    assert lines[1].split() == ["shapes", "dtype", "factor", "digits", "own", "dtype", "time", "verdict"]
    assert len(lines) == 2 + 8


def test_the_wrong_one_is_shown_in_full_and_what_raised_in_a_line() -> None:
    fn = wrong_when(lambda x, factor: x.shape == (3,) and factor == 2.0)
    report = verify.sweep(fn, shapes=[(2,), (3,)], options={"factor": [1.0, 2.0], "block": [1, 2]})
    assert [c.state for c in report.combinations] == ["pass"] * 4 + ["pass", "raised", "fail", "raised"]
    assert (report.state, report.ok) == ("fail", False)
    text = str(report)
    assert "8 combinations: 1 fail, 2 raised, 5 pass" in text
    assert text.count("RAISED ValueError: block 2 does not divide 3\n") == 2
    assert text.count("FAIL  scaled((3,), float32, factor=2.0, block=1)") == 1
    content = json.loads(report.to_json())
    assert (content["state"], content["ok"], len(content["combinations"])) == ("fail", False, 8)
    wrong = content["combinations"][6]
    assert (wrong["shape"], wrong["dtype"], wrong["state"]) == ("(3,)", "float32", "fail")
    assert wrong["options"] == {"factor": "2.0", "block": "1"}
    assert wrong["report"]["leaves"][0]["state"] == "fail"
    assert content["combinations"][5]["error"] == "ValueError: block 2 does not divide 3"


def test_several_arguments_some_of_them_made() -> None:
    seen = []

    def loss(x: Any, w: Any, labels: Any, scale: Any) -> Any:
        seen.append((x.shape, w.shape, labels.shape, labels.dtype, scale))
        return (jax.nn.log_softmax(x @ w) * jax.nn.one_hot(labels, 2, dtype=x.dtype)).sum()

    report = verify.sweep(loss, shapes=[[(4, 3), (3, 2), lambda: jnp.array([0, 1, 1, 0]), None]])
    assert report.ok, str(report)
    assert seen[0] == ((4, 3), (3, 2), (4,), jnp.int32, None)
    assert [leaf.name for leaf in report.combinations[0].report.leaves] == ["x", "w"]  # type: ignore[union-attr]


def test_scalars_complex_and_64_bits() -> None:
    report = verify.sweep(lambda x: (x * x).real.sum(), shapes=[(), (2,)], dtypes=["float64", "complex64"])
    assert report.ok, str(report)
    leaves = [c.report.leaves[0] for c in report.combinations if c.report is not None]
    assert [leaf.dtype for leaf in leaves] == ["float64", "complex64"] * 2
    assert not jax.config.read("jax_enable_x64")


def test_the_seed_decides_the_arrays() -> None:
    def norms(seed: int) -> list[float]:
        report = verify.sweep(lambda x: (x * x).sum(), shapes=[(3,), (3,)], seed=seed)
        return [c.report.leaves[0].norm for c in report.combinations if c.report is not None]

    assert norms(0) == norms(0)
    assert not np.isclose(norms(0)[0], norms(1)[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shapes": []}, r"at least one shape.*shapes=\[\]"),
        ({"shapes": [(2,)], "options": {"block": []}}, "at least one"),
        ({"shapes": [(2,)], "dtypes": ["int32"]}, "got int32 in dtypes"),
    ],
)
def test_mistakes(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        verify.sweep(jnp.tanh, **options)


class Terminal:
    """A stderr that keeps what is written."""

    def __init__(self, is_terminal: bool) -> None:
        self.text, self.is_terminal = "", is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(("is_terminal", "seconds"), [(True, 3.0), (True, 1.0), (False, 3.0)])
def test_progress_in_a_terminal_after_two_seconds(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, seconds: float
) -> None:
    terminal, now = Terminal(is_terminal), [10.0]
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Progress("sweep f", 4) as bar:
        bar.step("first")
        assert terminal.text == ""
        now[0] += seconds
        bar.step("second")
        shown = terminal.text
        if is_terminal and seconds > 2:
            assert "sweep f ━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌ 1/4, 9 s left  second" in shown
            assert "\n" not in shown
        else:
            assert shown == ""
    assert terminal.text == shown + ("\r\x1b[K" if shown else "")
