"""Sends only the modules in which a client has moved most (wrapper): PRISM's statistic as a communication trigger.

"Consolidation or adaptation? Disentangling SFT and RL data via gradient concentration" (PRISM), 2026, arXiv 2601.07224,
sorts training data by how concentrated its gradients are over the modules of a model. Only its abstract could be read,
and it has nothing to do with networks. The transfer to communication is ours: a module is one leaf of a shared block (a
target's A or B, or a tensor of the head), and a displacement that is concentrated in few modules is sent as those few,
while a diffuse one is sent whole. The share of the squared displacement that must be sent takes the place of a
threshold on PRISM's index, since it needs no scale of its own.
"""

from functools import cache

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdfl.mixing.gossip import by_block
from jaxdfl.protocol import Exchange, Info, Mixer, PerBlock, State
from jaxdfl.trees import Tree, along, bytes_per_client, keep, wide


def leading(energy: Float[Array, "modules clients"], share: float) -> Bool[Array, "modules clients"]:
    """The fewest modules that hold `share` of a client's energy, the largest first (of equals the earlier).

    A module without energy is never among them.
    """
    order = jnp.argsort(-energy, axis=0)
    ranked = jnp.take_along_axis(energy, order, axis=0)
    held = jnp.cumsum(ranked, axis=0) - ranked  # by the modules before this one
    needed = (held < share * energy.sum(0)) & (ranked > 0)
    return jnp.take_along_axis(needed, jnp.argsort(order, axis=0), axis=0)


@cache
def concentrated(inner: Mixer, share: float, step: float | None = None) -> Mixer:
    """Each client sends the fewest modules that hold `share` of its squared displacement since it last sent them.

    Everybody mixes copies y, client i's modules as i last sent them: x + step (inner(y) - y). So the mean of x is kept
    whatever is sent, and a module that stays silent gathers displacement until it is among the largest. What is sent
    brings y closer to x, ||x - y||^2 <= (1 - share) ||x - y_before||^2: this is CHOCO's gossip with a compressor of
    contraction `share` (Koloskova, Stich, Jaggi, "Decentralized Stochastic Optimization and Gossip Algorithms with
    Compressed Communication", 2019, arXiv 1902.00340). As there, stale copies need a `step` below one. On rings,
    stars and complete graphs of 6 and 20 clients with 24 modules, share^2 (the default, ours) brought clients together
    for every share from 0.1 to 0.9; a step of 1 blew up for shares of 0.1 and 0.5.

    Displacements are of factors, so which modules are sent depends on the gauge (A, B) -> (Q^-1 A, B Q). The first
    copies are the first blocks, which everybody knows where they are common. A client without links in a round leaves
    its copies as they are; on a changing graph everybody is taken to know the copies of whomever it meets, at no cost.
    Beneath, a message that gets lost takes the receiver's view of the whole block with it for a round. `repeated` and
    triggers go outside: inside, later hops go unpaid, and copies advance while their client is silent.
    A `share` of 1 with a `step` of 1 is `inner`.

    Bytes are those of the modules sent, by sender; the bit for each module that says which they are is left out.
    `modules` counts the modules that clients decided to send, each once however many neighbours hear it.

    Raises:
        ValueError: `share` or `step` is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"`share` must lie in (0, 1], got {share}; 1 sends everything.")
    pace = share**2 if step is None else step
    if not 0 < pace <= 1:
        raise ValueError(f"`step` must lie in (0, 1], got {step}; leave it out for share^2.")

    def init(blocks: PerBlock) -> State:
        return blocks, inner.init(blocks)

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        copies, inner_state = state
        links = by_block(exchange.links)
        energy = PerBlock(*map(_displacement, exchange.shared, links, blocks, copies))
        leaves, tree = jax.tree.flatten(energy)
        chosen = leading(jnp.stack(leaves), share)
        sent = jax.tree.unflatten(tree, list(chosen))  # of [clients]
        copies = jax.tree.map(lambda flags, x, y: jnp.where(along(flags, x), x, y), sent, blocks, copies)

        full = PerBlock(*map(bytes_per_client, blocks))
        size = PerBlock(*map(_bytes_sent, sent, blocks))
        parts = zip(exchange.payload or full, full, size, strict=True)
        payload = PerBlock(*(each / max(whole, 1) * part for each, whole, part in parts))
        links = PerBlock(*(link & (part > 0) for link, part in zip(links, size, strict=True)))
        mixed, inner_state, info = inner.mix(exchange._replace(links=links, payload=payload), copies, inner_state)

        def towards(x: Array, new: Array, y: Array) -> Array:
            return (wide(x) + pace * (wide(new) - wide(y))).astype(x.dtype)

        moved = jax.tree.map(towards, blocks, mixed, copies)
        blocks = PerBlock(*map(keep, exchange.shared, moved, blocks))
        return blocks, (copies, inner_state), info | {"modules": chosen.sum(dtype=jnp.int32)}

    return inner if share == pace == 1 else Mixer(init, mix)


def _displacement(shared: Bool[Array, ""] | bool, links: Bool[Array, "m m"], block: Tree, copies: Tree) -> Tree:
    """Each leaf's squared distance from its copy, [clients]; 0 where the block is not shared or has nobody to go to."""
    sends = shared & links.any(0)

    def squared(x: Array, y: Array) -> Array:
        return jnp.where(sends, jnp.square(wide(x) - wide(y)).sum(range(1, x.ndim)), 0)

    return jax.tree.map(squared, block, copies)


def _bytes_sent(sent: Tree, block: Tree) -> Float[Array, " clients"] | float:
    """Bytes of the leaves that each client sends; 0.0 for a block without leaves."""
    sizes = jax.tree.map(lambda flags, x: flags * jnp.float32(bytes_per_client(x)), sent, block)
    return sum(jax.tree.leaves(sizes), 0.0)
