"""The clients axis: a function of one client, mapped over all of them; and the devices that share them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Mapped = Callable[[Any, Any], Any]  # (what all share, stacked: each client's own) -> stacked


def over_clients(function: Callable[[Any, Any], Any], chunk: int | None) -> Mapped:
    """`function` of (what all share, one client's own), mapped over the leading axis of its second argument.

    At most `chunk` clients go at a time (None: all at once), in portions as equal as can be, which changes no result.
    """

    def mapped(shared: Any, stacked: Any) -> Any:
        one, clients = partial(function, shared), jax.tree.leaves(stacked)[0].shape[0]
        if chunk is None or chunk >= clients:
            return jax.vmap(one)(stacked)
        at_once = portion(clients, chunk)
        return jax.lax.map(one, stacked, batch_size=at_once if at_once > 1 else None)

    return mapped


class Share(NamedTuple):
    """What of stacked trees, [clients, ...], lies on one of the devices that share the clients."""

    own: Callable[[Any], Any]  # of all clients -> of this device's own
    whole: Callable[[Any], Any]  # of each device's own -> of all clients, on every device


ALL = Share(own=lambda tree: tree, whole=lambda tree: tree)  # one device has them all


def share_of(clients: int, axis: str) -> Share:
    """Inside `jax.shard_map`: equal shares along the mesh's `axis`, the last filled up with clients from the front."""
    held = math.ceil(clients / jax.lax.axis_size(axis))
    first, more = jax.lax.axis_index(axis) * held, held * jax.lax.axis_size(axis) - clients

    def own(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(jnp.concatenate([x, x[:more]]), first, held)

    def whole(x: jax.Array) -> jax.Array:
        return jax.lax.all_gather(x, axis, tiled=True)[:clients]

    return Share(partial(jax.tree.map, own), partial(jax.tree.map, whole))


def portion(clients: int, most: int) -> int:
    """How many of the clients go at a time, `most` or fewer.

    A divisor where one is above half of `most`, since a last portion of another size is compiled once more.
    """
    divisors = [size for size in range(most // 2 + 1, most + 1) if clients % size == 0]
    return divisors[-1] if divisors else math.ceil(clients / math.ceil(clients / most))
