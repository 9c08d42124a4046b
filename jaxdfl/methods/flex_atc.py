"""FlexATC: exact diffusion that skips most exchanges, all clients the same ones, at the toss of a common coin.

Guo, Shi, Xu, Cao, "Local Adapt-Then-Combine Algorithms for Distributed Nonsmooth Optimization: Achieving Provable
Communication Acceleration", 2026, arXiv 2602.16148.

    V = X + S + D,  Y = Wt V with probability p, else V,  D <- D + p (Y - V),  X+ = prox(Y)

with Wt = (I + W) / 2 and S what local training moved the blocks by; D = eta h for ProxSkip's control variates h,
of sum zero.

Reconstructed: no more than the abstract could be read (probabilistic local updates, a common non-smooth term, steps
that depend neither on the graph nor on p). For prox = 0 this is ProxSkip (Mishchenko, Malinovsky, Stich, Richtarik,
2022, arXiv 2202.09357) on the consensus problem, for p = 1 exact diffusion; the proximal step after the combination is
ours, as in the adapt-then-combine forms of Alghunaim, Ryu, Yuan, Sayed, 2019, arXiv 1909.06479. With SGD and one local
step, on a fixed connected graph and strongly convex quadratics, the tests find every client at the minimiser of the
mean loss plus (prox / eta) ||x||_1 for p = 1, 0.3 and 0.1 at one eta.

Departures: a round of the simulator is one iteration, so S may be several local steps and those of any optimizer, for
which nothing is claimed. What `exact_diffusion` says of graphs that change, and `gradient_tracking` of factors and of
blocks that rest, holds here too.
"""

from functools import cache

import jax
import jax.numpy as jnp
import optax

from jaxdfl.methods.d2 import Corrected
from jaxdfl.methods.exact_diffusion import lazy
from jaxdfl.methods.nids import only_if, soft_threshold
from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing import gossip
from jaxdfl.protocol import Exchange, Info, Method, Mixer, PerBlock
from jaxdfl.trees import keep


@cache
def sometimes(inner: Mixer, probability: float, prox: float) -> Mixer:
    """The equations above; a skipped round sends nothing through `inner`."""

    def init(blocks: PerBlock) -> Corrected:
        return Corrected(optax.tree.zeros_like(blocks), inner.init(blocks))

    def mix(exchange: Exchange, blocks: PerBlock, state: Corrected) -> tuple[PerBlock, Corrected, Info]:
        coin, key = jax.random.split(exchange.key)
        speaks = jax.random.bernoulli(coin, jnp.float32(probability))
        moved = optax.tree.add(blocks, state.correction)
        mixed, inner_state, info = inner.mix(only_if(speaks, exchange._replace(key=key)), moved, state.inner)
        correction = optax.tree.add_scale(state.correction, probability, optax.tree.sub(mixed, moved))
        after = soft_threshold(mixed, prox)
        return PerBlock(*map(keep, exchange.shared, after, blocks)), Corrected(correction, inner_state), info

    return Mixer(init, mix)


def flex_atc(probability: float = 0.5, prox: float = 0.0, *, inner: Mixer = gossip()) -> Method:
    """Both factors train in every round; the corrected blocks gossip lazily in some.

    Args:
        probability: of an exchange in a round, p; one coin for all clients.
        prox: how far the proximal step shrinks every entry in a round, in units of the parameters: the learning rate
            times the weight of the l1 norm. 0 leaves the entries alone.
        inner: carries the exchange.

    Raises:
        ValueError: `probability` is outside (0, 1], or `prox` is negative.
    """
    if not 0 < probability <= 1:
        raise ValueError(f"`probability` must lie in (0, 1], got {probability}.")
    if not prox >= 0:
        raise ValueError(f"`prox` must be at least 0, got {prox}.")
    return Method(trains=both_factors, shares=both_factors, mixer=sometimes(lazy(inner), probability, prox))
