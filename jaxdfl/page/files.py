"""The files of a report: the page, the tables, and every figure as PDF and PNG."""

import math
import re
from collections.abc import Iterator
from itertools import chain, product
from pathlib import Path

from jaxdfl import drawings, figures, tables
from jaxdfl.comparison import Comparison
from jaxdfl.page import Shown, page
from jaxdfl.report import FIGURES, curves, share
from jaxdfl.run_folder import at_rate
from jaxdfl.statistics import Interval
from jaxdfl.topology import Spectrum, build

FORMATS = ("pdf", "png")
LONGEST = 100  # characters of a network in a file's name, as it may be a path
UNSAFE = re.compile(r"[^\w.+-]+")  # in a file's name
NAMED = re.compile(r'<figure data-file="([\w.+-]+)">')  # by the page, whose figures are files too


def write(out: Path, comparison: Comparison) -> Path:
    """Writes a report into the folder `out`, in the place of an earlier one; the path of the page.

    Raises:
        ValueError: `out` is a file, or a run folder.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder for the report.")
    if (out / "manifest.json").exists():
        raise ValueError(f"`--out` must not be a run folder, got {out} with a manifest.json; name another folder.")
    (out / "figures").mkdir(parents=True, exist_ok=True)
    shown = [list(of(comparison)) for of in (_curves, _networks, _clients)]
    text = page(comparison, *shown)
    _remove_figures(out)
    (out / "report.html").write_text(text, encoding="utf-8")  # first, since it names the files that come next
    (out / "tables.md").write_text(tables.markdown(comparison), encoding="utf-8")
    (out / "tables.tex").write_text(tables.latex(comparison), encoding="utf-8")
    for each in chain(*shown):
        for ending in FORMATS:
            figures.save(each.figure, out / "figures" / f"{each.name}.{ending}")
    return out / "report.html"


def _remove_figures(out: Path) -> None:
    """Removes the figures of an earlier report: what its page names, and no other file."""
    earlier = out / "report.html"
    text = earlier.read_text(encoding="utf-8", errors="replace") if earlier.exists() else ""
    for name, ending in product(NAMED.findall(text), FORMATS):
        (out / "figures" / f"{name}.{ending}").unlink(missing_ok=True)


def _curves(comparison: Comparison) -> Iterator[Shown]:
    """The last scores with their intervals, score over rounds and over bytes, then the distances."""
    summary, score = comparison.summary, comparison.score
    panels: dict[str, dict[str, Interval]] = {}
    for line in comparison.lines:
        panels.setdefault(line.topology, {})[line.method] = line.score
    intervals = figures.forest(panels, score.label, score.unit, summary.chance)
    yield Shown("intervals", intervals, f"{score.label} at the end: mean over seeds and its 95 % confidence interval")
    words = {f"{score.name}_by_bytes": f"{score.label} against the bytes that all clients have sent by then"}
    words |= {name: f"{name.replace('_', ' ')} over rounds" for name in (score.name, *FIGURES)}
    for name, figure in curves(summary, comparison.metrics, comparison.rounds, by_bytes=True):
        yield Shown(name, figure, words[name])


def _networks(comparison: Comparison) -> Iterator[Shown]:
    manifest = comparison.summary.manifest
    settings = manifest["settings"]
    for spec, found in manifest["topologies"].items():
        try:
            topology = build(spec, settings["clients"], rule=settings["mixing_rule"], seed=settings["seeds"][0])
        except ValueError:  # a file of weights that lies elsewhere
            continue
        spectrum = Spectrum(**{name: found[name] for name in Spectrum._fields})
        period = found.get("recommended_period")
        words = (
            f"{spec}: rho {spectrum.rho:.3f}, sigma_2 {spectrum.sigma_2:.3f}, {spectrum.links:.1f} messages a round, "
            f"connected in {share(spectrum.connected)} of single rounds, T* {period or 'none'}. Grey: who may ever "
            "hear whom; blue: who does in the first round."
        )
        yield Shown("network_" + UNSAFE.sub("-", spec)[-LONGEST:], drawings.figure(topology, spectrum), words)


def _clients(comparison: Comparison) -> Iterator[Shown]:
    """What each client scores, and what it holds; of one seed, since each seed deals the examples anew."""
    manifest, score = comparison.summary.manifest, comparison.score
    seed = comparison.metrics[0]["seed"]
    panels: dict[str, dict[str, list[float]]] = {}
    for row in sorted(comparison.metrics, key=lambda row: row["round"]):  # the last one stays
        found = row.get(f"{score.name}_clients", [])
        if row["seed"] == seed and len(found) == manifest["settings"]["clients"]:
            values = [math.nan if value is None else value for value in found]
            panels.setdefault(row["topology"], {})[at_rate(row)] = values
    if panels:
        figure = drawings.scores(panels, score.header(score.name), score.unit, seed)
        yield Shown("clients", figure, f"{score.name} of every client at the end, seed {seed}")
    counts, labels = manifest.get("partitions", {}).get(str(seed)), manifest["data"].get("labels")
    if counts and labels and len(counts[0]) == len(labels):
        figure = drawings.holdings(counts, labels, seed)
        yield Shown("holdings", figure, f"Training examples of each label at each client, seed {seed}")
