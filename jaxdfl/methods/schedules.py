"""Schedules: which blocks train, or are shared, in a round.

The classification head, where it is trained at all, trains in every round and is shared in every round unless a
method says otherwise; the papers here freeze it.
"""

from functools import cache

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxdfl.protocol import PerBlock, Round, Schedule


def both_factors(round: Round) -> PerBlock:
    """A, B and the head."""
    return PerBlock(a=True, b=True, head=True)


def only_a(round: Round) -> PerBlock:
    """A alone: B and the head stay personal."""
    return PerBlock(a=True, b=False, head=False)


def only_b(round: Round) -> PerBlock:
    """B and the head; A keeps its common random start."""
    return PerBlock(a=False, b=True, head=True)


def b_alone(round: Round) -> PerBlock:
    """B and nothing else: A and the head stay personal."""
    return PerBlock(a=False, b=True, head=False)


def nothing(round: Round) -> PerBlock:
    """No block at all."""
    return PerBlock(a=False, b=False, head=False)


@cache
def alternate(period: int) -> Schedule:
    """B for `period` rounds, then A for `period` rounds, and so on; the head always.

    B goes first: while B = 0 the gradient of A is zero, so a first phase of A would be wasted. The phase depends on
    the round alone, so clients need no message to agree on it, and a resumed run keeps it.

    Raises:
        ValueError: `period` is below 1.
    """
    if period < 1:
        raise ValueError(f"`period` must be at least 1 round, got {period}.")

    def active(round: Round) -> PerBlock:
        b_is_active = (round // period) % 2 == 0
        return PerBlock(a=~jnp.asarray(b_is_active), b=jnp.asarray(b_is_active), head=True)

    return active


def as_table(schedule: Schedule, rounds: int) -> Bool[Array, "rounds 3"]:
    """The schedule's first `rounds` rounds as rows (a, b, head), so that it can be data to a compiled program."""
    return jax.vmap(lambda t: jnp.stack([jnp.asarray(flag) for flag in schedule(t)]))(jnp.arange(rounds))
