"""Links that lose messages (wrapper).

Li, Lv, Ni, Zhao, Hossain, Poor, "Decentralized Federated Learning Over Imperfect Communication Channels", 2024,
arXiv 2405.12894 studies how lossy links bias local aggregation.
"""

from functools import cache

import jax
import jax.numpy as jnp

from jaxdfl.mixing.gossip import by_block
from jaxdfl.protocol import Exchange, Info, Mixer, PerBlock, State


@cache
def packet_loss(inner: Mixer, rate: float) -> Mixer:
    """Every message is lost with probability `rate`; the receiver puts itself in the sender's place.

    A lost message is paid for. What was not sent (a silent client's cached copy) cannot be lost.

    Raises:
        ValueError: `rate` is outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"`rate` must lie in [0, 1], got {rate}.")

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        own, key = jax.random.split(exchange.key)
        a, b, head = by_block(exchange.links)
        sent = a | b | head
        lost = sent & jax.random.bernoulli(own, rate, sent.shape)  # [i, j]: what j sent to i
        weights = jnp.where(lost, 0, exchange.weights)
        weights += jnp.diag(jnp.where(lost, exchange.weights, 0).sum(1))
        blocks, state, info = inner.mix(exchange._replace(key=key, weights=weights), blocks, state)
        return blocks, state, info | {"lost": lost.sum(dtype=jnp.int32)}

    return Mixer(init=inner.init, mix=mix)
