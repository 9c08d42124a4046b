"""Over the air (wrapper): neighbours transmit at once, and the channel adds their signals up.

Analog computation over the air as in federated optimisation, "Over-the-Air Federated Learning and Optimization", 2023,
arXiv 2310.10089. The paper's body could not be read; all that follows is reconstructed, and carried over from one
server to receivers that are clients.

Every receiver has a slot of its own, one real channel use for each entry. In the slot of i, client j meets the Rayleigh
fading h_ij, |h_ij|^2 exponential of mean 1, known to it and the same for the whole round. It inverts the channel and
weighs: its signal s_j goes out as sqrt(eta_i) w_ij s_j / h_ij, so that i receives, with receiver noise z of variance
sigma^2,

    y_i = sqrt(eta_i) sum_j w_ij s_j + z,    y_i / sqrt(eta_i) = sum_j w_ij s_j + noise of variance sigma^2 / eta_i.

Nobody's mean power for an entry may pass P, eta_i w_ij^2 ||s_j||^2 / (d |h_ij|^2) <= P with d the entries of the block;
the one nearest to its limit sets eta_i for all. With SNR = P / sigma^2 the noise of each entry has the variance

    (1 / SNR) max_j w_ij^2 ||s_j||^2 / (d |h_ij|^2),

which falls with the square of the number of neighbours heard, as w_ij does, and is 0 where nobody has anything to say.
The mean of 1 / |h|^2 is infinite, so who meets |h_ij|^2 <= `truncation` stays silent in that slot, and the receiver
puts itself in its place: the weights stay row-stochastic.

What is sent, s_j:

* `models`: the shared blocks. A factor that rests gets noise in every round.
* `differences`: by how much they moved since this mixer last returned them, which with one plain gradient step is the
  gradient times the learning rate. The receiver adds what its neighbours agreed on last, which it is taken to know,
  as every client of a server does. A resting factor sends zeros at no power and gets no noise.

Departures: that knowledge is free here, though on a sparse graph the neighbours' last blocks differ and would have to
be sent as well. `messages` and `bytes` count the same exchange sent digitally, link by link; `channel_uses` counts the
entries received in all slots (float32), whatever the number of senders.
"""

from functools import cache
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdfl.mixing.gossip import by_block
from jaxdfl.mixing.links import carries, without
from jaxdfl.mixing.noise import disturbed
from jaxdfl.protocol import Exchange, Info, Mixer, PerBlock, State
from jaxdfl.trees import Tree, keep, wide


@cache
def over_the_air(
    inner: Mixer, snr_db: float, transmit: Literal["differences", "models"] = "differences", truncation: float = 0.1
) -> Mixer:
    """Neighbours' signals add up on a fading channel, with receiver noise.

    Args:
        snr_db: largest mean power of a sender over the receiver's noise, in dB; `inf` is without noise.
        truncation: channel gain |h|^2, of mean 1, up to which a sender stays silent; a share 1 - exp(-truncation).

    Raises:
        ValueError: `snr_db` is not a number, or `truncation` is below 0.
    """
    if snr_db != snr_db:
        raise ValueError(f"`snr_db` must be a number in dB, got {snr_db}.")
    if not truncation >= 0:
        raise ValueError(f"`truncation` must be 0 or above, got {truncation}.")
    snr = 10 ** (snr_db / 10)

    def init(blocks: PerBlock) -> State:
        return (blocks if transmit == "differences" else ()), inner.init(blocks)

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        last, inner_state = state
        fading, noise, key = jax.random.split(exchange.key, 3)
        gain = jax.random.exponential(fading, exchange.weights.shape, jnp.float32)  # |h_ij|^2
        silent = carries(exchange) & (gain <= truncation)
        weights = without(exchange.weights, silent)
        asked = jnp.where(silent, 0, jnp.square(weights) / gain)  # power that i asks of j for a signal of power 1
        signal = blocks if transmit == "models" else jax.tree.map(lambda x, y: wide(x) - wide(y), blocks, last)
        deviations = PerBlock(
            *(
                jnp.sqrt(jnp.where(links, asked * _power(block), 0).max(1) / snr)
                for links, block in zip(by_block(exchange.links), signal, strict=True)
            )
        )
        exact, inner_state, info = inner.mix(exchange._replace(key=key, weights=weights), blocks, inner_state)
        heard = disturbed(noise, exact, deviations, exchange.shared)
        if transmit == "differences":
            last = PerBlock(*map(keep, exchange.shared, heard, last))
        return heard, (last, inner_state), info | {"channel_uses": _channel_uses(exchange, blocks)}

    return Mixer(init=init, mix=mix)


def _entries(block: Tree) -> int:
    return sum(x[0].size for x in jax.tree.leaves(block))


def _power(block: Tree) -> Float[Array, " clients"] | Float[Array, ""]:
    """Each client's mean square over all entries of the block; 0 for an empty one."""
    squares = (jnp.sum(jnp.square(wide(x)), axis=range(1, x.ndim)) for x in jax.tree.leaves(block))
    return sum(squares, jnp.float32(0)) / max(_entries(block), 1)


def _channel_uses(exchange: Exchange, blocks: PerBlock) -> Float[Array, ""]:
    uses = jnp.float32(0)
    for links, shared, block in zip(by_block(exchange.links), exchange.shared, blocks, strict=True):
        uses += _entries(block) * jnp.sum(links.any(1) & shared, dtype=jnp.float32)
    return uses
