"""Numbers and symbols as HTML: rounded for the eye, one class (so one colour) per kind of quantity."""

import math
from collections.abc import Iterable


def decimals_for(values: Iterable[float], digits: int = 5) -> int:
    """Decimals that show the largest value to `digits` digits, never fewer than 4 nor more than 12."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    return min(max(digits - 1 - math.floor(math.log10(largest)), 4), 12) if largest else 4


def plain(value: float, decimals: int, *, sign: bool = False) -> str:
    """A rounded number with a true minus."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "not a number")
    plus = "+" if sign else ""
    text = f"{value:{plus}.{decimals}f}"
    if len(text) > 16:  # so large that decimals mean nothing
        text = f"{value:{plus}.4e}"
    return (text if float(text) else text.replace("-", plus)).replace("-", "−")


def number(value: float, decimals: int, kind: str = "", *, sign: bool = False) -> str:
    """The same as an element whose `value` keeps all its digits for whoever wants to read them."""
    colour = f' class="{kind}"' if kind else ""
    return f'<data{colour} value="{value!r}">{plain(value, decimals, sign=sign)}</data>'


def short(value: float) -> str:
    """Two digits and a power of ten: for differences, which are nothing or nearly."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "not a number"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10<sup>{int(exponent)}</sup>".replace("-", "−")


def symbol(letter: str, kind: str, layer: int | None = None, below: str | int = "") -> str:
    """A letter with its layer above and its neurons below, one over the other."""
    sup = f"<sup>{layer}</sup>" if layer is not None else ""
    sub = f"<sub>{below}</sub>" if below != "" else ""
    return f'<span class="s {kind}"><var>{letter}</var><span class="ix">{sup}{sub}</span></span>'
