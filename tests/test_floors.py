"""The floors of the house: an import goes down only, and no backward pass is taken by autodiff."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the top down.
TOWER = ["experiments", "cli", "interop", "train", "networks", "layers", "losses", "ops", "activations"]
AUTODIFF = {"grad", "vjp", "jvp", "linearize", "value_and_grad", "jacfwd", "jacrev", "hessian", "linear_transpose"}
PEERS = {"jaxnet.verify.module": "flax", "jaxnet.interop.flax": "flax"}  # what each is about
SECOND_ORDER = ("jaxnet.ops.dispatch", "jvp")  # of kernels, which are their ops' first
WITHOUT_AUTODIFF = {"activations", "losses", "ops", "layers", "networks", "interop", "kernels"}


def sources() -> list[Path]:
    return sorted(path for top in ("jaxnet", "kernels", "experiments") for path in (ROOT / top).rglob("*.py"))


def module(path: Path) -> str:
    """Its name as installed: kernels/ is jaxnet.kernels."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] != "kernels" else ("jaxnet", *parts)
    return ".".join(part for part in parts if part != "__init__")


def imports(tree: ast.AST, name: str, package: bool) -> Iterator[str]:
    """The modules that a source imports, also inside functions; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")[: len(name.split(".")) - node.level + package] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def room(name: str) -> str:
    """experiments, or the part after jaxnet."""
    parts = name.split(".")
    return "experiments" if parts[0] == "experiments" else parts[1] if len(parts) > 1 else ""


def violation(name: str, imported: str) -> str | None:
    """Why `name` may not import `imported`; None if it may."""
    top = imported.split(".")[0]
    if "jax._src" in imported:
        return "jax._src is private"
    if top in ("experiments", "tests"):
        return "nobody imports experiments or tests"
    if name.startswith("jaxnet") and top in ("torch", "keras", "flax"):
        about = any(f"{name}.".startswith(f"{user}.") and top == peer for user, peer in PEERS.items())
        return None if about else "a peer is only for comparing"
    if not imported.startswith("jaxnet."):
        return None
    here, there = room(name).replace("pytest_plugin", "cli"), room(imported)  # both stand at the top
    if there == here or there in ("__version__", "using"):
        return None
    if here in ("verify", "data"):
        return f"{here} imports nothing of the tower"
    if here == "kernels":
        return None if there == "activations" else "kernels import activations alone"
    if there == "kernels":
        op = name.split(".")[2] if here == "ops" and name.count(".") > 1 else None
        own = f"{imported}.".startswith(f"jaxnet.kernels.{op}.") or (
            op == "dispatch" and imported == "jaxnet.kernels.ffi"
        )
        return None if op and own else "only ops/x imports kernels.x, and ops/dispatch kernels.ffi"
    if there in ("verify", "data"):
        return None if TOWER.index(here) <= TOWER.index("train") else f"{here} stands below {there}"
    return None if TOWER.index(here) < TOWER.index(there) else f"{here} stands below {there}"


def violations(path: Path, text: str) -> list[str]:
    tree, name = ast.parse(text), module(path)
    found = [
        f"{name} imports {imported}: {why}"
        for imported in imports(tree, name, path.name == "__init__.py")
        if (why := violation(name, imported))
    ]
    if room(name) in WITHOUT_AUTODIFF:
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in AUTODIFF)
        found += [
            f"{name} calls jax.{node.attr}"
            for node in calls
            if isinstance(node.value, ast.Name) and node.value.id == "jax" and (name, node.attr) != SECOND_ORDER
        ]
        names = [i for i in imports(tree, name, False) if i.startswith("jax.") and i.split(".")[-1] in AUTODIFF]
        found += [f"{name} imports {i}" for i in names]
    return found


@pytest.mark.parametrize("path", sources(), ids=module)
def test_imports_go_down_and_nothing_differentiates_a_backward_pass(path):
    assert violations(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("jaxnet/layers/dense.py", "from jaxnet import train"),
        ("jaxnet/layers/dense.py", "def f():\n    import jaxnet.networks.feedforward"),
        ("jaxnet/ops/linear.py", "from jaxnet.kernels.adamw import cpu"),
        ("jaxnet/ops/linear.py", "from jaxnet.kernels import ffi"),
        ("jaxnet/ops/linear.py", "from jaxnet.kernels.linear_cross_entropy import cpu"),
        ("jaxnet/verify/check.py", "from jaxnet import activations"),
        ("jaxnet/data/idx.py", "from jaxnet.layers import dense"),
        ("jaxnet/train/loop.py", "from jax._src import core"),
        ("jaxnet/train/loop.py", "import torch"),
        ("jaxnet/interop/flax/linen.py", "import torch"),
        ("jaxnet/networks/recurrent.py", "from jaxnet.interop import flax"),
        ("jaxnet/cli/verify.py", "import experiments.feedforward_digits"),
        ("kernels/adamw/cpu.py", "from jaxnet.ops import linear"),
        ("jaxnet/ops/linear.py", "dx = jax.vjp(f, x)"),
        ("jaxnet/losses/loss.py", "from jax import grad"),
    ],
)
def test_a_planted_violation_is_found(file, line):
    assert len(violations(ROOT / file, line)) == 1
