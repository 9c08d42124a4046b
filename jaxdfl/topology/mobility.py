"""Clients that walk about and meet who is near: random waypoint mobility in the unit square.

Contacts of this kind are those of WAFL: Hideya Ochiai, Yuwei Sun, Qingzhe Jin, Nattanon Wongwiwatchai, Hiroshi Esaki,
"Wireless Ad Hoc Federated Learning: A Fully Distributed Cooperative Machine Learning", 2022, arXiv 2205.11779.
Each client walks straight to a uniform random point, then to the next, all at one speed.

The contacts of neighbouring rounds must come from one walk, and a run has a new key in each round, so the walk is
drawn from a seed like a graph drawn once, and the round's key is not used. It is `ROUNDS` rounds long; clients then
walk it back to where they came from, and so on: nobody ever jumps, and contacts repeat after `PERIOD` rounds.

Reconstructed: the model is the usual random waypoint; file names in the authors' repository read as a square of side
500, 1000 or 2000 with range 100, which is a radius of 0.2, 0.1 or 0.05 here. Departures: no pause at a waypoint, and
weights come from a doubly stochastic rule. WAFL's own, x_i <- x_i + lambda sum_(j in N_i) (x_j - x_i) / (|N_i| + 1),
has rows that sum to one and columns that do not: it moves the mean towards clients with many neighbours. It is not
offered.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdfl.protocol import Network, Round, RoundKey
from jaxdfl.topology.checks import require_clients
from jaxdfl.topology.graphs import Adjacency
from jaxdfl.topology.weights import Rule, metropolis_hastings
from jaxdfl.topology.work import steady

ROUNDS = 1000  # longer than most runs, so that these never see a contact come back by construction
PERIOD = 2 * ROUNDS

Walk = Float[np.ndarray, "places clients 2"]  # where everybody is in rounds 0..ROUNDS


def random_waypoint(clients: int, speed: float, *, seed: int = 0) -> Walk:
    """One walk of all clients at `speed` sides of the square per round; faster clients go further on the same path.

    Clients start anywhere in the square alike; since paths cross its middle, they are soon found there more often.

    Raises:
        ValueError: `clients` is below 1, or `speed` is outside (0, 1].
    """
    require_clients(clients)
    if not 0 < speed <= 1:
        raise ValueError(
            f"`speed` must lie in (0, 1] sides of the square per round, got {speed}; `random_geometric` stands still."
        )
    random = np.random.default_rng(seed)
    points, lengths = [random.random((clients, 2))], [np.zeros(clients)]
    while lengths[-1].min() < speed * ROUNDS:
        points.append(random.random((clients, 2)))
        lengths.append(lengths[-1] + np.linalg.norm(points[-1] - points[-2], axis=1))
    walked = speed * np.arange(ROUNDS + 1)
    routes = zip(np.stack(lengths, 1), np.stack(points, 1), strict=True)  # for each client [points] and [points, 2]
    places = [[np.interp(walked, marks, along) for along in corners.T] for marks, corners in routes]
    return np.array(places).transpose(2, 0, 1)


def mobility(walk: Walk, radius: float, rule: Rule = metropolis_hastings) -> Network:
    """Clients at most `radius` sides of the square apart hear each other, with weights by `rule`.

    Raises:
        ValueError: `radius` is not positive, or the rule needs a fixed graph.
    """
    _require_radius(radius)
    places = jnp.asarray(walk, float)

    def weights(key: RoundKey, round: Round) -> Float[Array, "clients clients"]:
        step = round % PERIOD
        return rule(_near(places[jnp.minimum(step, PERIOD - step)], radius))

    jax.eval_shape(weights, jax.random.key(0), 0)  # a rule that cannot be traced fails here, not in the first round
    return Network(weights, steady(walk.shape[1]))


def ever_near(walk: Walk, radius: float) -> Adjacency:
    """Who meets whom in some round."""
    _require_radius(radius)
    places = jnp.asarray(walk, float)
    met, _ = jax.lax.scan(lambda met, here: (met | _near(here, radius), None), _near(places[0], radius), places)
    return np.asarray(met)


def _near(here: Float[Array, "clients 2"], radius: float) -> Bool[Array, "clients clients"]:
    distance = jnp.linalg.norm(here[:, None] - here, axis=-1)
    return (distance <= radius) & ~jnp.eye(len(here), dtype=bool)


def _require_radius(radius: float) -> None:
    if not radius > 0:
        raise ValueError(f"`radius` must be positive (the square has side 1), got {radius}.")
