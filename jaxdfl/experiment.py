"""An experiment from the command line: prepared and checked as a whole, then simulated and recorded run by run.

`experiments/*.py` call `main` with their presets. A run is one method on one topology with one seed.
"""

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxdfl import checkpoint, console, devices, report
from jaxdfl.data.batches import plan
from jaxdfl.doctor import check_numerics
from jaxdfl.methods.schedules import nothing
from jaxdfl.prepare import Prepared, Run, prepare
from jaxdfl.problems import seed_keys
from jaxdfl.settings import Settings, make_optimizer, make_step_scale, parse
from jaxdfl.simulate.rounds import measure
from jaxdfl.simulate.run import Advance, Stop, make_advance, simulate
from jaxdfl.topology import build
from jaxdfl.topology.spectrum import recommended_period
from jaxdfl.trackers import environment

_measure = jax.jit(measure, static_argnums=0)


def main(
    presets: Mapping[str, Settings], argv: Sequence[str] | None = None, study: Callable[[Path], str] | None = None
) -> int:
    """Runs an experiment from the command line; the exit code is 2, with one line on stderr, where it cannot start.

    `study` reads the finished run folder, draws what it finds into its `figures/`, and says it in words (Markdown,
    which goes to `study.md` and to the screen).
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        settings = parse(presets, argv)
        devices.start(settings)
        check_numerics()
        prepared = prepare(settings)
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: bad numerics, or jax without its device
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    execute(prepared, ["python", Path(sys.argv[0]).name, *argv])
    if study is not None:
        console.show_study(study(prepared.folder.path), prepared.folder.path)
    return 0


def execute(prepared: Prepared, command: Sequence[str]) -> report.Summary:
    """Simulates every run, records it in the run folder under `command`, and prints the table."""
    settings, problem, folder = prepared.settings, prepared.problem, prepared.folder
    manifest = _manifest(prepared, command)
    folder.write_manifest(manifest)
    console.show_setup(manifest)

    advance = make_advance(
        problem.loss, make_optimizer(settings), moments=settings.moments, clip=settings.clip,
        chunk=settings.client_chunk or problem.chunk, mesh=problem.mesh, step_scale=make_step_scale(settings),
    )  # fmt: skip
    with console.progress(len(prepared.runs) * settings.rounds) as moved, console.compile_time() as compiled:
        for run in prepared.runs:
            _simulate(prepared, run, advance, console.Recorder(folder, run._asdict(), moved))
    summary = report.summarize(folder.path)
    console.show_summary(summary, folder.path, compiled())
    return summary


def _simulate(prepared: Prepared, run: Run, advance: Advance, record: Callable[[Stop, dict[str, float]], None]) -> None:
    settings, problem, method = prepared.settings, prepared.problem, prepared.method(run)
    start, batches = prepared.seeded(run), seed_keys(run.seed).batches
    topology = prepared.topologies.get(run.topology) or build("isolated", 1)  # pooled: one client

    def at_stop(stop: Stop) -> None:
        measured = {name: float(x) for name, x in _measure(code, stop.state).items()}
        record(stop, {**problem.scores(start, code, stop.state), **measured})

    code = method._replace(trains=nothing, shares=nothing)  # what differs in schedules alone measures alike
    state = simulate(
        advance, method, topology.network, start.frozen, prepared.init(run), problem.examples,
        lambda rounds: plan(batches, start.parts, rounds, settings.local_steps, settings.batch_size),
        rounds=settings.rounds, every=settings.eval_every, stop=at_stop,
    )  # fmt: skip
    if settings.checkpoints:
        number = prepared.runs.index(run)  # since two specs may look alike as file names
        name = re.sub(r"[^\w.-]", "_", f"{number:03d}-{run.method}-{run.topology}-seed{run.seed}")
        checkpoint.save(prepared.folder.checkpoints / name, state)


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
        "runs": [{**run._asdict(), "period": prepared.periods[run]} for run in prepared.runs],
        "environment": environment(),
    }
