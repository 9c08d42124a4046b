"""The compiled program: many rounds of many runs at once.

Runs are one more leading axis. For training it is flattened with the clients', so that one portion of clients may hold
those of several runs; everything else is mapped over it. What differs between the runs of an ablation (topology, p,
period, which blocks train or are shared, seed, learning rate) enters as data, so one program serves them all.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from jaxdfl.methods.schedules import nothing
from jaxdfl.protocol import Info, Method
from jaxdfl.simulate.clients import ALL, over_clients, share_of
from jaxdfl.simulate.placement import EVERYWHERE, FROZEN, ROUNDS_RUNS, STATE, Frozen
from jaxdfl.simulate.rounds import Conditions, Loss, SimState, make_stages
from jaxdfl.simulate.training import Client, Trained

# Axes of the runs in a state. Their round is one number, so that what a mixer does in some rounds only is not computed
# in all of them.
RUNS: Any = SimState(0, 0, 0, None, 0)  # pyright: ignore[reportArgumentType]
Advance = Callable[[Method, Mesh, Frozen, SimState, Any, Array, Conditions], tuple[SimState, Info]]


def code(method: Method) -> Method:
    """What of a method is compiled: all but its schedules, which go in as data, and its start, which is over."""
    return method._replace(trains=nothing, shares=nothing, start=None)


def of_runs(mix: Callable[..., tuple[SimState, Info]], runs: int) -> Callable[..., tuple[SimState, Info]]:
    """`mix` of one run, mapped over so many; one alone is not, since under a map a condition computes both its ways."""
    if runs > 1:
        return jax.vmap(mix, in_axes=(RUNS, 0, 0), out_axes=(RUNS, 0))

    def alone(state: SimState, *given: Any) -> tuple[SimState, Info]:
        (first, *rest) = jax.tree.map(lambda x: x[0], (state._replace(round=()), *given))
        after, info = mix(first._replace(round=state.round), *rest)
        done, info = jax.tree.map(lambda x: x[None], (after._replace(round=()), info))
        return done._replace(round=after.round), info

    return alone


def make_advance(
    loss: Loss, optimizer: optax.GradientTransformation, *, chunk: int | None = None, **options: Any
) -> Advance:
    """The compiled program: (code of the method, mesh, frozen, state, examples, plan, conditions) -> (state, infos).

    The state leads with runs, conditions and infos with [rounds, runs]; leaves of `examples` are [examples, ...] and
    shared by all, and `plan` [rounds, runs, clients, steps, batch] picks from them. The state is donated. Runs are
    dealt to the devices along the mesh's first axis (see `jaxdfl.simulate.placement`), which need no word from each
    other. Those along its second share the clients: each trains its own, gathers the blocks of all, mixes for itself,
    and keeps its own; a mixer's state lies on all of them.
    `chunk` clients, of whichever runs, train at a time (None: all); `options` are those of `make_stages`.
    """

    def on_one_device(method, axis, frozen, state, examples, plan, conditions):
        runs, clients = plan.shape[1:3]
        share = ALL if axis is None else share_of(clients, axis)
        stages = make_stages(loss, optimizer, method, share=share, **options)
        held = jax.tree.leaves(state.blocks)[0].shape[1]  # clients of a run that are trained here
        variant = jnp.repeat(frozen.variant, held)  # [runs * held]

        def train(shared: tuple[Frozen, Any], given: tuple[Array, Client]) -> Trained:
            (frozen, examples), (variant, client) = shared, given
            batches = jax.tree.map(lambda x: x[client.batches], examples)  # here: of the clients that train at a time
            return stages.train(frozen.of(variant), client._replace(batches=batches))

        def one_round(state: SimState, inputs: tuple[Array, Conditions]) -> tuple[SimState, Info]:
            indices, at = inputs
            given = jax.vmap(stages.hand_out, in_axes=(RUNS, 0, 0))(state, indices, at)
            flat = jax.tree.map(lambda x: x.reshape(runs * held, *x.shape[2:]), given)
            trained = over_clients(train, chunk)((frozen, examples), (variant, flat))
            trained = jax.tree.map(lambda x: x.reshape(runs, held, *x.shape[1:]), trained)
            return of_runs(stages.mix, runs)(state, trained, at)

        return jax.lax.scan(one_round, state, (jax.vmap(jax.vmap(share.own))(plan), conditions))

    @partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
    def advance(method, mesh, *given):
        go = partial(on_one_device, method, "clients" if mesh.shape["clients"] > 1 else None)
        if mesh.size == 1:
            return go(*given)
        lies = (FROZEN, STATE, EVERYWHERE, ROUNDS_RUNS, ROUNDS_RUNS)
        return jax.shard_map(go, mesh=mesh, in_specs=lies, out_specs=(STATE, ROUNDS_RUNS), check_vma=False)(*given)

    return advance
