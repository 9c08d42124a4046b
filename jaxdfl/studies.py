"""What a sweep is run for: a quantity against a setting, over seeds, with intervals; from a run folder's files alone.

A study reads one record per run (`records`), groups them into lines, and draws each line's mean with a 95 % interval
over seeds (`draw`). `best_by` finds the setting that does best on each seed, so that the best has an interval too.
`by_method` makes a table's rows. A run that diverged has NaN for a score: no mean hides it, and no figure shows it.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxdfl.figures import COLORS, DASHES, save
from jaxdfl.methods import parse
from jaxdfl.run_folder import at_rate, read_manifest, read_rows
from jaxdfl.statistics import Interval, differences, interval

Record = Mapping[str, Any]
Of = Callable[[Record], Any]
Column = Callable[[list[Record], list[Record]], str]  # what a cell says of a method's runs, and of its base's
AVERAGED = ("cross_term", "disagreement_a", "disagreement_b", "disagreement_product")  # over rounds
MARKERS = "os^Dv<>P"
FEW = 8  # values of a logarithmic axis that each get a tick of their own
CHARACTERS = 14  # of a legend, on an inch
NONE = "–"  # a cell without runs to fill it
NO_FIGURE = "No figure: these runs have nothing to draw."
SEEDS = (
    "Intervals: 95 %, Student's t over seeds; differences within each seed. None is drawn where it goes below a "
    "logarithmic axis."
)


class Judged(NamedTuple):
    """The score that a run folder's runs are compared by."""

    key: str  # of a record
    label: str
    larger: bool  # is better


class Panel(NamedTuple):
    """One set of axes."""

    x: Of
    y: str  # key of a record
    labels: tuple[str, str]  # of the axes
    scales: tuple[str, str] = ("linear", "log")
    lines: Of = lambda record: record["method"]  # what tells one line from the next
    only: Of = lambda record: True


def records(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """One record per run, with the columns of its last evaluated row, and

    `name`, `settings`, `wrappers` of its method, taken apart; its `base`, the method as asked for without wrappers
    (both `method` and `base` with the learning rate, where there are several);
    `period` T; `rho` and `recommended_period` of its topology, None where there is none; and for the diagnostics of
    `AVERAGED` `NAME_over_rounds`, the mean over all rounds. A number that is not finite (null in the rows) is NaN.

    Raises:
        ValueError: a file is missing or broken.
    """
    folder = Path(folder)
    manifest, rounds = read_manifest(folder), read_rows(folder / "rounds.jsonl")
    last = {_run(row): row for row in sorted(read_rows(folder / "metrics.jsonl"), key=lambda row: row["round"])}
    sums: dict[tuple, list[Record]] = {}
    for row in rounds:
        sums.setdefault(_run(row), []).append(_numbers(row))
    found = []
    for run in manifest["runs"]:
        name, settings, wrappers = parse(run["method"])
        means = {f"{key}_over_rounds": float(np.mean([row[key] for row in sums[_run(run)]])) for key in AVERAGED}
        parts = {"name": name, "settings": settings, "wrappers": {part.name: part.settings for part in wrappers}}
        network = manifest["topologies"].get(run["topology"], {})
        network = {key: network.get(key) for key in ("rho", "recommended_period")}
        names = {"method": at_rate(run), "base": at_rate({**run, "method": run["method"].partition("+")[0]})}
        found.append({**_numbers(last[_run(run)]), **means, **parts, **names, "period": run["period"], **network})
    return found


def judged_by(folder: str | os.PathLike[str]) -> Judged:
    """Mean accuracy over the clients, or the error where the problem has one."""
    name = read_manifest(Path(folder))["data"].get("metric", "accuracy")
    return Judged(f"{name}_mean", f"mean {name}", larger=name != "error")


def grouped(records: Iterable[Record], of: Of) -> dict[Any, list[Record]]:
    """Records by what `of` gives, in the order in which the values first come."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(of(record), []).append(record)
    return groups


def curve(records: Iterable[Record], x: Of, y: str) -> list[tuple[float, Interval]]:
    """(x, interval of y over seeds) with x rising."""
    groups = grouped(records, x)
    return [(float(each), interval([record[y] for record in groups[each]])) for each in sorted(groups)]


def best_by(records: Iterable[Record], setting: Of, judged: Judged) -> dict[int, Any]:
    """For each seed, the setting with the best score; a seed is left out where every setting diverged."""
    pick = max if judged.larger else min
    finite = (record for record in records if math.isfinite(record[judged.key]))
    seeds = grouped(finite, lambda record: record["seed"])
    return {seed: setting(pick(each, key=lambda record: record[judged.key])) for seed, each in seeds.items()}


def paired(records: Iterable[Record], of: Of, first: Any, second: Any, y: str) -> Interval:
    """y of the records where `of` gives `first`, less y where it gives `second`, within each seed."""
    groups = grouped(records, of)
    one, other = ({record["seed"]: record[y] for record in groups.get(each, ())} for each in (first, second))
    return interval(differences(one, other))


def said(found: Interval, form: str = ".3g") -> str:
    """`0.12 [0.10, 0.14]`: the mean and the interval; the mean alone for one seed.

    A dash for no seed, and `n/a` where one diverged.
    """
    if found.seeds == 0:
        return NONE
    if not math.isfinite(found.mean):
        return "n/a"
    mean, low, high = (format(value, form) for value in found[:3])
    return mean if found.seeds < 2 else f"{mean} [{low}, {high}]"


def by_method(records: Iterable[Record], *columns: Column) -> list[list[str]]:
    """A table's rows, one per method and topology: its name (with the network if there are several), then `columns`.

    A column gets the method's runs and those of its base on the same topology: none, if the base was not run.
    """
    topologies = grouped(records, lambda record: record["topology"])
    several = sum(there[0]["rho"] is not None for there in topologies.values()) > 1
    rows = []
    for topology, there in topologies.items():
        methods = grouped(there, lambda record: record["method"])
        for name, group in methods.items():
            base = methods.get(group[0]["base"], [])
            label = f"{name}, {topology}" if several and group[0]["rho"] is not None else name
            rows.append([label, *(column(group, base) for column in columns)])
    return rows


def mean_of(y: str, form: str = ".3g") -> Column:
    """The column of y."""
    return lambda group, base: said(interval([record[y] for record in group]), form)


def less_base(y: str, form: str = "+.3f") -> Column:
    """The column of y less the base's, within each seed."""
    return lambda group, base: said(
        paired([*group, *base], lambda record: record["method"], group[0]["method"], group[0]["base"], y), form
    )


def table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]], *notes: str) -> str:
    """A Markdown table under a heading, with a paragraph for each note that says something below."""
    notes = tuple(line for note in notes if note for line in (note, ""))
    return "\n".join(
        [f"# {title}", "", _cells(headers), _cells(["---"] * len(headers)), *map(_cells, rows), "", *notes]
    )


def draw(path: Path, panels: Sequence[Panel], records: Sequence[Record]) -> str:
    """Writes one figure as PNG: a line per group, its mean over seeds and the 95 % interval.

    Leaves out points that an axis has no place for, and panels without a point. Without a panel there is no figure;
    `NO_FIGURE` is returned then, for the words, and else the empty string.
    """
    drawn = [(panel, lines) for panel in panels if (lines := _points(panel, records))]
    if not drawn:
        return NO_FIGURE
    path.parent.mkdir(exist_ok=True)
    figure = Figure(figsize=(4.2 * len(drawn) + 0.4, 3.6), dpi=130, layout="constrained")
    names: dict[str, int] = {}  # one colour for one name in all panels
    for place, (panel, lines) in enumerate(drawn):
        axes = figure.add_subplot(1, len(drawn), place + 1)
        for name, points in lines.items():
            _line(axes, points, panel.scales[1], name, names.setdefault(name, len(names)))
        _dress(axes, panel, sorted({x for points in lines.values() for x, _ in points}))
    seen: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            seen.setdefault(label, handle)
    columns = max(1, int(CHARACTERS * figure.get_figwidth() // (max(map(len, seen), default=1) + 6)))
    figure.legend(
        seen.values(),
        seen.keys(),
        loc="outside lower center",
        ncols=min(columns, len(seen)),
        frameon=False,
        fontsize=8.5,
    )
    save(figure, path)
    return ""


def _points(panel: Panel, records: Iterable[Record]) -> dict[str, list[tuple[float, Interval]]]:
    """The panel's lines by name: the points of each that its axes have a place for, and no line without any."""

    def fits(value: float, scale: str) -> bool:
        return math.isfinite(value) and (scale != "log" or value > 0)

    lines = {}
    for name, group in grouped(filter(panel.only, records), panel.lines).items():
        points = [
            (x, found)
            for x, found in curve(group, panel.x, panel.y)
            if fits(x, panel.scales[0]) and fits(found.mean, panel.scales[1])
        ]
        if points:
            lines[str(name)] = points
    return lines


def _line(axes: Axes, points: Sequence[tuple[float, Interval]], scale: str, name: str, number: int) -> None:
    """Means, and the band of their intervals; none where one goes below the bottom of a logarithmic axis."""
    color, dash = COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]
    xs, means = [x for x, _ in points], [found.mean for _, found in points]
    marker = MARKERS[number % len(MARKERS)]
    axes.plot(xs, means, color=color, linestyle=dash, marker=marker, markersize=4, linewidth=1.4, label=name)
    if all(found.seeds > 1 for _, found in points):
        low, high = ([getattr(found, end) for _, found in points] for end in ("low", "high"))
        fits = [scale != "log" or value > 0 for value in low]
        axes.fill_between(xs, low, high, fits, color=color, alpha=0.18, linewidth=0)


def _dress(axes: Axes, panel: Panel, xs: Sequence[float]) -> None:
    axes.set_xscale(panel.scales[0])
    axes.set_yscale(panel.scales[1])
    if panel.scales[0] == "log" and len(xs) <= FEW and all(right >= 1.3 * left for left, right in pairwise(xs)):
        axes.set_xticks(xs, [format(x, "g") for x in xs])
        axes.minorticks_off()
    axes.set_xlabel(panel.labels[0], fontsize=9)
    axes.set_ylabel(panel.labels[1], fontsize=9)
    axes.tick_params(labelsize=8, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def _cells(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _numbers(row: Record) -> dict[str, Any]:
    """The row with NaN for null."""
    return {key: math.nan if value is None else value for key, value in row.items()}


def _run(row: Record) -> tuple[str, str, int]:
    return at_rate(row), row["topology"], row["seed"]
