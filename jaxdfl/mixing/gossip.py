"""Gossip: every client replaces each shared block by its weighted mean over the neighbours it hears."""

from functools import cache

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdfl.protocol import Exchange, Info, Mixer, PerBlock, State
from jaxdfl.trees import Tree, bytes_per_client, keep


def weighted(weights: Float[Array, "clients clients"], tree: Tree) -> Tree:
    """x_i <- sum_j W_ij x_j for every leaf [clients, ...], in float32 at full precision, cast back to the leaf's dtype.

    A lower precision (bfloat16, or the TF32 that GPUs take for float32 products) would make the rows of W miss
    their sum of one by about 1e-3, so that the mean drifts.
    """

    def mix_leaf(x: Array) -> Array:
        mixed = jnp.tensordot(weights, x.astype(jnp.float32), axes=1, precision=jax.lax.Precision.HIGHEST)
        return mixed.astype(x.dtype)

    return jax.tree.map(mix_leaf, tree)


def paid(exchange: Exchange, blocks: PerBlock) -> Info:
    """What one exchange costs: a message for every link that carries anything, and the bytes of the shared blocks.

    `messages` is an int32 count of directed messages. `bytes` is float32 (int32 would overflow at 2 GiB): exact
    while the count of bytes has no more than 24 significant bits, else right to 6e-8 of itself.
    """
    links = jnp.sum(exchange.links, dtype=jnp.int32)
    payload = [
        jnp.where(shared, bytes_per_client(block), 0) for shared, block in zip(exchange.shared, blocks, strict=True)
    ]
    size = sum(payload[1:], payload[0])
    return {"messages": links * (size > 0), "bytes": links.astype(jnp.float32) * size.astype(jnp.float32)}


@cache  # one object, so that every method that gossips shares one compiled program
def gossip() -> Mixer:
    """x_i <- sum_j W_ij x_j on the shared blocks; a block that is not shared stays bit for bit as it was."""

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        mixed = PerBlock(*(weighted(exchange.weights, block) for block in blocks))
        return PerBlock(*map(keep, exchange.shared, mixed, blocks)), state, paid(exchange, blocks)

    return Mixer(init=lambda blocks: (), mix=mix)


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

    return Mixer(init=inner.init, mix=mix)
