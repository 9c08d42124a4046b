"""EquiTopo: random shifts whose mean is exact averaging, so that mixing does not slow down as clients are added.

Zhuoqing Song, Weijian Li, Kexin Jin, Lei Shi, Ming Yan, Wotao Yin, Kun Yuan, "Communication-Efficient Topologies for
Decentralized Learning with O(1) Consensus Rate", NeurIPS 2022, arXiv 2210.07881.

Let P_a be the shift by a, where client i hears client i - a (modulo n clients). Over a uniform in 1..n-1, the mean of

    W_a = (n - 1) / n P_a + 1 / n I

is exactly J. The static graphs average a few W_a drawn once; the dynamic ones use one of them in each round.
Weights as in the authors' published code. Departures: random numbers and the direction of a shift are our own.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdfl.protocol import Network, Round, RoundKey
from jaxdfl.topology.checks import require_clients
from jaxdfl.topology.work import steady


def equi_static(
    clients: int, shifts: int, *, symmetric: bool = False, seed: int = 0
) -> Float[np.ndarray, "clients clients"]:
    """D-EquiStatic, the mean of W_a over `shifts` draws of a (with replacement); U-EquiStatic, (W + W^T) / 2.

    With M = 8 ln(2 n / p) / (3 epsilon^2) shifts, sigma_2 is at most epsilon with probability 1 - p at least. A client
    hears at most M others (2 M in the symmetric graph). Few shifts may fail to connect.

    Raises:
        ValueError: `clients` or `shifts` is below 1.
    """
    require_clients(clients)
    if shifts < 1:
        raise ValueError(f"`shifts` must be at least 1, got {shifts}.")
    drawn = np.random.default_rng(seed).integers(1, max(clients, 2), size=shifts)
    weight = np.bincount(drawn % clients, minlength=clients) / shifts * (clients - 1) / clients  # by steps ahead
    weight[0] += 1 / clients
    numbers = np.arange(clients)
    weights = weight[(numbers[:, None] - numbers) % clients]
    return (weights + weights.T) / 2 if symmetric else weights


def equi_dynamic(clients: int, eta: float) -> Network:
    """OD-EquiDyn: W = (1 - eta) I + eta W_a, with a new a in each round; one message to and from each client.

    rho is exactly (1 - eta)^2 + eta^2 (1 - 2 / n): just below 1/2 at eta = 1/2, for any number of clients. At eta = 1
    clients all but swap their values, and rho is 1 - 2 / n.

    Raises:
        ValueError: `clients` is below 1, or `eta` is outside (0, 1].
    """
    moved = _moved(clients, eta)

    def weights(key: RoundKey, round: Round) -> Float[Array, "clients clients"]:
        offset = jax.random.randint(jax.random.fold_in(key, round), (), 1, max(clients, 2), jnp.int32)
        identity = jnp.eye(clients)
        return (1 - moved) * identity + moved * jnp.roll(identity, offset, axis=0)

    return Network(weights, steady(clients))


def u_equi_dynamic(clients: int, eta: float) -> Network:
    """OU-EquiDyn: W = (1 - eta) I + eta (I / n + (n - 1) / n Q), with a new matching Q in each round; symmetric.

    Q takes the clients in turn, from a random one on, and pairs i with i + a where both are still free; a is random.
    At eta = 1 a pair gives each other weight (n - 1) / n, not 1/2: they all but swap. eta = 1/2 makes it about half.

    Raises:
        ValueError: `clients` is below 1, or `eta` is outside (0, 1].
    """
    moved = _moved(clients, eta)

    def weights(key: RoundKey, round: Round) -> Float[Array, "clients clients"]:
        shift_key, start_key = jax.random.split(jax.random.fold_in(key, round))
        offset = jax.random.randint(shift_key, (), 1, max(clients, 2), jnp.int32)
        start = jax.random.randint(start_key, (), 0, clients, jnp.int32)

        def pair(turn: Array, partner: Array) -> Array:
            one = (start + turn) % clients
            ends = jnp.stack([one, (one + offset) % clients])
            free = (partner[ends] == ends).all()
            return partner.at[ends].set(jnp.where(free, ends[::-1], partner[ends]))

        identity = jnp.eye(clients)
        partner = jax.lax.fori_loop(0, clients, pair, jnp.arange(clients))  # [clients]; oneself where alone
        return (1 - moved) * identity + moved * identity[partner]

    return Network(weights, steady(clients))


def _moved(clients: int, eta: float) -> float:
    """The weight eta (n - 1) / n that leaves the diagonal; checks both."""
    require_clients(clients)
    if not 0 < eta <= 1:
        raise ValueError(f"`eta` must lie in (0, 1], got {eta}; 0.5 mixes best.")
    return eta * (clients - 1) / clients
