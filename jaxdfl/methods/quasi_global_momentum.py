"""Quasi-global momentum: a momentum of what training and mixing together did to a client, not of its own gradients.

Lin, Karimireddy, Stich, Jaggi, "Quasi-Global Momentum: Accelerating Decentralized Deep Learning on Heterogeneous Data",
2021, arXiv 2102.04761.

    X+ = W (X + (S + beta N) / (1 + beta)),  N <- beta N + (1 - beta) (X+ - X),  N = 0 at first

S is what local training moved the blocks by, and -N / eta the momentum. The mean of N never hears of one client's
gradients alone, so that momentum does not amplify how the clients differ. The limit is biased as gossip's is.

The division by 1 + beta is that of the RelaySGD authors' code, which is what could be read: for a constant gradient the
step settles at S. `damped=False` leaves it out, as the paper's heavy ball (from memory), and settles at S / (1 - beta).

Departures: S stands for the gradient whatever the optimizer and the number of local steps; use an optimizer without
momentum of its own. What the docstring of `gradient_tracking` says of factors and of blocks that rest holds here too.
"""

from functools import cache
from typing import NamedTuple

import jax
import optax

from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing import gossip
from jaxdfl.protocol import Exchange, Info, Method, Mixer, PerBlock, State
from jaxdfl.trees import keep


class Momentum(NamedTuple):
    """What quasi-global momentum carries."""

    start: PerBlock  # X, the blocks that the round's local training starts from
    movement: PerBlock  # N
    inner: State


@cache
def with_momentum(inner: Mixer, momentum: float, damped: bool) -> Mixer:
    """The equations above, with one exchange through `inner`; exactly `inner` where `momentum` is 0."""

    def init(blocks: PerBlock) -> Momentum:
        return Momentum(blocks, optax.tree.zeros_like(blocks), inner.init(blocks))

    def mix(exchange: Exchange, blocks: PerBlock, state: Momentum) -> tuple[PerBlock, Momentum, Info]:
        push = state.movement
        if damped:  # (S + beta N) / (1 + beta) = S + beta (N - S) / (1 + beta)
            own = optax.tree.sub(blocks, state.start)
            push = optax.tree.scale(1 / (1 + momentum), optax.tree.sub(state.movement, own))
        mixed, inner_state, info = inner.mix(exchange, optax.tree.add_scale(blocks, momentum, push), state.inner)
        movement = jax.tree.map(
            lambda n, new, old: momentum * n + (1 - momentum) * (new - old), state.movement, mixed, state.start
        )
        movement = PerBlock(*map(keep, exchange.shared, movement, state.movement))
        blocks = PerBlock(*map(keep, exchange.shared, mixed, blocks))
        return blocks, Momentum(blocks, movement, inner_state), info

    return Mixer(init, mix)


def quasi_global_momentum(momentum: float = 0.9, damped: bool = True, *, inner: Mixer = gossip()) -> Method:
    """Both factors train; the blocks gossip with momentum in every round.

    Args:
        momentum: beta, both of the step and of the average of movements.
        damped: whether the step is divided by 1 + beta.
        inner: carries the exchange.

    Raises:
        ValueError: `momentum` is outside [0, 1).
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"`momentum` must lie in [0, 1), got {momentum}.")
    return Method(trains=both_factors, shares=both_factors, mixer=with_momentum(inner, momentum, damped))
