"""Mixing weights that follow the work done (wrapper): the weighted Metropolis rule.

    P_ij = Q_ij min(1, pi_j / pi_i) for i != j, the rest on the diagonal

with Q the network's weights and pi_i proportional to the share of its local steps that client i finished. For symmetric
Q, pi_i P_ij = Q_ij min(pi_i, pi_j) is symmetric too, so pi is stationary: P keeps sum_i pi_i x_i instead of the mean.
The rule is that of Metropolis and Hastings (Hastings, "Monte Carlo sampling methods using Markov chains and their
applications", 1970); a re-implementation of Dec-LoRA names it for clients that should count unequally. That pi follows
the work is ours. Where the work changes from round to round so does what is kept, and no fixed mean is.
"""

from functools import cache

import jax.numpy as jnp

from jaxdfl.protocol import Exchange, Info, Mixer, PerBlock, State


@cache
def work_weighted(inner: Mixer, floor: float = 0.01) -> Mixer:
    """`inner` with weights whose stationary distribution is the clients' work; equal work leaves them as they are.

    `floor` stands for any smaller work: clients that did nothing count that much, and not zero over zero. Messages are
    sent and paid for as before.

    Raises:
        ValueError: `floor` is outside (0, 1].
    """
    if not 0 < floor <= 1:
        raise ValueError(f"`floor` must lie in (0, 1], got {floor}.")

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        work = jnp.maximum(exchange.work, floor)
        accepted = exchange.weights * jnp.minimum(1, work / work[:, None])  # the diagonal stays as it is
        weights = accepted + jnp.diag((exchange.weights - accepted).sum(1))
        return inner.mix(exchange._replace(weights=weights), blocks, state)

    return Mixer(init=inner.init, mix=mix)
