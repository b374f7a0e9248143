"""Mutation: what each operator does to a source, that a mutant really runs, and what becomes of it."""

import importlib
import inspect
import itertools
import json
import pkgutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import activations, layers, losses, ops, verify
from jaxnet.verify import mutants, mutate
from jaxnet.verify.mutation_place import in_place
from jaxnet.verify.mutation_rules import rules_of
from jaxnet.verify.trials import Trial, difference, layer_trial, trial


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


# ------------------------------------------------------------------------------------------ operators


def sign(x, y):
    return x + -y


def term(x, y):
    x += y
    return x - y


def factor(x, y):
    return x * y / 2.0 + x**3


def operands(x, y):
    return jnp.arctan2(x, y), x @ y


def transpose(x, y):
    return jnp.matmul(x.T, y) + jnp.swapaxes(x, 0, 1)


def index(x):
    return x[0] * x[:, 1:]


def constant(x):
    return jnp.sum(0.5 * x, keepdims=True) + 0.0


def residual(residuals, dy):
    x, w = residuals
    return dy * w + x


def summed(x):
    return jnp.sum(x, 0) + x.sum(axis=1) + sum([x], x)


def call(x):
    return jnp.exp(x).astype(x.dtype)


def branch(x, flag):
    if flag:
        x = jnp.where(x > 0, x, 0)
    return x if x.ndim >= 2 else -x


def several(x):
    """A docstring with 1 in it."""
    if x.ndim > 3:
        raise ValueError(f"{x.ndim - 1}")
    inner = lambda y=2: y * x  # noqa: E731
    return inner()


EXPECTED = {
    sign: ["sign: `x + -y` became `x - -y`", "sign: `-y` became `y`", "`x + -y` became `negated(x + -y)`"],
    term: ["sign: `x += y` became `x -= y`", "term: `x += y` became `pass`", "`x - y` became `-y`"],
    factor: ["`x * y / 2.0` became `x * y`", "`x * y` became `x`", "`x * y` became `y`", "`x ** 3` became `x`"],
    operands: [
        "`jnp.arctan2(x, y)` became `jnp.arctan2(y, x)`",
        "`x @ y` became `y @ x`",
        "`return (jnp.arctan2(x, y), x @ y)` became `return (x @ y, jnp.arctan2(x, y))`",
    ],
    transpose: [
        "transpose: `x.T` became `x`",
        "transpose: `jnp.matmul(x.T, y)` became `jnp.matmul(x.T, y.T)`",
        "transpose: `jnp.swapaxes(x, 0, 1)` became `x`",
        "became `transposed(jnp.matmul(x.T, y) + jnp.swapaxes(x, 0, 1))`",
    ],
    index: ["index: `0` became `1`", "index: `1` became `2`", "became `rolled(x[0] * x[:, 1:])`"],
    constant: ["constant: `0.5` became `1.0`", "constant: `True` became `False`", "constant: `0.0` became `1.0`"],
    residual: ["residual: `dy` became `x`", "residual: `x` became `w`", "residual: `w` became `x`"],
    summed: [
        "sum: `jnp.sum(x, 0)` became `x`",
        "sum: `jnp.sum(x, 0)` became `first(x, 0)`",
        "sum: `x.sum(axis=1)` became `x`",
        "sum: `x.sum(axis=1)` became `mean(x, axis=1)`",
        "sum: `sum([x], x)` became `[x]`",
    ],
    call: ["call: `jnp.exp(x)` became `x`", "call: `jnp.exp(x).astype(x.dtype)` became `jnp.exp(x)`"],
    branch: [
        "branch: `flag` became `True`",
        "branch: `flag` became `False`",
        "branch: `x > 0` became `x < 0`",
        "branch: `x > 0` became `x >= 0`",
        "branch: `x.ndim >= 2` became `False`",
    ],
}  # fmt: skip


@pytest.mark.parametrize("function", EXPECTED, ids=lambda f: f.__name__)
def test_what_an_operator_does(function):
    found = [str(mutation) for mutation in mutants.mutations(function)]
    for words in EXPECTED[function]:
        assert any(words in line for line in found), (words, found)
    first = inspect.getsourcelines(function)[1]
    lines = [mutation.line for mutation in mutants.mutations(function)]
    assert first < min(lines) <= max(lines) <= first + len(inspect.getsource(function).splitlines())
    assert len(set(found)) > 3


def test_signatures_docstrings_and_messages_stay():
    before = [mutation.before for mutation in mutants.mutations(several)]
    assert "x.ndim > 3" in before
    assert "y * x" in before
    assert not {"2", "1", "x.ndim - 1", "'A docstring with 1 in it.'"} & set(before)


def applied(function: Any, words: str, *args: Any) -> Any:
    (mutation,) = (m for m in mutants.mutations(function) if f"{m.before}->{m.after}" == words)
    with in_place([function], mutation.code) as mark:
        value = function(*args)
    assert mark.reached
    return value


@pytest.mark.parametrize(
    ("function", "words", "args", "expected"),
    [
        (sign, "x + -y->x - -y", (5.0, 2.0), 7.0),
        (term, "x += y->pass", (5.0, 2.0), 3.0),
        (term, "x += y->x -= y", (5.0, 2.0), 1.0),
        (factor, "x * y / 2.0->x * y", (2.0, 3.0), 14.0),
        (index, "0->1", (np.arange(4.0).reshape(2, 2),), [[2, 3], [6, 9]]),
        (branch, "flag->False", (np.array([[-1.0]]), True), [[-1.0]]),
        (branch, "x > 0->x < 0", (np.array([[-1.0, 2.0]]), True), [[-1.0, 0.0]]),
        (summed, "jnp.sum(x, 0)->first(x, 0)", (np.eye(2),), np.array([1, 0]) + 1 + 2 * np.eye(2)),
        (summed, "x.sum(axis=1)->mean(x, axis=1)", (np.eye(2),), 1.5 + 2 * np.eye(2)),
        (call, "jnp.exp(x)->x", (np.ones(1),), [1.0]),
    ],
)
def test_a_mutant_does_what_its_words_say(function, words, args, expected):
    given = [a if isinstance(a, float | bool) else jnp.asarray(a, jnp.float32) for a in args]
    with jax.numpy_rank_promotion("allow"):
        before = function(*given)
        np.testing.assert_allclose(applied(function, words, *given), expected)
        np.testing.assert_array_equal(function(*given), before)


def test_what_changes_the_results():
    def gradient(x):
        return x, (2 * x, None)

    x = jnp.arange(4.0).reshape(2, 2)
    rolled = applied(gradient, "x->rolled(x)", x)
    np.testing.assert_array_equal(rolled[0], [[1, 0], [3, 2]])
    np.testing.assert_array_equal(applied(gradient, "x->transposed(x)", x)[0], x.T)
    tree = applied(gradient, "(2 * x, None)->negated((2 * x, None))", x)[1]
    np.testing.assert_array_equal(tree[0], -2 * x)
    assert tree[1] is None
    with pytest.raises(TypeError, match="no array of rank 2 or more"):
        applied(gradient, "x->transposed(x)", jnp.ones(3))


def test_closures_lambdas_and_nested_functions():
    factor_, other = 3.0, 5.0
    pair = (lambda x: x * factor_, lambda x: x - other)  # two on one line
    assert applied(pair[0], "x * factor_->x", 2.0) == 2.0  # a free variable is lost
    assert applied(pair[1], "x - other->x + other", 2.0) == 7.0
    assert pair[0](2.0) == 6.0

    def make(k):
        def first(x):
            return x + k

        def second(x):
            return x * k

        return first, second

    only = mutants.mutations(make, "second")
    assert {m.before for m in only} == {"x * k"}
    (mutation,) = (m for m in only if m.after == "x")
    with in_place([make], mutation.code) as mark:
        first, second = make(3.0)
        assert (first(2.0), mark.reached) == (5.0, False)
        assert (second(2.0), mark.reached) == (2.0, True)


def test_a_function_without_source_or_of_another_kind():
    with pytest.raises(ValueError, match=r"needs the source of .*Define it in a file"):
        mutants.mutations(eval("lambda x: x", {}))
    with pytest.raises(TypeError, match=r"needs a function written in Python; got .*name its rule"):
        mutants.plain_function(np.add)
    assert mutants.plain_function(jax.jit(partial(sign, 1.0))) is sign


# ------------------------------------------------------------------------------------------ the fates


@jax.custom_vjp
def affine(x, weight):
    return jnp.tanh(x @ weight)


def affine_forward(x, weight):
    y = affine(x, weight)
    return y, (x, weight, y)


def affine_backward(residuals, dy):
    x, weight, y = residuals
    dz = dy * (1 - y * y)
    if x.ndim > 2:
        dz = 3.0 * dz
    return dz @ weight.T, x.T @ dz


affine.defvjp(affine_forward, affine_backward)
jitted = jax.jit(affine)
ARGS = draw(0, 4, 4), draw(1, 4, 4)


def quick(fn, *args, looks_at=None):
    """A trial that is quicker than the prover: the gradients under one cotangent, or those it looks at."""

    def gradients():
        y, pullback = jax.vjp(fn, *args)
        return pullback(draw(2, *y.shape))[:looks_at]

    def check():
        for found, expected in zip(gradients(), right, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

    right = gradients()
    return Trial(check, trial(fn, *args).gradients)


def test_what_becomes_of_a_mutant():
    report = mutate.mutate([affine_backward], [quick(affine, *ARGS)])
    states = {mutant.change: mutant.state for mutant in report.mutants}
    for change, state in {
        "sign: `1 - y * y` became `1 + y * y`": "killed",
        "transpose: `weight.T` became `weight`": "killed",
        "operands: `return (dz @ weight.T, x.T @ dz)` became `return (x.T @ dz, dz @ weight.T)`": "killed",
        "residual: `residuals` became `dy`": "invalid",
        "branch: `x.ndim > 2` became `True`": "killed",
        "branch: `x.ndim > 2` became `x.ndim < 2`": "equivalent",
        "constant: `3.0` became `6.0`": "survived",  # no case takes the branch: who knows what is right there?
    }.items():
        assert states[change] == state, report
    assert report.state == "fail"
    assert "no check runs this place" in str(report)
    assert "its gradients differ by at most 0 at 12 draws" in str(report)


def test_a_blind_check_lets_survive_and_the_report_says_so(tmp_path):
    report = mutate.mutate([affine_backward], [quick(affine, *ARGS, looks_at=0)], title="blind", sample=6)
    assert report.count("killed") == 0
    assert report.survivors
    assert any("its gradients differ by" in mutant.detail for mutant in report.survivors)
    assert str(report).startswith("FAIL  blind  6 of ")
    where = f"{Path(__file__).relative_to(Path.cwd())}:{report.survivors[0].line}"
    assert f"  survived: {where}: affine_backward, " in str(report)
    assert f'"survived": {len(report.survivors)}' in report.to_json()
    report.to_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count(' class="fail"><th>') == len(report.survivors)
    assert f"<th>{where}</th>" in page


def test_the_prover_kills_although_everything_has_been_traced():
    jax.grad(lambda x: jitted(x, ARGS[1]).sum())(ARGS[0])
    verify.assert_gradients(jitted, *ARGS)
    kept, folder = affine_backward.__code__, jax.config.jax_compilation_cache_dir
    report = mutate.run(jitted, [ARGS], rules=[affine_backward], sample=6)
    assert report.count("killed") >= 3, report
    assert all("WRONG" in mutant.detail for mutant in report.mutants if mutant.state == "killed")
    assert affine_backward.__code__ is kept
    verify.assert_gradients(jitted, *ARGS)  # and no trace of a mutant is left
    assert jax.config.jax_compilation_cache_dir == folder


def test_a_check_that_fails_on_the_right_function_or_never_runs_it():
    wrong = trial(lambda x: affine(x, ARGS[1]).sum(), ARGS[0], hand_written=lambda x: (x,))
    with pytest.raises(ValueError, match="checks that pass on the function as it is; got\nFAIL"):
        mutate.mutate([affine_backward], [wrong])
    with pytest.raises(ValueError, match="no check runs affine_backward: its mutants would all survive"):
        mutate.run(jnp.sin, [(ARGS[0],)], rules=[affine_backward])
    with pytest.raises(ValueError, match=r"no derivative rule in sin: .*name the functions of its backward pass"):
        mutate.run(jnp.sin, [(ARGS[0],)])


def test_the_sample_is_the_same_for_a_seed_and_has_every_kind():
    calls = itertools.count()  # no gradient is like another: what the check lets pass survives
    blind = Trial(
        lambda: affine_backward(np.ones((3, 4, 4)), ARGS[0]) and None, lambda seeds: [[np.array(next(calls))]]
    )
    seen = []
    first, again, other = (
        mutate.mutate([affine_backward], [blind], sample=9, seed=seed, progress=lambda *n: seen.append(n))
        for seed in (0, 0, 1)
    )
    changes = [[mutant.change for mutant in report.mutants] for report in (first, again, other)]
    assert changes[0] == changes[1] != changes[2]
    assert [mutant.line for mutant in first.mutants] == sorted(mutant.line for mutant in first.mutants)
    assert len({change.split(":")[0] for change in changes[0]}) >= 8
    assert {of for _, of in seen} == {9}
    assert {n for n, _ in seen} - {0} == set(range(1, 10))
    assert all(sum(mutant.decided for mutant in report.mutants) == 9 for report in (first, again, other))


def test_a_sample_goes_on_past_what_says_nothing():
    equal = Trial(lambda: affine_backward(np.ones((3, 4, 4)), ARGS[0]) and None, lambda seeds: [[]])
    report = mutate.mutate([affine_backward], [equal], sample=2)
    assert sum(mutant.decided for mutant in report.mutants) == 2
    assert {mutant.state for mutant in report.mutants} >= {"survived", "equivalent"}
    with pytest.raises(ValueError, match="sample must be at least 1, or None for all mutants; got 0"):
        mutate.mutate([affine_backward], [equal], sample=0)


def test_a_layer_is_made_anew_for_each_mutant():
    make = partial(layers.reshape, 3, -1)
    where = (inspect.unwrap(sys.modules["jaxnet.layers.reshape"].reshape), "pullback")
    report = mutate.mutate([where], [layer_trial(make, jax.random.key(0), draw(0, 4, 6))])
    assert report.count("killed") >= 2, report
    assert not report.survivors, report


def test_differences_between_gradients():
    right = [[np.array([1.0, 2.0, np.nan])]]
    assert difference(right, right) == 0
    assert difference([[np.array([1.0, 2.5, 7.0])]], right) == 0.25
    assert difference([[np.array([np.nan, 2.0, 7.0])]], right) == np.inf
    assert difference([[np.array([1.0, 2.0])]], right) == np.inf


def test_closures_of_one_source_are_mutated_together():
    def make(negates):
        f = jax.custom_vjp(lambda x: -x if negates else x)

        def backward(_, dy):
            return (-dy if negates else dy,)

        f.defvjp(lambda x: (f(x), None), backward)
        return f, backward

    (minus, one), (plus, other) = make(True), make(False)
    report = mutate.mutate([one, other], [quick(lambda x: minus(x) + plus(x * x), ARGS[0])])
    fates = {mutant.change: mutant.state for mutant in report.mutants}
    assert fates["branch: `negates` became `True`"] == fates["branch: `negates` became `False`"] == "killed"
    assert report.ok, report


def test_what_is_constant_is_not_compared():
    scaled = jax.custom_vjp(lambda x, scale: x * scale)
    # As its author means it: nobody differentiates by the scale.
    scaled.defvjp(lambda x, scale: (x * scale, scale), lambda scale, dy: (dy * scale, jnp.zeros(())))
    options = {"constant": ["scale"], "hand_written": lambda x, scale: (jnp.full_like(x, scale), jnp.zeros(()))}
    made = trial(lambda x, scale: scaled(x, scale).sum(), ARGS[0], 3.0, **options)
    assert made.check().ok
    (leaves,) = made.gradients([0])
    assert [leaf.shape for leaf in leaves] == [(4, 4), (4, 4)]  # dx of autodiff, and by hand
    np.testing.assert_allclose(leaves[1], 3.0)


def test_the_second_order_is_compared_too():
    (leaves,) = trial(lambda x: (x**3).sum(), ARGS[0], order=2).gradients([0])
    assert len(leaves) == 2
    assert (leaves[1] != leaves[0]).all()


def test_the_rules_of_a_function():
    assert rules_of(affine) == [affine_backward]
    assert rules_of(jnp.sin, affine_backward) == [affine_backward]  # a gradient stated by hand
    assert affine_backward in rules_of(lambda x: jitted(x, ARGS[1]))
    assert rules_of(jnp.sin) == rules_of(sign) == []
    names = [rule.__name__ for rule in rules_of(activations.tanh)]
    assert "_tanh_derivative" in names
    assert "tanh" not in names


# -------------------------------------------------------------------------------------- our own targets

SCRIPT = Path(__file__).parents[2] / "experiments/benchmarks/mutation.py"


@pytest.mark.long
def test_every_backward_of_our_own_is_a_target():
    """An op, activation, loss or layer that is added needs a line in the table."""
    # A process of its own: there no types are checked, and functions stand as they are written.
    done = subprocess.run([sys.executable, SCRIPT, "--list"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    targets = json.loads(done.stdout)
    functions = {function for target in targets.values() for function in target}
    for found in pkgutil.iter_modules(ops.__path__):
        module = importlib.import_module(f"jaxnet.ops.{found.name}")
        if hasattr(module, "backward"):
            assert f"{module.__name__}.backward" in functions
    named = {function.__name__ for function in activations._NAMES.values()}
    named |= {name for name, value in vars(losses).items() if callable(value) and hasattr(value, "derivative")}
    assert named <= set(targets)
    # A residual is a parallel, flatten a reshape, three normalisations are one; `trainable` is a mask.
    made = {name for name, value in vars(layers).items() if callable(value) and not inspect.isclass(value)}
    assert made - {"residual", "flatten", "layer_norm", "rms_norm", "group_norm", "trainable"} <= set(targets)
    assert {"jaxnet.layers.combinators._repeat_pullback", "jaxnet.layers.dropout.dropout._pullback"} <= functions
