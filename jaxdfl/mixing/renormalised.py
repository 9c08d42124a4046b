"""Rows that not all clients hold, averaged over those who do (wrapper); for clients of different ranks.

    x_ik <- sum_j W_ij h_jk x_jk / sum_j W_ij h_jk,  h_jk = 0 where row k of A_j and column k of B_j are zero, else 1

In the spirit of Wu, Hu, Min, Wang, "Preventing Rank Collapse in Federated Low-Rank Adaptation with Client
Heterogeneity", 2026, arXiv 2602.13486, which weighs partitions of the rank by those who contribute to them; the
abstract alone could be read, and the equation is ours.

The denominator is the inner mixer's own result for h, with the same key, so its weights are those that the messages
met: a lost one counts in neither sum. Who holds what is known to all and costs nothing. So the inner weights must not
depend on the values sent: compression, triggers, noise and attention go outside (`top_k:0.1+renormalised`), and methods
that mix products have no rows to average (`jaxdfl.methods.orders` refuses both). On a changing graph no mean of the
holders is kept.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdfl.protocol import Exchange, Info, Mixer, PerBlock, State
from jaxdfl.trees import keep, wide


class Renormalised(NamedTuple):
    """What `renormalised` carries: the inner mixer's state for the blocks, and another for who holds what."""

    blocks: State
    held: State


@cache
def renormalised(inner: Mixer) -> Mixer:
    """`inner`, with every row of A and column of B averaged over the senders who hold it.

    What is sent without both of its factors is averaged as ever.
    """

    def init(blocks: PerBlock) -> Renormalised:
        return Renormalised(inner.init(blocks), inner.init(holders(blocks)))

    def mix(exchange: Exchange, blocks: PerBlock, state: Renormalised) -> tuple[PerBlock, State, Info]:
        mixed, blocks_state, info = inner.mix(exchange, blocks, state.blocks)
        shares, held_state, _ = inner.mix(exchange, holders(blocks), state.held)

        def divided(block: dict[str, Array], shares: dict[str, Array]) -> dict[str, Array]:
            norms = {path: jnp.where(share > 0, share, 1) for path, share in shares.items()}
            return {path: (wide(x) / norms[path]).astype(x.dtype) if path in norms else x for path, x in block.items()}

        mixed = mixed._replace(a=divided(mixed.a, shares.a), b=divided(mixed.b, shares.b))
        return PerBlock(*map(keep, exchange.shared, mixed, blocks)), Renormalised(blocks_state, held_state), info

    return Mixer(init=init, mix=mix)


def holders(blocks: PerBlock) -> PerBlock:
    """1 for each row of A [clients, rank, 1] and column of B [clients, 1, rank] that is not zero in both; else 0."""
    both = [path for path in blocks.a if path in blocks.b]
    held = {path: (blocks.a[path] != 0).any(2) | (blocks.b[path] != 0).any(1) for path in both}
    return PerBlock(
        a={path: h[:, :, None].astype(float) for path, h in held.items()},
        b={path: h[:, None, :].astype(float) for path, h in held.items()},
        head=jnp.ones((jax.tree.leaves(blocks)[0].shape[0], 1)),  # everybody holds the head
    )
