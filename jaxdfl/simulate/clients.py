"""The clients axis: a function of one client, mapped over all of them, and over devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "clients"


def clients_mesh(devices: int) -> Mesh:
    """The first `devices` devices in a row, along which clients are spread."""
    return jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def everywhere(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, P())


def by_client(tree: Any, clients: int, mesh: Mesh) -> Any:
    """Shardings for a tree of stacked leaves: the clients axis over the devices where it divides evenly.

    Leaves that do not lead with it are held everywhere, and so are all where it does not divide: training spreads
    clients in any case, and what it hands back is small.
    """

    def of_leaf(x: Any) -> NamedSharding:
        leads = jnp.ndim(x) > 0 and jnp.shape(x)[0] == clients and clients % mesh.size == 0
        return NamedSharding(mesh, P(AXIS) if leads else P())

    return jax.tree.map(of_leaf, tree)


def over_clients(function: Callable, chunk: int | None, mesh: Mesh | None = None) -> Callable:
    """`function` of one client, mapped over its argument's leading axis, `chunk` clients at a time (None: all).

    With a mesh, each device maps over its share of the clients; where they do not divide evenly, the last share is
    filled up with copies of client 0, whose results are dropped. Neither changes the result.
    """

    def one_device(stacked: Any) -> Any:
        if chunk is None:
            return jax.vmap(function)(stacked)
        return jax.lax.map(function, stacked, batch_size=chunk if chunk > 1 else None)

    if mesh is None or mesh.size == 1:
        return one_device
    spread = jax.shard_map(one_device, mesh=mesh, in_specs=P(AXIS), out_specs=P(AXIS), check_vma=False)

    def all_devices(stacked: Any) -> Any:
        clients = jax.tree.leaves(stacked)[0].shape[0]
        fill = -clients % mesh.size
        if not fill:
            return spread(stacked)
        filled = jax.tree.map(lambda x: jnp.concatenate([x, jnp.broadcast_to(x[:1], (fill, *x.shape[1:]))]), stacked)
        return jax.tree.map(lambda x: x[:clients], spread(filled))

    return all_devices
