"""What jaxdfl costs as one thing grows: `python -m benchmarks.scaling --data-dir DIR`; `--quick` takes small sizes.

Every point is the base federation with one size changed, in a process of its own, so that its peak of memory is its
own. Those of one axis take turns, a stretch of rounds each, since a machine's speed changes by the minute. The first
stretch compiles; what it takes beyond a later one counts as compiling.
"""

import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import record, workload
from benchmarks.remote import Remote
from benchmarks.rounds import REST
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
    sizes: tuple[int, ...] = ()
    """In place of the usual ones, along every axis asked for."""
    stretches: int = 4
    """From one stop, where clients are scored, to the next. The first compiles."""
    rounds: int = 1
    """In a stretch."""
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
    if unknown or options.stretches < 2 or options.rounds < 1:
        print(f"error: axes are {', '.join(SIZES)}, `stretches` at least 2, `rounds` at least 1.", file=sys.stderr)
        return 2
    found = {
        "options": asdict(options), "machine": record.machine(), "packages": record.packages(), "points": [],
    }  # fmt: skip
    for axis in options.axes:
        for size, measured in _measured(
            options, axis, options.sizes or (QUICK if options.quick else SIZES)[axis]
        ).items():
            point = {"axis": axis, "size": size, **measured}
            found["points"].append(point)
            print(", ".join(f"{key} {value}" for key, value in point.items()), flush=True)
        if options.out:
            record.write(options.out, found)
    _show(found["points"])
    return 0


def _measured(options: Options, axis: str, sizes: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Every size's point, or why it failed."""
    turns: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
    failed: dict[int, str] = {}
    with ExitStack() as stack:
        remotes: dict[int, Remote] = {}
        for size in sizes:  # one after another, so that one's setup does not slow another's
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            with _noted(failed, size):
                workload.save_command(
                    folder, _federation(options, axis, size).command(options.rounds * options.stretches)
                )
                more = ["--seeds", *map(str, _seeds(options, axis, size)), "--eval-every", str(options.rounds)]
                remote = Remote("jaxdfl", folder, folder / "log", more=[*more, *shlex.split(options.more)])
                remotes[size] = stack.enter_context(remote)
                turns[size].append(remote.hear())
        while remotes:
            for size, remote in list(remotes.items()):
                reply = {}
                with _noted(failed, size):
                    time.sleep(REST)
                    reply = remote.go()
                    turns[size].append(reply)
                if "seconds" not in reply:
                    del remotes[size]  # it has failed, or had all its turns
    return {
        size: {"failed": failed[size]} if size in failed else _point(options, axis, size, turns[size]) for size in sizes
    }


@contextmanager
def _noted(failed: dict[int, str], size: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        failed[size] = str(error).splitlines()[-1]


def _federation(options: Options, axis: str, size: int) -> Federation:
    return options.federation if axis == "runs" else replace(options.federation, **{axis: size})


def _seeds(options: Options, axis: str, size: int) -> range:
    return range(options.federation.seed, options.federation.seed + (size if axis == "runs" else 1))


def _point(options: Options, axis: str, size: int, turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    # Runs that are one program hand over one after another, all but the first at once; runs one by one, each after its
    # own rounds. A stretch of all runs is the sum of both.
    ends = range(options.rounds, options.rounds * options.stretches + 1, options.rounds)
    first, *later = (sum(turn["seconds"] for turn in turns if turn.get("round") == end) for end in ends)
    seconds, federation = median(later) / options.rounds, _federation(options, axis, size)
    steps = len(_seeds(options, axis, size)) * federation.clients * federation.local_steps
    return {
        "s/round": round(seconds, 4),
        "client-step ms": round(1e3 * seconds / steps, 3),
        "compile s": round(first - median(later), 2),
        "peak MiB": round(max(turn["peak_mib"] for turn in turns if "peak_mib" in turn)),
    }


def _show(points: list[dict[str, Any]]) -> None:
    table = Table("axis", "size", *COLUMNS, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for point in points:
        cells = [point["failed"]] if "failed" in point else [str(point[name]) for name in COLUMNS]
        table.add_row(point["axis"], str(point["size"]), *cells)
    Console(markup=False, highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
