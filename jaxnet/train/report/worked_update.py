"""One update step of a feedforward network, by hand in float64 numpy: the numbers behind the page.

For dense layers n = 1 … N with a⁰ = x, the textbook formulas and nothing else:

    forward    zⁿ = aⁿ⁻¹ Wⁿ + bⁿ,   aⁿ = f(zⁿ)          the last layer's z goes into the loss
    output     δᴺ = ∂L/∂zᴺ                              p − y for both cross-entropies, 2 (z − y) for squares
    backward   δⁿ = (Wⁿ⁺¹ δⁿ⁺¹) ⊙ f′(zⁿ)
    gradient   ∂L/∂wⁿᵢⱼ = aⁿ⁻¹ᵢ δⁿⱼ,   ∂L/∂bⁿⱼ = δⁿⱼ
    update     w ← w − η ∂L/∂w

No derivative is taken by a machine here: the machine's own gradient comes in to be compared with.
"""

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
from numpy.typing import ArrayLike

Params = Sequence[Any]
Tree = list[dict[str, np.ndarray]]
OUTPUTS = ("cross_entropy", "binary_cross_entropy", "squared_error")


class Term(NamedTuple):
    """One product of a weighted sum: the weight, what it multiplies, and which neuron that belongs to."""

    number: int
    weight: float
    value: float


class Sum(NamedTuple):
    """A weighted sum: its largest terms one by one, the `others` of them together as `rest`."""

    terms: tuple[Term, ...]
    others: int
    rest: float
    total: float


class Change(NamedTuple):
    """One parameter's step; `row` is the neuron its weight comes from, None for a bias (whose input is 1)."""

    row: int | None
    column: int
    old: float
    input: float
    gradient: float
    autodiff: float
    new: float


class Neuron(NamedTuple):
    """A traced neuron j; the output layer has no activation (`slope` None) and no sum coming `backward`."""

    number: int
    forward: Sum
    bias: float | None
    z: float
    a: float
    slope: float | None
    backward: Sum | None
    delta: float
    changes: tuple[Change, ...]


class WorkedLayer(NamedTuple):
    """The traced neurons of a dense layer; `links[i][j]` joins the layer below's i-th traced to the j-th."""

    inputs: int
    outputs: int
    neurons: tuple[Neuron, ...]
    links: tuple[tuple[float, ...], ...]


class WorkedUpdate(NamedTuple):
    """One example's step w ← w − η ∂L/∂w with every number that leads to it; vectors are the output layer's."""

    layers: tuple[WorkedLayer, ...]
    activation: str
    output: str
    z: np.ndarray
    prediction: np.ndarray
    target: np.ndarray
    delta: np.ndarray
    loss: float
    loss_after: float
    learning_rate: float
    parameters: int
    largest_difference: float
    picture: np.ndarray | None
    classes: tuple[str, ...]


@np.errstate(over="ignore", invalid="ignore")  # a run that has diverged is worth looking at too
def work_update(
    params: Params,
    x: ArrayLike,
    target: ArrayLike | int | float,
    *,
    activation: tuple[Callable[..., Any], Callable[..., Any]],
    output: str,
    learning_rate: SupportsFloat,
    gradients: Params,
    neurons: int = 3,
    terms: int = 4,
    picture: ArrayLike | None = None,
    classes: Sequence[Any] | None = None,
) -> WorkedUpdate:
    """Work one example's update step through, and keep the numbers of a few neurons per layer.

    The neurons traced are those with the largest |a δ| (at the output the largest |δ|): they matter
    both on the way forward and on the way back.

    Args:
        params: dense layers, each `{"weight": (in, out), "bias": (out,)}`; the bias may be missing, and empty
            entries, such as dropout's `()`, are passed over.
        x: one example, (in,) or any shape with that many numbers.
        target: a class number or a distribution for `"cross_entropy"`; else as many numbers as outputs.
        activation: the hidden layers' f and f′, both from float64 numpy arrays to arrays.
        output: `"cross_entropy"` (softmax, L = −Σ y ln p), `"binary_cross_entropy"` (sigmoid,
            L = −Σ (y ln p + (1 − y) ln(1 − p))) or `"squared_error"` (L = Σ (z − y)²).
        learning_rate: η.
        gradients: what `jax.grad` of this one example's loss gives, shaped as `params`.
        neurons: how many neurons to trace in each layer.
        terms: how many terms of each sum to show one by one.
        picture: the example as an image, (h, w) or (h, w, 3), if it is one.
        classes: names of the outputs.

    Raises:
        ValueError: where shapes do not fit together, or `output` is not one of the three.
    """
    trees = _tree("params", params), _tree("gradients", gradients)
    x = np.asarray(x, np.float64).ravel()
    _check(*trees, x, output, neurons, terms, classes)
    layers, machine = trees
    f, derivative = (_in_float64(function) for function in activation)
    rate = float(learning_rate)

    inputs, zs = _forward(layers, x, f)
    y = _target(target, zs[-1].size, output)
    prediction, loss, delta = _output(zs[-1], y, output)
    slopes = [derivative(z) for z in zs[:-1]]
    deltas = _backward(layers, slopes, delta)
    hand = [_layer_gradient(a, d, "bias" in layer) for layer, a, d in zip(layers, inputs, deltas, strict=True)]
    moved = [{k: w - rate * g[k] for k, w in layer.items()} for layer, g in zip(layers, hand, strict=True)]
    loss_after = _output(_forward(moved, x, f)[1][-1], y, output)[1]

    step = _Step(layers, [*inputs, prediction], zs, slopes, deltas, hand, machine, moved)
    name = getattr(activation[0], "__name__", "f")
    return WorkedUpdate(
        layers=_trace(step, neurons, terms),
        activation="f" if name == "<lambda>" else name,
        output=output,
        z=zs[-1],
        prediction=prediction,
        target=y,
        delta=delta,
        loss=loss,
        loss_after=loss_after,
        learning_rate=rate,
        parameters=sum(w.size for layer in layers for w in layer.values()),
        largest_difference=float(
            np.max([np.abs(g[k] - m[k]).max() for g, m in zip(hand, machine, strict=True) for k in g])
        ),
        picture=None if picture is None else np.asarray(picture),
        classes=tuple(map(str, range(y.size) if classes is None else classes)),
    )


class _Step(NamedTuple):
    """Everything the step computes, layer by layer; `inputs` ends with the prediction."""

    layers: Tree
    inputs: list[np.ndarray]
    zs: list[np.ndarray]
    slopes: list[np.ndarray]
    deltas: list[np.ndarray]
    hand: Tree
    machine: Tree
    moved: Tree


def _forward(layers: Tree, x: np.ndarray, f: Callable[..., Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Each layer's input a and its z = a W + b."""
    inputs: list[np.ndarray] = []
    zs: list[np.ndarray] = []
    for layer in layers:
        inputs.append(f(zs[-1]) if zs else x)
        zs.append(inputs[-1] @ layer["weight"] + layer.get("bias", 0.0))
    return inputs, zs


def _output(z: np.ndarray, y: np.ndarray, output: str) -> tuple[np.ndarray, float, np.ndarray]:
    """The prediction, the loss L and δ = ∂L/∂z."""
    if output == "squared_error":
        return z, float(np.sum((z - y) ** 2)), 2 * (z - y)
    if output == "binary_cross_entropy":  # −ln σ(z) = ln(1 + e⁻ᶻ), which neither overflows nor loses digits
        p = np.exp(-np.logaddexp(0, -z))
        return p, float(np.sum(y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z))), p - y
    log_p = z - np.logaddexp.reduce(z)
    p = np.exp(log_p)
    return p, float(-np.sum(y * log_p)), p * y.sum() - y


def _backward(layers: Tree, slopes: list[np.ndarray], delta: np.ndarray) -> list[np.ndarray]:
    """δⁿ = (Wⁿ⁺¹ δⁿ⁺¹) ⊙ f′(zⁿ), from the last layer to the first."""
    deltas = [delta]
    for layer, slope in zip(layers[:0:-1], slopes[::-1], strict=True):
        deltas.insert(0, (layer["weight"] @ deltas[0]) * slope)
    return deltas


def _layer_gradient(a: np.ndarray, delta: np.ndarray, bias: bool) -> dict[str, np.ndarray]:
    """∂L/∂wᵢⱼ = aᵢ δⱼ and ∂L/∂bⱼ = δⱼ."""
    return {"weight": np.outer(a, delta)} | ({"bias": delta} if bias else {})


def _trace(step: _Step, neurons: int, terms: int) -> tuple[WorkedLayer, ...]:
    """The numbers of each layer's weightiest neurons, hidden ones by |a δ|, outputs by |δ|."""
    scores = [np.abs(a * d) for a, d in zip(step.inputs[1:-1], step.deltas[:-1], strict=True)]
    traced = [np.sort(_largest(score, neurons)) for score in [*scores, np.abs(step.deltas[-1])]]
    worked = []
    for n, layer in enumerate(step.layers):
        weight = layer["weight"]
        links = weight[np.ix_(traced[n - 1], traced[n])].tolist() if n else []
        cells = tuple(_neuron(step, n, int(j), terms) for j in traced[n])
        worked.append(WorkedLayer(len(weight), weight.shape[1], cells, tuple(map(tuple, links))))
    return tuple(worked)


def _neuron(step: _Step, n: int, j: int, terms: int) -> Neuron:
    layer, hidden = step.layers[n], n + 1 < len(step.layers)
    forward = _sum(layer["weight"][:, j], step.inputs[n], terms)
    places: list[tuple[str, int | None]] = [("weight", term.number) for term in forward.terms]
    places += [("bias", None)] if "bias" in layer else []
    changes = []
    for name, i in places:
        at = j if i is None else (i, j)
        gradient, autodiff, new = (float(tree[n][name][at]) for tree in (step.hand, step.machine, step.moved))
        entering = 1.0 if i is None else float(step.inputs[n][i])
        changes.append(Change(i, j, float(layer[name][at]), entering, gradient, autodiff, new))
    return Neuron(
        number=j,
        forward=forward,
        bias=float(layer["bias"][j]) if "bias" in layer else None,
        z=float(step.zs[n][j]),
        a=float(step.inputs[n + 1][j]),
        slope=float(step.slopes[n][j]) if hidden else None,
        backward=_sum(step.layers[n + 1]["weight"][j], step.deltas[n + 1], terms) if hidden else None,
        delta=float(step.deltas[n][j]),
        changes=tuple(changes),
    )


def _sum(weights: np.ndarray, values: np.ndarray, count: int) -> Sum:
    products = weights * values
    shown = _largest(np.abs(products), count)
    terms = tuple(Term(int(i), float(weights[i]), float(values[i])) for i in shown)
    rest = np.delete(products, shown)
    return Sum(terms, rest.size, float(rest.sum()), float(weights @ values))


def _largest(score: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-score, kind="stable")[:count]


def _in_float64(function: Callable[..., Any]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda z: np.asarray(function(z), np.float64)


def _tree(name: str, layers: Params) -> Tree:
    layers = [layer for layer in layers if not (isinstance(layer, Sized) and len(layer) == 0)]
    for n, layer in enumerate(layers):
        if not isinstance(layer, Mapping) or "weight" not in layer or not set(layer) <= {"weight", "bias"}:
            kind = sorted(layer) if isinstance(layer, Mapping) else type(layer).__name__
            raise ValueError(f'{name}[{n}] must be a dense layer {{"weight", "bias"}}, got {kind}')
    return [{k: np.asarray(v, np.float64) for k, v in layer.items()} for layer in layers]


def _check(
    layers: Tree,
    machine: Tree,
    x: np.ndarray,
    output: str,
    neurons: int,
    terms: int,
    classes: Sequence[Any] | None,
) -> None:
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got {output!r}")
    if not layers:
        raise ValueError("params must hold at least one dense layer, got none")
    if neurons < 1 or terms < 1:
        raise ValueError(f"neurons and terms must be at least 1, got {neurons} and {terms}")
    width = x.size
    for n, layer in enumerate(layers):
        shape = layer["weight"].shape
        if len(shape) != 2 or shape[0] != width:
            raise ValueError(f"params[{n}]['weight'] must have shape ({width}, out), got {shape}")
        width = shape[1]
        if "bias" in layer and layer["bias"].shape != (width,):
            raise ValueError(f"params[{n}]['bias'] must have shape ({width},), got {layer['bias'].shape}")
    wanted, came = ([{k: v.shape for k, v in layer.items()} for layer in tree] for tree in (layers, machine))
    if wanted != came:
        raise ValueError(f"gradients must be shaped as params, {wanted}, got {came}")
    if classes is not None and len(classes) != width:
        raise ValueError(f"classes must name the {width} outputs, got {len(classes)} names")


def _target(target: ArrayLike | int | float, outputs: int, output: str) -> np.ndarray:
    y = np.asarray(target)
    if output == "cross_entropy" and y.ndim == 0:
        if not (np.issubdtype(y.dtype, np.integer) and 0 <= y < outputs):
            raise ValueError(f"target must be a class number below {outputs}, got {target!r}")
        return np.eye(outputs)[int(y)]
    if y.size != outputs:
        raise ValueError(f"target must hold {outputs} numbers, one for each output, got shape {y.shape}")
    return y.astype(np.float64).ravel()
