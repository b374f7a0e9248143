"""The traced neurons of a worked update in a picture: forward on the left, backward on the right."""

from jaxnet.train.report.figures import pixels, png
from jaxnet.train.report.quantities import decimals_for, plain
from jaxnet.train.report.worked_update import Neuron, WorkedLayer, WorkedUpdate


def diagram(update: WorkedUpdate) -> str:
    """The traced neurons as boxes with their a and δ, joined by lines as thick as their weights."""
    box, gap, height, pitch, left = 112, 12, 48, 104, 40
    wide = max(len(layer.neurons) for layer in update.layers)
    width = 2 * left + wide * (box + gap) + 56
    middle = left + (wide * (box + gap) - gap) / 2
    top = 92.0
    rows = [top + 44 + pitch * n for n in range(len(update.layers))]
    bottom = rows[-1] + height + 50

    def x(layer: WorkedLayer, i: int) -> float:
        return middle - (len(layer.neurons) * (box + gap) - gap) / 2 + i * (box + gap)

    lines, cells = [], [_example(update, middle)]
    for n, (layer, y) in enumerate(zip(update.layers, rows, strict=True), 1):
        below = update.layers[n - 2]
        thickest = max((abs(w) for row in layer.links for w in row), default=1.0) or 1.0
        for j, neuron in enumerate(layer.neurons):
            centre = x(layer, j) + box / 2
            if n == 1:
                lines.append(f'<path class="many" d="M{middle:.0f} {top - 14:.0f}L{centre:.0f} {y:.0f}"/>')
            for i, row in enumerate(layer.links):
                dashed = ' stroke-dasharray="5 4"' if row[j] < 0 else ""
                style = f'stroke-width="{0.6 + 4 * abs(row[j]) / thickest:.2f}"{dashed}'
                start = f"M{x(below, i) + box / 2:.0f} {rows[n - 2] + height:.0f}"
                lines.append(f'<path class="weight" {style} d="{start}L{centre:.0f} {y:.0f}"/>')
            if n == len(update.layers):
                lines.append(f'<path class="many" d="M{centre:.0f} {y + height:.0f}L{middle:.0f} {bottom:.0f}"/>')
            cells.append(_cell(update, n, neuron, x(layer, j), y, box, height))
        if more := layer.outputs - len(layer.neurons):
            end = x(layer, len(layer.neurons) - 1) + box + 8
            cells.append(f'<text class="more" x="{end:.0f}" y="{y + height / 2 + 4:.0f}">+ {more:,}</text>')
    loss = plain(update.loss, decimals_for([update.loss]))
    cells.append(f'<text class="loss" x="{middle:.0f}" y="{bottom + 18:.0f}">loss L = {loss}</text>')
    arrows = "".join(
        f'<path class="arrow {kind}" d="{path}"/><text class="along {kind}" transform="translate({at} '
        f'{(top + bottom) / 2:.0f}) rotate(-90)">{label}</text>'
        for kind, path, at, label in (
            ("a", f"M12 {top:.0f}V{bottom:.0f}m-4 -7l4 7l4 -7", 28, "forward: a = f(z)"),
            ("d", f"M{width - 12} {bottom:.0f}V{top:.0f}m-4 7l4 -7l4 7", width - 20, "backward: δ"),
        )
    )
    alt = "The traced neurons of each layer with their activations and errors; thick lines are large weights"
    return (
        f'<svg class="diagram" role="img" aria-label="{alt}" style="max-width: {1.1 * width:.0f}px" '
        f'viewBox="0 0 {width} {bottom + 26:.0f}">'
        f"{arrows}{''.join(lines)}{''.join(cells)}</svg>"
        '<figcaption class="note">Lines: thick for large weights, dashed for negative ones.</figcaption>'
    )


def _example(update: WorkedUpdate, middle: float) -> str:
    """The input at the top of the diagram: its picture, or a box that says how many numbers it has."""
    if update.picture is None:
        return (
            f'<rect class="cell" x="{middle - 70:.0f}" y="40" width="140" height="36" rx="6"/>'
            f'<text class="a centre" x="{middle:.0f}" y="63">x: {update.layers[0].inputs:,} inputs</text>'
        )
    source = png(pixels(update.picture))
    return (
        f'<image class="pixels" href="{source}" x="{middle - 38:.0f}" y="0" width="76" height="76"/>'
        f'<text class="a" x="{middle + 46:.0f}" y="42">x: {update.layers[0].inputs:,} pixels</text>'
    )


def _cell(update: WorkedUpdate, n: int, neuron: Neuron, x: float, y: float, box: int, height: int) -> str:
    output = n == len(update.layers)
    letter = ("z" if update.output == "squared_error" else "p") if output else "a"
    up = f"{letter} = {plain(neuron.a, 4)}"
    down = f"δ = {plain(neuron.delta, 4, sign=True)}"
    right = x + box - 9
    return (
        f'<rect class="cell" x="{x:.0f}" y="{y:.0f}" width="{box}" height="{height}" rx="6"/>'
        f'<text class="index" x="{x + 8:.0f}" y="{y + height / 2 + 4:.0f}">{neuron.number}</text>'
        f'<text class="a end" x="{right:.0f}" y="{y + 20:.0f}">{up}</text>'
        f'<text class="d end" x="{right:.0f}" y="{y + 38:.0f}">{down}</text>'
    )
