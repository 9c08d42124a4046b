"""Many runs as one program: topologies x methods that are tables x seeds x learning rates, advanced together.

Runs whose code is the same (mixer, penalty, correction, merging; number of clients; structure of the state) share a
program, and may share its calls: `sweep` takes such runs, `program` tells which they are. Each run's numbers are those
it has alone, to rounding.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cache, partial
from math import gcd
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdfl.methods.schedules import as_table
from jaxdfl.protocol import Method, Network, PerBlock, Round, Schedule
from jaxdfl.simulate.placement import (
    EVERYWHERE,
    FROZEN,
    ROUNDS_RUNS,
    apart,
    fetched,
    laid_out,
    mesh_for,
    spread,
    together,
)
from jaxdfl.simulate.program import Advance, code
from jaxdfl.simulate.rounds import Conditions, SimState, StepScale, round_keys
from jaxdfl.trees import as_data

TABLE_BYTES = 2**28  # of the mixing weights of all runs that are drawn at a time
Plan = Callable[[range], np.ndarray]  # of rounds -> int32 [rounds, clients, steps, batch]: indices into the examples


def always_one(round: Round) -> float:
    """Updates as the optimizer makes them."""
    return 1.0


class Case(NamedTuple):
    """One run, but for its state, which is large and changes."""

    method: Method
    network: Network
    frozen: Any
    plan: Plan  # one object for the runs that share it, so that it is made once
    step_scale: StepScale = always_one  # factor on every update, by round: a learning rate


class Stop(NamedTuple):
    """What is known of a run where the compiled program stops."""

    round: int  # rounds completed
    infos: dict[str, np.ndarray]  # per round since the last stop, [rounds]; empty at the first
    state: SimState


def program(method: Method, state: Any) -> Hashable:
    """Equal for runs that share a program. `state` may be abstract."""
    leaves, structure = jax.tree.flatten(state)
    return code(method), structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def sweep(
    advance: Advance,
    cases: Sequence[Case],
    states: Sequence[SimState],
    examples: Any,
    *,
    rounds: int,
    every: int | Sequence[int],
    stop: Callable[[Sequence[Stop]], None],
    devices: Sequence[Any] | None = None,
) -> list[SimState]:
    """Rounds `round` .. `rounds` of all cases from the states they are in, and the states they end with.

    `stop` is called with what is known of each case, at the start, after every `every` rounds (of several numbers,
    after the multiples of each), and at the end; more often where that takes fewer programs, or where the mixing
    weights of so many rounds would take more than `TABLE_BYTES`. The results do not depend on it, nor on where an
    earlier call ended: a sweep may go on from saved states.
    Only the newest states are held here, so the memory of the first ones is free as soon as the caller lets go of them.
    The cases are dealt to the `devices` (None: all, those of other processes among them), to as many as get equal
    shares; devices left over share their clients. Several processes call this alike, and each has all results.

    Raises:
        ValueError: the cases do not share a program, or are not at the same round.
    """
    if len({program(case.method, state) for case, state in zip(cases, states, strict=True)}) != 1:
        raise ValueError("`cases` must share a program: group them by `jaxdfl.simulate.sweep.program`.")
    if len(at := {int(state.round) for state in states}) != 1:
        raise ValueError(f"`cases` must be at the same round, got {sorted(at)}.")
    done, keys = at.pop(), [state.key for state in states]
    stop([Stop(done, {}, state) for state in states])
    clients = jax.tree.leaves(states[0].blocks)[0].shape[0]
    paces, most = (every,) if isinstance(every, int) else every, most_rounds(len(cases), clients)
    mesh, method = mesh_for(len(cases), clients, devices), code(cases[0].method)
    frozen = spread(mesh, together([case.frozen for case in cases]), FROZEN)
    state, examples = laid_out(mesh, states), spread(mesh, examples, EVERYWHERE)
    conditions = _conditions(cases, keys, rounds)
    while done < rounds:
        these = stretch(done, rounds, paces, most)
        plans = {each: each(these) for each in {case.plan for case in cases}}
        plan = np.stack([plans[case.plan] for case in cases], axis=1)
        given = spread(mesh, (jnp.asarray(plan), conditions(these)), (ROUNDS_RUNS, ROUNDS_RUNS))
        state, infos = advance(method, mesh, frozen, state, examples, *given)
        infos, done = fetched(infos), these.stop
        states = apart(state, len(cases), clients)
        if done == rounds:
            del state  # no second copy lies about while the last ones are scored and saved
        stop(
            [Stop(done, {name: values[:, n] for name, values in infos.items()}, each) for n, each in enumerate(states)]
        )
    return list(states)


def most_rounds(runs: int, clients: int) -> int:
    """Rounds whose mixing weights fit into `TABLE_BYTES`."""
    return max(1, TABLE_BYTES // (4 * runs * clients**2))


def stretch(done: int, rounds: int, every: Sequence[int], most: int) -> range:
    """The rounds to go at a time, `most` or fewer: up to a multiple of one of `every`, or part of the way there.

    Every length is compiled once, so parts are few lengths: a unit that divides all of `every`, times a power of two.
    """
    ahead = min(rounds, *((done // pace + 1) * pace for pace in every)) - done
    common = gcd(*every)
    part = max(size for size in range(1, min(common, most) + 1) if common % size == 0)
    while 2 * part <= min(ahead, most):
        part *= 2
    return range(done, done + min(ahead, part))


def _conditions(cases: Sequence[Case], keys: Sequence[Array], rounds: int) -> Callable[[range], Conditions]:
    """(a stretch of rounds) -> the conditions of all runs, [rounds, runs, ...]; networks are drawn by the stretch."""

    @cache
    def table(schedule: Schedule) -> np.ndarray:
        return np.asarray(as_table(schedule, rounds))

    @cache
    def scales(scale: StepScale) -> np.ndarray:
        return np.asarray(jax.vmap(lambda round: jnp.asarray(scale(round), float))(jnp.arange(rounds)))

    def by_round(values: Iterable[Any]) -> np.ndarray:
        return np.stack(list(values), axis=1)

    trains = by_round(table(case.method.trains) for case in cases)  # [rounds, runs, 3]
    rested = trains & ~np.concatenate([trains[:1], trains[:-1]])
    shares = by_round(table(case.method.shares) for case in cases)
    scale = by_round(scales(case.step_scale) for case in cases)  # [rounds, runs]
    words = [np.asarray(jax.random.key_data(key)).tobytes() for key in keys]
    worlds = [(case.network, word) for case, word in zip(cases, words, strict=True)]
    distinct = dict(zip(worlds, keys, strict=True))  # methods share what the same seed draws on the same network

    def of_stretch(these: range) -> Conditions:
        rows = slice(these.start, these.stop)
        drawn = {
            world: _draw(Network(*map(as_data, world[0])), len(these), key, these.start)
            for world, key in distinct.items()
        }
        weights, work = (jnp.asarray(by_round(drawn[world][part] for world in worlds)) for part in (0, 1))
        now, new, out = (PerBlock(*np.moveaxis(each[rows], -1, 0)) for each in (trains, rested, shares))
        return Conditions(weights, work, trains=now, rested=new, shares=out, scale=jnp.asarray(scale[rows]))

    return of_stretch


@partial(jax.jit, static_argnums=1)
def _draw(network: Network, rounds: int, key: Array, start: Array | int) -> tuple[Array, Array]:
    """Weights and work of a stretch of rounds. What a network holds as data is data here too."""

    def one(round: Array) -> tuple[Array, Array]:
        keys = round_keys(key, round)
        drawn = network.weights(keys.network, round), network.work(keys.work, round)
        return drawn[0].astype(float), drawn[1].astype(float)  # strong types, so that no draw retraces

    return jax.lax.map(one, start + jnp.arange(rounds))
