"""The table of a comparison: as columns of cells, as Markdown, and as LaTeX (booktabs)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxdfl.comparison import Compared, Comparison
from jaxdfl.report import facts, number, size
from jaxdfl.statistics import ROUNDING, Interval, Signs

NOTES = (
    "In brackets: 95 % confidence interval over seeds, Student's t",
    f"Differences are within each seed, and a tie below {ROUNDING:g} of the score; wins counts seeds, and p is of the "
    "exact two-sided sign test",
)
AT_BYTES = (
    "At equal bytes: the score when as much was sent as the most frugal sending method on the topology sends in all, "
    "linear between evaluated rounds"
)
WORDS = ("topology", "method")  # columns of text, on the left


class Cell(NamedTuple):
    """One entry."""

    text: str
    value: float | str  # to sort by; NaN where there is nothing


class Column(NamedTuple):
    """One quantity of all lines."""

    header: str
    cells: list[Cell]


def columns(comparison: Comparison) -> list[Column]:
    """What the table shows, without columns that say nothing."""
    score, lines, versus = comparison.score, comparison.lines, f"vs {comparison.summary.baseline}"

    def scored(of: Callable[[Compared], Interval | None], sign: str = "") -> list[Cell]:
        return [_interval(of(line), f"{sign}{score.form}", score.unit) for line in lines]

    def plain(of: Callable[[Compared], Any]) -> list[Cell]:
        return [Cell(str(of(line) or ""), of(line) or math.nan) for line in lines]

    found = [
        Column("topology", [Cell(line.topology, line.topology) for line in lines]),
        Column("method", [Cell(line.method, line.method) for line in lines]),
        Column("T", plain(lambda line: line.period)),
        Column("round", [Cell(line.round, float(line.round.partition("-")[0])) for line in lines]),
        Column("seeds", plain(lambda line: line.score.seeds)),
        Column(score.header(score.name), scored(lambda line: line.score)),
        Column(versus, scored(lambda line: line.gain, "+")),
        Column("wins", [_signs(line.signs) for line in lines]),
        Column(score.header("worst client"), scored(lambda line: line.worst)),
        Column(score.header("average model"), scored(lambda line: line.average_model)),
        Column("cross term", [_interval(line.cross_term._replace(low=math.nan), ".1e") for line in lines]),
        Column("sent", [Cell(size(line.bytes.mean), line.bytes.mean) for line in lines]),
    ]
    if _bytes_differ(comparison):
        found.append(Column(score.header(f"{score.name} at equal bytes"), scored(lambda line: line.at_bytes)))
        found.append(Column(f"{versus} at equal bytes", scored(lambda line: line.gain_at_bytes, "+")))
    stated = ("round", "seeds")  # by the facts, unless they differ from line to line
    return [
        column
        for column in found
        if any(cell.text for cell in column.cells)
        and (column.header not in stated or len({cell.text for cell in column.cells}) > 1)
    ]


def remarks(comparison: Comparison) -> list[str]:
    """What a reader must know beside the numbers, a sentence each, without its full stop."""
    stated = [fact for fact in facts(comparison.summary) if not fact.startswith("vs ")]
    stated = [fact.replace(": mean ± standard deviation over seeds (n - 1)", "") for fact in stated]
    return [*stated, *NOTES, *([AT_BYTES] if _bytes_differ(comparison) else [])]


def markdown(comparison: Comparison) -> str:
    """The table and its remarks."""
    shown = columns(comparison)
    rule = ["---" if column.header in WORDS else "---:" for column in shown]
    rows = [[column.header for column in shown], rule, *_rows(shown)]
    text = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*text, "", *(f"- {remark}." for remark in remarks(comparison)), ""])


def latex(comparison: Comparison) -> str:
    """A `tabular` for the booktabs package, a rule between topologies; the remarks as comments."""
    shown = columns(comparison)
    layout = "".join("l" if column.header in WORDS else "r" for column in shown)
    rows, above = [], None
    for row in _rows(shown):
        if above not in (None, row[0]):
            rows.append(r"\midrule")
        rows.append(" & ".join(map(_escaped, row)) + r" \\")
        above = row[0]
    head = " & ".join(_escaped(column.header) for column in shown) + r" \\"
    body = [rf"\begin{{tabular}}{{{layout}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*(f"% {remark}." for remark in remarks(comparison)), *body, ""])


def _bytes_differ(comparison: Comparison) -> bool:
    """Whether the two views differ."""
    finite = (line for line in comparison.lines if math.isfinite(line.score.mean))
    return any(line.at_bytes.mean != line.score.mean for line in finite)


def _rows(shown: list[Column]) -> list[list[str]]:
    return [[cell.text for cell in row] for row in zip(*(column.cells for column in shown), strict=True)]


def _interval(found: Interval | None, form: str, unit: int = 1) -> Cell:
    """`78.3 [77.1, 79.5]`; the mean alone without an interval, n/a where a seed diverged."""
    if found is None or found.seeds == 0:
        return Cell("", math.nan)
    if math.isnan(found.mean):
        return Cell("n/a", math.nan)
    mean, low, high = (number(unit * value, form) for value in found[:3])
    return Cell(mean if math.isnan(found.low) else f"{mean} [{low}, {high}]", found.mean)


def _signs(found: Signs | None) -> Cell:
    if found is None or found.wins + found.losses + found.ties < 2:
        return Cell("", math.nan)
    count = found.wins + found.losses + found.ties
    tied = f", {found.ties} tied" if found.ties else ""
    return Cell(f"{found.wins} of {count}{tied} (p = {found.p:.2g})", found.wins / count)


def _escaped(text: str) -> str:
    r"""For LaTeX, where `_`, `%` and `&` mean something."""
    for sign in "&%_#":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("~", r"\textasciitilde{}").replace("±", r"$\pm$")
