"""Local gradient tracking: SCAFFOLD's control variates without a server, a correction of every local gradient.

Liu, Lin, Koloskova, Stich, "Decentralized Gradient Tracking with Local Steps", 2023, arXiv 2301.01313 (K-GT), after
Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
2019, arXiv 1910.06378.

    K times: X <- X - eta (G + C),  Z = (X_start - X) / (K eta),  C <- C - Z + W Z,  X <- W X,  C = 0 at first

C has mean zero over the clients. With SGD every fixed point is the optimum of the mean loss, however many local steps
there are, since the corrected clients do not drift apart; for one step this is `gradient_tracking`.

Reconstructed: only the abstract of K-GT could be read. The equations are those of SCAFFOLD's second option with W in
the server's place, and the paper's as we know them, with its second (server) step size at 1.

Departures: Z is taken from the displacement, so with Adam, clipping, a schedule of learning rates or a client that does
not finish its K steps it is in other units than the gradients that it corrects, and exactness is not claimed. What the
docstring of `gradient_tracking` says of factors and of blocks that rest holds here too.
"""

from collections.abc import Callable
from functools import cache

import optax

from jaxdfl.methods.gradient_tracking import Tracked, tracked
from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing import gossip
from jaxdfl.protocol import Method, Mixer, PerBlock


@cache
def per_step(length: float) -> Callable[[Tracked], PerBlock]:
    """The mixer's correction of a whole round's movement, as one of each gradient: C = -D / (K eta) = -D / length."""
    return lambda state: optax.tree.scale(-1 / length, state.correction)


def local_gradient_tracking(
    *, learning_rate: float | None = None, local_steps: int | None = None, inner: Mixer = gossip()
) -> Method:
    """Both factors train along corrected gradients; blocks and movements gossip in every round.

    Args:
        learning_rate: eta, of the run.
        local_steps: K, of the run.
        inner: carries both exchanges.

    Raises:
        ValueError: the learning rate or the number of local steps is not given, or not positive.
    """
    if learning_rate is None or learning_rate <= 0:
        raise ValueError(f"local_gradient_tracking needs the run's `learning_rate`, above 0, got {learning_rate}.")
    if local_steps is None or local_steps < 1:
        raise ValueError(f"local_gradient_tracking needs the run's `local_steps`, at least 1, got {local_steps}.")
    correction = per_step(learning_rate * local_steps)
    return Method(both_factors, both_factors, tracked(inner, in_training=True), correction=correction)
