"""Curves over rounds from the rows of a run folder: a panel per topology, a line per method, a band over seeds.

Drawn on Matplotlib's Agg canvas through its object interface, so that no backend or setting of the process changes.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from jaxdfl.statistics import Interval

Rows = Sequence[Mapping[str, Any]]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")  # Okabe and Ito, without yellow
DASHES = ("-", "--", "-.", ":")  # keeps lines that coincide, as exact zeros do, and grey prints apart
ACROSS = 4  # panels side by side; more topologies go on below
NOTHING = Interval(math.nan, math.nan, math.nan, 0)
DECADES = 7  # shown at most; what is smaller lies between the lowest of them and zero
MARKED = 30  # up to so many points each gets a dot


def draw(
    rows: Rows,
    quantities: Mapping[str, str],
    titles: Mapping[str, str],
    chance: float | None = None,
    *,
    by_bytes: bool = False,
) -> Figure:
    """One figure.

    Args:
        quantities: key of a row -> label of the axis; each gets its own panels.
        titles: topology -> title of its panel, in the order to show.
        chance: score of a blind guess where the quantities are scores (fractions of 1, drawn in percent); None
            where they are distances, drawn on a logarithmic axis with room for zero.
        by_bytes: against the `bytes` that all clients have sent by then (the mean over seeds), not against rounds.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    across = min(len(titles), ACROSS)
    down = math.ceil(len(titles) / across)
    width, height = max(2.9 * across, 4.8) + 0.4, (2.3 if across > 1 else 2.9) * down * len(quantities) + 0.6
    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    for block, (key, label) in enumerate(quantities.items()):
        first = None
        for panel, (topology, title) in enumerate(titles.items()):
            axes = figure.add_subplot(down * len(quantities), across, block * down * across + panel + 1, sharey=first)
            first = first or axes
            for number, method in enumerate(methods):
                here = [row for row in rows if row["method"] == method and row["topology"] == topology]
                x, values = over_seeds(here, key)
                if by_bytes:
                    x = over_seeds(here, "bytes")[1].mean(0)
                _line(axes, x, values, method, number, 1 if chance is None else 100)
            if chance is None:
                _log_axis(axes, [row[key] for row in rows if row.get(key) is not None])
            else:
                axes.axhline(100 * chance, color="0.6", linewidth=0.8, label="chance")
            last = block == len(quantities) - 1 and panel + across >= len(titles)
            _dress(axes, title if block == 0 or down > 1 else "", label if panel % across == 0 else "", last)
            if by_bytes:
                axes.set_xlabel("sent by all clients" if last else "", fontsize=9)
                axes.xaxis.set_major_locator(MaxNLocator(4))
                axes.xaxis.set_major_formatter(EngFormatter(unit="B", sep=" "))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = min(len(labels), max(5, 2 * across + 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
    return figure


def forest(
    panels: Mapping[str, Mapping[str, Interval]], label: str, unit: int = 1, reference: float | None = None
) -> Figure:
    """A panel for each topology, a point with its interval for each method; `reference` is a line across."""
    methods = list(dict.fromkeys(method for found in panels.values() for method in found))
    across = min(len(panels), ACROSS)
    down = math.ceil(len(panels) / across)
    size = (max(2.6 * across, 4.8) + 1.2, (0.8 + 0.26 * len(methods)) * down + 0.3)
    figure, first = Figure(figsize=size, dpi=200, layout="constrained"), None
    for panel, (topology, found) in enumerate(panels.items()):
        axes = first = figure.add_subplot(down, across, panel + 1, sharey=first, sharex=first)
        for place, method in enumerate(methods):
            mean, low, high = (unit * value for value in found.get(method, NOTHING)[:3])
            color = COLORS[place % len(COLORS)]
            axes.plot([low, high], [place, place], color=color, linewidth=1.6, solid_capstyle="butt")
            axes.plot([mean], [place], "o", color=color, markersize=4.5)
        if reference is not None:
            axes.axvline(unit * reference, color="0.6", linewidth=0.8)
        _dress(axes, topology, "", last=False)
        axes.set_yticks(range(len(methods)), methods, fontsize=8)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.tick_params(labelleft=panel % across == 0, labelbottom=panel + across >= len(panels))
        axes.set_xlabel(label if panel + across >= len(panels) else "", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes the figure in the format that the path's ending names; the same figure gives the same bytes."""
    metadata = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(path.suffix, {"Software": None})
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
        figure.savefig(path, metadata=metadata)


def over_seeds(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Rounds [rounds] that every seed has a row for, and the values there [seeds, rounds]; NaN for null."""
    runs: dict[int, dict[int, float]] = {}
    for row in rows:
        value = row.get(key)
        runs.setdefault(row["seed"], {})[row["round"]] = math.nan if value is None else value
    rounds = sorted(set.intersection(*map(set, runs.values()))) if runs else []
    return np.array(rounds), np.array([[run[each] for each in rounds] for run in runs.values()], float)


def _line(axes: Axes, rounds: np.ndarray, values: np.ndarray, label: str, number: int, unit: int) -> None:
    """Mean over seeds, and a band from the lowest to the highest seed."""
    color, dash = COLORS[number % len(COLORS)], DASHES[number % len(DASHES)]
    mean = unit * values.mean(0) if values.size else []
    marker = {"marker": "o", "markersize": 3} if len(rounds) <= MARKED else {}
    axes.plot(rounds, mean, color=color, linestyle=dash, linewidth=1.5, label=label, **marker)
    if len(values) > 1:
        axes.fill_between(rounds, unit * values.min(0), unit * values.max(0), color=color, alpha=0.18, linewidth=0)


def _log_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis about values; zeros, and what lies `DECADES` below the largest, on a linear piece below."""
    positive = [value for value in values if value > 0]
    if not positive:
        axes.set_ylim(-0.05, 1)  # nothing but zeros: a line on the ground
        axes.set_yticks([0])
        return
    low, high = math.log10(min(positive)), math.log10(max(positive))
    padding = max(0.1 * min(high - low, DECADES), 0.1)
    bottom, top = max(low - padding, high - DECADES), high + padding
    ticks, labels = _ticks(bottom, top)
    if min(values) >= 10**bottom:
        axes.set_yscale("log")
        axes.set_ylim(10**bottom, 10**top)
    else:
        axes.set_yscale("symlog", linthresh=10**bottom, linscale=0.6)
        axes.set_ylim(-0.25 * 10**bottom, 10**top)
        axes.axhspan(-0.25 * 10**bottom, 10**bottom, color="0.94", zorder=0)
        ticks, labels = [0, *ticks], labels and ["0", *labels]
    axes.set_yticks(ticks, labels)
    axes.minorticks_off()


def _ticks(bottom: float, top: float) -> tuple[list[float], list[str] | None]:
    """What to name between two powers of ten: powers, about five of them; where only two are there, more than these."""
    exponents = range(math.ceil(bottom), math.floor(top) + 1)
    if len(exponents) > 2:
        return [10.0**each for each in exponents if (exponents[-1] - each) % math.ceil(len(exponents) / 5) == 0], None
    steps = [step * 10.0**each for each in range(math.floor(bottom), math.ceil(top)) for step in (1, 2, 5)]
    found = [step for step in steps if bottom <= math.log10(step) <= top]
    if len(found) < 3:
        found = list(MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(10**bottom, 10**top))[1:-1]
    return found, [format(value, "g") for value in found]


def _dress(axes: Axes, title: str, label: str, last: bool) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(label, fontsize=9)
    axes.set_xlabel("rounds completed" if last else "", fontsize=9)
    axes.tick_params(labelsize=8, labelleft=bool(label), labelbottom=last)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
