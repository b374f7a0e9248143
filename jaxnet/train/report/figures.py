"""Charts as inline SVG that takes its colours and font from the page, and pictures as PNG data URIs."""

import base64
import io
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

# matplotlib needs real colours; these four stand for the page's own, which change in dark mode.
INK, RULE, TRAIN, TEST = "#010203", "#010204", "#010205", "#010206"
VARIABLES = {INK: "--quiet", RULE: "--rule", TRAIN: "--train", TEST: "--test"}

STYLE = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: measures alike everywhere
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.major.width": 0.6,
    "ytick.minor.size": 0,
    "lines.solid_capstyle": "round",
}


def chart(
    name: str, alt: str, draw: Callable[[Any], None], *, height: float = 2.9, words: Sequence[str] = ()
) -> str:
    """An inline SVG of what `draw` puts on the axes; `name` makes its inner ids unique in the page.

    `words` are texts of the caller's: `draw` writes their placeholders (`word(0)`, …), which are
    replaced here, so that matplotlib never takes a `$` for mathematics nor misses a glyph.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", STYLE | {"svg.hashsalt": name}]):
        figure = Figure(figsize=(4.6, height), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = _inline(file.getvalue(), alt)
    return re.sub(r"word-(\d+)-here", lambda match: escape(words[int(match[1])]), svg)


def word(i: int) -> str:
    """The placeholder of the i-th of a chart's words."""
    return f"word-{i}-here"


def _inline(svg: str, alt: str) -> str:
    """Matplotlib's SVG file as an element of the page: no header, no metadata, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    for pattern in (
        r"<metadata>.*?</metadata>",
        r"<style.*?</style>",  # its selector is *, which would style the whole page
        r"<!--.*?-->",
        r' xmlns(:\w+)?="[^"]*"',
        r'(?<=<g) id="[^"]*"',
    ):
        svg = re.sub(pattern, "", svg, flags=re.DOTALL)
    svg = " ".join(svg.split()).replace("> <", "><").replace("<defs></defs>", "").replace("xlink:href", "href")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    opening, content = svg.split(">", 1)
    size = opening[opening.index("viewBox=") :].split('"')[1]
    return f'<svg class="chart" role="img" aria-label="{escape(alt)}" viewBox="{size}">{content}'


def thin(x: np.ndarray, y: np.ndarray, bins: int = 700) -> tuple[np.ndarray, np.ndarray]:
    """At most two points per bin, its lowest and highest: what a screen can show of a long curve."""
    if x.size <= 2 * bins:
        return x, y
    keep: set[int] = set()
    for part in np.array_split(np.arange(x.size), bins):
        finite = part[np.isfinite(y[part])]
        keep |= {finite[y[finite].argmin()], finite[y[finite].argmax()]} if finite.size else {part[0]}
    chosen = np.array(sorted(keep))
    return x[chosen], y[chosen]


def smooth(y: np.ndarray) -> np.ndarray:
    """The centred moving average over a fortieth of the points, leaving out those that are not finite."""
    finite = np.isfinite(y)
    kernel = np.ones(max(1, y.size // 40))
    weight = np.convolve(finite, kernel, "same")
    total = np.convolve(np.where(finite, y, 0), kernel, "same")
    return np.where(finite, total / np.maximum(weight, 1), np.nan)


def png(image: np.ndarray) -> str:
    """A data URI of a uint8 image, (h, w) or (h, w, 3)."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def pixels(images: np.ndarray) -> np.ndarray:
    """Images as uint8: bytes as they are, other numbers from their least (black) to their greatest (white)."""
    if images.dtype == np.uint8:
        return images
    values = np.nan_to_num(images.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    return np.rint((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
