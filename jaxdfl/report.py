"""Tables and figures of a run folder, made from its files alone; so they can be made again, later and elsewhere.

For each method on each topology: the last evaluated round of each seed, then mean and standard deviation over seeds
(dividing by n - 1). Seeds are shared by all methods, so methods are compared by the difference within each seed.
"""

import csv
import io
import math
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from jaxdfl import figures
from jaxdfl.run_folder import IDENTITY, at_rate, read_manifest, read_rows, run_key
from jaxdfl.statistics import differences

Row = Mapping[str, Any]

NO_QUANTITY = ("round", *IDENTITY)  # other keys of a row are quantities, if numbers
NAME = 24  # characters of a method on one line of a terminal
FIRST_CHOICE = "dec_lora"  # baseline, where it was run
FIGURES = {
    "cross_term": {"cross_term": "cross term"},
    "disagreement": {
        "disagreement_a": "disagreement of A",
        "disagreement_b": "disagreement of B",
        "disagreement_product": "disagreement of BA",
        "disagreement_head": "disagreement of head",
    },
}


class Score(NamedTuple):
    """How a problem's score is shown."""

    name: str  # its columns are name_mean, name_worst, ...
    percent: bool  # a fraction of 1 shown in percent, the more the better; else an error, the less the better

    @property
    def unit(self) -> int:
        return 100 if self.percent else 1

    @property
    def form(self) -> str:
        return ".1f" if self.percent else ".3f"

    @property
    def label(self) -> str:
        return f"mean {self.name} (%)" if self.percent else f"mean {self.name}"

    def header(self, text: str) -> str:
        return f"{text} %" if self.percent else text


class Estimate(NamedTuple):
    """A quantity over seeds."""

    mean: float
    deviation: float | None  # standard deviation over seeds, n - 1; None for one seed


class Line(NamedTuple):
    """One method on one topology, over its seeds; at one learning rate, where there are several."""

    method: str  # with its learning rate (see `run_folder.at_rate`)
    topology: str
    seeds: int
    rounds: str  # last evaluated: "50", or "40-50" where the seeds differ
    values: dict[str, Estimate]
    gain: Estimate | None  # mean score above the baseline's, paired by seed; None for the baseline, or without one


class Summary(NamedTuple):
    """A run folder in numbers."""

    manifest: dict[str, Any]
    score: Score
    baseline: str
    lines: tuple[Line, ...]  # by topology, then by method, each in the order of the rows
    unfinished: str | None = None  # how far runs have got, in words; None: to the end

    @property
    def chance(self) -> float | None:
        """Score of a blind guess; None where the score is an error."""
        data = self.manifest["data"]
        return data.get("chance", 1 / data["classes"]) if self.score.percent else None


def summarize(folder: str | os.PathLike[str]) -> Summary:
    """Reads a run folder and writes its summary.csv, summary.md and figures/*.png (replacing older ones).

    Of several learning rates, each makes a method a line of its own, compared with the baseline at the same rate.

    Raises:
        ValueError: a file is missing, empty or broken (see `jaxdfl.run_folder`).
    """
    folder = Path(folder)
    manifest, rows = read_manifest(folder), read_rows(folder / "metrics.jsonl")
    if not rows:
        raise ValueError(f"{folder / 'metrics.jsonl'} holds no rows; the run has not evaluated anything yet.")
    summary = summary_of(manifest, rows)
    (folder / "summary.csv").write_text(_csv(summary), encoding="utf-8")
    (folder / "summary.md").write_text(_markdown(summary), encoding="utf-8")
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in curves(summary, rows, read_rows(folder / "rounds.jsonl")):
        figures.save(figure, folder / "figures" / f"{name}.png")
    return summary


def table(summary: Summary) -> Table:
    """The summary for a terminal."""
    headers, lines = _cells(summary)
    made = Table(*headers, caption=". ".join(facts(summary)), caption_justify="left", box=box.SIMPLE, padding=0)
    for column in made.columns:
        column.overflow = "fold"  # a number is never cut
    for column in made.columns[:2]:  # topology and method
        column.no_wrap = True
    for above, line in zip([None, *lines], lines, strict=False):
        if above and above[0] != line[0]:
            made.add_section()
        made.add_row(*map(_broken, line[:2]), *line[2:])
    return made


def _broken(name: str) -> str:
    """A composition on several lines: one for each wrapper, or more where the settings are many."""
    parts = name.replace("+", "\n+").splitlines()
    lines = [line for part in parts for line in textwrap.wrap(part.replace(":", ": "), NAME)]
    return "\n".join(lines).replace(": ", ":")


def summary_of(manifest: dict[str, Any], rows: Sequence[Row], baseline: str | None = None) -> Summary:
    """The numbers of a manifest's rows; compared with `baseline`, by default Dec-LoRA or what was asked for first."""
    metric = manifest["data"].get("metric", "accuracy")
    score, mean = Score(metric, percent=metric != "error"), f"{metric}_mean"
    last: dict[tuple[str, str], dict[int, Row]] = {}  # (topology, method) -> seed -> its last row
    for row in sorted(rows, key=lambda row: row["round"]):
        last.setdefault((row["topology"], at_rate(row)), {})[row["seed"]] = row
    asked = [*manifest.get("runs", ()), *rows]  # rows come in the order in which runs were made
    topologies, labels = (list(dict.fromkeys(map(of, asked))) for of in (itemgetter("topology"), at_rate))
    named = [run["method"] for run in asked if run["method"] in {row["method"] for row in rows}]
    baseline = baseline or (FIRST_CHOICE if FIRST_CHOICE in named else named[0])
    against = {at_rate(row): at_rate({**row, "method": baseline}) for row in rows}
    lines = []
    for topology in topologies:
        for method in labels:
            if (topology, method) not in last:
                continue
            runs, others = last[topology, method], last.get((topology, against[method]), {})
            first = next(iter(runs.values()))
            quantities = [key for key, value in first.items() if key not in NO_QUANTITY and not isinstance(value, list)]
            own, base = ({seed: _number(row, mean) for seed, row in each.items()} for each in (runs, others))
            gains = differences(own, base) if method != against[method] else []
            rounds = sorted({row["round"] for row in runs.values()})
            lines.append(
                Line(
                    method,
                    topology,
                    len(runs),
                    str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]}-{rounds[-1]}",
                    {key: _estimate([_number(row, key) for row in runs.values()]) for key in quantities},
                    _estimate(gains) if gains else None,
                )
            )
    return Summary(manifest, score, baseline, tuple(lines), _unfinished(manifest, rows))


def _unfinished(manifest: Mapping[str, Any], rows: Sequence[Row]) -> str | None:
    """Of runs that did not end early by themselves, on numbers that are not finite."""
    reached = {run_key(run): 0 for run in manifest.get("runs", ())}
    begun = {run_key(row) for row in rows}
    for row in rows:
        reached[run_key(row)] = max(reached.get(run_key(row), 0), row["round"])
    planned = manifest.get("settings", {}).get("rounds", 0)
    ended = {run_key(run) for run in manifest.get("stopped", ())}
    short = {run: round for run, round in reached.items() if round < planned and run not in ended}
    if not short:
        return None
    got, waiting = f"Not finished: after {max(short.values())} of {planned} rounds", len(short.keys() - begun)
    return f"{got}, {waiting} of {len(reached)} runs not begun" if waiting else got


def _number(row: Row, key: str) -> float:
    """The value; NaN where it is null or absent."""
    return math.nan if row.get(key) is None else float(row[key])


def _estimate(values: Sequence[float]) -> Estimate:
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def facts(summary: Summary) -> list[str]:
    """What a reader must know beside the numbers, one sentence each, without its full stop."""
    model, data, score = summary.manifest["model"], summary.manifest["data"], summary.score
    most = max(line.seeds for line in summary.lines)
    rounds = {line.rounds for line in summary.lines}
    when = f"after {rounds.pop()} rounds" if len(rounds) == 1 else "at the last evaluated round"
    spread = f"{most} seeds: mean ± standard deviation over seeds (n - 1)" if most > 1 else "One seed, so no spread"
    judged, worst, unit = data.get("score", ""), "largest error", ""
    if score.percent:
        chance, worst = 100 * (summary.chance or 0.0), "lowest accuracy"
        judged = f"{data['classes']} classes; chance level {chance:.1f} %"
        unit = ", in percentage points"
    versus = f"vs {summary.baseline}: difference in {score.name} within each seed{unit}"
    return [
        *([summary.unfinished] if summary.unfinished else []),
        f"Model: {model['name']}",
        f"Data: {data['task']} from {data['source']}, {judged}",
        *(each["note"].rstrip(".") for each in (model, data) if each.get("note")),
        f"{spread}, {when}; worst client: the {worst} among the clients; average model: mean A "
        "and mean B of all clients",
        *([versus] if any(line.gain for line in summary.lines) else []),
    ]


def _cells(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the table, as text."""
    score = summary.score
    columns = {"worst client": f"{score.name}_worst", "average model": f"{score.name}_average_model"}
    keys = dict.fromkeys(key for line in summary.lines for key in line.values)
    means = [key for key in keys if key.endswith("_mean") and key != f"{score.name}_mean"]
    columns |= {key.removesuffix("_mean"): key for key in means}  # F1 and the like, where the task has them
    shown = {"form": score.form, "unit": score.unit}
    versus = f"vs {summary.baseline}"
    headers = ["topology", "method", "T", "round", "seeds", score.header(score.name), versus]
    headers += [*map(score.header, columns), "cross term", "sent"]
    periods = {(run["topology"], at_rate(run)): run.get("period") for run in summary.manifest.get("runs", ())}
    cells = [
        [
            line.topology,
            line.method,
            str(periods.get((line.topology, line.method)) or ""),
            line.rounds,
            str(line.seeds),
            _text(line.values.get(f"{score.name}_mean"), **shown),
            _text(line.gain, f"+{score.form}", score.unit),
            *(_text(line.values.get(key), **shown) for key in columns.values()),
            _text(line.values.get("cross_term"), ".1e"),
            size(line.values["bytes"].mean if "bytes" in line.values else math.nan),
        ]
        for line in summary.lines
    ]
    stated = ("round", "seeds")  # by the facts, unless they differ from line to line
    kept = [
        column
        for column in zip(headers, *cells, strict=True)
        if any(column[1:]) and (column[0] not in stated or len(set(column)) > 2)
    ]
    headers, *cells = map(list, zip(*kept, strict=True))
    return headers, cells


def _text(estimate: Estimate | None, form: str, unit: int = 1) -> str:
    """`78.3 ± 0.6`; nothing where there is no estimate, n/a where it is not a number."""
    if estimate is None or math.isnan(estimate.mean):
        return "" if estimate is None else "n/a"
    mean, deviation = ("" if value is None else number(unit * value, form) for value in estimate)
    return mean if estimate.deviation is None else f"{mean} ± {deviation.lstrip('+')}"


def number(value: float, form: str) -> str:
    """As `form` says; an exact zero without a sign, and without an exponent."""
    return format(value, form) if value else format(0.0, form.lstrip("+")).partition(".0e")[0]


def size(count: int | float) -> str:
    """Bytes in powers of 1000, as networks count them; nothing for NaN."""
    if math.isnan(count):
        return ""
    power = min(int(math.log10(max(count, 1)) // 3), 4)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def share(part: float) -> str:
    """In percent: `22%`; below one percent the first digit that is not 0, as `0.6%`."""
    return f"{part:.0%}" if part == 0 or part >= 0.01 else f"{100 * part:.1g}%"


def _markdown(summary: Summary) -> str:
    headers, lines = _cells(summary)
    rule = ["---" if header in ("topology", "method") else "---:" for header in headers]
    text = ["# Summary", "", *(f"- {fact}." for fact in facts(summary)), ""]
    text += ["| " + " | ".join(line) + " |" for line in (headers, rule, *lines)]
    text += ["", *(f"![{name}](figures/{name}.png)" for name in (summary.score.name, *FIGURES)), ""]
    text.append(
        "Lines: mean over seeds. Bands: from the lowest to the highest seed. Grey ground: a linear scale down to 0.\n"
    )
    text.append(f"Made by jaxdfl {summary.manifest['jaxdfl']} from manifest.json, metrics.jsonl and rounds.jsonl.")
    return "\n".join(text) + "\n"


def _csv(summary: Summary) -> str:
    """A line for each method on each topology; every quantity with its standard deviation over seeds as `<key>_sd`."""
    keys = list(dict.fromkeys(key for line in summary.lines for key in line.values))
    gain = f"{summary.score.name}_over_{summary.baseline}"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "topology", "seeds", "round", *(n for key in (*keys, gain) for n in (key, f"{key}_sd"))])
    for line in summary.lines:
        estimates = [*(line.values.get(key) for key in keys), line.gain]
        numbers = [number for estimate in estimates for number in (estimate or (None, None))]
        writer.writerow([line.method, line.topology, line.seeds, line.rounds, *numbers])
    return text.getvalue()


def curves(
    summary: Summary, metrics: Sequence[Row], rounds: Sequence[Row], *, by_bytes: bool = False
) -> Iterator[tuple[str, Figure]]:
    """The figures by name: the score, against bytes too if asked for, then what `FIGURES` lists."""
    topologies = dict.fromkeys(line.topology for line in summary.lines)
    rho = {spec: summary.manifest["topologies"].get(spec, {}).get("rho") for spec in topologies}
    metrics, rounds = ([{**row, "method": at_rate(row)} for row in each] for each in (metrics, rounds))
    titles = {spec: spec if value is None else f"{spec}  ($\\rho$ = {value:.2g})" for spec, value in rho.items()}
    score, shown = summary.score, {f"{summary.score.name}_mean": summary.score.label}
    yield score.name, figures.draw(metrics, shown, titles, summary.chance)
    if by_bytes:
        yield f"{score.name}_by_bytes", figures.draw(metrics, shown, titles, summary.chance, by_bytes=True)
    for name, labels in FIGURES.items():
        moving = {
            key: label for key, label in labels.items() if any(row.get(key) for row in rounds)
        }  # not 0 throughout
        yield name, figures.draw(rounds, moving or dict([next(iter(labels.items()))]), titles)
