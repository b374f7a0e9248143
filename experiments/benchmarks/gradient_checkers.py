"""jaxnet.verify, jax.test_util.check_grads, torch.autograd.gradcheck and chex on the corpus of tests/verify.

python experiments/benchmarks/gradient_checkers.py
python experiments/benchmarks/gradient_checkers.py --large     # trees of five million floats instead

Each checker runs in a process of its own, and JAX's caches are cleared before each function, so that compilation
counts. A mistake is caught if the checker says that the gradient is wrong; an exception about something else, or
a time-out, is an error: it catches nothing, and a correct function that ends so is refused. "Undecided" of
jaxnet.verify is counted as such an error.
"""

import argparse
import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "verify"))
from corpus import CASES, Case, Setup

from jaxnet import verify

SECONDS = 60  # for one function
Arrays = Sequence[Any]


class Flat:
    """A case as the other checkers want it: a function of its float leaves alone, float arrays out.

    A hand-written gradient becomes the rule of a custom_vjp. Everything else that they do not know
    (a reference, constants, points around) is left out.
    """

    def __init__(self, case: Case, setup: Setup, float64: bool) -> None:
        leaves, self.tree = jax.tree.flatten(setup.args)
        self.values = leaves
        self.places = [i for i, leaf in enumerate(leaves) if _differentiable(leaf)]
        self.setup = setup
        self.reverse = case.reverse
        self.arrays = [jnp.asarray(leaves[i]) for i in self.places]
        if float64:
            self.arrays = [a.astype(jnp.complex128 if jnp.iscomplexobj(a) else jnp.float64) for a in self.arrays]
        if "hand_written" in setup.options:
            self.call = self._claimed()

    def args(self, arrays: Arrays) -> Any:
        values = list(self.values)
        for place, array in zip(self.places, arrays, strict=True):
            values[place] = array
        return jax.tree.unflatten(self.tree, values)

    def call(self, *arrays: Any) -> list[Any]:
        return [y for y in jax.tree.leaves(self.setup.fn(*self.args(arrays))) if _differentiable(y)]

    def modes(self) -> tuple[str, ...]:
        """Forward mode is dropped where a custom_vjp forbids it, reverse mode where there is none."""
        if not self.reverse:
            return ("fwd",)
        forbidden = "custom_vjp_call" in str(jax.make_jaxpr(self.call)(*self.arrays))
        return ("rev",) if forbidden else ("fwd", "rev")

    def _claimed(self) -> Callable[..., list[Any]]:
        def backward(arrays: Arrays, dy: list[Any]) -> tuple[Any, ...]:
            claim = self.setup.options["hand_written"](*self.args(arrays))
            found = [g for g in jax.tree.leaves(claim) if _differentiable(g)]
            beyond = [jnp.zeros_like(a) for a in arrays[len(found) :]]
            return tuple((dy[0] * g).astype(a.dtype) for g, a in zip([*found, *beyond], arrays, strict=True))

        op = jax.custom_vjp(self.call)
        op.defvjp(lambda *arrays: (self.call_plain(*arrays), arrays), backward)
        self.call_plain = type(self).call.__get__(self)
        return op


def _differentiable(leaf: Any) -> bool:
    if not hasattr(leaf, "dtype"):
        return isinstance(leaf, float | complex)
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact)) and np.size(leaf) > 0


def with_verify(case: Case, setup: Setup) -> bool:
    report = verify.check_gradients(setup.fn, *setup.args, order=case.order, **setup.options)
    if report.state == "undecided":
        raise RuntimeError(str(report))
    return report.state == "pass"


def with_check_grads(case: Case, setup: Setup) -> bool:
    jax.test_util.check_grads(setup.fn, setup.args, order=case.order)
    return True


def helped(float64: bool) -> Callable[[Case, Setup], bool]:
    def check(case: Case, setup: Setup) -> bool:
        with jax.enable_x64(float64):
            flat = Flat(case, setup, float64)
            jax.test_util.check_grads(flat.call, flat.arrays, order=case.order, modes=flat.modes())
        return True

    return check


def with_chex(case: Case, setup: Setup) -> bool:
    import chex

    flat = Flat(case, setup, False)
    chex.assert_numerical_grads(flat.call, flat.arrays, order=case.order, modes=flat.modes())
    return True


def with_gradcheck(fast: bool) -> Callable[[Case, Setup], bool]:
    def check(case: Case, setup: Setup) -> bool:
        with jax.enable_x64(True):
            return _gradcheck(case, Flat(case, setup, True), fast)

    return check


def _gradcheck(case: Case, flat: Flat, fast: bool) -> bool:
    import torch

    class Bridge(torch.autograd.Function):
        """A JAX function and its vjp; the vjp by another Bridge, for the second order.

        PyTorch's gradient of a complex number is the conjugate of JAX's.
        """

        @staticmethod
        def forward(ctx: Any, f: Any, *tensors: Any) -> Any:
            ctx.f = f
            ctx.save_for_backward(*tensors)
            return tuple(torch.from_numpy(np.array(y)) for y in f(*map(to_jax, tensors)))

        @staticmethod
        def backward(ctx: Any, *cotangents: Any) -> Any:
            count = len(ctx.saved_tensors)

            @jax.jit
            def pull(*arrays: Any) -> Any:
                dx = jax.vjp(ctx.f, *arrays[:count])[1]([jnp.conj(dy) for dy in arrays[count:]])
                return [jnp.conj(d) for d in dx]

            return None, *Bridge.apply(pull, *ctx.saved_tensors, *cotangents)

    def to_jax(tensor: Any) -> Any:
        return jnp.asarray(tensor.detach().resolve_conj().numpy())

    inputs = [torch.from_numpy(np.array(a)).requires_grad_() for a in flat.arrays]
    compiled = jax.jit(flat.call)
    checks = [torch.autograd.gradcheck, torch.autograd.gradgradcheck][: case.order]
    return all(check(lambda *t: Bridge.apply(compiled, *t), inputs, fast_mode=fast) for check in checks)


CHECKERS: dict[str, Callable[[Case, Setup], bool]] = {
    "jaxnet.verify": with_verify,
    "check_grads": with_check_grads,
    "check_grads, helped": helped(float64=False),
    "check_grads, helped, float64": helped(float64=True),
    "gradcheck, float64": with_gradcheck(fast=False),
    "gradcheck, float64, fast": with_gradcheck(fast=True),
    "chex": with_chex,
}


def work(checker: str, seed: int) -> None:
    """In a process of its own: one line of JSON for each function."""

    def late(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    for case in CASES.values():
        setup = case.setup(seed)
        jax.clear_caches()
        signal.alarm(SECONDS)
        start, said = time.perf_counter(), ""
        try:
            outcome = "accepted" if CHECKERS[checker](case, setup) else "refused"
        except (AssertionError, RuntimeError) as error:
            outcome, said = "refused" if _is_verdict(error) else "error", repr(error)
        except Exception as error:
            outcome, said = "error", repr(error)
        signal.alarm(0)
        seconds = time.perf_counter() - start
        line = {"name": case.name, "bug": case.bug, "outcome": outcome, "s": seconds, "said": said}
        print(json.dumps(line), flush=True)


def _is_verdict(error: Exception) -> bool:
    """numpy's and chex's assertions, and torch's GradcheckError."""
    return isinstance(error, AssertionError) or type(error).__name__ == "GradcheckError"


def run(checker: str, seed: int, progress: Progress) -> list[dict[str, Any]]:
    task = progress.add_task(checker, total=len(CASES))
    command = [sys.executable, __file__, "--work", checker, "--seed", str(seed)]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for line in process.stdout or ():
            lines.append(json.loads(line))
            progress.update(task, advance=1)
    if process.returncode:
        raise SystemExit(f"error: {checker} ended with code {process.returncode} after {len(lines)} functions")
    return lines


def row(checker: str, lines: list[dict[str, Any]]) -> list[str]:
    def count(bug: bool, outcome: str) -> int:
        return sum(line["bug"] == bug and line["outcome"] == outcome for line in lines)

    errors = count(False, "error")
    seconds = [line["s"] for line in lines]
    return [
        checker,
        f"{count(True, 'refused')} ({count(True, 'error')} errors)",
        f"{count(False, 'refused') + errors} ({errors} errors)",
        *(f"{np.quantile(seconds, q):.2f}" for q in (0.5, 0.9)),
    ]


def tree(leaves: int, floats: float) -> tuple[Callable[..., Any], Any]:
    """A network of square weights, `floats` in so many leaves together."""
    rng, side = np.random.default_rng(0), int((floats / leaves) ** 0.5)
    weights = [jnp.asarray(rng.standard_normal((side, side)) / side**0.5, jnp.float32) for _ in range(leaves)]
    x = jnp.asarray(rng.standard_normal((32, side)), jnp.float32)

    def loss(weights: Any) -> Any:
        h = x
        for w in weights:
            h = h + jnp.tanh(h @ w) / leaves**0.5
        return (h**2).mean()

    return loss, weights


def large() -> None:
    """Seconds for one check of a large tree, compilation included, beside those of check_grads."""
    table = Table("5 million floats in", "jaxnet.verify s", "check_grads s")
    for leaves in (5, 300):
        loss, weights = tree(leaves, 5e6)
        seconds = []
        checks = verify.assert_gradients, lambda f, w: jax.test_util.check_grads(f, (w,), 1, atol=1, rtol=1)
        for check in checks:
            jax.clear_caches()
            start = time.perf_counter()
            check(loss, weights)
            seconds.append(f"{time.perf_counter() - start:.1f}")
        table.add_row(f"{leaves} leaves", *seconds)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=CHECKERS, default=list(CHECKERS), metavar="CHECKER")
    parser.add_argument("--large", action="store_true", help="time checks of large trees instead")
    parser.add_argument("--json", type=Path, help="the outcome of each function, for each checker")
    parser.add_argument("--work", choices=CHECKERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args.work, args.seed)
    if args.large:
        return large()

    console = Console()
    needs = {"gradcheck": "torch", "chex": "chex"}
    missing = {m for m in needs.values() if importlib.util.find_spec(m) is None}
    bugs = sum(case.bug for case in CASES.values())
    table = Table("checker", f"caught of {bugs}", f"refused of {len(CASES) - bugs}", "median s", "90 % s")
    results = {}
    with Progress(console=Console(stderr=True)) as progress:
        for checker in args.only:
            if (needed := needs.get(checker.split(",")[0])) in missing:
                console.print(f"{checker}: {needed} isn't installed")
                continue
            results[checker] = run(checker, args.seed, progress)
            table.add_row(*row(checker, results[checker]))
    console.print(table)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
