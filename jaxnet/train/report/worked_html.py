"""How a worked update looks: a diagram, then each sum written out like a bill, forward ↓ and backward ↑.

One colour per kind of quantity everywhere: w weights, a activations, d errors δ, g gradients.
"""

from collections.abc import Callable
from html import escape

import numpy as np

from jaxnet.train.report.quantities import decimals_for, number, short, symbol
from jaxnet.train.report.worked_diagram import diagram
from jaxnet.train.report.worked_update import Change, Neuron, Sum, Term, WorkedUpdate

OUTPUTS = 20  # more rows of outputs than these are shown together
STEPS = 2  # weights of each neuron whose step is written out, besides its bias
PREDICTION = {"cross_entropy": "softmax", "binary_cross_entropy": "sigmoid", "squared_error": "linear"}


def worked_html(update: WorkedUpdate) -> str:
    """The whole section."""
    last = len(update.layers)
    forward = "".join(_forward(update, n) for n in range(1, last + 1))
    backward = "".join(_backward(update, n) for n in range(last, 0, -1))
    places = decimals_for([update.loss, update.loss_after])
    before, after = number(update.loss, places), number(update.loss_after, places)
    rule = "<var>w</var> ← <var>w</var> − <var>η</var> ∂<var>L</var>/∂<var>w</var>"
    return (
        f'<div class="worked"><div class="overview"><figure>{diagram(update)}</figure>{_rules(update)}</div>'
        f'<h3 class="way">Forward ↓</h3>{forward}'
        f'<h3 class="way">The loss</h3>{_loss(update)}'
        f'<h3 class="way">Backward ↑</h3>{backward}'
        f'<h3 class="way">The check</h3><p>All {update.parameters:,} gradients worked by these formulas differ '
        f"from <code>jax.grad</code>’s by at most <b>{short(update.largest_difference)}</b>. After this one step, "
        f"{rule} for all of them, the loss of the same example goes from <b>{before}</b> to <b>{after}</b>.</p>"
        "</div>"
    )


def _input(layer: int, i: int | str) -> str:
    """What comes into `layer` from neuron i below: x for the first."""
    return symbol("x", "a", None, i) if layer == 1 else symbol("a", "a", layer - 1, i)


def _slope(update: WorkedUpdate) -> str:
    return f"{escape(update.activation)}′"


# ---- the overview -----------------------------------------------------------------------------------


def _rules(update: WorkedUpdate) -> str:
    """The formulas, and what each colour means."""
    sizes = " → ".join(str(n) for n in [update.layers[0].inputs, *(layer.outputs for layer in update.layers)])
    f = escape(update.activation)
    w, a, d = symbol("w", "w", None, "ij"), symbol("a", "a", None, "i"), symbol("δ", "d", None, "j")
    gradient = '<span class="g">∂<var>L</var>/∂<var>w</var><sub>ij</sub></span>'
    error = {"squared_error": "2 (z − y)"}.get(update.output, "p − y")
    deep = len(update.layers) > 1
    bias = "" if update.layers[-1].neurons[0].bias is None else f" + {symbol('b', 'w', None, 'j')}"
    rows = [
        ("forward", f"<var>z</var><sub>j</sub> = ∑<sub>i</sub> {a} {w}{bias}"),
        ("", f"{symbol('a', 'a', None, 'j')} = {f}(<var>z</var><sub>j</sub>)" if deep else ""),
        ("output", f"{d} = ∂<var>L</var>/∂<var>z</var><sub>j</sub> = <var>{error}</var>"),
        ("backward", f"{symbol('δ', 'd', None, 'i')} = (∑<sub>j</sub> {w} {d}) · {f}′(<var>z</var><sub>i</sub>)"),
        ("gradient", f"{gradient} = {a} {d}"),
        ("update", f"{w} ← {w} − <var>η</var> {gradient}"),
    ]
    rows = [(name, formula) for name, formula in rows if formula and (deep or name != "backward")]
    table = "".join(f'<tr><th scope="row">{name}</th><td>{formula}</td></tr>' for name, formula in rows)
    kind = f"{f} inside, {PREDICTION[update.output]} at the end" if deep else PREDICTION[update.output]
    return (
        f"<div><p>One example goes through the network <b>{sizes}</b> ({kind}), {_aim(update)}learning rate "
        f"<var>η</var> = {update.learning_rate:g}. A few neurons of each layer are traced.</p>"
        f'<table class="rules">{table}</table>'
        '<p class="legend"><span class="w">weights and biases</span><span class="a">inputs and activations</span>'
        '<span class="d">errors δ = ∂L/∂z</span><span class="g">gradients ∂L/∂w</span></p>'
        '<p class="note">The small number above is the layer, those below are neurons, counted from 0. Every '
        "number is rounded for the page, so that a last digit may be off by one or two.</p></div>"
    )


def _aim(update: WorkedUpdate) -> str:
    """The target, where it is one class or one number."""
    if update.output == "cross_entropy" and update.target.max() == 1:
        return f"target <b>{escape(update.classes[int(update.target.argmax())])}</b>, "
    return f"target <b>{update.target[0]:g}</b>, " if update.target.size == 1 else ""


# ---- forward ----------------------------------------------------------------------------------------


def _forward(update: WorkedUpdate, n: int) -> str:
    layer = update.layers[n - 1]
    last = n == len(update.layers)
    after = PREDICTION[update.output] if last else update.activation
    cards = "".join(_forward_card(update, n, neuron) for neuron in layer.neurons)
    entering, leaving = "inputs" if n == 1 else "activations", "output" if last else "neuron"
    size = f"{layer.inputs:,} {entering} → {layer.outputs:,} {leaving}{'s' * (layer.outputs > 1)}, {escape(after)}"
    return f'<h4>Layer {n} <span class="note">{size}</span></h4><div class="cards">{cards}</div>'


def _forward_card(update: WorkedUpdate, n: int, neuron: Neuron) -> str:
    j = neuron.number
    products = [t.weight * t.value for t in neuron.forward.terms]
    decimals = decimals_for([*products, neuron.forward.rest, neuron.bias or 0.0, neuron.z])
    rows = _terms(
        neuron.forward, decimals, "a", lambda t: (symbol("w", "w", n, f"{t.number},{j}"), _input(n, t.number))
    )
    if neuron.bias is not None:
        bias = number(neuron.bias, decimals, "w", sign=True)
        rows += f'<tr><th scope="row">{symbol("b", "w", n, j)}</th><td></td><td>{bias}</td></tr>'
    z = symbol("z", "z", n, j)
    foot = (
        f'<tr class="total"><th scope="row">{z}</th><td></td><td>{number(neuron.z, decimals, sign=True)}</td></tr>'
    )
    if neuron.slope is not None:
        f = escape(update.activation)
        for label, value, kind in (
            (f"{symbol('a', 'a', n, j)} = {f}({z})", neuron.a, "a"),
            (f"{_slope(update)}({z})", neuron.slope, ""),
        ):
            entry = number(value, decimals_for([value]), kind)
            foot += f'<tr><th scope="row" colspan="2">{label}</th><td>{entry}</td></tr>'
    return _bill(f"Neuron {j}" if neuron.slope is not None else f"Output {_named(update, j)}", rows, foot)


def _named(update: WorkedUpdate, j: int) -> str:
    name = update.classes[j]
    return name if name == str(j) else f"{j}: {name}"


def _terms(weighted: Sum, decimals: int, kind: str, names: Callable[[Term], tuple[str, str]]) -> str:
    """The rows of a sum: symbols, the two numbers, their product; and the rest in one row."""
    weights, values = (
        decimals_for(column) for column in zip(*((t.weight, t.value) for t in weighted.terms), strict=True)
    )
    rows = ""
    for term in weighted.terms:
        weight, value = names(term)
        numbers = f"{number(term.weight, weights, 'w')} × {_bracket(term, values, kind)}"
        product = number(term.weight * term.value, decimals, sign=True)
        rows += f'<tr><th scope="row">{weight} {value}</th><td>{numbers}</td><td>{product}</td></tr>'
    if weighted.others:
        label = "the other term" if weighted.others == 1 else f"the other {weighted.others:,} terms together"
        rest = number(weighted.rest, decimals, sign=True)
        rows += f'<tr class="rest"><th scope="row" colspan="2">{label}</th><td>{rest}</td></tr>'
    return rows


def _bracket(term: Term, decimals: int, kind: str) -> str:
    value = number(term.value, decimals, kind)
    return f"({value})" if term.value < 0 else value


def _bill(title: str, rows: str, foot: str) -> str:
    table = f"<caption>{escape(title)}</caption><tbody>{rows}</tbody><tfoot>{foot}</tfoot>"
    return f'<div class="card"><table class="bill">{table}</table></div>'


# ---- the loss ---------------------------------------------------------------------------------------


def _loss(update: WorkedUpdate) -> str:
    """Each output's way from z to δ, and the loss they make."""
    z, p, y = update.z, update.prediction, update.target
    with np.errstate(over="ignore"):
        columns: dict[str, tuple[np.ndarray, str]] = {
            "cross_entropy": {
                "z": (z, ""),
                "e<sup>z</sup>": (np.exp(z), ""),
                "p = e<sup>z</sup> ∕ ∑e<sup>z</sup>": (p, "a"),
            },
            "binary_cross_entropy": {"z": (z, ""), "p = 1 ∕ (1 + e<sup>−z</sup>)": (p, "a")},
            "squared_error": {"z": (z, "a")},
        }[update.output]
    columns |= {"y": (y, "")}
    columns |= {("δ = 2 (z − y)" if update.output == "squared_error" else "δ = p − y"): (update.delta, "d")}
    traced = [neuron.number for neuron in update.layers[-1].neurons]
    shown = np.arange(z.size)
    if z.size > OUTPUTS:
        most = np.argsort(-np.abs(update.delta), kind="stable")[: OUTPUTS // 2]
        shown = np.unique(np.concatenate([traced, most]))
    places = {name: decimals_for(values[shown]) for name, (values, _) in columns.items()}
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    body = ""
    for j in shown:
        cells = "".join(f"<td>{_target_or(v[j], places[n], kind, n)}</td>" for n, (v, kind) in columns.items())
        mark = ' class="traced"' if j in traced else ""
        body += f'<tr{mark}><th scope="row">{escape(_named(update, int(j)))}</th>{cells}</tr>'
    foot = ""
    if update.output == "cross_entropy":  # softmax divides by the sum of a column, so show the sums
        others = np.setdiff1d(np.arange(z.size), shown)
        for label, chosen in ((f"the other {others.size:,}", others), ("∑", np.arange(z.size))):
            if chosen.size:
                sums = (
                    "<td></td>" if n == "z" else f"<td>{_target_or(v[chosen].sum(), places[n], kind, n)}</td>"
                    for n, (v, kind) in columns.items()
                )
                foot += f'<tr><th scope="row">{label}</th>{"".join(sums)}</tr>'
    return (
        '<div class="scroll" role="region" aria-label="outputs and loss" tabindex="0"><table class="outputs">'
        f'<thead><tr><th scope="col">output</th>{head}</tr></thead><tbody>{body}</tbody><tfoot>{foot}</tfoot>'
        f'</table></div><p class="equation">{_loss_equation(update)}</p>'
    )


def _target_or(value: float, decimals: int, kind: str, column: str) -> str:
    """Targets are mostly 0 and 1, and then read best so."""
    value = float(value)
    return number(value, 0 if column == "y" and value == round(value) else decimals, kind)


def _loss_equation(update: WorkedUpdate) -> str:
    loss = f"<b>{number(update.loss, decimals_for([update.loss]))}</b>"
    if update.output == "squared_error":
        return f"<var>L</var> = ∑ (<var>z</var> − <var>y</var>)² = {loss}"
    if update.output == "binary_cross_entropy":
        return (
            f"<var>L</var> = −∑ (<var>y</var> ln <var>p</var> + (1 − <var>y</var>) ln(1 − <var>p</var>)) = {loss}"
        )
    t = int(update.target.argmax())
    if update.target[t] != 1:
        return f"<var>L</var> = −∑ <var>y</var> ln <var>p</var> = {loss}"
    p = float(update.prediction[t])
    return f"<var>L</var> = −ln {symbol('p', 'a', None, t)} = −ln {number(p, decimals_for([p]), 'a')} = {loss}"


# ---- backward ---------------------------------------------------------------------------------------


def _backward(update: WorkedUpdate, n: int) -> str:
    layer = update.layers[n - 1]
    cards = "".join(_backward_card(update, n, neuron) for neuron in layer.neurons if neuron.backward is not None)
    errors = f'<div class="cards">{cards}</div>' if cards else ""
    note = (
        "errors carried back, then gradients and new weights" if cards else "its errors δ are in the table above"
    )
    return f'<h4>Layer {n} <span class="note">{note}</span></h4>{errors}{_changes(update, n)}'


def _backward_card(update: WorkedUpdate, n: int, neuron: Neuron) -> str:
    assert neuron.backward is not None
    assert neuron.slope is not None
    i, back = neuron.number, neuron.backward
    decimals = decimals_for([*(t.weight * t.value for t in back.terms), back.rest, back.total])
    rows = _terms(
        back,
        decimals,
        "d",
        lambda t: (symbol("w", "w", n + 1, f"{i},{t.number}"), symbol("δ", "d", n + 1, t.number)),
    )
    a, z, d = symbol("a", "a", n, i), symbol("z", "z", n, i), symbol("δ", "d", n, i)
    foot = (
        f'<tr class="total"><th scope="row" colspan="2">∂<var>L</var>/∂{a}</th>'
        f"<td>{number(back.total, decimals, sign=True)}</td></tr>"
        f'<tr><th scope="row" colspan="2">× {_slope(update)}({z})</th>'
        f"<td>{number(neuron.slope, decimals_for([neuron.slope]))}</td></tr>"
        f'<tr class="total"><th scope="row" colspan="2">{d}</th>'
        f"<td>{number(neuron.delta, decimals_for([neuron.delta]), 'd', sign=True)}</td></tr>"
    )
    return _bill(f"Neuron {i}", rows, foot)


def _changes(update: WorkedUpdate, n: int) -> str:
    """The gradient of each shown parameter beside jax.grad's, and its new value."""
    rate = update.learning_rate
    groups = ""
    for neuron in update.layers[n - 1].neurons:
        changes = [*neuron.changes[:STEPS], *(c for c in neuron.changes[STEPS:] if c.row is None)]
        places = (
            decimals_for(c.input for c in changes),
            decimals_for([neuron.delta]),
            decimals_for(c.gradient for c in changes),
            max(5, decimals_for((rate * c.gradient for c in changes), digits=3)),
        )
        groups += f"<tbody>{''.join(_change(update, n, c, neuron.delta, places) for c in changes)}</tbody>"
    heads = ("parameter", "input × error = gradient", "jax.grad", "difference", "old − η · gradient = new")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        '<div class="scroll" role="region" aria-label="gradients and updates" tabindex="0"><table class="changes">'
        f"<thead><tr>{head}</tr></thead>{groups}</table></div>"
    )


def _change(update: WorkedUpdate, n: int, change: Change, delta: float, places: tuple[int, int, int, int]) -> str:
    inputs, errors, gradients, weights = places
    i, j = change.row, change.column
    error = number(delta, errors, "d")
    error = f"({error})" if delta < 0 else error
    gradient = number(change.gradient, gradients, "g")
    if i is None:
        name, product = symbol("b", "w", n, j), f"{symbol('δ', 'd', n, j)} = {gradient}"
    else:
        name = symbol("w", "w", n, f"{i},{j}")
        product = f"{number(change.input, inputs, 'a')} × {error} = {gradient}"
    signed = f"({gradient})" if change.gradient < 0 else gradient
    step = f"{update.learning_rate:g} × {signed}"
    new = f"{number(change.old, weights, 'w')} − {step} = <b>{number(change.new, weights, 'w')}</b>"
    cells = (
        ("gradient", product),
        ("jax.grad", number(change.autodiff, gradients, "g")),
        ("difference", short(abs(change.gradient - change.autodiff))),
        ("new value", new),
    )
    body = "".join(f'<td data-label="{label}"><span>{cell}</span></td>' for label, cell in cells)
    return f'<tr><th scope="row">{name}</th>{body}</tr>'
