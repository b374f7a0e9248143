"""The public checks: is the gradient of this function right?"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from jaxnet.verify.examination import Check
from jaxnet.verify.problem import Options
from jaxnet.verify.report import Report


class GradientError(AssertionError):
    """A gradient that is wrong, or could not be proved right; `report` tells which and where."""

    def __init__(self, report: Report) -> None:
        """Take the report's table as the message."""
        super().__init__(f"\n{report}")
        self.report = report


def check_gradients(
    fn: Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any] | None = None,
    hand_written: Callable[..., Any] | None = None,
    constant: str | int | Sequence[str | int] = (),
    order: int = 1,
    around: str | Sequence[str] = (),
    nondeterminism: float = 0.0,
    rtol: float = 0.0,
    atol: float = 0.0,
    seed: int = 0,
) -> Report:
    r"""Compare the roads to the gradient of `fn` at `args`, leaf by leaf, and question the witnesses.

    The roads are autodiff of the plain function ("reference": `reference` if it is given, else `fn` with
    every `custom_jvp` and `custom_vjp` rule left out but those that stand for a kernel), `jax.grad` with the
    function's own rules, a hand-written gradient if there is one, and finite differences in float64. The last
    judge the others: along random directions u, and at single elements, with D ± err from a Richardson table,

        |⟨g, u⟩ - D| ≤ 10·err + 1e-9·max(|⟨g, u⟩|, |D|) + 1e-12·Σ|g·u|.

    There is no tolerance to choose. A leaf where err is too large to tell is "undecided", which is not ok.
    The gradient in the leaves' own dtype is held against the one in float64, in machine epsilons (see
    precision.py). The other witnesses: the adjoint identity of forward and reverse mode, the complex step,
    linearity of the pullback, `jit` and `vmap`, two calls, the form of the gradient, and order 2 if it is
    asked for.

    At a kink any subgradient is right: an element of the convex hull of the gradients nearby. What `fn`
    passes through `stop_gradient` is held fixed at its value.

    Args:
        fn: any JAX function with a float output. If that is not a real scalar, a random cotangent is used.
        *args: pytrees. Leaves of float or complex dtype are differentiated, all others held fixed.
        reference: a plain function of the same arguments and values, by which values and gradients are
            judged: for a kernel that knows one dtype only, and for a derivative that differs on purpose,
            s(x) + stop_gradient(fn(x) - s(x)) being a function with the values of `fn` and the slope of s.
        hand_written: `hand_written(*args)` returns the gradients to be proved: a tuple with one entry per
            argument, of the argument's tree (None for what cannot be differentiated). Arguments beyond
            its end have no claim.
        constant: name or number of an argument, or name of a leaf, to be held fixed; or several of them.
        order: 2 also examines the gradient of the gradient.
        around: other points to examine: some of "negated", "small", "large", "zeros", "ties", or "all".
        nondeterminism: by how much two calls may differ, relative to a leaf's largest element.
        rtol: relative difference from the right gradient that is accepted. It only widens what is derived.
        atol: the same in absolute terms, per element of a gradient.
        seed: of the random directions and cotangents.

    Returns:
        A `Report`: `.ok`, `.leaves`, `.witnesses`, `str(report)`, `.to_html(path)`.

    Raises:
        ValueError: no float output, nothing to differentiate, an option that does not exist, a tolerance
            that is negative or not finite, or `hand_written` disagrees with the arguments' tree or shapes.
        TypeError: `hand_written` does not return a tuple, `fn` is no function or takes other arguments,
            or the seed is no integer.
        Exception: what `fn` itself raises comes through, with a note that says so.

    Example:
        >>> report = check_gradients(lambda w, x: jnp.tanh(x @ w).sum(), w, x)
        >>> report.ok
        True

    Reference: Griewank and Walther, "Evaluating Derivatives" (2008); Ridders (1982), see differences.py.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed={seed!r}: it must be an integer.")
    constant = (constant,) if isinstance(constant, str | int) else tuple(constant)
    options = Options(reference, hand_written, constant, nondeterminism, rtol, atol, order, around)
    began = time.perf_counter()
    return Check(fn, args, options).report(seed, began)


def assert_gradients(fn: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Raise `GradientError`, which holds the report, unless `check_gradients(fn, *args, **options)` passes.

    Raises:
        GradientError: a gradient is wrong or undecided.
    """
    report = check_gradients(fn, *args, **options)
    if not report.ok:
        raise GradientError(report)
