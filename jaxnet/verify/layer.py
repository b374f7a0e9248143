"""The law of a layer: its hand-written `vjp` equals `jax.vjp` of its `apply`."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path, tree_leaves, tree_map, tree_structure

from jaxnet.verify.examination import Check
from jaxnet.verify.leaves import is_differentiable
from jaxnet.verify.problem import Options
from jaxnet.verify.report import LeafReport, Report


@runtime_checkable
class LayerLike(Protocol):
    """Three pure functions: any object that has them is a layer."""

    @property
    def init(self) -> Callable[..., Any]:
        """`init(key, x) -> params`."""

    @property
    def apply(self) -> Callable[..., Any]:
        """`apply(params, x, *, key=None) -> y`."""

    @property
    def vjp(self) -> Callable[..., Any]:
        """`vjp(params, x, *, key=None) -> (y, pullback)`, with `pullback(dy) -> (dparams, dx)`."""


def check_layer(
    layer: LayerLike, key: Any, x: Any, *, params: Any = None, training_key: Any = None, seed: int = 0
) -> Report:
    """State the law for one layer: `layer.vjp` and `jax.vjp` of `layer.apply` agree.

    `y` is equal; `dparams` and `dx` have the tree, shapes and dtypes of `params` and `x`; and under a
    random, non-uniform cotangent w both are the gradient of Σ w·apply(params, x), on all four roads of
    `check_gradients`. Without a key, and with `training_key` if it is given.

    Args:
        layer: an object with `init`, `apply` and `vjp` (see `LayerLike`).
        key: for `init`.
        x: the input: an array or a pytree.
        params: parameters to check at. By default those of `init`, each float moved by up to a tenth:
            at a scale of exactly 1 or a bias of exactly 0 some wrong gradients are right by accident.
        training_key: also check with this key, i.e. in training.
        seed: of cotangent and directions.

    Returns:
        One `Report` with the leaves of `params` and `x`, and a row for the output and its structure.
    """
    began = time.perf_counter()
    if params is None:
        params = moved(layer.init(key, x), seed)
    modes = [("", None)] if training_key is None else [("", None), (" (training)", training_key)]
    rows: list[LeafReport] = []
    remarks: list[str] = []
    for suffix, mode in modes:
        structural = _structure(layer, params, x, mode, seed)
        rows += [dataclasses.replace(row, name=row.name + suffix) for row in structural]
        if any(row.state == "fail" and row.name != "y" for row in structural):
            remarks.append(f"gradients{suffix} not compared: their structure is wrong")
            continue
        report = _gradients(layer, params, x, mode, seed)
        rows += [dataclasses.replace(row, name=row.name + suffix) for row in report.leaves]
        remarks += [remark + suffix for remark in report.remarks]
    name = getattr(layer, "name", None) or type(layer).__name__
    return Report(str(name), tuple(rows), tuple(remarks), time.perf_counter() - began)


def _gradients(layer: Any, params: Any, x: Any, key: Any, seed: int) -> Report:
    """`check_gradients` of Σ w·apply, the hand-written road being the layer's pullback."""

    def inner(params: Any, x: Any) -> Any:
        y = layer.apply(params, x, key=key)
        total = jnp.zeros(())
        for w, leaf in zip(tree_leaves(_cotangent(y, seed)), tree_leaves(y), strict=True):
            if is_differentiable(leaf):
                total += (w.astype(total.dtype) * leaf.astype(total.dtype)).sum()
        return total

    def hand(params: Any, x: Any) -> tuple[Any, Any]:
        y = jax.eval_shape(lambda: layer.apply(params, x, key=key))
        dparams, dx = layer.vjp(params, x, key=key)[1](_cotangent(y, seed))
        return dparams, dx

    # What is claimed is the pullback: jit, vmap and forward mode of `apply` are JAX's own.
    return Check(inner, (params, x), Options(hand_written=hand)).report(seed, exact=False)


def _cotangent(y: Any, seed: int) -> Any:
    """Normal random numbers of the outputs' shapes and dtypes."""
    rng = np.random.default_rng(seed & 0xFFFFFFFF)

    def one(leaf: Any) -> Any:
        draw = jnp.asarray(rng.standard_normal(leaf.shape))
        return draw.astype(leaf.dtype) if is_differentiable(leaf) else jnp.zeros(leaf.shape, leaf.dtype)

    return tree_map(one, y)


def _structure(layer: Any, params: Any, x: Any, key: Any, seed: int) -> list[LeafReport]:
    """Rows for `y` and for whatever in `dparams`, `dx` does not look like `params`, `x`."""

    @jax.jit
    def run(params: Any, x: Any) -> Any:
        applied = layer.apply(params, x, key=key)
        y, pullback = layer.vjp(params, x, key=key)
        return applied, y, pullback(_cotangent(applied, seed))

    applied, y, (dparams, dx) = run(params, x)
    rows = [_equal_outputs(applied, y)]
    for name, tree, gradient in (("params", params, dparams), ("x", x, dx)):
        rows += [_row(where, "fail", verdict) for where, verdict in _differences(name, tree, gradient)]
    return rows


def _equal_outputs(applied: Any, y: Any) -> LeafReport:
    trees: list[Any] = [tree_structure(applied), tree_structure(y)]
    if trees[0] != trees[1]:
        return _row("y", "fail", f"WRONG: vjp returns {trees[1]}, apply {trees[0]}")
    worst = 0.0
    for a, b in zip(tree_leaves(applied), tree_leaves(y), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return _row("y", "fail", f"WRONG: vjp returns {_kind(b)}, apply {_kind(a)}")
        if is_differentiable(a):
            wide_a, wide_b = (np.asarray(v).astype(np.complex128) for v in (a, b))
            gap = np.abs(wide_a - wide_b)[~(np.isnan(wide_a) & np.isnan(wide_b))]
            size = np.abs(wide_a).max()
            worst = max(worst, float(gap.max(initial=0.0) / (size or 1.0) / jnp.finfo(a.dtype).eps))
        elif not jnp.array_equal(a, b):
            worst = np.inf
    if worst <= 48:
        return _row("y", "pass", f"ok: vjp and apply differ by {worst:.2g} eps")
    return _row("y", "fail", f"WRONG: vjp and apply differ by {worst:.3g} eps, 48 allowed")


def _differences(name: str, tree: Any, gradient: Any) -> Iterator[tuple[str, str]]:
    """Where a gradient does not have the tree, shapes and dtypes of what it belongs to."""
    expected = {keystr(path): leaf for path, leaf in tree_flatten_with_path(tree)[0]}
    found = {keystr(path): leaf for path, leaf in tree_flatten_with_path(gradient)[0]}
    for path in sorted(set(found) - set(expected)):
        yield f"d{name}{path}", f"WRONG: {name} has no such leaf"
    for path, leaf in expected.items():
        if not is_differentiable(leaf):
            continue
        if path not in found:
            yield f"d{name}{path}", "WRONG: missing"
        elif _kind(found[path]) != _kind(leaf):
            yield f"d{name}{path}", f"WRONG: {_kind(found[path])}, but {name} has {_kind(leaf)}"


def _kind(leaf: Any) -> str:
    array = jnp.asarray(leaf)
    return f"{array.dtype}{list(array.shape)}"


def _row(name: str, state: str, verdict: str) -> LeafReport:
    return LeafReport(name, (), "", state, 0.0, {}, None, None, None, None, None, verdict)


def moved(params: Any, seed: int) -> Any:
    """Each float moved by up to a tenth of itself, or of 1 in a leaf of zeros."""
    rng = np.random.default_rng(seed & 0xFFFFFFFF)

    def one(leaf: Any) -> Any:
        if not is_differentiable(leaf):
            return leaf
        factor = jnp.asarray(rng.uniform(-0.1, 0.1, np.shape(leaf)), leaf.dtype)
        return jnp.where(leaf == 0, factor, leaf * (1 + factor)).astype(leaf.dtype)

    return tree_map(one, params)
