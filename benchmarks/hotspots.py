"""Where a round's time goes, by kind of XLA operation: `python -m benchmarks.hotspots --data-dir DIR`.

One round of the federation of `benchmarks.rounds`, as the command line runs it, under JAX's profiler. An operation's
own time is its span less what lies within it on the same thread; the threads are added up.
"""

from jaxdfl.startup import split_cpu  # isort: skip (it comes before jax)

import argparse
import gzip
import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.workload import Federation
from jaxdfl.arguments import parse
from jaxdfl.execution import execute
from jaxdfl.manifest import begin
from jaxdfl.prepare import prepare
from jaxdfl.presets import MINILM
from jaxdfl.problems import Problem

TRACED = 3  # the round; those before it compile and warm up
MODULE = "jit_advance"
Event = dict[str, Any]


def main() -> None:
    """Runs, and prints a table."""
    asked = argparse.ArgumentParser(prog="python -m benchmarks.hotspots", description=__doc__)
    asked.add_argument("--data-dir", help="folder with mnli/; without it, generated pairs")
    asked.add_argument("--more", nargs="*", default=[], help="further options of jaxdfl, as words")
    options = asked.parse_args()
    split_cpu(None)
    with tempfile.TemporaryDirectory() as scratch:
        command = [*Federation(options.data_dir).command(TRACED), *options.more, "--out", f"{scratch}/run"]
        prepared = prepare(parse({"benchmark": MINILM}, command))
        seconds: list[float] = []
        watched = prepared._replace(problem=_traced(prepared.problem, Path(scratch), seconds))
        execute(watched, *begin(watched, ["python", "-m", "benchmarks.hotspots"]))
        (path,) = Path(scratch).glob("plugins/profile/*/*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    kinds: defaultdict[str, list[float]] = defaultdict(list)
    for name, own in own_times(events):
        kinds[re.sub(r"[.\d]+$", "", name)].append(own)
    total = sum(map(sum, kinds.values()))
    table = Table("operation", "times", "s, all threads", "share", title=f"{seconds[0]:.2f} s, {total:.2f} s at work")
    for kind, times in sorted(kinds.items(), key=lambda item: -sum(item[1]))[:25]:
        table.add_row(kind, str(len(times)), f"{sum(times):.3f}", f"{sum(times) / total:.1%}")
    Console().print(table)


def _traced(problem: Problem, folder: Path, seconds: list[float]) -> Problem:
    """The problem, whose scoring begins and ends the trace: it comes between the rounds."""
    quiet = jax.profiler.ProfileOptions()
    quiet.python_tracer_level = 0

    def scores(start: Any, method: Any, state: Any) -> Any:
        jax.block_until_ready(state)
        if int(state.round) == TRACED:
            seconds[0] = time.perf_counter() - seconds[0]
            jax.profiler.stop_trace()
        found = problem.scores(start, method, state)
        if int(state.round) == TRACED - 1:
            jax.profiler.start_trace(folder, profiler_options=quiet)
            seconds.append(time.perf_counter())
        return found

    return problem._replace(scores=scores)


def own_times(events: list[Event]) -> Iterator[tuple[str, float]]:
    """(operation, seconds of its own) of the events of the compiled program; spans of a thread nest."""
    ours = [each for each in events if each.get("ph") == "X" and each.get("args", {}).get("hlo_module") == MODULE]
    open_, thread = [], None  # spans: [event, seconds within it]
    for each in sorted(ours, key=lambda event: (event["tid"], event["ts"], -event["dur"])):
        while open_ and (each["tid"] != thread or each["ts"] >= open_[-1][0]["ts"] + open_[-1][0]["dur"]):
            ended, within = open_.pop()
            yield ended["args"]["hlo_op"], (ended["dur"] - within) / 1e6
        if open_:
            open_[-1][1] += each["dur"]
        open_.append([each, 0.0])
        thread = each["tid"]
    for ended, within in open_:
        yield ended["args"]["hlo_op"], (ended["dur"] - within) / 1e6


if __name__ == "__main__":
    main()
