"""What a sweep is run for: a quantity against a setting, over seeds, with intervals; from a run folder's files alone.

A study reads one record per run (`records`), groups them into lines, and draws each line's mean with a 95 % interval
over seeds (`draw`). `best_by` finds the setting that does best on each seed, so that the best has an interval too.
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
from scipy.stats import t as student

from jaxdfl.figures import COLORS, DASHES
from jaxdfl.methods import parse
from jaxdfl.trackers import read_manifest, read_rows

Record = Mapping[str, Any]
Of = Callable[[Record], Any]
AVERAGED = ("cross_term", "disagreement_a", "disagreement_b", "disagreement_product")  # over rounds
MARKERS = "os^Dv<>P"
CONFIDENCE = 0.95
FEW = 8  # values of a logarithmic axis that each get a tick of their own
CHARACTERS = 14  # of a legend, on an inch


class Interval(NamedTuple):
    """A mean over seeds with its 95 % confidence interval (Student's t); the ends are NaN for one seed."""

    mean: float
    low: float
    high: float
    seeds: int


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

    `name`, `settings`, `wrappers` of its method, taken apart; `period` T; `rho` of its topology; and for the
    diagnostics of `AVERAGED` `NAME_over_rounds`, the mean over all rounds.

    Raises:
        ValueError: a file is missing or broken.
    """
    folder = Path(folder)
    manifest, rounds = read_manifest(folder), read_rows(folder / "rounds.jsonl")
    last = {_run(row): row for row in sorted(read_rows(folder / "metrics.jsonl"), key=lambda row: row["round"])}
    sums: dict[tuple, list[Record]] = {}
    for row in rounds:
        sums.setdefault(_run(row), []).append(row)
    found = []
    for run in manifest["runs"]:
        name, settings, wrappers = parse(run["method"])
        means = {
            f"{key}_over_rounds": float(
                np.mean([math.nan if row[key] is None else row[key] for row in sums[_run(run)]])
            )
            for key in AVERAGED
        }
        rho = manifest["topologies"].get(run["topology"], {}).get("rho")
        parts = {"name": name, "settings": settings, "wrappers": {part.name: part.settings for part in wrappers}}
        found.append({**last[_run(run)], **means, **parts, "period": run["period"], "rho": rho})
    return found


def judged_by(folder: str | os.PathLike[str]) -> Judged:
    """Mean accuracy over the clients, or the error where the problem has one."""
    name = read_manifest(Path(folder))["data"].get("metric", "accuracy")
    return Judged(f"{name}_mean", f"mean {name}", larger=name != "error")


def interval(values: Sequence[float]) -> Interval:
    """Mean and confidence interval of independent values."""
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Interval(mean, math.nan, math.nan, count)
    half = float(student.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half, count)


def grouped(records: Iterable[Record], of: Of) -> dict[Any, list[Record]]:
    """Records by what `of` gives, in the order in which the values first come."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(of(record), []).append(record)
    return groups


def curve(records: Iterable[Record], x: Of, y: str) -> list[tuple[float, Interval]]:
    """(x, interval of y over seeds) with x rising."""
    groups = grouped(records, x)
    return [(each, interval([record[y] for record in groups[each]])) for each in sorted(groups)]


def best_by(records: Iterable[Record], setting: Of, judged: Judged) -> dict[int, Any]:
    """For each seed, the setting with the best score."""
    pick = max if judged.larger else min
    seeds = grouped(records, lambda record: record["seed"])
    return {seed: setting(pick(each, key=lambda record: record[judged.key])) for seed, each in seeds.items()}


def paired(records: Iterable[Record], of: Of, first: Any, second: Any, y: str) -> Interval:
    """y of the records where `of` gives `first`, less y where it gives `second`, within each seed."""
    groups = grouped(records, of)
    one, other = ({record["seed"]: record[y] for record in groups.get(each, ())} for each in (first, second))
    return interval([one[seed] - other[seed] for seed in one if seed in other])


def said(found: Interval, form: str = ".3g") -> str:
    """`0.12 [0.10, 0.14]`: the mean and the interval; the mean alone for one seed."""
    mean, low, high = (format(value, form) for value in found[:3])
    return mean if found.seeds < 2 else f"{mean} [{low}, {high}]"


def table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]], *notes: str) -> str:
    """A Markdown table under a heading, with notes below."""
    lines = [f"# {title}", "", _cells(headers), _cells(["---"] * len(headers)), *map(_cells, rows), "", *notes, ""]
    return "\n".join(lines)


def draw(path: Path, panels: Sequence[Panel], records: Sequence[Record], title: str = "") -> None:
    """Writes one figure as PNG: a line per group, its mean over seeds and the 95 % interval."""
    path.parent.mkdir(exist_ok=True)
    figure = Figure(figsize=(4.2 * len(panels) + 0.4, 3.6), dpi=130, layout="constrained")
    names: dict[str, int] = {}  # one colour for one name in all panels
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        shown = list(filter(panel.only, records))
        for name, group in grouped(shown, panel.lines).items():
            number = names.setdefault(str(name), len(names))
            _line(axes, group, panel, str(name), number)
        _dress(axes, panel, sorted({panel.x(record) for record in shown}))
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
    if title:
        figure.suptitle(title, fontsize=10)
    figure.savefig(path, metadata={"Software": None})


def _line(axes: Axes, group: list[Record], panel: Panel, name: str, number: int) -> None:
    color, dash = COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]
    points = curve(group, panel.x, panel.y)
    xs, means = [x for x, _ in points], [found.mean for _, found in points]
    marker = MARKERS[number % len(MARKERS)]
    axes.plot(xs, means, color=color, linestyle=dash, marker=marker, markersize=4, linewidth=1.4, label=name)
    if all(found.seeds > 1 for _, found in points):
        low, high = ([getattr(found, end) for _, found in points] for end in ("low", "high"))
        axes.fill_between(xs, low, high, color=color, alpha=0.18, linewidth=0)


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


def _run(row: Record) -> tuple[str, str, int]:
    return row["method"], row["topology"], row["seed"]
