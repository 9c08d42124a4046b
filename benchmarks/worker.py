"""One system in a process of its own, which works when it is told to: `python -m benchmarks.worker NAME FOLDER`.

On its standard input every line is a turn. On its standard output is a line of JSON for the setup, for each turn
(`seconds`, `peak_mib`), and at the end for what was found (`losses`, `operations`, `facts`). Whatever libraries print
goes to standard error.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TextIO


class Result(NamedTuple):
    """What a system has to show after its rounds."""

    losses: list[float]  # mean over clients and steps, by round
    operations: list[float]  # executed matrix products, by round
    facts: dict[str, Any]  # threads, devices: what the table's reader should know


class Turn:
    """Called after the setup and after every round: hands over and comes back when the next turn begins.

    `stop()` stops the clock beforehand, where something follows that is no part of the round.
    """

    def __init__(self, replies: TextIO):
        self.replies, self.began, self.seconds = replies, time.perf_counter(), None

    def stop(self) -> None:
        self.seconds = time.perf_counter() - self.began

    def __call__(self, **facts: Any) -> None:
        if self.seconds is None:
            self.stop()
        self.reply(seconds=self.seconds, peak_mib=peak_mib(), **facts)
        if not sys.stdin.readline():
            os._exit(1)  # nobody listens any more
        self.seconds, self.began = None, time.perf_counter()

    def reply(self, **values: Any) -> None:
        self.replies.write(json.dumps(values) + "\n")
        self.replies.flush()


System = Callable[..., Result]  # (folder of the workload, turn, **options of its own)


def peak_mib() -> float:
    """Peak resident memory of this process and those it has started, in MiB; what they share counts for each.

    Not from getrusage where /proc is: a process started by another takes over that one's peak there.
    """
    if not Path("/proc/self/status").exists():
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return sum(_high_water(pid) for pid in (os.getpid(), *_descendants(os.getpid()))) / 2**10


def _descendants(pid: int) -> list[int]:
    children = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children += [int(child) for child in task.read_text().split()]
    return children + [pid for child in children for pid in _descendants(child)]


def _high_water(pid: int) -> int:
    """In KiB; 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def main() -> None:
    from benchmarks.systems import SYSTEMS

    name, folder, *more = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    turn = Turn(replies)
    result = SYSTEMS[name].load()(Path(folder), turn, **SYSTEMS[name].options, **json.loads(more[0] if more else "{}"))
    turn.reply(**result._asdict())
    replies.close()


if __name__ == "__main__":
    main()
