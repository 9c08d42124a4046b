"""What jaxdfl costs as one thing grows: `python -m benchmarks.scaling --data-dir DIR`; `--quick` takes small sizes.

Every point is the base federation with one size changed, in a process of its own, so that its peak of memory is its
own. The first round compiles; what it takes beyond a later one counts as compiling.
"""

import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import record, workload
from benchmarks.remote import Remote
from benchmarks.workload import Federation

SIZES: dict[str, tuple[int, ...]] = {
    "clients": (4, 16, 64, 256, 1024),
    "rank": (2, 8, 32, 128),
    "max_length": (16, 32, 64, 128),
    "batch_size": (1, 4, 16, 64),
    "runs": (1, 2, 4, 8),  # seeds
}
QUICK: dict[str, tuple[int, ...]] = {
    "clients": (2, 4), "rank": (2, 8), "max_length": (16, 32), "batch_size": (1, 2), "runs": (1, 2),
}  # fmt: skip
COLUMNS = ("s/round", "client-step ms", "compile s", "peak MiB")


@dataclass(frozen=True)
class Options:
    """jaxdfl's cost against clients, rank, length, batch and runs."""

    federation: Federation = field(default_factory=lambda: Federation(clients=8, batch_size=4, max_length=32))
    axes: tuple[str, ...] = tuple(SIZES)
    rounds: int = 4
    """Of which the first compiles."""
    quick: bool = False
    more: str = ""
    """Further options of jaxdfl, such as `--more="--client-chunk 2"`."""
    out: Path | None = None
    """JSON file, written again after every point."""


def main() -> int:
    """A point that fails (out of memory, say) leaves its reason and lets the others be."""
    options = tyro.cli(Options, config=(tyro.conf.OmitArgPrefixes,))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as `timeout` sends it: workers and folders go too
    unknown = [axis for axis in options.axes if axis not in SIZES]
    if unknown or options.rounds < 2:
        print(f"error: axes are {', '.join(SIZES)}, and `rounds` at least 2.", file=sys.stderr)
        return 2
    found = {
        "options": asdict(options), "machine": record.machine(), "packages": record.packages(), "points": [],
    }  # fmt: skip
    for axis, size in _points(options):
        point = {"axis": axis, "size": size, **_measured(options, axis, size)}
        found["points"].append(point)
        print(", ".join(f"{key} {value}" for key, value in point.items()), flush=True)
        if options.out:
            record.write(options.out, found)
    _show(found["points"])
    return 0


def _points(options: Options) -> Iterator[tuple[str, int]]:
    for axis in options.axes:
        yield from ((axis, size) for size in (QUICK if options.quick else SIZES)[axis])


def _measured(options: Options, axis: str, size: int) -> dict[str, Any]:
    runs = size if axis == "runs" else 1
    federation = options.federation if axis == "runs" else replace(options.federation, **{axis: size})
    seeds = ["--seeds", *(str(federation.seed + i) for i in range(runs))]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            workload.save_command(folder, federation.command(options.rounds))
            with Remote("jaxdfl", folder, folder / "log", more=[*seeds, *shlex.split(options.more)]) as remote:
                turns = [remote.hear()]
                while "losses" not in (reply := remote.go()):
                    turns.append(reply)
        except RuntimeError as error:
            return {"failed": str(error).splitlines()[-1]}
    # Runs that are one program hand over one after another, all but the first at once; runs one by one, each after its
    # own rounds. A round of all runs is the sum of both.
    by_round = {r: sum(t["seconds"] for t in turns if t["round"] == r) for r in range(1, options.rounds + 1)}
    seconds = median(by_round[r] for r in range(2, options.rounds + 1))
    return {
        "s/round": round(seconds, 4),
        "client-step ms": round(1e3 * seconds / (runs * federation.clients * federation.local_steps), 3),
        "compile s": round(by_round[1] - seconds, 2),
        "peak MiB": round(max(turn["peak_mib"] for turn in turns)),
    }


def _show(points: list[dict[str, Any]]) -> None:
    table = Table("axis", "size", *COLUMNS, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for point in points:
        cells = [point["failed"]] if "failed" in point else [str(point[name]) for name in COLUMNS]
        table.add_row(point["axis"], str(point["size"]), *cells)
    Console(markup=False, highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
