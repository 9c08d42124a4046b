"""Links that lose messages (wrappers): at one rate for all, or at rates that follow from distance.

Li, Lv, Ni, Zhao, Hossain, Poor, "Decentralized Federated Learning Over Imperfect Communication Channels", 2024,
arXiv 2405.12894 studies how lossy links bias local aggregation, and how many aggregations a round (`repeated`) then
bears. Only its abstract could be read. What a receiver makes of a loss is reconstructed and therefore an argument,
`rule`; so is the Rayleigh outage that turns distance into a rate. With e_ij = 1 where the message from j to i arrives,
sums over j != i:

* `self_substitution`: x_i <- w_ii x_i + sum w_ij (e_ij x_j + (1 - e_ij) x_i). Row sums are kept.
* `renormalise`: x_i <- (w_ii x_i + sum w_ij e_ij x_j) / (w_ii + sum w_ij e_ij), times the row's sum. Row sums are kept.
* `compensate`: x_i <- w_ii x_i + sum w_ij e_ij / (1 - rate_ij) x_j. Its expectation is W x, for known rates. The price:
  in one draw the row sums are not 1, so the spread of x_i is that of the blocks and not of the differences between
  clients, and agreement does not last.

* `compensate_differences`: x_i <- x_i + sum w_ij e_ij / (1 - rate_ij) (x_j - x_i). The same expectation, and row sums
  of one in every draw, so that agreement lasts; a weight on oneself may fall below zero for a round. Ours.

Losses drawn for each direction apart make the column sums miss 1, so that the mean drifts under every rule. One draw
for both directions (`symmetric`) under `self_substitution` leaves a symmetric W doubly stochastic, and the mean stays.

Departures: a message is one draw, whatever blocks it carries; with it the receiver loses its use of the sender's whole
row entry for the round, also of a block that was silent and is cached.
"""

from collections.abc import Callable
from functools import cache
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxdfl.mixing.gossip import by_block
from jaxdfl.protocol import Exchange, Info, Mixer, PerBlock, State

Rule = Literal["self_substitution", "renormalise", "compensate", "compensate_differences"]


@cache
def packet_loss(inner: Mixer, rate: float, rule: Rule = "self_substitution", symmetric: bool = False) -> Mixer:
    """Every message is lost with probability `rate`; `symmetric`: both directions of an edge together.

    A lost message is paid for. What was not sent (a silent client's cached copy) cannot be lost.

    Raises:
        ValueError: `rate` is outside [0, 1], or is 1 with nothing left to compensate.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"`rate` must lie in [0, 1], got {rate}.")
    if rate == 1 and rule.startswith("compensate"):
        raise ValueError(f"`rate` must be below 1 for the rule {rule!r}, got {rate}; use 'self_substitution'.")
    return _lossy(inner, lambda clients: jnp.full((clients, clients), rate), rule, symmetric)


@cache
def rayleigh(
    inner: Mixer,
    snr_db: float,
    threshold_db: float = 0.0,
    exponent: float = 3.0,
    seed: int = 0,
    rule: Rule = "self_substitution",
    symmetric: bool = False,
) -> Mixer:
    """Clients sit at fixed random places in the unit square, and a message is lost when its link fades.

    Every link fades anew in every round, independently (`symmetric`: alike in both directions, as of one antenna
    and one frequency), and loses what falls below the threshold: see `outage_rates`.

    Args:
        snr_db: mean signal to noise ratio at distance 1, the side of the square, in dB; `inf` loses nothing.
        threshold_db: the ratio below which a message cannot be decoded, in dB.
        exponent: of the path loss; 2 in free space, 3 to 4 in cities.
        seed: of the places, the same for every run.

    Raises:
        ValueError: `snr_db` or `threshold_db` is not a number, or `exponent` is not above 0.
    """
    if snr_db != snr_db or threshold_db != threshold_db:
        raise ValueError(f"`snr_db` and `threshold_db` must be numbers in dB, got {snr_db} and {threshold_db}.")
    if not exponent > 0:
        raise ValueError(f"`exponent` must be above 0, got {exponent}; 2 is free space.")
    power, threshold = 10 ** (snr_db / 10), 10 ** (threshold_db / 10)

    def rates(clients: int) -> Array:
        places = jax.random.uniform(jax.random.key(seed), (clients, 2), jnp.float32)
        return outage_rates(places, power, exponent, noise=1.0, threshold=threshold)

    return _lossy(inner, rates, rule, symmetric)


def outage_rates(
    places: Float[Array, "clients dimensions"], power: float, exponent: float, noise: float, threshold: float
) -> Float[Array, "clients clients"]:
    """Probability that a message from j to i is lost, by distance d: SNR_ij = `power` d^-`exponent` / `noise`."""
    distance = jnp.linalg.norm(places[:, None] - places, axis=-1)
    return rayleigh_outage(power / noise * distance**-exponent, threshold)  # distance 0: an infinite ratio, rate 0


def rayleigh_outage(snr: Float[Array, "*shape"], threshold: float) -> Float[Array, "*shape"]:
    """P(|h|^2 snr < threshold) = 1 - exp(-threshold / snr), since |h|^2 is exponential of mean 1; both as ratios."""
    return -jnp.expm1(-threshold / snr)


def carries(exchange: Exchange) -> Bool[Array, "clients clients"]:
    """[i, j]: whether j sends i any shared block."""
    a, b, head = (links & shared for links, shared in zip(by_block(exchange.links), exchange.shared, strict=True))
    return a | b | head


def without(
    weights: Float[Array, "clients clients"], lost: Bool[Array, "clients clients"]
) -> Float[Array, "clients clients"]:
    """The weights when the receiver puts itself in the place of every sender that it lost; row sums are kept."""
    return jnp.where(lost, 0, weights) + jnp.diag(jnp.where(lost, weights, 0).sum(1))


def _lossy(inner: Mixer, rates: Callable[[int], Array], rule: Rule, symmetric: bool) -> Mixer:
    """`inner` with message j -> i lost at probability `rates(clients)[i, j]`."""

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        own, key = jax.random.split(exchange.key)
        rate = rates(exchange.weights.shape[0])
        sent = carries(exchange)
        lost = sent & (exchange.weights != 0) & _drawn(own, rate, symmetric)  # not twice, where losses are nested
        weights = _after(exchange.weights, lost, jnp.where(sent, 1 - rate, 1), rule)
        blocks, state, info = inner.mix(exchange._replace(key=key, weights=weights), blocks, state)
        return blocks, state, info | {"lost": lost.sum(dtype=jnp.int32) + info.get("lost", 0)}

    return Mixer(init=inner.init, mix=mix)


def _drawn(key: Key[Array, ""], rate: Float[Array, "m m"], symmetric: bool) -> Bool[Array, "m m"]:
    draw = jax.random.bernoulli(key, rate.astype(jnp.float32))
    upper = jnp.triu(draw)
    return upper | upper.T if symmetric else draw


def _after(
    weights: Float[Array, "m m"], lost: Bool[Array, "m m"], arrives: Float[Array, "m m"], rule: Rule
) -> Float[Array, "m m"]:
    """What the receivers make of the losses; `arrives` is the probability that a message does."""
    kept = jnp.where(lost, 0, weights)
    if rule.startswith("compensate"):
        raised = kept / jnp.where(arrives > 0, arrives, 1)  # what never arrives is not kept
        apart = (weights - raised).sum(1) if rule == "compensate_differences" else jnp.zeros(len(weights))
        return raised + jnp.diag(apart)
    if rule == "renormalise":
        heard, missing = kept.sum(1, keepdims=True), (weights - kept).sum(1, keepdims=True)
        # who hears nothing, itself included, has nothing to divide by
        return jnp.where(heard > 0, kept * (1 + missing / heard), without(weights, lost))
    return without(weights, lost)
