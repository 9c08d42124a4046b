"""Event-triggered gossip (wrapper): a client speaks only when it has moved away from what it last said.

Zhai, Yuan, Ni, Wang, Zhang, Li, "Event-Triggered Gossip for Distributed Learning", 2026, arXiv 2602.19116.

    client i speaks when  |x_i - s_i| >= tau_t,  and then  s_i <- x_i,  where s_i is its snapshot: what it last said
    difference:   x_i <- x_i + sum_j W_ij s_j - s_i                  keeps the mean exactly, whoever is silent
    replacement:  x_i <- W_ii x_i + sum_{j != i} W_ij s_j            does not

Only summaries of the paper could be read: the trigger, and tau_0 / sqrt(t + 1) or tau_0 / (t + 1) for a threshold that
decays. Both mixing rules are reconstructed; the difference form is that of CHOCO and SPARQ, without their damping.
While all are silent it moves x_i by the same step in every round, so clients that only mix (a resting factor, say)
never fall silent under a constant threshold: they circle at its size, and speak. The replacement form comes to rest.
There W_ii is the weight that this wrapper is handed, so nothing inside may change it (specs of such are refused).

Departures: |.| is the root mean square over the entries, not the Euclidean norm, so that one threshold serves blocks
and models of all sizes. A, B and head have a trigger each (`per="client"`: one for all that is shared).

All clients start from blocks that all know, so the first snapshots cost nothing (also where a method's own start gives
every client others). Graphs may change: who meets a client whose last message went to others is sent its snapshot,
once, and that is paid for. A message that is lost further out costs its receiver that round alone. `repeated` goes
outside (`repeated:2+event_triggered:0.1`): inside, its later hops would forward what nobody paid for.
"""

from functools import cache
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdfl.mixing.gossip import by_block
from jaxdfl.protocol import Exchange, Info, Mixer, PerBlock, State
from jaxdfl.trees import Tree, along, keep, wide

EACH = (PerBlock(True, False, False), PerBlock(False, True, False), PerBlock(False, False, True))
POWERS = {"none": 0.0, "sqrt": 0.5, "inverse": 1.0}  # threshold / (t + 1)^power


class Triggered(NamedTuple):
    """What `event_triggered` carries."""

    snapshots: PerBlock  # what each client last sent
    known: PerBlock  # of booleans [clients, clients]: client i holds j's snapshot
    inner: State


@cache
def event_triggered(
    inner: Mixer,
    threshold: float,
    form: Literal["difference", "replacement"] = "difference",
    decay: Literal["none", "sqrt", "inverse"] = "none",
    per: Literal["block", "client"] = "block",
) -> Mixer:
    """`inner` on snapshots, each renewed and sent when its client is `threshold` or more away from it.

    A threshold of 0 is plain `inner`; with an infinite one nothing is ever sent. Silent clients' snapshots are used and
    not paid for. Info: `triggered`, the clients that renewed a snapshot.

    Raises:
        ValueError: `threshold` is negative.
    """
    if not threshold >= 0:
        raise ValueError(f"`threshold` must be 0 or more (root mean square per entry), got {threshold}.")

    def init(blocks: PerBlock) -> Triggered:
        clients = jax.tree.leaves(blocks)[0].shape[0]
        everything = jnp.ones((clients, clients), bool)
        return Triggered(blocks, PerBlock(everything, everything, everything), inner.init(blocks))

    def mix(exchange: Exchange, blocks: PerBlock, state: Triggered) -> tuple[PerBlock, State, Info]:
        tau = threshold * (jnp.asarray(exchange.round, float) + 1) ** -POWERS[decay]

        def speaks(block: Tree, shared: Array | bool, one: PerBlock) -> Array:  # [clients]
            over = one if per == "block" else exchange.shared
            return (moved(blocks, state.snapshots, over) >= tau) & shared & bool(jax.tree.leaves(block))

        spoke = PerBlock(*map(speaks, blocks, exchange.shared, EACH))
        snapshots = PerBlock(*map(jax.vmap(keep), spoke, blocks, state.snapshots))
        known = [known & ~now for known, now in zip(state.known, spoke, strict=True)]  # column j: who holds what j said
        parts = zip(by_block(exchange.links), known, exchange.shared, strict=True)
        sent = PerBlock(*(links & ~known & shared for links, known, shared in parts))
        heard, inner_state, info = inner.mix(exchange._replace(links=sent), snapshots, state.inner)

        own = jnp.diag(exchange.weights)

        def combine(x: Array, snapshot: Array, heard: Array) -> Array:
            share = 1.0 if form == "difference" else along(own, x)
            return (wide(heard) + share * (wide(x) - wide(snapshot))).astype(x.dtype)

        mixed = jax.tree.map(combine, blocks, snapshots, heard)
        known = PerBlock(*map(jnp.logical_or, known, sent))
        count = jnp.sum(spoke.a | spoke.b | spoke.head, dtype=jnp.int32)
        blocks = PerBlock(*map(keep, exchange.shared, mixed, blocks))
        return blocks, Triggered(snapshots, known, inner_state), info | {"triggered": count}

    return Mixer(init=init, mix=mix)


def moved(blocks: PerBlock, snapshots: PerBlock, over: PerBlock) -> Float[Array, " clients"]:
    """Each client's root mean square distance from its snapshot, per entry of the blocks that `over` flags."""
    squares, entries = jnp.zeros(jax.tree.leaves(blocks)[0].shape[0]), jnp.float32(0)
    for counts, *pair in zip(over, blocks, snapshots, strict=True):
        for x, snapshot in zip(*map(jax.tree.leaves, pair), strict=True):
            distance = jnp.sum(jnp.square(wide(x) - wide(snapshot)), axis=range(1, x.ndim))
            squares += jnp.where(counts, distance, 0)
            entries += jnp.where(counts, x[0].size, 0)
    return jnp.sqrt(squares / jnp.maximum(entries, 1))
