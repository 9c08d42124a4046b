"""The clients axis: a function of one client, mapped over all of them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Mapped = Callable[[Any, Any], Any]  # (what all share, stacked: each client's own) -> stacked


def over_clients(function: Callable[[Any, Any], Any], chunk: int | None, axis: str | None = None) -> Mapped:
    """`function` of (what all share, one client's own), mapped over the leading axis of its second argument.

    At most `chunk` clients go at a time (None: all at once), in portions as equal as can be. Inside `jax.shard_map` the
    devices along the mesh's `axis` share the clients, and hand their results to each other. Neither changes the result.
    """

    def mapped(shared: Any, stacked: Any) -> Any:
        one, clients = partial(function, shared), jax.tree.leaves(stacked)[0].shape[0]
        if chunk is None or chunk >= clients:
            return jax.vmap(one)(stacked)
        at_once = portion(clients, chunk)
        return jax.lax.map(one, stacked, batch_size=at_once if at_once > 1 else None)

    return mapped if axis is None else _shared_out(mapped, axis)


def _shared_out(mapped: Mapped, axis: str) -> Mapped:
    """Each device maps over its share; the last ones' is filled up with clients from the front, dropped after."""

    def on_each(shared: Any, stacked: Any) -> Any:
        clients = jax.tree.leaves(stacked)[0].shape[0]
        share = math.ceil(clients / jax.lax.axis_size(axis))
        own = (jax.lax.axis_index(axis) * share + jnp.arange(share)) % clients
        done = mapped(shared, jax.tree.map(lambda x: x[own], stacked))
        return jax.tree.map(lambda x: jax.lax.all_gather(x, axis, tiled=True)[:clients], done)

    return on_each


def portion(clients: int, most: int) -> int:
    """How many of the clients go at a time, `most` or fewer.

    A divisor where one is above half of `most`, since a last portion of another size is compiled once more.
    """
    divisors = [size for size in range(most // 2 + 1, most + 1) if clients % size == 0]
    return divisors[-1] if divisors else math.ceil(clients / math.ceil(clients / most))
