"""Gradient tracking: every client steps along a running estimate of the mean gradient instead of its own.

Di Lorenzo, Scutari, "NEXT: In-Network Nonconvex Optimization", 2016, arXiv 1602.00591; Qu, Li, "Harnessing Smoothness
to Accelerate Distributed Optimization", 2016, arXiv 1605.07112; Nedic, Olshevsky, Shi, "Achieving Geometric Convergence
for Distributed Optimization over Time-Varying Graphs", 2016, arXiv 1607.03218 (DIGing).

    X <- W (X + S + D),  D <- W (D + S) - S,  D = 0 at first

S is what the round's local training moved the blocks by; -(S + D) is the tracker, whose mean over clients is that of
-S in every round. This is the correction form of the RelaySGD authors' code (its correction is D; beside a gradient it
is C = D / learning rate), adapt then combine. With SGD and one local step S = -eta G, and on strongly convex losses
with a small enough eta every client reaches the optimum of the mean loss, also where the graph changes from round to
round.

Departures: S stands for the gradient whatever the optimizer and the number of local steps (a pseudo-gradient); with
Adam or more steps exactness is not claimed. The theory is about vectors: on LoRA factors the mean of the clients'
movements of A and B is tracked, not that of the product, and nothing is invariant to (A, B) -> (Q^-1 A, B Q). The
method assumes that every block trains and is shared in every round. The two quantities go as two messages.
"""

from functools import cache
from typing import NamedTuple

import jax
import optax

from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing import gossip
from jaxdfl.protocol import Exchange, Info, Method, Mixer, PerBlock, State
from jaxdfl.trees import keep


class Tracked(NamedTuple):
    """What `tracked` carries."""

    start: PerBlock  # the blocks that the round's local training starts from
    correction: PerBlock  # D; its mean over clients is zero
    inner: tuple[State, State]  # of the exchange of blocks, and of that of steps


@cache
def tracked(inner: Mixer, in_training: bool = False) -> Mixer:
    """X <- W (X + step), D <- D + W step - step, with step = S + D: two exchanges through `inner`.

    `in_training`: D is already part of what local training moved the blocks by (see `local_gradient_tracking`).
    """

    def init(blocks: PerBlock) -> Tracked:
        zeros = optax.tree.zeros_like(blocks)
        return Tracked(blocks, zeros, (inner.init(blocks), inner.init(zeros)))

    def mix(exchange: Exchange, blocks: PerBlock, state: Tracked) -> tuple[PerBlock, Tracked, Info]:
        first, second = jax.random.split(exchange.key)
        moved = blocks if in_training else optax.tree.add(blocks, state.correction)
        step = optax.tree.sub(moved, state.start)
        mixed, of_blocks, info = inner.mix(exchange._replace(key=first), moved, state.inner[0])
        agreed, of_steps, more = inner.mix(exchange._replace(key=second), step, state.inner[1])
        correction = optax.tree.add(state.correction, optax.tree.sub(agreed, step))
        blocks = PerBlock(*map(keep, exchange.shared, mixed, blocks))
        return blocks, Tracked(blocks, correction, (of_blocks, of_steps)), optax.tree.add(info, more)

    return Mixer(init, mix)


def gradient_tracking(*, inner: Mixer = gossip()) -> Method:
    """Both factors train; blocks and steps gossip in every round."""
    return Method(trains=both_factors, shares=both_factors, mixer=tracked(inner))
