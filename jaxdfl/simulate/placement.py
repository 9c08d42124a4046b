"""Several runs side by side: what they share is held once, the rest is stacked, and devices get equal shares."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from jaxdfl.simulate.rounds import SimState
from jaxdfl.trees import on_words


class Frozen(NamedTuple):
    """The frozen weights of several runs: what is the same array in all of them once, the rest stacked.

    `common` and `own` have the weights' structure, each with None where the other has the leaf. Each run has one of
    the variants, since the runs of a seed share theirs.
    """

    common: Any
    own: Any  # [variants, ...]
    variant: Int[Array, " runs"]

    def of(self, variant: Int[Array, ""]) -> Any:
        """One variant's weights."""
        return jax.tree.map(
            lambda one, several: one if several is None else several[variant],
            self.common, self.own, is_leaf=lambda x: x is None,
        )  # fmt: skip


# How arrays lie on a mesh, as prefix trees: whole on each device, or dealt by run, or by run and client.
EVERYWHERE, BY_RUN, ROUNDS_RUNS = PartitionSpec(), PartitionSpec("runs"), PartitionSpec(None, "runs")
BY_CLIENT = PartitionSpec("runs", "clients")
FROZEN: Any = Frozen(common=EVERYWHERE, own=EVERYWHERE, variant=BY_RUN)  # pyright: ignore[reportArgumentType]
STATE: Any = SimState(BY_CLIENT, BY_CLIENT, BY_RUN, EVERYWHERE, BY_RUN)  # pyright: ignore[reportArgumentType]


def together(weights: Sequence[Any]) -> Frozen:
    """The frozen weights of each run as one record; the same object, or the same array in it, is held once."""
    places = {identity: place for place, identity in enumerate(dict.fromkeys(map(id, weights)))}
    variants = list({id(each): each for each in weights}.values())
    common = jax.tree.map(lambda x, *others: x if all(x is each for each in others) else None, *variants)
    own = jax.tree.map(
        lambda x, *others: None if all(x is each for each in others) else jnp.stack((x, *others)), *variants
    )
    return Frozen(common, own, jnp.asarray([places[id(each)] for each in weights], jnp.int32))


def laid_out(mesh: Mesh, states: Sequence[SimState]) -> SimState:
    """The states of several runs as one, which the program takes; all are at the round of the first.

    Devices that share the clients hold equal shares: the last is filled up with clients from the front, as
    `jaxdfl.simulate.clients.share_of` has it.
    """
    clients = jax.tree.leaves(states[0].blocks)[0].shape[0]
    more = -clients % mesh.shape["clients"]

    def lay(lies: PartitionSpec, *several: Any) -> Any:
        def stacked(*each: Array) -> Array:  # leaf by leaf, so that no second copy of all is there at any time
            filled = [jnp.concatenate([x, x[:more]]) for x in each] if more and lies == BY_CLIENT else each
            return spread(mesh, jnp.stack(filled), lies)

        return jax.tree.map(stacked, *several)

    done = spread(mesh, jnp.array(states[0].round), EVERYWHERE)
    several = [state._replace(round=()) for state in states]
    return jax.tree.map(lay, STATE._replace(round=()), *several)._replace(round=done)


def apart(state: SimState, runs: int, clients: int) -> list[SimState]:
    """The runs' states, each in buffers of its own that are bound to no device."""
    done, several = jnp.array(jax.device_get(state.round)), state._replace(round=())
    if len(state.round.devices()) == 1:
        return [_taken(several, run)._replace(round=done) for run in range(runs)]

    def runs_of(lies: PartitionSpec, x: Array) -> list[Array]:
        return [jnp.asarray(one[:clients] if lies == BY_CLIENT else one) for one in fetched(x)]

    leaves, structure = jax.tree.flatten(several)
    lies = jax.tree.leaves(jax.tree.broadcast(STATE._replace(round=()), several))
    each = zip(*(on_words(partial(runs_of, where), x) for where, x in zip(lies, leaves, strict=True)), strict=True)
    return [structure.unflatten(one)._replace(round=done) for one in each]


@jax.jit
def _taken(state: Any, run: Array | int) -> Any:
    return jax.tree.map(lambda x: x[run], state)


def mesh_of(runs: int, clients: int, devices: Sequence[Any]) -> Mesh:
    """The devices in two axes: as many as the runs can be dealt to evenly, and what is left over for their clients.

    Of the latter no more than get a share that is not all filling.
    """
    dealt = max(size for size in range(1, len(devices) + 1) if runs % size == 0)
    held = math.ceil(clients / min(len(devices) // dealt, clients))
    each = math.ceil(clients / held)
    return Mesh(np.array(devices[: dealt * each]).reshape(dealt, each), ("runs", "clients"))


def mesh_for(runs: int, clients: int, devices: Sequence[Any] | None = None) -> Mesh:
    """That of the devices; None: of all processes' where each of them gets a part, else each has its own to itself."""
    mesh = mesh_of(runs, clients, jax.devices() if devices is None else devices)
    taking_part = {device.process_index for device in mesh.devices.flat}
    if devices is None and len(taking_part) < jax.process_count():
        return mesh_of(runs, clients, jax.local_devices())
    return mesh


def spread(mesh: Mesh, tree: Any, lies: Any) -> Any:
    """The tree laid out on the mesh, so that no later call moves it; untouched where the mesh is one device.

    Where the mesh has devices of other processes, each process lays out what belongs on its own.
    """
    if mesh.size == 1:
        return tree

    def put(spec: PartitionSpec, part: Any) -> Any:
        sharding = NamedSharding(mesh, spec)
        return (
            jax.device_put(part, sharding)
            if sharding.is_fully_addressable
            else jax.tree.map(partial(on_words, partial(_of_many_processes, sharding)), part)
        )

    return jax.tree.map(put, lies, tree)


def _of_many_processes(sharding: NamedSharding, x: Array) -> Array:
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])


def fetched(tree: Any) -> Any:
    """The arrays on the host, those that lie on devices of several processes too; all of these must ask."""

    def one(x: Array) -> np.ndarray:
        here = x.is_fully_addressable or x.is_fully_replicated
        return jax.device_get(x) if here else multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(one, tree)
