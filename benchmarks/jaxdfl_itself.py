"""jaxdfl as `experiments/mnli.py` runs it, stopped after every round.

All goes through `jaxdfl.experiment.execute`: whatever the engine does for a user, it does here. The clock runs from
one evaluation to the next, so that a round bears its plan, its diagnostics and its row in the run folder.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdfl.startup import split_cpu  # isort: skip (it comes before jax)

import jax
import numpy as np

from benchmarks import workload
from benchmarks.worker import Result, Turn
from jaxdfl import presets
from jaxdfl.arguments import parse
from jaxdfl.data.packing import place
from jaxdfl.execution import execute
from jaxdfl.manifest import begin
from jaxdfl.metrics import Columns
from jaxdfl.prepare import Prepared, batches, prepare
from jaxdfl.problems import Problem
from jaxdfl.problems.backbone import portions
from jaxdfl.run_folder import read_rows
from jaxdfl.simulate.operations import matrix_products

RUN = ("method", "topology", "seed")  # what tells runs apart here


def run(folder: Path, turn: Turn, more: Sequence[str] = ()) -> Result:
    """`more` are further options on jaxdfl's command line. Found is what the first run did, where they make several."""
    split_cpu(None)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        settings = parse({"benchmark": presets.MINILM}, [*workload.load_command(folder), *more, "--out", str(out)])
        prepared = prepare(settings)
        traced: list[Any] = []
        together = max(map(len, prepared.groups()))
        problem = _watched(prepared.problem, turn, together, traced)
        watched = prepared._replace(problem=problem)
        execute(watched, *begin(watched, ["python", "-m", "benchmarks.rounds"]))
        rows = read_rows(out / "rounds.jsonl")
        losses = [row["loss"] for row in rows if all(row[name] == rows[0][name] for name in RUN)]
    program = jax.make_jaxpr(jax.value_and_grad(prepared.problem.loss, argnums=1))(*traced[-1])
    groups = _groups(prepared)
    step, steps = matrix_products(program, turns=1), settings.clients * settings.local_steps
    executed = [step * (turns if settings.packing else steps) for turns in groups]
    return Result(losses, executed, {"runs": together, "jax_devices": jax.device_count()})


def _groups(prepared: Prepared) -> list[float]:
    """Groups of packed rows that all steps of a round take, by round; of the first run."""
    settings, examples, run = prepared.settings, prepared.problem.examples, prepared.runs[0]
    indices = batches(settings, run.seed, prepared.seeded(run).parts, range(settings.rounds))
    lengths = np.asarray(examples.lengths)[indices]  # [rounds, clients, steps, batch]
    room = portions(settings, examples, examples, packed=True).room
    rows = jax.jit(jax.vmap(lambda each: place(each, room).rows))(lengths.reshape(-1, lengths.shape[-1]))
    return np.ceil(np.asarray(rows) / room.rows).reshape(len(lengths), -1).sum(1).tolist()


def _watched(problem: Problem, turn: Turn, together: int, traced: list[Any]) -> Problem:
    """The problem, handing over once runs that go together are scored; notes the shapes its loss is traced with."""
    scored = 0

    def loss(*arguments: Any) -> jax.Array:
        traced.append(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments))
        return problem.loss(*arguments)

    def scores(start: Any, method: Any, state: Any) -> Columns:
        nonlocal scored
        if scored == 0:
            jax.block_until_ready(state)
            turn.stop()
        found, scored = problem.scores(start, method, state), (scored + 1) % together
        if scored == 0:
            turn(round=int(state.round))
        return found

    return problem._replace(loss=loss, scores=scores)
