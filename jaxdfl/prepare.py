"""From settings to runs that are ready to go: everything is built, loaded and checked, the cheap things first.

Nothing is written before all of it has succeeded.
"""

import inspect
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdfl import methods, trackers
from jaxdfl.concentration import Keep, arbitrate, example_concentration
from jaxdfl.data.batches import plan
from jaxdfl.data.partition import Partition
from jaxdfl.methods import DEMANDS, METHODS, POOLED
from jaxdfl.problems import Problem, Seeded, bilinear, domains, seed_keys, text
from jaxdfl.protocol import Method
from jaxdfl.run_folder import RunFolder
from jaxdfl.settings import BILINEAR, DOMAINS, Settings, arbiter_of, make_optimizer, make_step_scale
from jaxdfl.simulate.clients import portion
from jaxdfl.simulate.rounds import SimState, init
from jaxdfl.simulate.sweep import Case, Plan, program
from jaxdfl.topology import build, build_work
from jaxdfl.topology.catalogue import Topology
from jaxdfl.topology.spectrum import Spectrum, recommended_period, spectrum
from jaxdfl.topology.work import Work
from jaxdfl.trees import stack

NOBODY = "pooled"  # the topology of a method that has all data in one place
SAMPLES = 4000  # rounds that a random network's spectrum is estimated on; fewer where clients are many


class Run(NamedTuple):
    """One method on one topology with one seed."""

    method: str
    topology: str
    seed: int
    learning_rate: float | None = None  # None where all runs have that of the settings

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from the other runs, as rows have it."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class Prepared(NamedTuple):
    """All that the runs need."""

    settings: Settings
    runs: list[Run]
    topologies: dict[str, Topology]
    spectra: dict[str, Spectrum]
    periods: dict[Run, int | None]  # T of the methods that have one
    problem: Problem
    out: Path  # the run folder

    def method(self, run: Run) -> Method:
        """The method of a run, on its network."""
        return _method(self.settings, self.spectra, run)

    def seeded(self, run: Run) -> Seeded:
        """What the run's seed changes; one client has everybody's examples where the method pools them."""
        start = self.problem.seeded(run.seed)
        return _pooled(start) if run.topology == NOBODY else start

    def case(self, run: Run, start: Seeded, plan: Plan) -> tuple[Case, SimState]:
        """The run, ready to go from what its seed gives, and the state it begins in."""
        method = self.method(run)
        topology = self.topologies.get(run.topology) or build("isolated", 1)  # pooled: one client
        state = _init(self.settings, start, method, seed_keys(run.seed).rounds)
        scale = make_step_scale(self.settings, _rate(self.settings, run))
        return Case(method, topology.network, start.frozen, plan, scale), state

    def abstract_state(self, run: Run) -> SimState:
        """The shapes of the run's state; nothing is allocated."""
        begin = partial(_init, self.settings, self.seeded(run), self.method(run))
        return jax.eval_shape(begin, seed_keys(run.seed).rounds)

    def groups(self) -> list[list[Run]]:
        """Runs that share a program, to go together."""
        if not self.settings.sweep:  # in the order asked for
            return [[run] for run in self.runs]
        start, found = self.problem.seeded(self.settings.seeds[0]), {}

        @cache  # seeds differ in values alone
        def of(method: Method, pooled: bool) -> Hashable:
            begin = partial(_init, self.settings, _pooled(start) if pooled else start, method)
            return program(method, jax.eval_shape(begin, seed_keys(0).rounds))

        for run in self.runs:
            found.setdefault(of(self.method(run), run.topology == NOBODY), []).append(run)
        return [group for runs in found.values() for group in at_once(self.settings, runs)]


def prepare(settings: Settings) -> Prepared:
    """Builds, loads and checks everything.

    Raises:
        ValueError, OSError: what is wrong, in one line; nothing has been written.
    """
    out = Path(settings.out or f"runs/{settings.preset}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    RunFolder.check(out, settings.overwrite, settings.resume)
    trackers.load(settings.track)
    with _naming(f"`--work` {settings.work}"):
        work = build_work(settings.work, settings.clients)
    topologies = {spec: _topology(settings, spec, work) for spec in settings.topologies}
    spectra = {spec: spectrum_of(topology) for spec, topology in topologies.items()}
    runs = list(_runs(settings))
    periods = {run: _period(run, _rho(spectra, run)) for run in runs}
    for run in runs:
        _demand(run, topologies)

    make = {BILINEAR: bilinear.problem, DOMAINS: domains.problem}.get(settings.task.partition(":")[0], text.problem)
    problem = _arbitrated(make(settings), *arbiter_of(settings))
    start = problem.seeded(settings.seeds[0])
    for run in runs:
        if run.seed == settings.seeds[0] and run.topology != NOBODY:  # may refuse the model, or so many clients
            method = _method(settings, spectra, run)
            with _naming(f"{run.method} on {run.topology}"):
                jax.eval_shape(partial(_init, settings, start, method), seed_keys(run.seed).rounds)
    return Prepared(settings, runs, topologies, spectra, periods, problem, out)


def batches(settings: Settings, seed: int, parts: Partition, rounds: range) -> np.ndarray:
    """The examples of every step of a stretch of rounds, [rounds, clients, steps, batch]."""
    return plan(seed_keys(seed).batches, parts, rounds, settings.local_steps, settings.batch_size)


def _method(settings: Settings, spectra: dict[str, Spectrum], run: Run) -> Method:
    world = {"rho": _rho(spectra, run), "learning_rate": _rate(settings, run), "local_steps": settings.local_steps}
    return methods.build(run.method, **world)


def _rate(settings: Settings, run: Run) -> float:
    return settings.learning_rate[0] if run.learning_rate is None else run.learning_rate


def _pooled(start: Seeded) -> Seeded:
    """One client with everybody's examples."""
    return start._replace(parts=[np.sort(np.concatenate(start.parts))])


def at_once(settings: Settings, runs: list[Any]) -> list[list[Any]]:
    """Runs that share a program in the portions that the settings let go together."""
    size = portion(len(runs), settings.runs_at_once or len(runs)) if settings.sweep else 1
    return [runs[first : first + size] for first in range(0, len(runs), size)]


def _init(settings: Settings, start: Seeded, method: Method, key: jax.Array) -> SimState:
    return init(key, stack(start.blocks, len(start.parts)), method, make_optimizer(settings), base=start.base)


def _runs(settings: Settings) -> Iterator[Run]:
    """Seed by seed, since each has weights of its own."""
    rates = settings.learning_rate if len(settings.learning_rate) > 1 else (None,)
    for seed in settings.seeds:
        for method in settings.methods:
            pooled = methods.parse(method).name in POOLED
            for topology in (NOBODY,) if pooled else settings.topologies:
                yield from (Run(method, topology, seed, rate) for rate in rates)


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Says what an error is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _topology(settings: Settings, spec: str, work: Work) -> Topology:
    with _naming(f"`--topologies` {spec}"):
        found = build(spec, settings.clients, rule=settings.mixing_rule, seed=settings.seeds[0])
    return found._replace(network=found.network._replace(work=work))


def _arbitrated(problem: Problem, keep: Keep, share: float) -> Problem:
    """The problem with every client's examples restricted by PRISM's index at the first adapters."""
    if keep == "all":
        return problem

    @cache
    def parts(seed: int) -> Partition:
        start = problem.seeded(seed)
        scores = np.asarray(example_concentration(problem.loss, start.frozen, start.blocks, problem.examples))
        with _naming(f"`--arbiter` {keep}:{share:g}"):
            return arbitrate(start.parts, scores, keep, share)

    return problem._replace(seeded=lambda seed: problem.seeded(seed)._replace(parts=parts(seed)))


def _demand(run: Run, topologies: dict[str, Topology]) -> None:
    """Refuses a network that the run's method cannot use."""
    demand = DEMANDS.get(methods.parse(run.method).name)
    if demand is not None and run.topology in topologies:
        with _naming(f"{run.method} on {run.topology}"):
            demand(topologies[run.topology].adjacency)


def spectrum_of(topology: Topology) -> Spectrum:
    """The spectrum by which runs are told their period, and manifests describe networks."""
    samples = min(SAMPLES, max(100, 10**8 // topology.clients**3))
    return spectrum(topology.network, topology.clients, jax.random.key(0), period=topology.period, samples=samples)


def _rho(spectra: dict[str, Spectrum], run: Run) -> float:
    return spectra[run.topology].rho if run.topology in spectra else 0.0


def _period(run: Run, rho: float) -> int | None:
    """The period T that a run's method has, given or chosen by `rho`; None for a method without one."""
    name, settings, _ = methods.parse(run.method)
    parameter = inspect.signature(METHODS[name]).parameters.get("period")
    if parameter is None:
        return None
    try:
        return settings.get("period", parameter.default) or recommended_period(rho)
    except ValueError as error:
        raise ValueError(f"{run.method} finds no period on {run.topology}: {error}") from error
