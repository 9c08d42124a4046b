"""An expert bank: every client keeps the others' B beside its own instead of averaging them.

Where every client has a fixed A_i of its own, averaging B means nothing. So each expert crosses the network alone: all
other clients hold zeros, `inner` mixes, and client i gets w_ij B_j. A one goes along and comes out as the weight; what
was heard is divided by it, and remembered until it is heard again. `inner` may be any mixer, so triggers, losses and
compression act on experts as they act on factors. Experts are not relayed: of a sender's exchange, receivers weigh the
sender and themselves alone, so `repeated` sends again.

Ours; no paper says it so. The bank is [clients, slots, d_out, rank] for each target, with as many slots as the largest
cluster has clients: the square of the clients unless clusters cut it.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdfl.mixing.links import without
from jaxdfl.protocol import Exchange, Info, Mixer, PerBlock, State
from jaxdfl.trees import bytes_per_client, keep, wide

SENDER = "sender"  # beside the target paths in a message: the one that comes out as the weight
ROUNDING = 1e-6  # a weight below this is what rounding left of zero: nobody was heard

Clusters = int | tuple[int, ...]


class Bank(NamedTuple):
    """What every client knows of the experts of its cluster; its own is always up to date."""

    members: Int[Array, "clients slots"]  # which client a slot belongs to; -1 where a cluster is smaller than others
    a: dict[str, Array]  # [clients, rank, d_in] by target path: each client's own, which never change
    experts: dict[str, Array]  # [clients, slots, d_out, rank]: B_j as last heard, zeros before
    trust: Float[Array, "clients slots"]  # w_ij when j was last heard, 0 before; of oneself the last w_ii
    inner: State  # [slots, ...]


def members(clients: int, clusters: Clusters) -> Int[np.ndarray, "clients slots"]:
    """Row i: the clients of i's cluster in ascending order, filled up with -1 to the size of the largest cluster.

    `clusters` is a number of clusters, of neighbouring clients and of sizes that differ by one at most, or the cluster
    of every client.

    Raises:
        ValueError: `clusters` is not in 1..clients, or does not name one cluster for every client.
    """
    if isinstance(clusters, int):
        if not 1 <= clusters <= clients:
            raise ValueError(f"`clusters` must lie in 1..{clients}, the number of clients, got {clusters}.")
        cluster = np.arange(clients) * clusters // clients
    else:
        cluster = np.array(clusters)
        if len(cluster) != clients:
            raise ValueError(f"`clusters` must name a cluster for each of {clients} clients, got {len(cluster)}.")
    rows = [np.flatnonzero(cluster == mine) for mine in cluster]
    slots = max(map(len, rows))
    return np.stack([np.pad(row, (0, slots - len(row)), constant_values=-1) for row in rows])


@cache
def expert_bank(inner: Mixer, clusters: Clusters = 1) -> Mixer:
    """B_i stays client i's own; its bank takes the experts that it hears within its cluster. Nothing else is sent.

    A message costs what the exchange says or the bytes of B: the sender is known, so the one beside it costs nothing.
    Each expert crosses with a key of its own, so losses drawn for both directions of a link at once are not.

    Raises:
        ValueError: see `members`, as soon as the number of clients is known.
    """

    def init(blocks: PerBlock) -> Bank:
        clients = jax.tree.leaves(blocks)[0].shape[0]
        table = jnp.asarray(members(clients, clusters))
        messages = _messages(table, blocks)
        experts = {path: jnp.moveaxis(messages.b[path], 0, 1) for path in blocks.b}  # each knows its own
        return Bank(table, blocks.a, experts, own_slot(table).astype(float), jax.vmap(inner.init)(messages))

    def mix(exchange: Exchange, blocks: PerBlock, bank: Bank) -> tuple[PerBlock, Bank, Info]:
        own = own_slot(bank.members)
        together = (bank.members[:, :, None] == jnp.arange(len(own))).any(1)  # [i, j]: in one cluster
        payload = exchange.payload or PerBlock(*map(bytes_per_client, blocks))
        alone = exchange._replace(shared=PerBlock(False, exchange.shared.b, False), payload=PerBlock(0, payload.b, 0))

        def cross(key: Array, speaks: Array, message: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
            """One slot's experts, one from each cluster; `speaks` [clients] is true of their owners."""
            open = together & speaks
            links = jax.tree.map(lambda links: links & open, exchange.links)
            weights = without(exchange.weights, ~open)
            return inner.mix(alone._replace(key=key, weights=weights, links=links), message, state)

        keys = jax.random.split(exchange.key, own.shape[1])
        heard, state, info = jax.vmap(cross)(keys, own.T, _messages(bank.members, blocks), bank.inner)
        weight = heard.b[SENDER][:, :, 0].T  # [clients, slots], as it arrived
        fresh = weight > ROUNDING

        def remember(mine: Array, heard: Array, old: Array) -> Array:
            each = jnp.moveaxis(wide(heard), 0, 1) / _per_expert(jnp.where(fresh, weight, 1))
            known = jnp.where(_per_expert(fresh), each.astype(old.dtype), old)
            return jnp.where(_per_expert(own), mine[:, None], known)

        experts = {path: remember(b, heard.b[path], bank.experts[path]) for path, b in blocks.b.items()}
        within = jnp.take_along_axis(without(exchange.weights, ~together), bank.members, axis=1)  # [clients, slots]
        trust = jnp.where(fresh, within, bank.trust)
        experts, trust = keep(exchange.shared.b, (experts, trust), (bank.experts, bank.trust))
        bank = bank._replace(experts=experts, trust=trust, inner=state)
        return blocks, bank, {name: counts.sum(0, dtype=counts.dtype) for name, counts in info.items()}

    return Mixer(init, mix)


def stacked(bank: Bank) -> PerBlock:
    """What must stand beside B_i A_i so that the model is sum_j g_ij B_j A_j over the experts that i has heard.

    g_i is i's trust, divided by its sum: row i of W where the graph stays the same. Factors [clients, q, d_in] and
    [clients, d_out, q] with q = slots * rank; client i's own slot holds (g_ii - 1) B_i.
    """
    beside = bank.trust / bank.trust.sum(1, keepdims=True) - own_slot(bank.members)
    a, b = side_by_side(bank)
    return PerBlock(a, {path: x * jnp.repeat(beside, bank.a[path].shape[1], 1)[:, None] for path, x in b.items()}, {})


def side_by_side(bank: Bank) -> tuple[dict[str, Array], dict[str, Array]]:
    """All experts as one adapter: A [clients, slots * rank, d_in], B [clients, d_out, slots * rank], by target path."""
    a = {path: x[bank.members].reshape(x.shape[0], -1, x.shape[2]) for path, x in bank.a.items()}  # of -1, B is zero
    b = {path: jnp.moveaxis(x, 1, 2).reshape(x.shape[0], x.shape[2], -1) for path, x in bank.experts.items()}
    return a, b


def own_slot(table: Int[Array, "clients slots"]) -> Bool[Array, "clients slots"]:
    """Which slot is a client's own."""
    return table == jnp.arange(len(table))[:, None]


def _per_expert(x: Array) -> Array:
    """[clients, slots] against [clients, slots, d_out, rank]."""
    return x[:, :, None, None]


def _messages(table: Array, blocks: PerBlock) -> PerBlock:
    """By slot, [slots, clients, ...]: B and a one at the slot's owners, zeros at all others."""
    own = own_slot(table).T
    b = {path: jnp.where(_per_expert(own), x, 0) for path, x in blocks.b.items()}
    return PerBlock({}, b | {SENDER: own[:, :, None].astype(float)}, {})
