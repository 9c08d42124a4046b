"""From settings to runs that are ready to go: everything is built, loaded and checked, the cheap things first.

Nothing is written before all of it has succeeded.
"""

import inspect
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import jax

from jaxdfl import methods
from jaxdfl.methods import METHODS, POOLED
from jaxdfl.problems import Problem, bilinear, text
from jaxdfl.protocol import Method
from jaxdfl.settings import Settings
from jaxdfl.topology import build
from jaxdfl.topology.catalogue import Topology
from jaxdfl.topology.spectrum import Spectrum, recommended_period, spectrum
from jaxdfl.trackers import RunFolder

NOBODY = "pooled"  # the topology of a method that has all data in one place
SAMPLES = 4000  # rounds that a random network's spectrum is estimated on; fewer where clients are many


class Run(NamedTuple):
    """One method on one topology with one seed."""

    method: str
    topology: str
    seed: int


class Prepared(NamedTuple):
    """All that the runs need."""

    settings: Settings
    runs: list[Run]
    topologies: dict[str, Topology]
    spectra: dict[str, Spectrum]
    periods: dict[Run, int | None]  # T of the methods that have one
    problem: Problem
    folder: RunFolder

    def method(self, run: Run) -> Method:
        """The method of a run, on its network."""
        settings = self.settings
        return methods.build(
            run.method, rho=_rho(self.spectra, run), learning_rate=settings.learning_rate,
            local_steps=settings.local_steps,
        )  # fmt: skip


def prepare(settings: Settings) -> Prepared:
    """Builds, loads and checks everything, and opens the run folder last.

    Raises:
        ValueError, OSError: what is wrong, in one line; nothing has been written.
    """
    out = Path(settings.out or f"runs/{settings.preset}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    RunFolder.check(out, settings.overwrite)
    topologies = {
        spec: build(spec, settings.clients, rule=settings.mixing_rule, seed=settings.seeds[0])
        for spec in settings.topologies
    }
    spectra = {spec: _spectrum(topology) for spec, topology in topologies.items()}
    runs = list(_runs(settings))
    periods = {run: _period(run, _rho(spectra, run)) for run in runs}

    make = bilinear.problem if settings.task.partition(":")[0] == bilinear.NAME else text.problem
    problem = make(settings)
    return Prepared(settings, runs, topologies, spectra, periods, problem, RunFolder(out, settings.overwrite))


def _runs(settings: Settings) -> Iterator[Run]:
    """Seed by seed, since each has weights of its own."""
    for seed in settings.seeds:
        for method in settings.methods:
            pooled = methods.parse(method)[0] in POOLED
            for topology in (NOBODY,) if pooled else settings.topologies:
                yield Run(method, topology, seed)


def _spectrum(topology: Topology) -> Spectrum:
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
