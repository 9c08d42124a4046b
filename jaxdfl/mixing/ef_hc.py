"""EF-HC (wrapper): links fall silent where neither end has moved much, each end by a threshold of its own.

Zehtabi, Hosseinalipour, Brinton, "Decentralized Event-Triggered Federated Learning with Heterogeneous Communication
Thresholds", 2022, arXiv 2204.03726, and "Event-Triggered Decentralized Federated Learning over Resource-Constrained
Edge Devices", 2022, arXiv 2211.12640. The equations are those of the official code:

    v_i = 1  when  (||x_i - s_i||^2 / n)^(1/2) >= r rho_i gamma_t,  rho_i = 1 / bandwidth_i,  gamma_t = 1 / sqrt(1 + t)
    links with v_i = 1 or v_j = 1 exchange their *current* models, both ways;  s_i <- x_i (as sent) where v_i = 1

n counts the entries that are shared. The weights of the other links go to the diagonal, so symmetric weights stay
symmetric and doubly stochastic, and the mean is kept.

Departures: the official code sets the flags at the end of an iteration and exchanges at the start of the next, so they
are flags of the very models that go out; here training comes before mixing, and one `mix` does both. Its gamma is one
iteration further on, and is its learning rate; here it does not follow the optimizer's. Bandwidths are in units of
their mean, so `threshold` is r over the mean bandwidth (the official 5000 * 0.01 / 5000 = 0.01). Its first models
differ by client; here they are common unless the method says otherwise. The flags themselves are not paid for. Its
graph is fixed and connected; where a client meets nobody in a round, nothing is sent, and it triggers again.
"""

from functools import cache
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdfl.mixing.links import carries
from jaxdfl.mixing.triggered import moved
from jaxdfl.protocol import Exchange, Info, Mixer, PerBlock, State
from jaxdfl.trees import keep

Bandwidths = Literal["equal", "two_slice"]


class Personal(NamedTuple):
    """What `ef_hc` carries."""

    snapshots: PerBlock  # each client's blocks as they were when it last triggered
    inner: State


@cache
def ef_hc(inner: Mixer, threshold: float, bandwidths: Bandwidths = "equal") -> Mixer:
    """`inner` on the links with an end that is away from its snapshot by its threshold, `threshold` / bandwidth_i.

    `two_slice`: the first 80 % of the clients have a fifth of the mean bandwidth, the others share the rest, as in the
    official code. A threshold of 0 is plain `inner`, an infinite one leaves everybody alone. Info: `triggered`.

    Raises:
        ValueError: `threshold` is negative.
    """
    if not threshold >= 0:
        raise ValueError(f"`threshold` must be 0 or more (root mean square per entry), got {threshold}.")

    def mix(exchange: Exchange, blocks: PerBlock, state: Personal) -> tuple[PerBlock, State, Info]:
        rho = 1 / bandwidth(bandwidths, len(exchange.weights))
        limits = threshold * rho / jnp.sqrt(1 + jnp.asarray(exchange.round, float))
        triggered = moved(blocks, state.snapshots, exchange.shared) >= limits
        triggered &= jnp.any(jnp.array(exchange.shared)) & carries(exchange).any(0)
        now = PerBlock(*(jax.vmap(keep)(triggered, *pair) for pair in zip(blocks, state.snapshots, strict=True)))
        snapshots = PerBlock(*map(keep, exchange.shared, now, state.snapshots))
        active = restricted(exchange, triggered[:, None] | triggered)
        blocks, inner_state, info = inner.mix(active, blocks, state.inner)
        count = jnp.sum(triggered, dtype=jnp.int32)
        return blocks, Personal(snapshots, inner_state), info | {"triggered": count}

    return Mixer(init=lambda blocks: Personal(blocks, inner.init(blocks)), mix=mix)


@cache
def random_gossip(inner: Mixer, probability: float) -> Mixer:
    """`inner` on the links with an end that wakes; each client does with `probability`, anew in each round.

    The randomised baseline of the official EF-HC code, which takes 1 / clients. Info: `awake`.

    Raises:
        ValueError: `probability` is outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"`probability` must lie in [0, 1], got {probability}.")

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        own, key = jax.random.split(exchange.key)
        awake = jax.random.bernoulli(own, jnp.float32(probability), exchange.weights.shape[:1])
        active = restricted(exchange._replace(key=key), awake[:, None] | awake)
        blocks, state, info = inner.mix(active, blocks, state)
        return blocks, state, info | {"awake": jnp.sum(awake, dtype=jnp.int32)}

    return Mixer(init=inner.init, mix=mix)


def restricted(exchange: Exchange, active: Bool[Array, "clients clients"]) -> Exchange:
    """The exchange on its `active` links alone; what the others weigh goes to the diagonal.

    With symmetric weights and a symmetric mask the result is symmetric too, and every row and column keeps its sum.
    """
    active = active | jnp.eye(len(active), dtype=bool)
    weights = jnp.where(active, exchange.weights, 0) + jnp.diag(jnp.where(active, 0, exchange.weights).sum(1))
    return exchange._replace(weights=weights, links=jax.tree.map(lambda links: links & active, exchange.links))


def bandwidth(pattern: Bandwidths, clients: int) -> Float[np.ndarray, " clients"]:
    """Each client's bandwidth in units of their mean."""
    weak = int(0.8 * clients) if pattern == "two_slice" else 0
    strong = (clients - 0.2 * weak) / (clients - weak)
    return np.where(np.arange(clients) < weak, 0.2, strong)
