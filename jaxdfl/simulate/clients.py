"""The clients axis: a function of one client, mapped over all of them."""

from collections.abc import Callable

import jax


def over_clients(function: Callable, chunk: int | None) -> Callable:
    """`function` of one client, mapped over its argument's leading axis, `chunk` clients at a time (None: all)."""
    if chunk is None:
        return jax.vmap(function)
    return lambda stacked: jax.lax.map(function, stacked, batch_size=chunk if chunk > 1 else None)
