"""An experiment from the command line: prepared and checked as a whole, then simulated and recorded run by run.

`experiments/*.py` call `main` with their presets. A run is one method on one topology with one seed.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdfl import checkpoint, console, report
from jaxdfl.data import partition
from jaxdfl.data.batches import plan
from jaxdfl.data.examples import Examples
from jaxdfl.diagnostics import average, average_product
from jaxdfl.doctor import check_numerics
from jaxdfl.methods.schedules import nothing
from jaxdfl.metrics import over_clients as score
from jaxdfl.models.classifier import Classifier, cross_entropy
from jaxdfl.prepare import Prepared, Run, prepare, seed_keys
from jaxdfl.protocol import PerBlock
from jaxdfl.settings import Settings, make_optimizer, make_step_scale, parse
from jaxdfl.simulate.evaluate import Evaluate, in_batches, make_evaluate
from jaxdfl.simulate.rounds import adapters, init, measure
from jaxdfl.simulate.run import Advance, Stop, make_advance, simulate
from jaxdfl.topology import build
from jaxdfl.topology.spectrum import recommended_period
from jaxdfl.trackers import environment
from jaxdfl.trees import stack

CPU_TOKENS = 1024  # at once: a larger product runs out of cache (measured, design section 5)
ACCELERATOR_TOKENS = 65536  # at once: ten clients of 32 x 128 tokens of RoBERTa-large are 41k, and 44 GB by arithmetic
EVAL_BATCH = 64  # examples of one client at once, at most

_measure = jax.jit(measure, static_argnums=0)


def main(presets: Mapping[str, Settings], argv: Sequence[str] | None = None) -> int:
    """Runs an experiment from the command line; the exit code is 2, with one line on stderr, where it cannot start."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        settings = parse(presets, argv)
        check_numerics()
        prepared = prepare(settings)
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: bad numerics, or jax without its device
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    execute(prepared, ["python", Path(sys.argv[0]).name, *argv])
    return 0


def execute(prepared: Prepared, command: Sequence[str]) -> report.Summary:
    """Simulates every run, records it in the run folder under `command`, and prints the table."""
    settings, corpus, folder = prepared.settings, prepared.corpus, prepared.folder
    manifest = _manifest(prepared, command)
    folder.write_manifest(manifest)
    console.show_setup(manifest)

    length = corpus.train.ids.shape[1]
    tokens = CPU_TOKENS if jax.default_backend() == "cpu" else ACCELERATOR_TOKENS
    first = prepared.classifier(settings.seeds[0])  # the others differ from it in values alone
    advance = make_advance(
        cross_entropy(first), make_optimizer(settings), moments=settings.moments, clip=settings.clip,
        chunk=settings.client_chunk or _chunk(settings.clients, tokens // (settings.batch_size * length)),
        step_scale=make_step_scale(settings),
    )  # fmt: skip
    eval_length = corpus.validation.ids.shape[1]
    eval_batch = max(1, min(EVAL_BATCH, tokens // eval_length, len(corpus.validation.labels)))
    eval_chunk = settings.client_chunk or max(1, tokens // (eval_batch * eval_length))
    evaluate = make_evaluate(first.logits, len(corpus.classes), chunk=eval_chunk)
    train, validation = jax.device_put((corpus.train, in_batches(corpus.validation, eval_batch)))
    del first  # so that a second seed's weights replace the first's

    with console.progress(len(prepared.runs) * settings.rounds) as moved, console.compile_time() as compiled:
        for run in prepared.runs:
            classifier = prepared.classifier(run.seed)
            record = console.Recorder(folder, run._asdict(), moved)
            scores = partial(_scores, evaluate, classifier.frozen, validation, corpus.metrics)
            _simulate(prepared, run, classifier, advance, train, record, scores)
    summary = report.summarize(folder.path)
    console.show_summary(summary, folder.path, compiled())
    return summary


def _simulate(
    prepared: Prepared,
    run: Run,
    classifier: Classifier,
    advance: Advance,
    train: Examples,
    record: Callable[[Stop, dict[str, float]], None],
    scores: Callable[[PerBlock], dict[str, float]],
) -> None:
    settings, keys, method = prepared.settings, seed_keys(run.seed), prepared.method(run)
    parts, topology = prepared.partitions[run.seed], prepared.topologies.get(run.topology)
    if topology is None:  # pooled
        parts, topology = [np.sort(np.concatenate(parts))], build("isolated", 1)

    def at_stop(stop: Stop) -> None:
        measured = {name: float(x) for name, x in _measure(code, stop.state).items()}
        record(stop, {**scores(adapters(method, stop.state)), **measured})

    code = method._replace(trains=nothing, shares=nothing)  # what differs in schedules alone measures alike
    blocks, base = stack(classifier.blocks, len(parts)), classifier.base(classifier.frozen)
    state = simulate(
        advance, method, topology.network, classifier.frozen,
        init(keys.rounds, blocks, method, make_optimizer(settings), base=base), train,
        lambda rounds: plan(keys.batches, parts, rounds, settings.local_steps, settings.batch_size),
        rounds=settings.rounds, every=settings.eval_every, stop=at_stop,
    )  # fmt: skip
    if settings.checkpoints:
        number = prepared.runs.index(run)  # since two specs may look alike as file names
        name = re.sub(r"[^\w.-]", "_", f"{number:03d}-{run.method}-{run.topology}-seed{run.seed}")
        checkpoint.save(prepared.folder.checkpoints / name, state)


def _scores(
    evaluate: Evaluate, frozen: Any, validation: Examples, metrics: Sequence[str], blocks: PerBlock
) -> dict[str, float]:
    """Every metric's columns: the clients and the averaged adapter in one call, the averaged product in another."""
    with_average = jax.tree.map(lambda x, mean: jnp.concatenate([x, mean]), blocks, average(blocks))
    counts = np.asarray(evaluate(frozen, with_average, validation))
    product = np.asarray(evaluate(frozen, average_product(blocks), validation))[0]
    columns = [score(metric, counts[:-1], counts[-1], product) for metric in metrics]
    return {name: value for each in columns for name, value in each.items()}


def _chunk(clients: int, fit: int) -> int:
    """Clients trained at a time: no more than `fit`, but at least 1, in chunks as equal as can be."""
    chunks = math.ceil(clients / max(1, fit))
    return math.ceil(clients / chunks)


def _recommended(rho: float) -> int | None:
    """TAD-LoRA's period on such a network; None where the network never mixes."""
    try:
        return recommended_period(rho)
    except ValueError:
        return None


def _manifest(prepared: Prepared, command: Sequence[str]) -> dict[str, Any]:
    corpus, labels = prepared.corpus, np.asarray(prepared.corpus.train.labels)
    return {
        "command": list(command),
        "settings": dataclasses.asdict(prepared.settings),
        "model": {**prepared.weights._asdict(), "dtype": prepared.dtype.name},
        "data": corpus.identity,
        "partitions": {seed: partition.describe(parts, labels).tolist() for seed, parts in prepared.partitions.items()},
        "topologies": {
            spec: {**found._asdict(), "recommended_period": _recommended(found.rho)}
            for spec, found in prepared.spectra.items()
        },
        "runs": [{**run._asdict(), "period": prepared.periods[run]} for run in prepared.runs],
        "environment": environment(),
    }
