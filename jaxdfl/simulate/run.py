"""A whole run: chunks of rounds in one compiled scan, evaluation between them.

What differs between the runs of an ablation (topology, p, period, which blocks train or are shared, seed) enters the
compiled program as data: tables of weights and schedules. Runs whose mixer is the same share one program.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxdfl.methods.schedules import as_table, from_table, nothing
from jaxdfl.protocol import Info, Method, Network
from jaxdfl.simulate.clients import by_client, everywhere
from jaxdfl.simulate.rounds import Loss, SimState, make_round, round_keys

Plan = Callable[[range], np.ndarray]  # of rounds -> int32 [rounds, clients, steps, batch]: indices into the examples


class Tables(NamedTuple):
    """A method's schedules and a network's draws, as data. `weights` and `work` begin at round `start`."""

    trains: Bool[Array, "all_rounds 3"]
    shares: Bool[Array, "all_rounds 3"]
    weights: Float[Array, "rounds clients clients"]
    work: Float[Array, "rounds clients"]
    start: Int[Array, ""]


class Stop(NamedTuple):
    """What is known where the compiled program stops."""

    round: int  # rounds completed
    infos: dict[str, np.ndarray]  # per round since the last stop, [rounds]; empty at round 0
    state: SimState  # valid until the next stop: the program takes its buffers


Advance = Callable[[Method, Any, SimState, Any, Array, Tables], tuple[SimState, Info]]


def make_advance(
    loss: Loss, optimizer: optax.GradientTransformation, *, mesh: Mesh | None = None, **options: Any
) -> Advance:
    """The compiled program of many rounds: (method without schedules, frozen, state, examples, plan, tables).

    `options` are those of `make_round`. Leaves of `examples` are [examples, ...]; `plan` picks every client's batches
    from them. The state is donated. One program serves all methods with the same mixer, penalty and correction. With a
    `mesh` its devices share the clients, and all arrays are put where they belong first.
    """

    @partial(jax.jit, static_argnums=0, donate_argnums=2)
    def compiled(method, frozen, state, examples, plan, tables):
        network = Network(
            weights=lambda key, round: tables.weights[round - tables.start],
            work=lambda key, round: tables.work[round - tables.start],
        )
        scheduled = method._replace(trains=from_table(tables.trains), shares=from_table(tables.shares))
        run_round = make_round(loss, optimizer, scheduled, network, mesh=mesh, **options)

        def one_round(state: SimState, indices: Array) -> tuple[SimState, Info]:
            after, info = run_round(frozen, state, jax.tree.map(lambda x: x[indices], examples))
            if mesh is not None:  # as it came, so that the next call compiles nothing
                after = jax.lax.with_sharding_constraint(after, by_client(after, indices.shape[0], mesh))
            return after, info

        return jax.lax.scan(one_round, state, plan)

    def advance(method, frozen, state, examples, plan, tables):
        if mesh is not None:
            state = jax.device_put(state, by_client(state, plan.shape[1], mesh))
            frozen, examples, plan, tables = jax.device_put((frozen, examples, plan, tables), everywhere(mesh))
        return compiled(method, frozen, state, examples, plan, tables)

    return advance


@partial(jax.jit, static_argnums=(0, 1))
def _draw(network: Network, rounds: int, key: Array, start: Array) -> tuple[Array, Array]:
    def one(round: Array) -> tuple[Array, Array]:
        keys = round_keys(key, round)
        drawn = network.weights(keys.network, round), network.work(keys.work, round)
        return drawn[0].astype(float), drawn[1].astype(float)  # strong types, so that no draw retraces

    return jax.lax.map(one, start + jnp.arange(rounds))


def simulate(
    advance: Advance,
    method: Method,
    network: Network,
    frozen: Any,
    state: SimState,
    examples: Any,
    plan: Plan,
    *,
    rounds: int,
    every: int,
    stop: Callable[[Stop], None],
) -> SimState:
    """Rounds `state.round` .. `rounds`, calling `stop` at the start, after every `every` rounds, and at the end.

    The result does not depend on `every`, nor on where an earlier call ended: a run may go on from any saved state.
    """
    code = method._replace(trains=nothing, shares=nothing)  # the schedules go in as tables
    schedules = as_table(method.trains, rounds), as_table(method.shares, rounds)
    done = int(state.round)
    stop(Stop(done, {}, state))
    while done < rounds:
        upto = min(rounds, (done // every + 1) * every)
        weights, work = _draw(network, upto - done, state.key, jnp.int32(done))
        tables = Tables(*schedules, weights, work, jnp.int32(done))
        state, infos = advance(code, frozen, state, examples, jnp.asarray(plan(range(done, upto))), tables)
        done = upto
        stop(Stop(done, jax.device_get(infos), state))
    return state
