"""`jaxdfl sweep`: `jaxdfl run` over a grid, a run folder for each point, and one table over all of them.

Methods, topologies, seeds and learning rates are axes within a run folder, which run as few programs as they can. Any
other setting that is given several values spans the grid; each of its points is an experiment of its own.
"""

import csv
import itertools
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, get_origin, get_type_hints

from jaxdfl import experiment
from jaxdfl.arguments import parse
from jaxdfl.commands import launching
from jaxdfl.commands.parser import options
from jaxdfl.console import OUT
from jaxdfl.exit_codes import NOT_FINITE
from jaxdfl.presets import PRESETS
from jaxdfl.refusal import refuse
from jaxdfl.settings import Settings, flag

ABOUT = """\
usage: jaxdfl sweep [any options of `jaxdfl run`, each with one or more values] --out DIR

Runs every combination. DIR gets a run folder for each, and sweep.csv with the last scores of all of them.

examples:
  jaxdfl sweep --preset bilinear --rank 2 4 8 --local-steps 1 5 --seeds 0 1 2 --out runs/ranks
  jaxdfl sweep --partition iid paper dirichlet:0.5 --methods dec_lora tad_lora --out runs/skew
  jaxdfl sweep --preset bilinear --rank 2 4 8 --launcher ray --workers 2 --out runs/on_ray
  jaxdfl sweep --preset paper --rank 4 8 --launcher slurm --gpus 1 --minutes 240 --slurm partition=gpu --out runs/slurm

where the points run:
  --launcher local|ray|slurm  here, one after another (the default); or on workers of a cluster, each in a process of
                              its own, and gone on with by another worker where one dies. DIR/POINT.log: what it prints
  --workers N                 points at a time: 2 on a Ray started here, elsewhere as many as there is room for
  --cpus N  --gpus N          of each worker: of a Ray started here, its share of the cores; no GPU
  --tries N                   times that a point is begun at most: 3
  --ray-address ADDRESS       of a Ray that is there (`auto` finds one on this machine); without it, one is started here
  --minutes N                 of a job on Slurm, which then saves and is queued again
  --slurm KEY=VALUE ...       options of sbatch as submitit spells them: partition=gpu account=x signal_delay_s=300;
                              cluster=local runs the jobs as processes of this machine

`jaxdfl run --help` lists all other options.
"""
ALONE = ("preset", "out")  # one value each


class Grid(NamedTuple):
    """What is common to all points, and the values along each axis."""

    common: list[str]  # arguments
    axes: dict[str, list[str]]  # flag -> values


def main(argv: Sequence[str]) -> int:
    """Checks every point, then runs them all: one after another here, or on workers."""
    if "-h" in argv or "--help" in argv:
        print(ABOUT)
        return 0
    ours, rest = launching.apart(argv)
    try:
        how, grid = launching.read(ours), split(rest)
        points = list(itertools.product(*grid.axes.values()))
        asked = [[*grid.common, *itertools.chain(*zip(grid.axes, point, strict=True))] for point in points]
        settings = [parse(PRESETS, each) for each in asked]
    except ValueError as error:
        return refuse(error)
    out = Path(settings[0].out or f"runs/sweep-{settings[0].preset}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    folders = [out / folder_name(grid.axes, point) for point in points]
    code = _run(asked, folders) if how.launcher == "local" else launching.run(how, out, asked, settings, folders)
    if code:
        return code
    path = join(out, grid.axes, points, folders)
    OUT.print(f"{len(points)} run folders and {path}", soft_wrap=True)
    return 0


def _run(asked: Sequence[Sequence[str]], folders: Sequence[Path]) -> int:
    """Runs the points one after another, here; the exit code of the first that does not get done, or 0."""
    for number, (each, folder) in enumerate(zip(asked, folders, strict=True), start=1):
        OUT.print(f"[{number} of {len(asked)}] {folder}", style="bold")
        code = experiment.main(PRESETS, [*each, "--out", str(folder)], command=("jaxdfl", "run"))
        if code not in (0, NOT_FINITE):
            return code
    return 0


def split(argv: Sequence[str]) -> Grid:
    """Options with several values, of settings that take one, become axes.

    Raises:
        ValueError: a value comes twice, or the preset or the folder has several.
    """
    hints = get_type_hints(Settings)
    single = {flag(field.name) for field in fields(Settings) if get_origin(hints[field.name]) is not tuple}
    common, axes = [], {}
    for option, values in options(argv):
        if option not in single or len(values) < 2:
            common += [option, *values]
            continue
        if option.removeprefix("--") in ALONE or len(set(values)) < len(values):
            raise ValueError(
                f"`{option}` takes one value, or different ones where it spans a grid, got {' '.join(values)}."
            )
        axes[option] = values
    return Grid(common, axes)


def folder_name(axes: Sequence[str] | dict[str, Any], point: Sequence[str]) -> str:
    """`rank=2,local-steps=5`, with what is no letter, digit, dot or dash replaced; `all` for a grid of one point."""
    named = ",".join(f"{flag.removeprefix('--')}={value}" for flag, value in zip(axes, point, strict=True))
    return "".join(c if c.isalnum() or c in "-_.,=" else "_" for c in named) or "all"


def join(out: Path, axes: dict[str, list[str]], points: Sequence[Sequence[str]], folders: Sequence[Path]) -> Path:
    """Writes sweep.csv: the rows of every point's summary.csv behind the point's own values."""
    names, rows = [flag.removeprefix("--") for flag in axes], []
    for point, folder in zip(points, folders, strict=True):
        with open(folder / "summary.csv", encoding="utf-8", newline="") as file:
            rows += [{**dict(zip(names, point, strict=True)), **row} for row in csv.DictReader(file)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(out / "sweep.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out / "sweep.csv"
