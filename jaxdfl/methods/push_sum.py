"""Stochastic gradient push: averaging that stays unbiased where messages go one way only.

Assran, Loizou, Ballas, Rabbat, "Stochastic Gradient Push for Distributed Deep Learning", 2018, arXiv 1811.10792.

    U <- P (U + S),  w <- P w,  X = U / w,  with U = X and w = 1 at first

S is what local training moved the blocks X by, and P is column-stochastic: each client splits what it has among those
who hear it and itself. The sums of U and of w over clients are kept whatever P, so consensus is on the true mean, where
gossip with the same lost messages drifts. Where the weights are doubly stochastic w stays 1 and this is gossip.

How P is made: from the exchange's weights W as they arrive, W_ij / max(1, sum_k W_kj), and each client keeps the rest
of its column. So P = W on doubly stochastic weights, and the share of a message that `packet_loss` took out stays with
its sender, which needs links that acknowledge. (The paper's directed graphs have P given.) Wrappers stand around this
mixer, not inside it: its numerators and w would otherwise have to meet the same losses, drawn twice.

Departures: the four bytes of w are not counted. The limit on heterogeneous data is biased as gossip's is. What the
docstring of `gradient_tracking` says of factors holds here too; w is kept for each block, so blocks may rest.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing.gossip import paid
from jaxdfl.mixing.weighted import weighted
from jaxdfl.protocol import Exchange, Info, Method, Mixer, PerBlock
from jaxdfl.trees import Tree, along, keep, wide


class Pushed(NamedTuple):
    """What push-sum carries."""

    start: PerBlock  # X, the blocks that the round's local training starts from
    mass: PerBlock  # w, [clients], of each block; its sum is the number of clients


def column_stochastic(weights: Float[Array, "clients clients"]) -> Float[Array, "clients clients"]:
    """Columns that sum to more than one are scaled down; what others leave of one is kept by the client itself."""
    passed = weights / jnp.maximum(1, weights.sum(0))
    return passed + jnp.diag(1 - passed.sum(0))


@cache
def pushing() -> Mixer:
    """The equations above. A block that is not shared stays bit for bit, and so does its mass."""

    def init(blocks: PerBlock) -> Pushed:
        clients = jax.tree.leaves(blocks)[0].shape[0]
        return Pushed(blocks, PerBlock(*(jnp.ones(clients) for _ in blocks)))

    def mix(exchange: Exchange, blocks: PerBlock, state: Pushed) -> tuple[PerBlock, Pushed, Info]:
        shares = column_stochastic(exchange.weights)

        def push(block: Tree, start: Tree, mass: Float[Array, " clients"]) -> tuple[Tree, Float[Array, " clients"]]:
            received = weighted(shares, mass)

            def leaf(x: Array, x_start: Array) -> Array:
                of, to = (along(m, x) for m in (mass, received))
                numerator = wide(x) + (of - 1) * wide(x_start)  # w X_start + S
                return (weighted(shares, numerator) / to).astype(x.dtype)

            return jax.tree.map(leaf, block, start), received

        pushed = map(push, blocks, state.start, state.mass)
        kept = map(keep, exchange.shared, pushed, zip(blocks, state.mass, strict=True))
        blocks, mass = map(PerBlock._make, zip(*kept, strict=True))
        return blocks, Pushed(blocks, mass), paid(exchange, blocks)

    return Mixer(init, mix)


def push_sum() -> Method:
    """Both factors train and are pushed in every round."""
    return Method(trains=both_factors, shares=both_factors, mixer=pushing())
