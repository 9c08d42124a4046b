"""How much of its local training each client finishes: (key, round) -> shares [clients] in [0, 1].

`build_work("stragglers:0.3:0.5", clients=10)` is the way in; `WORK` lists the names. A network takes it by
`network._replace(work=...)`. A client makes floor(share * local steps) steps, so with few of them a share below one
may mean none at all.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jaxdfl.protocol import Round, RoundKey
from jaxdfl.topology.checks import require_clients, require_probability
from jaxdfl.topology.specs import Family, unknown, values

Shares = Float[Array, " clients"]
Work = Callable[[RoundKey, Round], Shares]


def build_work(spec: str, clients: int) -> Work:
    """The work a spec describes, such as `steady` or `uneven:0.2`.

    Raises:
        ValueError: unknown name, wrong number or kind of parameters, or a share outside [0, 1].
    """
    name = spec.partition(":")[0]
    if name not in WORK:
        raise ValueError(unknown("work", name, WORK) + ".")
    family = WORK[name]
    return family.build(clients, *values(spec, family.parameters))


def steady(clients: int) -> Work:
    """Everybody finishes all local steps."""
    require_clients(clients)
    return Partial(_always, jnp.ones(clients))


def stragglers(clients: int, fraction: float, share: float) -> Work:
    """In each round round(fraction * clients) random clients finish only `share` of their local steps.

    Raises:
        ValueError: `clients` is below 1, or `fraction` or `share` is outside [0, 1].
    """
    require_clients(clients)
    require_probability("fraction", fraction)
    require_probability("share", share)
    return Partial(_shuffled, jnp.where(jnp.arange(clients) < round(fraction * clients), share, 1.0))


def uneven(clients: int, lowest: float) -> Work:
    """Slow and fast machines: client i always finishes the same share, from `lowest` up to 1 in even steps.

    Client 0 is the slowest and the last one finishes everything. One client alone finishes everything too.

    Raises:
        ValueError: `clients` is below 1, or `lowest` is outside [0, 1].
    """
    require_clients(clients)
    require_probability("lowest", lowest)
    return Partial(_always, jnp.linspace(1.0, lowest, clients)[::-1])


def random_shares(clients: int, lowest: float) -> Work:
    """Each client's share is uniform in [lowest, 1], drawn for itself anew in each round.

    Raises:
        ValueError: `clients` is below 1, or `lowest` is outside [0, 1].
    """
    require_clients(clients)
    require_probability("lowest", lowest)
    return Partial(_drawn, jnp.full(clients, lowest))


def _always(shares: Shares, key: RoundKey, round: Round) -> Shares:
    return shares


def _shuffled(shares: Shares, key: RoundKey, round: Round) -> Shares:
    return jax.random.permutation(jax.random.fold_in(key, round), shares)


def _drawn(lowest: Shares, key: RoundKey, round: Round) -> Shares:
    return jax.random.uniform(jax.random.fold_in(key, round), lowest.shape, jnp.float32, minval=lowest, maxval=1.0)


WORK: dict[str, Family] = {
    "steady": Family("everybody finishes", {}, steady),
    "stragglers": Family(
        "a random fraction finishes only a share, anew each round", {"fraction": float, "share": float}, stragglers
    ),
    "uneven": Family("fixed shares, from lowest to 1 in even steps", {"lowest": float}, uneven),
    "random": Family("shares uniform in [lowest, 1], per client and round", {"lowest": float}, random_shares),
}
