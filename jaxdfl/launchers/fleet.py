"""Points of a sweep, handed to an engine's workers; begun again where a worker dies; a line for whatever happens.

A point may be begun any number of times: its run goes on from what the last worker saved.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxdfl.exit_codes import AT_ONCE, FAILED, NOT_FINITE, REFUSED, STOPPED
from jaxdfl.interrupts import interruptible

TRIES = 3


class Point(NamedTuple):
    """A point of a sweep, as a worker on any machine gets it."""

    folder: str  # its run folder
    python: tuple[str, ...]  # arguments of the Python process that runs it, from its start or from where it has got to
    directory: str  # in which that process works
    log: str  # file for all that it prints, beside the run folder


class End(NamedTuple):
    """How a worker has left a point."""

    code: int | None  # of its process, negative for the signal that ended it; None where the worker is lost too
    said: str  # the last line that it printed, or what the engine says

    @property
    def died(self) -> bool:
        """Whether the point can be gone on with, and should be."""
        return self.code is None or self.code < 0 or self.code in (STOPPED, AT_ONCE)


@runtime_checkable
class Engine(Protocol):
    """What runs points on workers. Closed by `close`, in whatever way the sweep ends."""

    room: int | None  # points at a time; None: it knows how many itself

    def start(self, point: Point) -> str:
        """Hands a point to a worker, or to a queue for one; says which.

        Raises:
            OSError: it cannot be.
        """
        ...

    def ended(self) -> Iterable[tuple[Point, End]]:
        """Points that workers have left; waits for a second where there are none."""
        ...

    def stop(self) -> None:
        """Asks all workers to save and end."""
        ...

    def close(self) -> None:
        """Lets go of all workers."""
        ...


def launch(
    engine: Engine, points: Sequence[Point], tries: int = TRIES, say: Callable[[str], None] = print
) -> dict[Point, End]:
    """Runs all points, each begun at most so many times; returns how each ended, none of them as one that `died`.

    SIGINT and SIGTERM let the workers save; their points, and those that had no turn, then end with `STOPPED`.
    """
    place = {point: f"[{number} of {len(points)}] {point.folder}" for number, point in enumerate(points, start=1)}
    waiting, begun, running, ends = deque(points), Counter[Point](), set[Point](), dict[Point, End]()
    told = False

    def over(point: Point, end: End) -> None:
        ends[point] = end
        say(f"{place[point]}: {_words(end)}")

    with interruptible(lambda: say("stopping: workers save what they have; Ctrl-C again ends at once.")) as asked:
        while running or (waiting and not asked()):
            if asked() and not told:
                engine.stop()
                told = True
            while waiting and not asked() and (engine.room is None or len(running) < engine.room):
                point = waiting.popleft()
                begun[point] += 1
                try:
                    where = engine.start(point)
                except OSError as error:
                    over(point, End(FAILED, str(error)))
                    continue
                running.add(point)
                say(f"{place[point]}: {'begun' if begun[point] == 1 else 'goes on'}{where}")
            for point, end in engine.ended() if running else ():
                running.remove(point)
                if not end.died:
                    over(point, end)
                elif asked():
                    over(point, End(STOPPED, ""))
                elif begun[point] == tries:
                    over(point, End(FAILED, f"given up after {tries} tries; at the last, {_words(end)}"))
                else:
                    say(f"{place[point]}: {_words(end)}; try {begun[point] + 1} of {tries} follows")
                    waiting.appendleft(point)
    return ends | dict.fromkeys(waiting, End(STOPPED, ""))


def _words(end: End) -> str:
    if end.code is None:
        return f"its worker died: {end.said}"
    if end.code < 0:
        return f"its process died of signal {-end.code}"
    return {
        0: "done", NOT_FINITE: "done, but for runs with bad numbers", STOPPED: "stopped",
        AT_ONCE: "stopped at once", REFUSED: f"refused: {end.said}",
    }.get(end.code, f"broke off: {end.said}")  # fmt: skip
