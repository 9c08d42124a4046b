"""The files of a report: the page, the tables, and every figure as PDF and PNG."""

import math
from collections.abc import Iterator
from pathlib import Path

from jaxdfl import drawings, figures, tables
from jaxdfl.comparison import Comparison
from jaxdfl.page import Shown, page
from jaxdfl.report import FIGURES, curves
from jaxdfl.run_folder import at_rate
from jaxdfl.statistics import Interval
from jaxdfl.topology import Spectrum, build

FORMATS = ("pdf", "png")


def write(out: Path, comparison: Comparison) -> Path:
    """Writes a report into the folder `out`, over an earlier one; the path of the page.

    Raises:
        ValueError: `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder for the report.")
    (out / "figures").mkdir(parents=True, exist_ok=True)
    shown = {
        "curves": dict(_curves(comparison)),
        "networks": dict(_networks(comparison)),
        "clients": dict(_clients(comparison)),
    }
    for group in shown.values():
        for name, (figure, _) in group.items():
            for ending in FORMATS:
                figures.save(figure, out / "figures" / f"{name}.{ending}")
    (out / "tables.md").write_text(tables.markdown(comparison), encoding="utf-8")
    (out / "tables.tex").write_text(tables.latex(comparison), encoding="utf-8")
    text = page(comparison, *(list(group.values()) for group in shown.values()))
    (out / "report.html").write_text(text, encoding="utf-8")
    return out / "report.html"


def _curves(comparison: Comparison) -> Iterator[tuple[str, Shown]]:
    """The last scores with their intervals, score over rounds and over bytes, then the distances."""
    summary, score = comparison.summary, comparison.score
    panels: dict[str, dict[str, Interval]] = {}
    for line in comparison.lines:
        panels.setdefault(line.topology, {})[line.method] = line.score
    intervals = figures.forest(panels, score.label, score.unit, summary.chance)
    yield "intervals", Shown(intervals, f"{score.label} at the end: mean over seeds and its 95 % confidence interval")
    words = {f"{score.name}_by_bytes": f"{score.label} against the bytes that all clients have sent by then"}
    words |= {name: f"{name.replace('_', ' ')} over rounds" for name in (score.name, *FIGURES)}
    for name, figure in curves(summary, comparison.metrics, comparison.rounds, by_bytes=True):
        yield name, Shown(figure, words[name])


def _networks(comparison: Comparison) -> Iterator[tuple[str, Shown]]:
    manifest = comparison.summary.manifest
    settings = manifest["settings"]
    for number, (spec, found) in enumerate(manifest["topologies"].items()):
        try:
            topology = build(spec, settings["clients"], rule=settings["mixing_rule"], seed=settings["seeds"][0])
        except ValueError:  # a file of weights that lies elsewhere
            continue
        spectrum = Spectrum(**{name: found[name] for name in Spectrum._fields})
        period = found.get("recommended_period")
        words = (
            f"{spec}: rho {spectrum.rho:.3f}, sigma_2 {spectrum.sigma_2:.3f}, {spectrum.links:.1f} messages a round, "
            f"connected in {spectrum.connected:.0%} of single rounds, T* {period or 'none'}. Grey: who may ever hear "
            "whom; blue: who does in the first round."
        )
        yield f"network_{number}", Shown(drawings.figure(topology, spectrum), words)


def _clients(comparison: Comparison) -> Iterator[tuple[str, Shown]]:
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
        figure = drawings.scores(panels, score.header(score.name), score.unit)
        yield "clients", Shown(figure, f"{score.name} of every client at the end, seed {seed}")
    counts, labels = manifest.get("partitions", {}).get(str(seed)), manifest["data"].get("labels")
    if counts and labels and len(counts[0]) == len(labels):
        figure = drawings.holdings(counts, labels)
        yield "holdings", Shown(figure, f"Training examples of each label at each client, seed {seed}")
