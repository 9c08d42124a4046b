"""Where numbers stop being numbers: the round, and the client and block that they first went wrong in."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdfl.protocol import Network
from jaxdfl.simulate.program import Advance
from jaxdfl.simulate.rounds import SimState
from jaxdfl.simulate.sweep import Case, Stop, sweep

WATCHED = ("loss", "disagreement_a", "disagreement_b", "disagreement_head")  # not finite as soon as any client is not


class NotFinite(NamedTuple):
    """The first infinity or NaN of a run."""

    round: int  # rounds completed when it shows
    clients: Sequence[int]  # whose blocks it is in before they mix; none where only the loss is not finite
    blocks: Sequence[str]  # "a", "b", "head"
    good: SimState  # the state before that round

    @property
    def words(self) -> str:
        """One line, for people."""
        if not self.clients:
            return f"the loss of round {self.round} is not finite, the blocks are"
        shown = ", ".join(map(str, self.clients[:5])) + (", ..." if len(self.clients) > 5 else "")
        return f"{' and '.join(self.blocks)} of client {shown} not finite after round {self.round}"


def first_bad_round(stop: Stop) -> int | None:
    """The first round since the last stop after which something watched is not finite; None where all is."""
    series = [stop.infos[name] for name in WATCHED if name in stop.infos]
    if not series:
        return None
    bad = np.flatnonzero((~np.isfinite(np.stack(series))).any(0))  # of the rounds since the last stop
    return stop.round - len(series[0]) + int(bad[0]) + 1 if len(bad) else None


def trace(advance: Advance, case: Case, state: SimState, examples: Any, bad_round: int) -> NotFinite:
    """Goes from the state, which is good, to the bad round once more, and lets no client hear another in it.

    So what is not finite then has become so at the client itself. Methods that mix otherwise than by the network's
    weights spread it all the same, and then more clients are named.
    """

    def go(case: Case, state: SimState, rounds: int) -> SimState:
        return sweep(advance, [case], [state], examples, rounds=rounds, every=bad_round, stop=lambda stops: None)[0]

    good = go(case, state, bad_round - 1)
    clients = jax.tree.leaves(good.blocks)[0].shape[0]
    alone = Network(lambda key, round: jnp.eye(clients), case.network.work)
    after = go(case._replace(network=alone), good, bad_round)
    wrong = {name: _not_finite(block) for name, block in after.blocks._asdict().items()}
    return NotFinite(
        round=bad_round,
        clients=sorted(set().union(*wrong.values())),
        blocks=[name for name, clients in wrong.items() if clients],
        good=good,
    )


def _not_finite(block: Any) -> set[int]:
    """The clients that have a number that is none in the block."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(block)]
    return {int(client) for leaf in leaves for client in np.argwhere(~np.isfinite(leaf))[:, 0]}
