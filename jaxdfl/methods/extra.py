"""EXTRA: gossip plus the running sum of what gossip has done so far, which cancels its bias. One message a round.

Shi, Ling, Wu, Yin, "EXTRA: An Exact First-Order Algorithm for Decentralized Consensus Optimization", 2014, arXiv
1404.6264.

    X+ = W X + S + P,  P <- P + (W X - X) / 2,  P = 0 at first

S is what local training moved the blocks by, from X. Differences of two rounds give the usual form
X+ = W X + X - Wt X_last + S - S_last with Wt = (I + W) / 2, and round 0 its first step, W X + S. With SGD and one local
step S = -eta G, and on a fixed graph and convex losses every client reaches the optimum of the mean loss for a small
enough eta. P has mean zero over the clients, so the mean moves by the mean of S alone, on any graph.

Departures: S stands for the gradient whatever the optimizer and the number of local steps. Where the graph changes from
round to round, P can grow without bound: on Erdos-Renyi draws of 6 clients consensus alone diverged at p = 0.1 and not
at 0.2 (measured, 300 rounds). What the docstring of `gradient_tracking` says of factors and of blocks that
rest holds here too.
"""

from functools import cache
from typing import NamedTuple

import optax

from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing import gossip
from jaxdfl.protocol import Exchange, Info, Method, Mixer, PerBlock, State
from jaxdfl.trees import keep


class Summed(NamedTuple):
    """What EXTRA carries."""

    start: PerBlock  # X, the blocks that the round's local training starts from: they are what is sent
    total: PerBlock  # P
    inner: State


@cache
def summed(inner: Mixer) -> Mixer:
    """W X + S + P, with one exchange through `inner`."""

    def init(blocks: PerBlock) -> Summed:
        return Summed(blocks, optax.tree.zeros_like(blocks), inner.init(blocks))

    def mix(exchange: Exchange, blocks: PerBlock, state: Summed) -> tuple[PerBlock, Summed, Info]:
        mixed, inner_state, info = inner.mix(exchange, state.start, state.inner)
        pull = optax.tree.sub(mixed, state.start)
        moved = optax.tree.add(blocks, optax.tree.add(pull, state.total))
        blocks = PerBlock(*map(keep, exchange.shared, moved, blocks))
        return blocks, Summed(blocks, optax.tree.add_scale(state.total, 0.5, pull), inner_state), info

    return Mixer(init, mix)


def extra(*, inner: Mixer = gossip()) -> Method:
    """Both factors train; the blocks that a round starts from gossip in it."""
    return Method(trains=both_factors, shares=both_factors, mixer=summed(inner))
