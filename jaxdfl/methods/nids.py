"""NIDS: exact diffusion after a first round without messages, and with a proximal step where one is asked for.

Li, Shi, Yan, "A Decentralized Proximal-Gradient Method with Network Independent Step-Sizes and Separated Convergence
Rates", 2017, arXiv 1704.07807.

    Z+ = Z - X + Wt (2 X - X_last + S - S_last),  X+ = prox(Z+),  at first Z+ = X + S

with Wt = (I + W) / 2 and S what local training moved the blocks by. Carried here as D, the sum of what the exchanges
have added, and R = X - Z, what the last proximal step has:

    V = X + S + D + R,  D <- D + Wt V - V,  Z+ = X + S + D

D has mean zero over the clients. With SGD and one local step S = -eta G, and on a fixed connected graph every client
reaches the minimiser of the mean loss plus r(x) = (prox / eta) ||x||_1 for any eta below 2 / L, whatever the graph.

Departures: Wt is the paper's I - c alpha (I - W) with c = 1 / (2 alpha) and one alpha for all; the equations follow
secondary code. S stands for the gradient whatever the optimizer and the number of local steps; what `exact_diffusion`
says of graphs that change, and `gradient_tracking` of factors and of blocks that rest, holds here too.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from jaxdfl.methods.exact_diffusion import lazy
from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing import gossip
from jaxdfl.protocol import Exchange, Info, Method, Mixer, PerBlock, State
from jaxdfl.trees import Tree, keep


def soft_threshold(tree: Tree, by: float) -> Tree:
    """Every entry moved towards zero by `by`, and no further: the proximal step of `by` times the l1 norm."""
    return tree if by == 0 else jax.tree.map(lambda x: jnp.sign(x) * jnp.maximum(jnp.abs(x) - by, 0), tree)


def only_if(speaks: Bool[Array, ""] | bool, exchange: Exchange) -> Exchange:
    """The exchange where it holds; else one in which nobody sends anything."""
    shared, links = jax.tree.map(lambda flag: flag & speaks, (exchange.shared, exchange.links))
    return exchange._replace(shared=shared, links=links)


class Proximal(NamedTuple):
    """What NIDS carries."""

    correction: PerBlock  # D; its mean over clients is zero
    shrunk: PerBlock  # R
    inner: State


@cache
def proximal(inner: Mixer, prox: float) -> Mixer:
    """The equations above, with one exchange through `inner` in every round but the first."""

    def init(blocks: PerBlock) -> Proximal:
        zeros = optax.tree.zeros_like(blocks)
        return Proximal(zeros, zeros, inner.init(blocks))

    def mix(exchange: Exchange, blocks: PerBlock, state: Proximal) -> tuple[PerBlock, Proximal, Info]:
        sent = optax.tree.add(blocks, optax.tree.add(state.correction, state.shrunk))
        mixed, inner_state, info = inner.mix(only_if(exchange.round > 0, exchange), sent, state.inner)
        correction = optax.tree.add(state.correction, optax.tree.sub(mixed, sent))
        before = optax.tree.add(blocks, correction)  # Z+
        after = soft_threshold(before, prox)
        shrunk = PerBlock(*map(keep, exchange.shared, optax.tree.sub(after, before), state.shrunk))
        return PerBlock(*map(keep, exchange.shared, after, blocks)), Proximal(correction, shrunk, inner_state), info

    return Mixer(init, mix)


def nids(prox: float = 0.0, *, inner: Mixer = gossip()) -> Method:
    """Both factors train; the corrected blocks gossip lazily in every round but the first.

    Args:
        prox: how far the proximal step shrinks every entry in a round, in units of the parameters: the learning rate
            times the weight of the l1 norm. 0 leaves the entries alone.
        inner: carries the exchange.

    Raises:
        ValueError: `prox` is negative.
    """
    if not prox >= 0:
        raise ValueError(f"`prox` must be at least 0, got {prox}.")
    return Method(trains=both_factors, shares=both_factors, mixer=proximal(lazy(inner), prox))
