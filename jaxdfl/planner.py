"""What runs will take, before they do: bytes by what they hold, operations, programs, and a guess at the time."""

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.table import Table

from jaxdfl.console import OUT, duration
from jaxdfl.execution import cases_of, make, paces
from jaxdfl.prepare import Prepared, Run
from jaxdfl.report import size
from jaxdfl.simulate.operations import matrix_products
from jaxdfl.simulate.placement import mesh_for
from jaxdfl.simulate.sweep import TABLE_BYTES, sweep

# Copies of a state: at the last stop, in every process; as it was and trained; and of all blocks on each device that
# shares the clients, sent and mixed.
HELD, WITHIN, GATHERED = 1, 2, 2
DRAWN = 3  # of the networks: drawn, stacked, handed over
EFFICIENCY = 0.5  # of the measured rate of large products; what MiniLM reaches on CPUs (benchmarks/README.md)


class Memory(NamedTuple):
    """Bytes of the runs that go together and take most; activations are not among them."""

    frozen: int  # weights, on all devices
    examples: int
    adapters: int
    moments: int
    mixers: int
    rounds: int  # between two stops
    clients: int  # of one run
    runs: int  # that go together
    at_once: int  # clients, of whichever run, that train at a time
    available: int | None  # on the device or the host; None: unknown

    @property
    def states(self) -> int:
        return self.adapters + self.moments + self.mixers

    @property
    def networks(self) -> int:
        """Mixing weights of the rounds that are drawn at a time, at most."""
        each = self.runs * self.clients**2 * 4
        return DRAWN * min(self.rounds * each, max(each, TABLE_BYTES))

    @property
    def total(self) -> int:
        return self.frozen + self.examples + self.states + self.networks

    @property
    def most_clients(self) -> int | None:
        """The largest m that fits, for as many runs at once."""
        return self._most(lambda clients: self.scaled(clients, self.runs))

    @property
    def most_runs(self) -> int | None:
        """How many such runs fit at once."""
        return self._most(lambda runs: self.scaled(self.clients, runs))

    def scaled(self, clients: int, runs: int) -> "Memory":
        """What so many of these runs take, with so many clients each: their states grow with both."""
        by = clients * runs / (self.clients * self.runs)
        states = {name: int(getattr(self, name) * by) for name in ("adapters", "moments", "mixers")}
        return self._replace(**states, clients=clients, runs=runs)

    def _most(self, having: Callable[[int], "Memory"]) -> int | None:
        if self.available is None:
            return None
        return bisect_right(range(1, 2**31), self.available, key=lambda count: having(count).total)


class Work(NamedTuple):
    """What there is to compute."""

    programs: int
    within: int  # bytes that XLA needs within the largest program: activations, batches, temporary copies
    operations: float  # of matrix products in training, all rounds of all runs
    seconds: float  # a guess


def memory(prepared: Prepared) -> Memory:
    """Of the group of runs that takes most. Allocates nothing.

    Raises:
        ValueError: it does not fit; says the numbers, and what to lower.
    """
    found, _ = _largest(prepared)
    if found.available is not None and found.total > found.available:
        raise ValueError(
            f"{found.runs} runs of {found.clients} clients need {size(found.total)} beside what a program takes, and "
            f"{size(found.available)} are free: at most {found.most_runs} runs fit at once (--runs-at-once), or "
            f"{found.most_clients} clients."
        )
    return found


def _largest(prepared: Prepared) -> tuple[Memory, list[Run]]:
    """The group of runs that takes most, and what it takes."""
    return max(((_needs(prepared, runs), runs) for runs in prepared.groups()), key=lambda found: found[0].total)


def _needs(prepared: Prepared, runs: Sequence[Run]) -> Memory:
    settings, problem = prepared.settings, prepared.problem
    state = prepared.abstract_state(runs[0])  # of the same shape in all
    clients = jax.tree.leaves(state.blocks)[0].shape[0]
    mesh = mesh_for(len(runs), clients)
    devices = sum(device.process_index == jax.process_index() for device in mesh.devices.flat)  # of this process
    dealt, sharing = mesh.shape["runs"], mesh.shape["clients"]
    on_each = len(runs) // dealt * devices  # states, if every device had all clients of its runs
    owned = HELD * len(runs) + WITHIN * on_each // sharing
    gathered = GATHERED * on_each if sharing > 1 else 0
    distinct = {id(x): x.nbytes for run in runs for x in jax.tree.leaves(problem.seeded(run.seed).frozen)}
    return Memory(
        frozen=devices * sum(distinct.values()),
        examples=devices * _bytes(problem.examples),
        adapters=(owned + gathered) * _bytes(state.blocks),
        moments=owned * _bytes(state.opt),
        mixers=(HELD * len(runs) + WITHIN * on_each) * _bytes(state.mixer),
        rounds=min(settings.rounds, *paces(settings)),
        clients=clients,
        runs=len(runs),
        at_once=min(settings.client_chunk or problem.chunk or len(runs) * clients, len(runs) * clients),
        available=available(),
    )


def work(prepared: Prepared) -> Work:
    """Compiles the largest program (it is kept for the run) and measures the machine for a second."""
    _, runs = _largest(prepared)
    within = _within(prepared, runs)
    operations = sum(_operations(prepared, run) for run in prepared.runs)
    return Work(len(prepared.groups()), within, operations, operations / (EFFICIENCY * _rate()))


def show(needs: Memory, work: Work | None = None) -> None:
    """Prints what the runs take: bytes by what they hold, how much more would fit; and what there is to compute."""
    parts = {
        "frozen weights": needs.frozen, "examples": needs.examples, "adapters": needs.adapters,
        "moments": needs.moments, "mixers": needs.mixers, "networks": needs.networks,
    }  # fmt: skip
    facts = Table.grid("", "", padding=(0, 2))
    facts.columns[0].style = "bold"
    said = ", ".join(f"{name} {size(count)}" for name, count in parts.items() if count)
    facts.add_row("memory", f"{size(needs.total)} for {needs.runs} runs at once: {said}")
    facts.add_row("at a time", f"{needs.at_once} of the {needs.runs * needs.clients} clients train (--client-chunk)")
    if needs.available is not None:
        free = f"{size(needs.available)} are free"
        facts.add_row("fits", f"up to {needs.most_clients} clients, or {needs.most_runs} such runs at once; {free}")
    if work is not None:
        facts.add_row("programs", f"{work.programs}; the largest needs {size(work.within)} more while it runs (XLA)")
        facts.add_row("products", f"{work.operations:.3g} floating point operations in training, all rounds and runs")
        guess = "a guess, at half the speed of large matrix products"
        facts.add_row("time", f"about {duration(work.seconds)} of training: {guess}")
        facts.add_row("", "Nothing was run, and no run folder was written.")
    OUT.print(facts)


def available() -> int | None:
    """Bytes that may still be taken: of the first device, or of the host where that is what computes."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    meminfo = Path("/proc/meminfo")
    if device.platform != "cpu" or not meminfo.exists():
        return None
    kilobytes = dict(line.split(":") for line in meminfo.read_text().splitlines()).get("MemAvailable")
    return None if kilobytes is None else 1024 * int(kilobytes.split()[0])


class _Compiled(Exception):
    """Carries what XLA says of a program out of a sweep that is not to run."""


def _within(prepared: Prepared, runs: Sequence[Run]) -> int:
    """What XLA needs within the program of such runs, as the engine calls it."""
    advance, settings = make(prepared), prepared.settings

    def compile_alone(*arguments: Any) -> Any:
        raise _Compiled(advance.lower(*arguments).compile().memory_analysis())  # pyright: ignore[reportFunctionMemberAccess]

    cases, states, _ = cases_of(prepared, runs)
    try:
        sweep(
            compile_alone, cases, states, prepared.problem.examples, rounds=settings.rounds,
            every=paces(settings), stop=lambda stops: None,
        )  # fmt: skip
    except _Compiled as compiled:
        analysis = compiled.args[0]
        return 0 if analysis is None else analysis.temp_size_in_bytes
    return 0


def _operations(prepared: Prepared, run: Run) -> float:
    """Of matrix products in the training of a run, its mixing and diagnostics left out."""
    settings, problem, start = prepared.settings, prepared.problem, prepared.seeded(run)
    shape = settings.local_steps, settings.batch_size
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((shape[1], *x.shape[1:]), x.dtype), problem.examples)
    gradient = jax.value_and_grad(problem.loss, argnums=1)
    program = jax.make_jaxpr(gradient)(start.frozen, start.blocks, batch, jax.random.key(0))
    turns = problem.groups(start.parts, settings.batch_size) if problem.groups is not None else None
    return matrix_products(program, turns) * settings.rounds * settings.local_steps * len(start.parts)


def _rate() -> float:
    """Operations a second of a large matrix product, as the machine is now."""
    x, w = jnp.ones((2048, 384)), jnp.ones((384, 1536))
    product = jax.jit(jnp.matmul)
    product(x, w).block_until_ready()
    times = []
    while sum(times) < 0.5:
        began = time.perf_counter()
        product(x, w).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * 2048 * 384 * 1536 / sorted(times)[len(times) // 2]


def _bytes(tree: Any) -> int:
    """Of all arrays, which may be abstract, and may be keys."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
