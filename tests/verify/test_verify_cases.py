"""Marks on functions: what they leave as it is, what they make, and when."""

import functools
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import verify
from jaxnet.verify.cases import build, cases_in, cases_of


class Pair(NamedTuple):
    a: Any
    b: Any


def loss(x: Any, y: Any) -> Any:
    return (x * y).sum()


def test_a_marked_function_is_the_same_function() -> None:
    def square(x: Any) -> Any:
        return x * x

    assert verify.case(jnp.ones(2))(square) is square


def test_marking_calls_nothing() -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("called")

    verify.case(lambda: never(), lambda seed: never())(lambda x, y: never())


def test_cases_are_in_the_order_of_the_source_and_named() -> None:
    @verify.case(1.0, name="one")
    @verify.case(2.0)
    @verify.case(3.0, seed=1)
    def square(x: Any) -> Any:
        return x * x

    cases = cases_of(square, "square")
    assert [c.title for c in cases] == ["square[one]", "square[1]", "square[2]"]
    assert [c.arguments for c in cases] == [(1.0,), (2.0,), (3.0,)]


@pytest.mark.parametrize(
    ("wrap", "check"),
    [
        (jax.jit, True),
        (jax.custom_vjp, False),
        (lambda f: functools.partial(f, 2.0), False),
    ],
    ids=["jit", "custom_vjp", "partial"],
)
def test_what_can_be_marked(wrap: Any, check: bool) -> None:
    marked = verify.case(jnp.ones(2))(wrap(lambda x: x))
    assert [c.function for c in cases_of(marked, "f")] == [marked]
    if check:  # a mark goes along with what is wrapped around the function
        assert len(cases_of(wrap(verify.case(jnp.ones(2))(lambda x: x)), "f")) == 1


def test_a_module_has_the_cases_of_its_own_functions() -> None:
    other = ModuleType("other")
    source = """
import functools, jax
from jaxnet import verify

@verify.case(1.0)
def f(x): return x

same = f
g = verify.case(2.0)(jax.jit(lambda x: x))
h = verify.case(3.0)(functools.partial(f))
class Odd:
    def __getattr__(self, name): return name
odd = Odd()
"""
    exec(source, other.__dict__)
    assert {name: cases[0].arguments for name, cases in cases_in(other).items()} == {
        "f": (1.0,),
        "g": (2.0,),
        "h": (3.0,),
    }
    here = ModuleType(__name__)
    here.f, here.g = other.f, other.g  # type: ignore[attr-defined]
    assert cases_in(here) == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ()),
        ((1.0, None, "mean"), (1.0, None, "mean")),
        ((lambda: 3.0,), (3.0,)),
        ((lambda seed: float(seed),), (7.0,)),
        ((lambda: (1.0, 2.0),), (1.0, 2.0)),
        ((lambda: Pair(1.0, 2.0),), (Pair(1.0, 2.0),)),
        ((lambda: (1.0, 2.0), 3.0), ((1.0, 2.0), 3.0)),
        (((1.0, 2.0),), ((1.0, 2.0),)),
        ((functools.partial(float, "4"),), (4.0,)),
        ((lambda: np.tanh,), (np.tanh,)),
        ((jax.nn.relu, 1.0), (jax.nn.relu, 1.0)),
        ((loss, 1.0), (loss, 1.0)),
    ],
)
def test_arguments_are_made_or_passed(arguments: Any, expected: Any) -> None:
    assert build(arguments, 7) == expected


def test_each_argument_has_a_seed_of_its_own() -> None:
    drawn = {build((lambda seed: seed,) * 3, seed) for seed in range(5)}
    assert len({number for numbers in drawn for number in numbers}) == 15
    assert build((lambda seed: seed,) * 2, 3) == build((lambda seed: seed,) * 2, 3)
    jax.random.key(max(max(numbers) for numbers in drawn))


def test_options_of_the_check_go_before_those_of_the_case() -> None:
    @verify.case(lambda seed: float(seed), seed=3)
    def square(x: Any) -> Any:
        return x * x

    (case,) = cases_of(square, "square")
    assert (case.seed(), case.seed(seed=4)) == (3, 4)
    report = case.check()
    assert (report.title, report.state) == ("square[0]", "pass")
    assert report.leaves[0].norm == pytest.approx(6.0)
    assert case.check(seed=4).leaves[0].norm == pytest.approx(8.0)


def test_mistakes() -> None:
    with pytest.raises(TypeError, match=r"refrence, which check_gradients does not take.*hand_written"):
        verify.case(1.0, refrence=loss)
    with pytest.raises(TypeError, match="can't mark <built-in function abs>, which takes no attributes; mark a"):
        verify.case(1.0)(abs)
    with pytest.raises(ValueError, match="a case 'a' already"):
        verify.case(1.0, name="a")(verify.case(2.0, name="a")(lambda x: x))
