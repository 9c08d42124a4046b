"""Exact diffusion: D2 with the lazy weights Wt = (I + W) / 2, which no graph makes diverge.

Yuan, Ying, Zhao, Sayed, "Exact Diffusion for Distributed Optimization and Learning, Part I: Algorithm Development",
2017, arXiv 1702.05122.

    X+ = Wt (X + S + D),  D <- X+ - (X + S),  D = 0 at first

S is what local training moved the blocks by: adapt, correct, combine. The eigenvalues of Wt lie in (0, 1] on any fixed
connected graph, so the demand that `jaxdfl.methods.d2` has on W is met by itself.

Departures: those of `d2`, but consensus diverges on sparser random graphs only (at p = 0.1 and not at 0.2).
"""

from functools import cache

import jax.numpy as jnp

from jaxdfl.methods.d2 import corrected
from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing import gossip
from jaxdfl.protocol import Exchange, Info, Method, Mixer, PerBlock, State


@cache
def lazy(inner: Mixer) -> Mixer:
    """`inner` with the weights (I + W) / 2; the same links are paid for."""

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        weights = (exchange.weights + jnp.eye(*exchange.weights.shape, dtype=exchange.weights.dtype)) / 2
        return inner.mix(exchange._replace(weights=weights), blocks, state)

    return Mixer(init=inner.init, mix=mix)


def exact_diffusion(*, inner: Mixer = gossip()) -> Method:
    """Both factors train; the corrected blocks gossip lazily in every round."""
    return Method(trains=both_factors, shares=both_factors, mixer=corrected(lazy(inner)))
