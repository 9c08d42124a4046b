"""SALF (wrapper of a whole method): a straggler's backward pass reaches the last layers alone.

Lang, Cohen, Shlezinger, "Stragglers-Aware Low-Latency Synchronous Federated Learning via Layer-Wise Model Updates",
2024, arXiv 2403.18375. Back-propagation goes from the last layer to the first, so a client that meets its deadline
early has updates for the layers on top. As in the official code, a straggler's depth is uniform in 1..L and its
remaining layers count as unchanged:

    x_l <- x_l^start + c_l (x_l^trained - x_l^start) where layer l is reached, x_l^start elsewhere

    c_l = 1, so that the expected update of layer l is P[l is reached] times the full one; or, with `correction`,
    c_l = 1 / P[l is reached] for stragglers, so that it is the full one

The paper corrects the server's average by the probability that a layer is reached; its formula could not be read and
c_l is our reconstruction, client by client, since there is no server.

Departures: the paper has a server; here neighbours mix, and what was not reached is mixed (and sent, and paid for)
like all else. Layers are the transformer blocks, counted by the number in their targets' paths, then targets without
one, then the head where it is trained. The optimizer's moments and the loss are those of the whole backward pass.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdfl.protocol import Exchange, Info, Method, Mixer, PerBlock, State
from jaxdfl.trees import wide


class Started(NamedTuple):
    """What `salf` carries."""

    start: PerBlock  # what each client's round of training begins from
    inner: State


def salf(method: Method, fraction: float, correction: bool = False, redrawn: bool = False) -> Method:
    """`method`, of whose clients round(`fraction` * clients) keep their updates of the last layers alone.

    The stragglers are the clients of lowest index in all rounds (the official code fixes the set at the start, too), or
    others in each round if `redrawn`. Info: `unreached`, the pairs of client and layer that were left out.

    Raises:
        ValueError: `fraction` is outside [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"`fraction` must lie in [0, 1], got {fraction}.")
    return method._replace(
        mixer=_stragglers_first(method.mixer, fraction, correction, redrawn),
        correction=_of_inner(method.correction),
        merged=_of_inner(method.merged),
    )


@cache
def _stragglers_first(inner: Mixer, fraction: float, correction: bool, redrawn: bool) -> Mixer:
    """`inner` on what the stragglers reached."""

    def mix(exchange: Exchange, blocks: PerBlock, state: Started) -> tuple[PerBlock, State, Info]:
        clients, layers = len(exchange.weights), count_layers(blocks)
        choice, depths, key = jax.random.split(exchange.key, 3)
        late = jnp.arange(clients) < round(fraction * clients)
        if redrawn:
            late = jax.random.permutation(choice, late)
        depth = jnp.where(late, jax.random.randint(depths, (clients,), 1, layers + 1, jnp.int32), layers)
        reached = reach(blocks, state.start, depth, late if correction else None)
        mixed, inner_state, info = inner.mix(exchange._replace(key=key), reached, state.inner)
        unreached = jnp.sum(layers - depth, dtype=jnp.int32)
        return mixed, Started(mixed, inner_state), info | {"unreached": unreached}

    return Mixer(init=lambda blocks: Started(blocks, inner.init(blocks)), mix=mix)


def reach(
    trained: PerBlock,
    start: PerBlock,
    depth: Int[Array, " clients"],
    late: Bool[Array, " clients"] | None = None,
) -> PerBlock:
    """The blocks whose layers below the last `depth` are as at the start of the round.

    Where `late` holds, depth is taken to be uniform in 1..L and the updates are scaled up so as to be right on average.
    """
    layers, heights = count_layers(trained), _heights(trained)

    def of_path(path: str, x: Array, begun: Array) -> Array:
        scale = jnp.ones(len(depth)) if late is None else jnp.where(late, layers / (layers - heights[path]), 1)
        one_for_each = (-1, *[1] * (x.ndim - 1))
        further = (scale.reshape(one_for_each) - 1) * (wide(x) - wide(begun))
        return jnp.where((depth > heights[path]).reshape(one_for_each), (x + further).astype(x.dtype), begun)

    a, b = ({path: of_path(path, x, begun[path]) for path, x in block.items()}
            for block, begun in ((trained.a, start.a), (trained.b, start.b)))  # fmt: skip
    return trained._replace(a=a, b=b)  # the head is the first that is reached


def count_layers(blocks: PerBlock) -> int:
    """Layers that a backward pass may reach; the head is one of them where it is trained."""
    return 1 + max(_heights(blocks).values())


def _heights(blocks: PerBlock) -> dict[str, int]:
    """How many layers lie above each target path; 0 for the layer that is reached first."""
    numbers = {path: next((int(part) for part in path.split("/") if part.isdigit()), float("inf")) for path in blocks.a}
    above_all = 1 if jax.tree.leaves(blocks.head) else 0
    height = {number: above_all + place for place, number in enumerate(sorted(set(numbers.values()), reverse=True))}
    return {path: height[number] for path, number in numbers.items()}


@cache
def _of_inner(function: Callable[[State], Any] | None) -> Callable[[Started], Any] | None:
    """A function of the inner mixer's state, as one of this wrapper's."""
    return None if function is None else lambda state: function(state.inner)
