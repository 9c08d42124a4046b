"""An experiment from the command line: prepared and checked as a whole, then simulated and recorded run by run.

`experiments/*.py` call `main` with their presets. A run is one method on one topology with one seed.
"""

from jaxdfl.startup import programs_kept, split_cpu  # isort: skip (it comes before jax)

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdfl import checkpoint, console, report
from jaxdfl.data.batches import plan
from jaxdfl.data.partition import Partition
from jaxdfl.doctor import check_numerics
from jaxdfl.prepare import NOBODY, Prepared, Run, prepare
from jaxdfl.problems import seed_keys
from jaxdfl.protocol import Method
from jaxdfl.settings import Settings, make_optimizer, parse
from jaxdfl.simulate.program import Advance, code, make_advance
from jaxdfl.simulate.rounds import measure
from jaxdfl.simulate.sweep import Stop, sweep
from jaxdfl.topology.spectrum import recommended_period
from jaxdfl.trackers import environment

_measure = jax.jit(measure, static_argnums=0)


def main(
    presets: Mapping[str, Settings],
    argv: Sequence[str] | None = None,
    study: Callable[[Path], str] | None = None,
    command: Sequence[str] | None = None,
) -> int:
    """Runs an experiment from the command line; the exit code is 2, with one line on stderr, where it cannot start.

    `study` reads the finished run folder, draws what it finds into its `figures/`, and says it in words (Markdown,
    which goes to `study.md` and to the screen). `command` is what the manifest says before `argv`: None, the script.
    """
    command = ("python", Path(sys.argv[0]).name) if command is None else command
    argv = sys.argv[1:] if argv is None else argv
    try:
        settings = parse(presets, argv, " ".join(command))
    except ValueError as error:
        return _refuse(error)
    split_cpu(settings.cpu_devices if settings.sweep else 1)
    with programs_kept(settings.compilation_cache):
        try:
            check_numerics()
            prepared = prepare(settings)
        except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: bad numerics, or jax without its device
            return _refuse(error)
        execute(prepared, [*command, *argv])
    if study is not None:
        console.show_study(study(prepared.folder.path), prepared.folder.path)
    return 0


def _refuse(error: Exception) -> int:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return 2


def execute(prepared: Prepared, command: Sequence[str]) -> report.Summary:
    """Simulates every run, records it in the run folder under `command`, and prints the table."""
    settings, problem, folder = prepared.settings, prepared.problem, prepared.folder
    manifest = _manifest(prepared, command)
    folder.write_manifest(manifest)
    console.show_setup(manifest)

    advance = make_advance(
        problem.loss, make_optimizer(settings), moments=settings.moments, clip=settings.clip,
        chunk=settings.client_chunk or problem.chunk,
    )  # fmt: skip
    with console.progress(len(prepared.runs) * settings.rounds) as moved, console.compile_time() as compiled:
        for runs in prepared.groups():
            _simulate(
                prepared, runs, advance, [console.Recorder(folder, run.identity, moved, len(runs)) for run in runs]
            )
    summary = report.summarize(folder.path)
    console.show_summary(summary, folder.path, compiled())
    return summary


def _simulate(prepared: Prepared, runs: Sequence[Run], advance: Advance, records: Sequence[console.Recorder]) -> None:
    """Runs that share a program, all at once."""
    settings, problem = prepared.settings, prepared.problem
    given = [(run.seed, run.topology == NOBODY) for run in runs]
    starts = {key: prepared.seeded(run) for key, run in dict(zip(given, runs, strict=True)).items()}
    plans = {key: partial(_plan, settings, key[0], start.parts) for key, start in starts.items()}
    cases = [prepared.case(run, starts[key], plans[key]) for run, key in zip(runs, given, strict=True)]
    starts = {key: start._replace(base={}) for key, start in starts.items()}  # W0 has served, and is large

    def at_stop(number: int, stop: Stop) -> None:
        method = code(cases[number].method)
        scores = problem.scores(starts[given[number]], method, stop.state)
        records[number](stop, {**scores, **_measured(method, stop)})

    states = sweep(advance, cases, problem.examples, rounds=settings.rounds, every=settings.eval_every, stop=at_stop)
    if settings.checkpoints:
        for run, state in zip(runs, states, strict=True):
            number = prepared.runs.index(run)  # since two specs may look alike as file names
            name = "-".join([f"{number:03d}", run.method, run.topology, f"seed{run.seed}"])
            checkpoint.save(prepared.folder.checkpoints / re.sub(r"[^\w.-]", "_", name), state)


def _plan(settings: Settings, seed: int, parts: Partition, rounds: range) -> np.ndarray:
    return plan(seed_keys(seed).batches, parts, rounds, settings.local_steps, settings.batch_size)


def _measured(method: Method, stop: Stop) -> dict[str, float]:
    """The diagnostics of the state; the last round's, where there was one."""
    found = {name: values[-1] for name, values in stop.infos.items()} or _measure(method, stop.state)
    return {name: float(found[name]) for name in console.DIAGNOSTICS}


def _recommended(rho: float) -> int | None:
    """TAD-LoRA's period on such a network; None where the network never mixes."""
    try:
        return recommended_period(rho)
    except ValueError:
        return None


def _manifest(prepared: Prepared, command: Sequence[str]) -> dict[str, Any]:
    return {
        "command": list(command),
        "settings": dataclasses.asdict(prepared.settings),
        "model": prepared.problem.model,
        "data": prepared.problem.data,
        "partitions": prepared.problem.partitions,
        "topologies": {
            spec: {**found._asdict(), "recommended_period": _recommended(found.rho)}
            for spec, found in prepared.spectra.items()
        },
        "runs": [{**run.identity, "period": prepared.periods[run]} for run in prepared.runs],
        "environment": environment(),
    }
