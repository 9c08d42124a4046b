"""A comparison as one HTML page that needs nothing else: no network, no other file; it prints, and knows dark mode.

Figures are SVG in the page, whose blacks and greys take the page's colours. `style.css` and `sort.js` lie beside this.
"""

import html
import io
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from jaxdfl import __version__
from jaxdfl.comparison import Comparison
from jaxdfl.tables import WORDS, Cell, columns, remarks

HERE = Path(__file__).parent
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
COLOURS = {"#000000": "currentColor", "#e6e6e6": "var(--grid)", "#f0f0f0": "var(--ground)"}  # as Matplotlib writes them
BANDS = "Lines: mean over seeds. Bands: from the lowest to the highest seed."
DIGITS = re.compile(r"^(\S+) (\[.*\]|\(.*\))$")  # what stands small beside a number


class Shown(NamedTuple):
    """A figure in the page."""

    name: str  # of its files
    figure: Figure
    words: str  # what it shows, for those who do not see it too


def page(comparison: Comparison, curves: Sequence[Shown], networks: Sequence[Shown], clients: Sequence[Shown]) -> str:
    """The whole page.

    Args:
        curves: scores and distances over rounds and bytes; `networks`, a picture of each; `clients`, what they hold.
    """
    manifest = comparison.summary.manifest
    methods, topologies = ({getattr(line, name) for line in comparison.lines} for name in ("method", "topology"))
    title = f"{_many(methods, 'method')} on {_many(topologies, 'network')}: {manifest['data']['task']}"
    notes = "".join(f"<li>{_text(remark)}.</li>" for remark in remarks(comparison))
    sections = {
        "Results": f'{_table(comparison)}<ul class="soft">{notes}</ul>',
        "Curves": f'<p class="soft">{BANDS}</p><div class="side">{_figures(curves)}</div>',
        "Networks": f'<div class="networks">{_figures(networks)}</div>',
        "Clients": f'<div class="side">{_figures(clients)}</div>',
        "Provenance": _provenance(comparison),
    }
    sections = {name: text for name, text in sections.items() if "<svg" in text or "<table" in text or "<dl" in text}
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    body = "".join(f'<section id="{n.lower()}"><h2>{n}</h2>{text}</section>' for n, text in sections.items())
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("style.css", "sort.js"))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{style}</style></head><body><header><h1>{_text(title)}</h1>"
        f'<p class="soft">{_text(_lead(comparison))}</p><nav aria-label="Sections">{links}</nav></header>'
        f"<main>{body}</main><script>{script}</script></body></html>\n"
    )


def _lead(comparison: Comparison) -> str:
    settings = comparison.summary.manifest["settings"]
    return (
        f"{settings['clients']} clients, {settings['rounds']} rounds x {settings['local_steps']} steps x "
        f"{settings['batch_size']} examples, rank {settings['rank']}, partition {settings['partition']}. "
        f"Compared with {comparison.summary.baseline}."
    )


def _table(comparison: Comparison) -> str:
    shown = columns(comparison)
    heads = "".join(
        f'<th scope="col"{_class(column.header)}><button type="button">{_text(column.header)}</button></th>'
        for column in shown
    )
    rows = []
    for cells in zip(*(column.cells for column in shown), strict=True):
        baseline = cells[1].text.partition(" @ ")[0] == comparison.summary.baseline
        entries = (_entry(cell, column.header) for cell, column in zip(cells, shown, strict=True))
        rows.append(f"<tr{' class=baseline' if baseline else ''}>{''.join(entries)}</tr>")
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Results"><table class="sortable">'
        "<caption>A click on a header sorts. In italics: the baseline.</caption>"
        f"<thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _entry(cell: Cell, header: str) -> str:
    value = "" if isinstance(cell.value, float) and math.isnan(cell.value) else cell.value
    parts = DIGITS.match(cell.text)
    text = f"{_text(parts[1])} <small>{_text(parts[2])}</small>" if parts else _text(cell.text)
    return f'<td{_class(header)} data-value="{_text(value)}">{text}</td>'


def _class(header: str) -> str:
    return ' class="words"' if header in WORDS else ""


def _figures(shown: Iterable[Shown]) -> str:
    return "".join(
        f'<figure data-file="{_text(name)}">{drawn(figure, words)}<figcaption>{_text(words)}</figcaption></figure>'
        for name, figure, words in shown
    )


def drawn(figure: Figure, words: str) -> str:
    """The figure as an SVG element in the page's colours."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": words}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # names that figures share
    for colour, ours in COLOURS.items():
        text = text.replace(colour, ours)
    return text.replace("<svg", f'<svg role="img" aria-label="{_text(words)}"', 1)


def _provenance(comparison: Comparison) -> str:
    manifest = comparison.summary.manifest
    world, settings = manifest["environment"], manifest["settings"]
    facts = {
        "run folders": ", ".join(comparison.folders),
        "made by": f"jaxdfl {manifest['jaxdfl']}; page by {__version__}",
        "commit": _commit(world.get("git")),
        "device": f"{world['devices']} x {world['device']}",
        "packages": ", ".join(f"{name} {version}" for name, version in world["packages"].items() if version),
        "command": " ".join(map(_unpathed, manifest["command"])),
    }
    facts |= {f"{name} (differs)": ", ".join(map(str, each)) for name, each in comparison.differing.items()}
    chosen = {name: _unpathed(value) for name, value in settings.items() if name != "out"}
    return f"{_list(facts)}<details><summary>All settings of the first run folder</summary>{_list(chosen)}</details>"


def _commit(git: Mapping[str, Any] | None) -> str:
    return "unknown" if git is None else git["commit"] + (", with changes" if git["dirty"] else "")


def _unpathed(value: Any) -> str:
    """As text; of an absolute path its last part, since a page is made to be shown around."""
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return Path(text).name if text.startswith("/") else text


def _list(facts: Mapping[str, Any]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items()) + "</dl>"


def _many(found: Collection[str], what: str) -> str:
    return f"{len(found)} {what}" + ("s" if len(found) != 1 else "")


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)
