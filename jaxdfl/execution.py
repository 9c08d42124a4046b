"""Prepared runs, simulated and recorded: those that share a program together, from wherever they have got to."""

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any

import jax

from jaxdfl import checkpoint, console, report, trackers
from jaxdfl.exit_codes import NOT_FINITE, STOPPED
from jaxdfl.interrupts import interruptible, say_stopping
from jaxdfl.manifest import Manifest
from jaxdfl.memory import return_freed
from jaxdfl.metrics import Columns
from jaxdfl.prepare import NOBODY, Prepared, Run, at_once, batches
from jaxdfl.problems import Seeded
from jaxdfl.processes import any_of, from_first, states_from_first
from jaxdfl.protocol import Method
from jaxdfl.resume import NEW, Keeper, evaluates, point, run_folder, trim
from jaxdfl.run_folder import RunFolder
from jaxdfl.settings import Settings, make_optimizer
from jaxdfl.simulate.finite import first_bad_round, trace
from jaxdfl.simulate.program import Advance, code, make_advance
from jaxdfl.simulate.rounds import SimState, measure
from jaxdfl.simulate.sweep import Case, Stop, sweep

LARGE = 2**25  # bytes of adapters, from which on memory is worth the milliseconds that it takes to return it
DRIFT = 1e-4  # of the clients' mean in one round: a hundred times the rounding of large blocks
_measure = jax.jit(measure, static_argnums=0)


class _Enough(Exception):
    """Ends a sweep: a signal asked for it, and all is saved; or no run is left that has numbers."""


def make(prepared: Prepared) -> Advance:
    """The compiled program of the settings."""
    settings, problem = prepared.settings, prepared.problem
    return make_advance(
        problem.loss, make_optimizer(settings), moments=settings.moments, clip=settings.clip,
        chunk=settings.client_chunk or problem.chunk,
    )  # fmt: skip


def paces(settings: Settings) -> list[int]:
    """The rounds whose multiples end a stretch of the program: to evaluate, and to save."""
    return [pace for pace in (settings.eval_every, settings.checkpoint_every) if pace]


def cases_of(prepared: Prepared, runs: Sequence[Run]) -> tuple[list[Case], list[SimState], list[Seeded]]:
    """The runs, ready to go, the states they begin in, and what the seed of each has changed."""
    given = [(run.seed, run.topology == NOBODY) for run in runs]
    starts = {key: prepared.seeded(run) for key, run in dict(zip(given, runs, strict=True)).items()}
    plans = {key: partial(batches, prepared.settings, key[0], start.parts) for key, start in starts.items()}
    ready = [prepared.case(run, starts[key], plans[key]) for run, key in zip(runs, given, strict=True)]
    cases, states = map(list, zip(*ready, strict=True))
    starts = {key: start._replace(base={}) for key, start in starts.items()}  # W0 has served, and is large
    return cases, states, [starts[key] for key in given]


def execute(prepared: Prepared, folder: RunFolder, manifest: Manifest, kept: bool = True) -> int:
    """Simulates every run, or what is left of it, records it in the run folder, and prints the table.

    Where the folder is not kept, a person is not sent there.

    Returns 0, `NOT_FINITE`, or `STOPPED` where a signal asked for it.

    Raises:
        OSError: a row cannot be written. Those before it stay.
    """
    settings = prepared.settings
    advance = make(prepared)
    tracking = trackers.Tracking(trackers.load(settings.track), folder, manifest, console.warn)
    with (
        closing(folder),
        closing(tracking),
        console.progress(len(prepared.runs) * settings.rounds) as moved,
        console.compile_time() as compiled,
        interruptible(say_stopping) as asked_here,
    ):

        def asked() -> bool:
            return any_of(asked_here())

        for group in dict.fromkeys(run["group"] for run in manifest["runs"]):
            together = [number for number, run in enumerate(manifest["runs"]) if run["group"] == group]
            for numbers in at_once(settings, together):  # fewer than began together, where a resumed run asks for it
                if not asked():
                    _simulate(prepared, folder, manifest, numbers, advance, tracking, moved, asked)
                    tracking.close()
        stopped = asked()
        if (folder.path / "metrics.jsonl").exists():
            console.show_summary(report.summarize(folder.path), folder.path if kept else None, compiled())
        return STOPPED if stopped else NOT_FINITE if manifest["stopped"] else 0


def _simulate(
    prepared: Prepared,
    folder: RunFolder,
    manifest: Manifest,
    numbers: Sequence[int],
    advance: Advance,
    tracking: trackers.Tracking,
    moved: Callable[[str, int, int], None],
    asked: Callable[[], bool],
) -> None:
    """Runs that share a program, all at once. `numbers` are their places among all runs."""
    settings, problem = prepared.settings, prepared.problem
    runs = [prepared.runs[number] for number in numbers]
    places = [run_folder(folder, number, run.identity) for number, run in zip(numbers, runs, strict=True)]
    ended = {place for place, run in enumerate(runs) if _ended(manifest, run)}
    at = NEW
    if folder.resumed:
        at = point(folder, [(p, run.identity) for p, run in zip(places, runs, strict=True)], ended, settings)
        trim(folder, [run.identity for place, run in enumerate(runs) if place not in ended], places, at)
    at = from_first(at)
    records = [
        console.Recorder(folder, run.identity, moved, tracking.begin(number), len(runs))
        for number, run in zip(numbers, runs, strict=True)
    ]
    if at == settings.rounds:
        return

    cases, good, starts = cases_of(prepared, runs)  # states that are good: those of the last stop
    if at != NEW:
        if folder.resumed:
            good = [
                checkpoint.restore(checkpoint.round_folder(place, at), state)
                for state, place in zip(good, places, strict=True)
            ]
        good = states_from_first(good)
    keep = Keeper(settings, places)

    def end(number: int, stop: Stop, bad_round: int) -> None:
        found = trace(advance, cases[number], good[number], problem.examples, bad_round)
        keep.last_good(number, found.good)
        console.warn(f"{records[number].name} ends: {found.words}.")
        rows = bad_round - (stop.round - len(stop.infos["loss"]))  # up to the bad one, which is its last
        until = Stop(bad_round, {name: values[:rows] for name, values in stop.infos.items()}, found.good)
        scores = problem.scores(starts[number], code(cases[number].method), found.good)
        records[number](until, {**_no_numbers(scores), **_measured(code(cases[number].method), until)})
        manifest["stopped"].append({**runs[number].identity, "round": found.round, "why": found.words})
        folder.write_manifest(manifest)  # last: a run killed before it ends once more, and its rows are then replaced
        ended.add(number)

    def at_stop(stops: Sequence[Stop]) -> None:
        round = stops[0].round
        if round == at:
            return  # all that is known has been written
        for number, stop in enumerate(stops):
            bad_round = first_bad_round(stop)
            if number not in ended and bad_round is not None:
                end(number, stop, bad_round)
            if number not in ended:
                good[number], method = stop.state, code(cases[number].method)
                if method.mixer.keeps_mean and stop.infos and (drift := stop.infos["mean_drift"].max()) > DRIFT:
                    console.warn(
                        f"{records[number].name}: mixing moved the clients' mean by {drift:.1g} of its size in a "
                        f"round before {round + 1}; the network's weights are not doubly stochastic."
                    )
                scored = evaluates(settings, round)
                scores = problem.scores(starts[number], method, stop.state) if scored else None
                records[number](stop, scores and {**scores, **_measured(method, stop)})
        if sum(leaf.nbytes for leaf in jax.tree.leaves([state.blocks for state in good])) >= LARGE:
            return_freed()  # the states before these, among others
        stopping = asked()
        if round > 0:
            folder.sync()
            keep(round, [stop.state for stop in stops], now=stopping)
        if stopping or len(ended) == len(runs):
            raise _Enough

    with suppress(_Enough):
        sweep(advance, cases, list(good), problem.examples, rounds=settings.rounds, every=paces(settings), stop=at_stop)


def _ended(manifest: Manifest, run: Run) -> bool:
    """Whether the run has ended early, on numbers that are not finite."""
    return any(run.identity.items() <= each.items() for each in manifest["stopped"])


def _no_numbers(scores: Columns) -> dict[str, Any]:
    """The same columns without a number, which readers show as such: a run that ended early has no final score."""
    return {name: [None] * len(value) if isinstance(value, list) else None for name, value in scores.items()}


def _measured(method: Method, stop: Stop) -> dict[str, float]:
    """The diagnostics of the state; the last round's, where there was one."""
    found = {name: values[-1] for name, values in stop.infos.items()} or _measure(method, stop.state)
    return {name: float(found[name]) for name in console.DIAGNOSTICS}
