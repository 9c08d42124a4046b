"""RelaySGD: on a tree, sums of models are relayed, so that all clients weigh alike after a delay, and exactly.

Vogels, He, Koloskova, Lin, Karimireddy, Stich, Jaggi, "RelaySum for Decentralized Deep Learning on Heterogeneous Data",
2021, arXiv 2110.04175, in the form that relays models. After local training:

    M_i->j = X_i + sum_{n != j} M_n->i   (those that came in the last round),   and counts likewise, with 1 for X_i
    X_i <- (X_i + sum_j M_j->i) / count_i,   count_i = 1 + sum_j count_j->i

A message holds the sum of all models on the sender's side of the link, the older the farther. From as many rounds on as
the tree is wide all counts are m, the number of clients. Until then, and wherever messages are lost, a client has the
mean of fewer models; `missing="first"` fills up with its own first model instead, X_i(0) (m - count_i), and divides by
m. The authors' code, where the equations are from, has both.

The network should be a fixed tree: `require_tree` says so before a run. On anything else no sum is right, since models
come back along circles: a message is then scaled so as never to count more than m models. A client so stays a mean of
past models and nothing blows up, but clients weigh unequally. On a tree that scaling rests.

Departures: the scaling is ours. A message that is lost is not relayed either. Wrappers stand around this mixer: what
they hand on is relayed, and a lost message is one of the sums. Messages differ by receiver, so the state is [clients,
clients, ...] for every block. What the docstring of `gradient_tracking` says of factors holds here too; messages are
kept for each block, so blocks may rest.
"""

from functools import cache
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing.gossip import by_block, paid
from jaxdfl.protocol import Exchange, Info, Method, Mixer, PerBlock
from jaxdfl.trees import Tree, along, keep, wide


class Relayed(NamedTuple):
    """What the relay carries: the messages of the last round, [receiver, sender, ...]."""

    sums: PerBlock  # leaves [clients, clients, *shape], float32 or wider
    counts: PerBlock  # [clients, clients], int32: how many models each sum holds; 0 where no message came
    first: PerBlock | None  # the first blocks, where they stand in for what is missing


def require_tree(adjacency: Bool[np.ndarray, "clients clients"]) -> None:
    """For an experiment, before it runs `relay_sgd` on a fixed network.

    Raises:
        ValueError: the network is not a tree, or some link goes one way only.
    """
    one_way = np.argwhere(adjacency & ~adjacency.T)
    if len(one_way):
        receiver, sender = one_way[0]
        raise ValueError(
            f"the network must be a tree for relay_sgd, with links both ways, but {sender} sends to {receiver} and not "
            "back; use a chain, a star or a tree."
        )
    graph = nx.from_numpy_array(adjacency)
    if not nx.is_tree(graph):
        parts = nx.number_connected_components(graph)
        raise ValueError(
            f"the network must be a tree for relay_sgd, got {graph.number_of_edges()} links of {len(graph)} clients in "
            f"{parts} connected part{'s' if parts > 1 else ''}; use a chain, a star or a tree."
        )


@cache
def relaying(missing: Literal["left_out", "first"]) -> Mixer:
    """The equations above. A block that is not shared stays bit for bit, and so do its messages."""

    def init(blocks: PerBlock) -> Relayed:
        clients = jax.tree.leaves(blocks)[0].shape[0]
        sums = jax.tree.map(lambda x: jnp.zeros((clients, *x.shape), wide(x).dtype), blocks)
        counts = PerBlock(*(jnp.zeros((clients, clients), jnp.int32) for _ in blocks))
        return Relayed(sums, counts, blocks if missing == "first" else None)

    def mix(exchange: Exchange, blocks: PerBlock, state: Relayed) -> tuple[PerBlock, Relayed, Info]:
        def relay(block: Tree, first: Tree, sums: Tree, counts: Int[Array, "m m"], links: Bool[Array, "m m"]):
            clients = len(links)
            heard = links & (exchange.weights != 0)
            relayed = (
                1 + counts.sum(1, keepdims=True, dtype=counts.dtype) - counts
            ).T  # all the sender has, but for the receiver's own
            scale = jnp.where(heard, jnp.minimum(1, clients / relayed), 0)  # 0 or 1 on a tree
            new_counts = jnp.where(heard, jnp.minimum(relayed, clients), 0)
            count = 1 + new_counts.sum(1, dtype=counts.dtype)
            absent = jnp.maximum(clients - count, 0) if missing == "first" else jnp.zeros_like(count)

            def message(x: Array, old: Array) -> Array:
                relayed = jnp.swapaxes((wide(x) + old.sum(1))[:, None] - old, 0, 1)
                return relayed * along(scale, old).astype(old.dtype)

            def combine(x: Array, x_first: Array, received: Array) -> Array:
                total = wide(x) + received.sum(1) + along(absent, x) * wide(x_first)
                return (total / along(count + absent, x)).astype(x.dtype)

            new_sums = jax.tree.map(message, block, sums)
            return jax.tree.map(combine, block, first, new_sums), new_sums, new_counts

        first = blocks if state.first is None else state.first
        relayed = map(relay, blocks, first, state.sums, state.counts, by_block(exchange.links))
        kept = map(keep, exchange.shared, relayed, zip(blocks, state.sums, state.counts, strict=True))
        blocks, sums, counts = map(PerBlock._make, zip(*kept, strict=True))
        return blocks, Relayed(sums, counts, state.first), paid(exchange, blocks)

    return Mixer(init, mix)


def relay_sgd(missing: Literal["left_out", "first"] = "left_out") -> Method:
    """Both factors train and are relayed in every round.

    Args:
        missing: what stands for models that have not come: nothing, or the client's own first model.
    """
    return Method(trains=both_factors, shares=both_factors, mixer=relaying(missing))
