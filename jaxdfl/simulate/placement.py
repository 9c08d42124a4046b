"""Several runs side by side: what they share is held once, the rest is stacked, and devices get equal shares."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from jaxdfl.simulate.rounds import SimState


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


# How arrays lie on a mesh, as prefix trees: whole on each device, or dealt by run.
EVERYWHERE, BY_RUN, ROUNDS_RUNS = PartitionSpec(), PartitionSpec("runs"), PartitionSpec(None, "runs")
FROZEN: Any = Frozen(common=EVERYWHERE, own=EVERYWHERE, variant=BY_RUN)  # pyright: ignore[reportArgumentType]
STATE: Any = SimState(BY_RUN, BY_RUN, BY_RUN, EVERYWHERE, BY_RUN)  # pyright: ignore[reportArgumentType]


def together(weights: Sequence[Any]) -> Frozen:
    """The frozen weights of each run as one record; the same object, or the same array in it, is held once."""
    places = {identity: place for place, identity in enumerate(dict.fromkeys(map(id, weights)))}
    variants = list({id(each): each for each in weights}.values())
    common = jax.tree.map(lambda x, *others: x if all(x is each for each in others) else None, *variants)
    own = jax.tree.map(
        lambda x, *others: None if all(x is each for each in others) else jnp.stack((x, *others)), *variants
    )
    return Frozen(common, own, jnp.asarray([places[id(each)] for each in weights], jnp.int32))


def stacked(states: Sequence[SimState]) -> SimState:
    """The states of several runs as one; all are at the round of the first."""
    leaves = jax.tree.map(lambda *each: jnp.stack(each), *states)
    return leaves._replace(round=jnp.array(states[0].round))


def apart(state: SimState, runs: int) -> list[SimState]:
    """The runs' states, each in buffers of its own that are bound to no device."""
    done, several = jnp.array(jax.device_get(state.round)), state._replace(round=())
    if len(state.round.devices()) == 1:
        return [_taken(several, run)._replace(round=done) for run in range(runs)]
    implementation = jax.random.key_impl(state.key)
    words = jax.device_get(several._replace(key=jax.random.key_data(state.key)))
    each = (jax.tree.map(lambda x, run=run: jnp.asarray(x[run]), words) for run in range(runs))
    return [one._replace(round=done, key=jax.random.wrap_key_data(one.key, impl=implementation)) for one in each]


@jax.jit
def _taken(state: Any, run: Array | int) -> Any:
    return jax.tree.map(lambda x: x[run], state)


def mesh_of(runs: int, clients: int, devices: Sequence[Any]) -> Mesh:
    """The devices in two axes: as many as the runs can be dealt to evenly, and what is left over for their clients."""
    dealt = max(size for size in range(1, len(devices) + 1) if runs % size == 0)
    each = min(len(devices) // dealt, runs * clients // dealt)
    return Mesh(np.array(devices[: dealt * each]).reshape(dealt, each), ("runs", "clients"))


def spread(mesh: Mesh, tree: Any, lies: Any) -> Any:
    """The tree laid out on the mesh, so that no later call moves it; untouched where the mesh is one device."""
    if mesh.size == 1:
        return tree
    return jax.device_put(tree, jax.tree.map(lambda spec: NamedSharding(mesh, spec), lies))
