"""`jaxnet verify`: what it finds, what it prints and writes, and its exit codes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from jaxnet.cli.commands import commands
from jaxnet.cli.errors import guarded
from jaxnet.verify.outcomes import explain

COMMAND = Path(sys.executable).with_name("jaxnet")

FILES = {
    "right.py": """
from beside import square
from jaxnet import verify
import jax.numpy as jnp

verify.case(lambda: jnp.ones(2), name="imported")(square)

@verify.case(lambda seed: jnp.array([seed + 1.0]))
def double(x):
    return 2 * x
""",
    "beside.py": "def square(x):\n    return x * x\n",
    "wrong.py": """
import jax, jax.numpy as jnp
from jaxnet import verify

@verify.case(lambda: jnp.arange(3.0))
@jax.custom_vjp
def halved(x):
    return x * x

halved.defvjp(lambda x: (x * x, x), lambda x, dy: (x * dy,))
""",
    "undecided.py": """
import jax.numpy as jnp
from jaxnet import verify

@verify.case(lambda: -jnp.ones(2))
def logarithm(x):
    return jnp.log(x).sum()
""",
    "raises.py": """
import jax.numpy as jnp
from jaxnet import verify

def helper(x):
    raise RuntimeError("no luck\\nat all")

@verify.case(lambda: jnp.ones(2))
def unlucky(x):
    return helper(x)

@verify.case(lambda: jnp.arange(2))
def whole(x):
    return x
""",
    "rules.py": """
import jax, jax.numpy as jnp
from jaxnet import verify

def rule(x, dy):
    return (dy * jnp.sign(x),)

@jax.custom_vjp
def size(x):
    return abs(x)

size.defvjp(lambda x: (size(x), x), rule)
weak = verify.case(lambda: jnp.array([1.0, 2.0]))(lambda x: size(x))
strong = verify.case(lambda seed: jnp.array([1.5, 2.5]))(lambda x: size(x))
strong = verify.case(lambda: jnp.array([-1.0, 2.0]))(strong)
untrue = verify.case(lambda: jnp.ones(2), hand_written=lambda x: (x + x,))(lambda x: size(x).sum())
""",
    "options.py": """
import jax, jax.numpy as jnp
from jaxnet import verify

def straight(x):
    return jnp.round(x)

def through(x):
    return x + jax.lax.stop_gradient(jnp.round(x) - x)

def by_hand(x):
    return (3 * x * x,)

@verify.case(lambda: jnp.array([0.3, 1.4]), reference=through)
@jax.custom_jvp
def estimator(x):
    return straight(x)

estimator.defjvp(lambda p, t: (straight(*p), t[0]))

@jax.custom_vjp
def cube(x):
    return x**3

cube.defvjp(lambda x: (cube(x), x), lambda x, dy: (jax.lax.stop_gradient(3 * x * x) * dy,))
once = verify.case(lambda: jnp.array([1.0, 2.0]))(lambda x: cube(x).sum())
stated = verify.case(lambda: jnp.array([1.0, 2.0]), hand_written=by_hand)(lambda x: (x**3).sum())
""",
    "broken.py": "def f(:\n",
    "missing.py": "import not_a_package_of_anyone\n",
    "exits.py": "import sys\nsys.exit('no arguments')\n",
    "empty.py": "from right import double\n",
    "package/__init__.py": "",
    "package/sub/__init__.py": "",
    "package/sub/inner.py": "from ..outer import identity as mine\n",
    "package/outer.py": "from jaxnet import verify\n\n@verify.case(1.5)\ndef identity(x):\n    return x\n",
    "text.txt": "",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs the command in this process, in the folder of the files; what it imports is forgotten."""
    monkeypatch.chdir(folder)
    path, modules = list(sys.path), set(sys.modules)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = guarded(lambda: commands.main(["verify", *arguments], standalone_mode=False))
        return code, *capsys.readouterr()

    yield run
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_right_ones_get_a_line_each(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, errors = run("right.py", "package/outer.py", "right.py:square")
    assert (code, errors) == (0, "")
    lines = [line.split()[:2] for line in out.splitlines()]
    assert lines == [
        ["PASS", "right.py::double[0]"],
        ["PASS", "package/outer.py::identity[0]"],
        ["PASS", "right.py::square[imported]"],
        ["3", "cases:"],
    ]


def test_the_worst_decides(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, out, _ = run("undecided.py", "right")
    assert code == 3
    assert "UNDECIDED  undecided.py::logarithm[0]" in out
    assert "2 cases: 1 undecided, 1 pass" in out
    code, _, errors = run("undecided.py", "raises.py:whole")
    assert code == 2
    assert errors.startswith("error: raises.py::whole[0]: check_gradients needs at least one non-empty array")
    assert errors.count("\n") == 1
    code, out, _ = run("nothing.py", "undecided.py", "wrong.py", f"--junit={tmp_path}/junit.xml")
    assert code == 1
    assert "FAIL  wrong.py::halved[0]" in out
    assert "WRONG" in out

    suites = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert suites.tag == "testsuites"
    (suite,) = suites
    assert {k: suite.attrib[k] for k in ("tests", "failures", "errors")} == {
        "tests": "3",
        "failures": "2",
        "errors": "1",
    }
    found = {(t.attrib["classname"], t.attrib["name"]): (t[0].tag, t[0].attrib["type"]) for t in suite}
    assert found == {
        ("nothing.py", "nothing.py"): ("error", "error"),
        ("undecided.py", "logarithm[0]"): ("failure", "undecided"),
        ("wrong.py", "halved[0]"): ("failure", "fail"),
    }
    assert "WRONG" in suite[2][0].attrib["message"]
    assert "wrong.py::halved[0]" in (suite[2][0].text or "")


def test_what_a_user_raises_keeps_the_users_frames(run: Callable[..., tuple[int, str, str]], folder: Path) -> None:
    code, _, errors = run("raises.py:unlucky")
    assert code == 2
    lines = errors.splitlines()
    assert lines[0] == "error: raises.py::unlucky[0]: RuntimeError: no luck"
    places = [line.strip() for line in lines if line.strip().startswith("File ")]
    assert places == [
        f'File "{folder}/raises.py", line 10, in unlucky',
        f'File "{folder}/raises.py", line 6, in helper',
    ]
    assert lines[-1] == "at all"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing.py", "there is no file nothing.py; give a Python file or the name of a module."),
        ("text.txt", "text.txt is not a Python file; give one that ends in .py, or the name of a module."),
        ("package", "package is a folder; give files, such as package/*.py, or the name of a module."),
        ("no.such", "there is no module no; give a module that can be imported from here, or a Python file."),
        ("not a name", "'not a name' is neither a file nor the name of a module."),
        ("right.py:triple", "right.py has no triple; the functions with cases there: double."),
        ("beside:square", "square in beside has no case: mark it with @verify.case(arguments…)"),
        (
            "empty.py",
            "empty.py has no case: mark a function that it defines with @verify.case(arguments…), or name one",
        ),
        ("package/sub/inner.py", "package/sub/inner.py has no case"),
        ("broken.py", "SyntaxError: invalid syntax (broken.py, line 1)"),
        ("missing.py", "ModuleNotFoundError: No module named 'not_a_package_of_anyone'"),
        ("exits.py", "SystemExit: no arguments"),
    ],
)
def test_what_cannot_be_taken_up(run: Callable[..., tuple[int, str, str]], target: str, message: str) -> None:
    code, out, errors = run(target)
    assert code == 2
    assert errors.splitlines()[0].startswith(f"error: {target}: {message}")
    assert "Traceback" not in errors
    assert out.startswith("1 case: 1 error")


def test_an_imported_function_is_checked_where_it_is_named(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("package.sub.inner:mine")
    assert code == 0
    assert "package.sub.inner::mine[0]" in out


@pytest.mark.long
def test_a_mutant_that_the_cases_let_pass(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    junit, pages = tmp_path / "junit.xml", tmp_path / "pages"
    code, out, errors = run("rules.py:weak", "--mutate", "--junit", f"{junit}", "--html", f"{pages}")
    assert (code, errors) == (1, "")
    lines = out.splitlines()
    assert lines[0].startswith("PASS  rules.py::weak[0]")
    assert lines[1].startswith("FAIL  rules.py::weak, mutated  ")
    survivor = "rules.py:6: rule, factor: `dy * jnp.sign(x)` became `dy`: its gradients differ by "
    assert lines[2].startswith(f"  survived: {survivor}")
    assert out.count("survived: ") == 1
    assert lines[-1].startswith("2 cases: 1 fail, 1 pass")

    failure = ElementTree.parse(junit).getroot()[0][1][0]
    assert (failure.tag, failure.attrib["type"]) == ("failure", "fail")
    assert ", 1 survived" in failure.attrib["message"]
    assert survivor in (failure.text or "")
    page = (pages / "001-rules.py-weak-mutated.html").read_text()
    assert page.count("<td>survived: its gradients differ") == 1
    assert "<th>rules.py:6</th><td>rule</td><td>factor: `dy * jnp.sign(x)` became `dy`</td>" in page


@pytest.mark.long
def test_cases_that_find_every_mutant(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, errors = run("rules.py:strong", "--mutate", "--json", "-")
    assert code == 0, errors
    content = json.loads(out)
    assert [(c["case"], c["state"]) for c in content["cases"]] == [
        ("strong[0]", "pass"),
        ("strong[1]", "pass"),
        ("strong, mutated", "pass"),
    ]
    report = content["cases"][2]["report"]
    assert report["survived"] == 0 < report["killed"]
    assert {mutant["file"] for mutant in report["mutants"]} == {"rules.py"}
    assert "strong, mutated" in errors
    assert f"{report['killed']} killed" in errors


def test_a_sample_and_a_gradient_stated_by_hand(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, errors = run("options.py:stated", "--mutate", "--sample", "4")
    assert (code, errors) == (0, "")
    assert " of 7 mutants: 4 killed, " in out


@pytest.mark.parametrize(
    ("target", "code", "message"),
    [
        (
            "right.py:double",
            2,
            "double, mutated: mutation finds no derivative rule in double: it reaches no custom",
        ),
        (
            "rules.py:untrue",
            1,
            "untrue, mutated: not mutated, since untrue[0] doesn't pass on the function as it is",
        ),
    ],
)
def test_what_cannot_be_mutated(
    run: Callable[..., tuple[int, str, str]], target: str, code: int, message: str
) -> None:
    found, _, errors = run(target, "--mutate")
    assert found == code
    assert errors.startswith(f"error: {target.split(':')[0]}::{message}")
    assert errors.count("\n") == 1


def test_reference_and_order(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("options.py:estimator")[0] == 0
    code, out, _ = run("options.py:once")
    assert code == 0, out
    code, out, _ = run("options.py:once", "--order", "2")
    assert code == 1
    assert "order 2" in out


def test_json_on_the_standard_output_is_nothing_else(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, errors = run("right.py:double", "wrong.py", "--json", "-", "--seed", "4")
    content = json.loads(out)
    assert code == content["exit_code"] == 1
    assert content["state"] == "fail"
    assert [(c["place"], c["case"], c["state"]) for c in content["cases"]] == [
        ("right.py", "double[0]", "pass"),
        ("wrong.py", "halved[0]", "fail"),
    ]
    assert content["cases"][1]["report"]["leaves"][0]["name"] == "x"
    assert "FAIL  wrong.py::halved[0]" in errors


def test_pages(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, _, _ = run("right.py:double", "wrong.py", "raises.py:whole", "--html", f"{tmp_path}/pages")
    assert code == 1
    names = sorted(path.name for path in (tmp_path / "pages").iterdir())
    assert names == ["000-right.py-double-0.html", "001-wrong.py-halved-0.html", "index.html"]
    index = (tmp_path / "pages/index.html").read_text()
    assert index.count("<a href=") == 2
    assert "needs at least one non-empty array" in index
    code, _, _ = run("right.py:double", "--html", f"{tmp_path}/one.html")
    assert code == 0
    assert "right.py::double[0]" in (tmp_path / "one.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'FILE|MODULE[:NAME]...'."),
        (["right.py", "--order", "3"], "Invalid value for '--order': 3 is not in the range 1<=x<=2."),
        (["right.py", "--sample", "3"], "--sample says how many mutants to try: give it with --mutate."),
        (["right.py", "--json", "no/where.json"], "there is no folder no to write where.json into."),
        (["right.py", "wrong.py", "--html", "a.html"], "--html a.html is one page, and there are 2 cases"),
    ],
)
def test_mistakes_in_the_options(
    run: Callable[..., tuple[int, str, str]], arguments: list[str], message: str
) -> None:
    code, out, errors = run(*arguments)
    assert (code, out) == (2, "")
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1


def test_an_error_of_ours_is_a_line_and_a_users_has_frames() -> None:
    assert explain(ValueError("wanted this\nand that")) == ("wanted this", "and that")
    try:
        json.loads("{")
    except ValueError as error:
        line, trace = explain(error)
    assert line.startswith("JSONDecodeError: Expecting property name")
    assert "json.loads" in trace


@pytest.mark.slow
@pytest.mark.parametrize(("file", "code"), [("right.py", 0), ("wrong.py", 1)])
def test_as_a_process(folder: Path, file: str, code: int) -> None:
    environment = os.environ | {"COLUMNS": "100"}
    done = subprocess.run([COMMAND, "verify", file], cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith("FAIL" if code else "PASS")
