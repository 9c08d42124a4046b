"""A whole run: compiled stretches of rounds, evaluation between them. It is a sweep of one."""

from collections.abc import Callable
from typing import Any

from jaxdfl.protocol import Method, Network
from jaxdfl.simulate.program import Advance, make_advance
from jaxdfl.simulate.rounds import SimState, StepScale
from jaxdfl.simulate.sweep import Case, Plan, Stop, always_one, sweep

__all__ = ["Advance", "Plan", "Stop", "make_advance", "simulate"]


def simulate(
    advance: Advance,
    method: Method,
    network: Network,
    frozen: Any,
    state: SimState,
    examples: Any,
    plan: Plan,
    *,
    rounds: int,
    every: int,
    stop: Callable[[Stop], None],
    step_scale: StepScale = always_one,
) -> SimState:
    """Rounds `state.round` .. `rounds`, calling `stop` at the start, after every `every` rounds, and at the end.

    The result does not depend on `every`, nor on where an earlier call ended: a run may go on from any saved state.
    """
    case = Case(method, network, frozen, plan, step_scale)
    return sweep(advance, [case], [state], examples, rounds=rounds, every=every, stop=lambda stops: stop(stops[0]))[0]
