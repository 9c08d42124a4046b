"""Noise on what is received (wrapper): every message arrives as x_j + n_ij with entries n_ij ~ N(0, deviation^2).

The linear channel of textbooks, apart from any paper. Client i's mix is then sum_j w_ij x_j + n_i with n_i of variance
deviation^2 sum_{j != i} w_ij^2, and n_i is what is drawn: one draw for each receiver, not one for each link. A client
hears itself, and its neighbours' cached copies, without noise.

The weights are those that this wrapper is handed. Where messages are lost too, let them be lost first
(`packet_loss:0.2+noisy:0.01`), so that what is lost adds no noise. For a mixer that is not linear in the blocks (of
products, say) the noise is added to its result.
"""

from functools import cache

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdfl.mixing.gossip import by_block
from jaxdfl.protocol import Exchange, Info, Mixer, PerBlock, RoundKey, State
from jaxdfl.trees import Tree, along, keep, wide


@cache
def noisy(inner: Mixer, deviation: float) -> Mixer:
    """Adds Gaussian noise of standard deviation `deviation` to every entry of every message.

    Raises:
        ValueError: `deviation` is below 0 or not finite.
    """
    if not 0 <= deviation < float("inf"):
        raise ValueError(f"`deviation` must be 0 or a finite number above it, got {deviation}.")

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        own, key = jax.random.split(exchange.key)
        blocks, state, info = inner.mix(exchange._replace(key=key), blocks, state)
        squares = jnp.square(exchange.weights)
        heard = (jnp.where(links, squares, 0).sum(1) for links in by_block(exchange.links))
        deviations = PerBlock(*(deviation * jnp.sqrt(each) for each in heard))
        return disturbed(own, blocks, deviations, exchange.shared), state, info

    return Mixer(init=inner.init, mix=mix)


def disturbed(key: RoundKey, blocks: PerBlock, deviations: PerBlock, shared: PerBlock) -> PerBlock:
    """The shared blocks with Gaussian noise on every entry; `deviations` are [clients] for each block."""
    leaves, tree = jax.tree.flatten(blocks)
    keys = jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))

    def disturb(block: Tree, keys: Tree, deviation: Array) -> Tree:
        def leaf(x: Array, key: Array) -> Array:
            draw = jax.random.normal(key, x.shape, jnp.float32)
            return (wide(x) + along(deviation, x) * draw).astype(x.dtype)

        return jax.tree.map(leaf, block, keys)

    return PerBlock(*map(keep, shared, map(disturb, blocks, keys, deviations), blocks))
