"""Seconds a round, jaxdfl against all rivals on equal work: `python -m benchmarks.rounds --data-dir DIR`.

Every system lives in a process of its own. They take turns (A B C A B C ...), all on the same round of the same
federation in one repetition, so that a disturbance of the machine meets them alike. Ratios are medians of the ratios
within a repetition. The first rounds warm up and are told apart.
"""

import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks import operations, record, roofline, workload
from benchmarks.remote import Remote
from benchmarks.systems import SYSTEMS
from benchmarks.workload import Federation, Workload

REST = 0.3  # seconds between turns, for thread pools to fall asleep


@dataclass(frozen=True)
class Options:
    """jaxdfl against its rivals, round by round."""

    federation: Federation
    systems: tuple[str, ...] = tuple(name for name in SYSTEMS if name != "jaxdfl_sweep")
    """Of those in systems.py; what is not installed is left out and said."""
    against: str = "jaxdfl"
    """Ratios are the others' time over this one's."""
    repetitions: int = 5
    warm_up: int = 1
    """Rounds before those that count."""
    roof: bool = True
    """Measure what the processor's products could do at best."""
    tolerance: float = 1e-4
    """Of a round's loss, relative. In float32 sound systems differ by 1e-7; one that forgets to mix, by 1e-3 soon."""
    out: Path | None = None
    """JSON file for everything measured."""
    logs: Path | None = None
    """Folder for what the workers say; None drops it."""


def main() -> int:
    """Exit code 1 where losses differ by more than the tolerance, 2 where nothing could be measured."""
    options = tyro.cli(Options, config=(tyro.conf.OmitArgPrefixes,))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as `timeout` sends it: workers and folders go too
    unknown = [name for name in (*options.systems, options.against) if name not in SYSTEMS]
    if unknown:
        print(f"error: unknown system {unknown[0]!r}. Known: {', '.join(SYSTEMS)}.", file=sys.stderr)
        return 2
    missing = {name: SYSTEMS[name].missing(sys.executable) for name in options.systems}
    names = [name for name in options.systems if not missing[name]]
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            rounds = options.warm_up + options.repetitions
            work = workload.make(options.federation, rounds, folder / "run")
            work.save(folder / "workload")
            before = roofline.roofline() if options.roof else {}
            logs = options.logs or folder / "logs"
            logs.mkdir(parents=True, exist_ok=True)
            systems = take_turns(names, folder / "workload", logs, rounds)
            roofs = roofline.best(before, roofline.roofline()) if options.roof else {}
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = {
        "options": {**asdict(options), "systems": names},
        "left_out": {name: why for name, why in missing.items() if why},
        "machine": record.machine(),
        "packages": record.packages(),
        "model": work.model,
        "data": work.data,
        "roofline_gflops": roofs,
        "useful_gflop": useful_gflop(work),
        "systems": systems,
    }
    found["compared"] = record.compare(found, options.against, options.warm_up)
    record.show(found)
    if options.out:
        record.write(options.out, found)
    worst = max(row["loss_difference"] for row in found["compared"].values())
    return 0 if worst <= options.tolerance else 1


def take_turns(names: list[str], work: Path, logs: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """What every system measured: seconds by round, losses and the rest."""
    with ExitStack() as stack:
        remotes, setup = {}, {}
        for name in names:  # one after another, so that one's setup does not slow another's
            remotes[name] = stack.enter_context(Remote(name, work, logs / f"{name}.log"))
            setup[name] = remotes[name].hear()["seconds"]
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for round in range(rounds):
            for name, remote in remotes.items():
                time.sleep(REST)
                turns[name].append(remote.go())
            print(f"round {round}: " + ", ".join(f"{n} {t[-1]['seconds']:.2f} s" for n, t in turns.items()), flush=True)
        results = {name: remote.end() for name, remote in remotes.items()}
    return {
        name: {
            "setup_seconds": setup[name],
            "seconds": [turn["seconds"] for turn in turns[name]],
            "peak_mib": max(turn["peak_mib"] for turn in turns[name]),
            **results[name]._asdict(),
        }
        for name in names
    }


def useful_gflop(work: Workload) -> list[float]:
    """By round: real tokens alone, and only what the classifier reads."""
    shape = operations.Shape.of(work.model["shape"], len(work.head["bias"]))
    return [operations.useful(shape, lengths, work.rank) / 1e9 for lengths in work.lengths]


if __name__ == "__main__":
    sys.exit(main())
