"""The README's code runs as it stands there."""

import re
import runpy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxnet import verify
from jaxnet.verify.targets import find

README = Path(__file__).parent.parent / "README.md"


def blocks() -> dict[str, str]:
    """The Python blocks by the heading that they stand under, a second one as `heading 2`."""
    found: dict[str, str] = {}
    for section in README.read_text(encoding="utf-8").split("\n## ")[1:]:
        heading = section.splitlines()[0]
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", section, re.DOTALL)):
            found[heading if number == 0 else f"{heading} {number + 1}"] = code
    return found


def run(name: str, folder: Path) -> dict[str, Any]:
    path = folder / "script.py"
    path.write_text(blocks()[name], encoding="utf-8")
    return runpy.run_path(str(path), run_name="__main__")


def test_every_block_is_run_by_a_test_below() -> None:
    prove = "Prove your own gradients"
    assert set(blocks()) == {"In twenty lines", prove, f"{prove} 2", "In a Flax model"}


@pytest.mark.slow
def test_twenty_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    run("In twenty lines", tmp_path)
    out = capsys.readouterr().out
    assert out.count("PASS") == 2
    assert float(re.search(r"'accuracy': .*?(0\.\d+)", out)[1]) > 0.95  # type: ignore[index]


def test_a_kernel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("Prove your own gradients", tmp_path)
    assert capsys.readouterr().out.startswith("PASS  swish  6 combinations: 6 pass")

    (tmp_path / "kernels.py").write_text(blocks()["Prove your own gradients"], encoding="utf-8")
    (case,) = find(f"{tmp_path}/kernels.py").cases
    assert case.check().ok

    wrong = names["swish"]
    call, forward, backward = names["call"], names["forward"], names["backward"]
    wrong.defvjp(lambda x: (call(forward, x), x), lambda x, dy: (call(backward, dy, x),))
    assert verify.sweep(wrong, shapes=[(7, 5)]).state == "fail"

    test: dict[str, Any] = {"swish": case.function, "jax": jax}
    exec(blocks()["Prove your own gradients 2"], test)
    test["test_swish"](verify.assert_gradients)


def test_a_flax_model(tmp_path: Path) -> None:
    pytest.importorskip("flax", reason="Flax is optional: pip install '.[flax]'")
    names = run("In a Flax model", tmp_path)
    expected = names["nn"].RNN(names["nn"].OptimizedLSTMCell(128)).apply(names["params"], names["x"])
    # Sums of 32 + 128 products, over 50 steps.
    np.testing.assert_allclose(names["y"], expected, atol=50 * 160 * np.finfo("float32").eps)
