"""Gossip: every client replaces each shared block by its weighted mean over the neighbours it hears."""

from functools import cache

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdfl.mixing.weighted import weighted
from jaxdfl.protocol import Exchange, Info, Mixer, PerBlock, RoundKey, State
from jaxdfl.trees import bytes_per_client, keep


def paid(exchange: Exchange, blocks: PerBlock) -> Info:
    """What one exchange costs: a message for every link that carries anything, and the bytes of the shared blocks.

    `messages` is an int32 count of directed messages; blocks that go the same way in the same round go as one.
    `bytes` is float32 (int32 would overflow at 2 GiB): exact while the count of bytes has no more than 24 significant
    bits, else right to 6e-8 of itself.
    """
    payload = exchange.payload or PerBlock(*map(bytes_per_client, blocks))
    carried, size = jnp.bool_(False), jnp.float32(0)
    for links, shared, each in zip(by_block(exchange.links), exchange.shared, payload, strict=True):
        each = jnp.asarray(each, jnp.float32)  # a number, or one for each sender
        sent = links & shared & (each > 0)
        counts = jnp.sum(sent, axis=0, dtype=jnp.int32)  # messages of each sender
        carried = carried | sent
        size += each * counts.sum() if each.ndim == 0 else jnp.sum(each * counts)
    return {"messages": jnp.sum(carried, dtype=jnp.int32), "bytes": size}


def by_block(links: Array | PerBlock) -> PerBlock:
    """The links of each block, where they may be the same for all."""
    return links if isinstance(links, PerBlock) else PerBlock(links, links, links)


@cache  # one object, so that every method that gossips shares one compiled program
def gossip() -> Mixer:
    """x_i <- sum_j W_ij x_j on the shared blocks; a block that is not shared stays bit for bit as it was."""

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        mixed = PerBlock(*(weighted(exchange.weights, block) for block in blocks))
        return PerBlock(*map(keep, exchange.shared, mixed, blocks)), state, paid(exchange, blocks)

    return Mixer(init=lambda blocks: (), mix=mix, keeps_mean=True)


@cache
def everyone(inner: Mixer) -> Mixer:
    """`inner` on the complete graph with weights 1/m, whatever the network: the average that a server would send back.

    Messages are counted as on a complete graph, m (m - 1) a round; a server would need 2 m.
    """

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        clients = exchange.weights.shape[0]
        weights = jnp.full_like(exchange.weights, 1 / clients)
        links = ~jnp.eye(clients, dtype=bool)
        return inner.mix(exchange._replace(weights=weights, links=links), blocks, state)

    return inner._replace(mix=mix)


@cache
def repeated(inner: Mixer, times: int) -> Mixer:
    """`inner` `times` times in a row, each with a key of its own and the same weights: W^times. Costs add up.

    Raises:
        ValueError: `times` is below 1.
    """
    if times < 1:
        raise ValueError(f"`times` must be at least 1, got {times}.")

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        def once(carry: tuple[PerBlock, State], key: RoundKey) -> tuple[tuple[PerBlock, State], Info]:
            blocks, state, info = inner.mix(exchange._replace(key=key), *carry)
            return (blocks, state), info

        (blocks, state), infos = jax.lax.scan(once, (blocks, state), jax.random.split(exchange.key, times))
        return blocks, state, jax.tree.map(lambda counts: counts.sum(0, dtype=counts.dtype), infos)

    return inner if times == 1 else inner._replace(mix=mix)
