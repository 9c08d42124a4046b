"""The clients axis: a function of one client, mapped over all of them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax


def over_clients(function: Callable[[Any, Any], Any], chunk: int | None) -> Callable[[Any, Any], Any]:
    """`function` of (what all share, one client's own), mapped over the leading axis of its second argument.

    At most `chunk` clients go at a time (None: all at once), in portions as equal as can be.
    """

    def mapped(shared: Any, stacked: Any) -> Any:
        one, clients = partial(function, shared), jax.tree.leaves(stacked)[0].shape[0]
        if chunk is None or chunk >= clients:
            return jax.vmap(one)(stacked)
        at_once = portion(clients, chunk)
        return jax.lax.map(one, stacked, batch_size=at_once if at_once > 1 else None)

    return mapped


def portion(clients: int, most: int) -> int:
    """How many of the clients go at a time, `most` or fewer.

    A divisor where one is above half of `most`, since a last portion of another size is compiled once more.
    """
    divisors = [size for size in range(most // 2 + 1, most + 1) if clients % size == 0]
    return divisors[-1] if divisors else math.ceil(clients / math.ceil(clients / most))
