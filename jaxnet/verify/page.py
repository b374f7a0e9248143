"""A report as one HTML page that needs no other file: what failed first, with pictures of the errors."""

import base64
import html
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxnet.verify.error_map import ErrorMap, gradient

if TYPE_CHECKING:
    from jaxnet.verify.report import LeafReport, Report, WitnessReport

_WORDS = {"pass": "passed", "fail": "failed", "undecided": "undecided"}


def page(report: "Report") -> str:
    """The whole page."""
    counts = [(state, sum(leaf.state == state for leaf in report.leaves)) for state in _WORDS]
    summary = " · ".join(f"{count} {_WORDS[state]}" for state, count in counts if count)
    cards = "".join(_card(leaf) for leaf in report.leaves if leaf.state == "fail")
    return document(report, f"{len(report.leaves)} gradients: {summary}", cards + tables(report))


def document(report: Any, counts: str, body: str) -> str:
    """A page with the head and the notes of a report, and `body` between them."""
    title, state = html.escape(report.title), report.state
    remarks = "".join(f"<li>{html.escape(remark)}</li>" for remark in report.remarks)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{state}: {title}</title><style>{_STYLE}</style></head><body>\n"
        f'<header><h1><span class="badge {state}">{state}</span> {title}</h1>'
        f"<p>{html.escape(counts)} · {report.seconds:.1f} s</p></header>\n{body}"
        + (f"\n<h2>Notes</h2><ul>{remarks}</ul>" if remarks else "")
        + "\n</body></html>\n"
    )


def write(path: str | os.PathLike[str], text: str) -> None:
    """Write a file of which a reader never sees half."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # mkstemp's files are private
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def tables(report: "Report") -> str:
    """The leaves and the witnesses as two tables."""
    found = '<h2>Gradients</h2><div class="scroll">' + leaf_table(report.leaves) + "</div>"
    if report.witnesses:
        found += '\n<h2>Witnesses</h2><div class="scroll">' + witness_table(report.witnesses) + "</div>"
    return found


def leaf_table(leaves: Sequence["LeafReport"]) -> str:
    """A row per leaf; words that do not fit in a row stand below it."""
    from jaxnet.verify.report import HEADINGS

    head = "".join(f"<th>{html.escape(text)}</th>" for text in HEADINGS)
    rows = []
    for leaf in leaves:
        name, *cells, verdict = (html.escape(cell) for cell in leaf.row())
        more = "".join(
            f"<br><small>{html.escape(text)}</small>" for text in (leaf.diagnosis, leaf.failure()) if text
        )
        middle = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr class="{leaf.state}"><th>{name}</th>{middle}<td>{verdict}{more}</td></tr>')
    return f'<table class="gradients"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def witness_table(witnesses: Sequence["WitnessReport"]) -> str:
    """A row per witness."""
    rows = "".join(
        f'<tr class="{w.state.replace(" ", "-")}"><th>{html.escape(w.name)}</th><td>{html.escape(w.state)}</td>'
        f"<td>{html.escape(w.verdict)}</td></tr>"
        for w in witnesses
    )
    return f'<table class="witnesses"><tbody>{rows}</tbody></table>'


def _card(leaf: "LeafReport") -> str:
    """A failing leaf: what the mistake is, the worst element, and where the errors are."""
    lines = [f"<h2>{html.escape(leaf.name)} <small>{html.escape(f'{leaf.dtype} {leaf.shape}')}</small></h2>"]
    if leaf.diagnosis:
        lines.append(f'<p class="diagnosis">{html.escape(leaf.diagnosis)}</p>')
    lines.append(f"<p>{html.escape(leaf.verdict)}</p>")
    if failure := leaf.failure():
        lines.append(f"<p><code>{html.escape(failure)}</code></p>")
    picture = "" if leaf.errors is None else _picture(leaf.errors)
    return f'<section class="card"><div>{"".join(lines)}</div>{picture}</section>\n'


def _picture(errors: ErrorMap) -> str:
    data = base64.b64encode(errors.png()).decode()
    rows, columns = errors.size
    width = max(6.0, min(28.0, columns, 18.0 * columns / rows))  # rem; a cell is square
    return (
        f'<figure style="width: {width:.1f}rem"><img alt="errors of the gradient" style="aspect-ratio: '
        f'{columns} / {rows}" src="data:image/png;base64,{data}"><figcaption>'
        f'<span class="scale"><span>1e-9</span><i></i><span>1</span></span> error relative to the largest '
        f"element, {html.escape(errors.caption())}; green is right, grey not probed, blue not finite"
        "</figcaption></figure>"
    )


_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --dim: #59636e; --paper: #fff; --card: #f6f8fa; --line: #d1d9e0;
  --pass: #1a7f37; --fail: #cf222e; --undecided: #9a6700 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #9198a1; --paper: #0d1117; --card: #151b23;
  --line: #3d444d; --pass: #3fb950; --fail: #f85149; --undecided: #d29922 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem;
  margin: 0 auto; padding: 1.5rem 1rem 3rem }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; overflow-wrap: anywhere }
small, header p, figcaption { color: var(--dim); font-weight: normal }
small { font-size: .85em }
.badge { text-transform: uppercase; font-size: .8em; padding: .1em .5em; border-radius: .4em; color: var(--paper) }
.badge.pass { background: var(--pass) } .badge.fail { background: var(--fail) }
.badge.undecided { background: var(--undecided) }
.card { display: flex; flex-wrap: wrap; gap: 1rem 2rem; background: var(--card); border: 1px solid var(--line);
  border-left: 4px solid var(--fail); border-radius: .5rem; padding: 1rem 1.25rem; margin: 1rem 0 }
.card > div { flex: 1 1 18rem; min-width: 0 }
.card h2 { margin: 0 0 .5rem } .card p { margin: .4rem 0; overflow-wrap: anywhere }
.diagnosis { font-size: 1.1rem; font-weight: 600; color: var(--fail) }
code, tbody th { font-family: ui-monospace, monospace; font-size: .9em }
figure { margin: 0; max-width: 100% }
img { display: block; width: 100%; image-rendering: pixelated; border: 1px solid var(--line); border-radius: 3px }
figcaption { font-size: .8rem; margin-top: .4rem }
.scale { display: inline-flex; align-items: center; gap: .4rem; white-space: nowrap; color: var(--ink) }
.scale i { width: 6rem; height: .7rem; border-radius: 2px; background: linear-gradient(90deg, COLOURS) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; min-width: 100% }
th, td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0;
  border-bottom: 1px solid var(--line) }
th, .gradients td:not(:last-child) { white-space: nowrap }
td:last-child { min-width: 16rem }
thead th { color: var(--dim); font-weight: 500 } tbody th { font-weight: 500 }
td { font-variant-numeric: tabular-nums }
.pass td:last-child, .witnesses .pass td:nth-child(2) { color: var(--pass) }
.fail td:last-child, .witnesses .fail td:nth-child(2) { color: var(--fail) }
.undecided td:last-child, .witnesses .undecided td:nth-child(2) { color: var(--undecided) }
.witnesses td:last-child { color: var(--ink) } .not-taken { color: var(--dim) }
""".replace("COLOURS", gradient())
