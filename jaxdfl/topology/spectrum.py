"""How fast a network mixes: sigma_2 and the gap of a matrix, rho of a network, and the period TAD-LoRA takes from it.

J is the matrix of 1 / clients. Disagreement Xi, the mean squared distance of the clients from their mean, contracts as
E Xi(W X) <= rho Xi(X) with rho = lambda_max(E[W^T W] - J). For a fixed W, rho = sigma_2(W)^2; papers also print the
unsquared sigma_2, so compare with care.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jaxdfl.protocol import Network
from jaxdfl.trees import as_data

ROUNDING = 1e-6  # of how much the rows of a product of float32 weights differ, as a root of squares
DIGITS = 12  # of rho; float32 weights that average exactly give a few 1e-16


class Spectrum(NamedTuple):
    """How a network mixes in the mean round, in plain numbers."""

    rho: float  # lambda_max(E[W^T W] - J): 0 agrees at once, 1 never
    rho_is_exact: bool  # from a whole period (to float32 rounding), else from sampled rounds
    standard_error: float  # of rho; 0 where exact
    samples: int  # rounds looked at
    sigma_2: float  # of E[W]
    gap: float  # 1 - sigma_2
    links: float  # messages in a round: an undirected edge carries two
    connected: float  # share of rounds in which the links of that round alone connect all clients


def sigma_2(weights: Float[np.ndarray | Array, "clients clients"]) -> float:
    """Second largest singular value of a doubly stochastic matrix, the spectral norm of W - J; 0 for one client."""
    deviation = np.asarray(weights, np.float64) - 1 / len(weights)
    return min(1.0, float(np.linalg.norm(deviation, 2)))


def gap(weights: Float[np.ndarray | Array, "clients clients"]) -> float:
    """Spectral gap 1 - sigma_2: 1 for J, 0 for a graph in pieces."""
    return 1 - sigma_2(weights)


def spectrum(
    network: Network, clients: int, key: Key[Array, ""], *, period: int | None = None, samples: int = 4000
) -> Spectrum:
    """The spectrum of a network, exact over one `period` if it has one (as `Topology` says), else over random rounds.

    The mean over a period says nothing of the order of its rounds: a one-peer exponential network of 2^k clients
    agrees exactly after k rounds though its rho is above 0 (`rounds_to_consensus` tells).

    Sampling: the slowest direction v is found on `samples` rounds, and rho is the mean of |W v|^2 over as many fresh
    rounds. Read off the rounds that chose v, rho comes out too high (by 0.01 for ten clients, p = 0.1 and 6000
    rounds). Fresh rounds give an unbiased value where all directions are alike (a complete base graph), and one that
    is a little low elsewhere. A sample costs 2 clients^3 operations: take about 100 for a thousand clients.

    Raises:
        ValueError: `period` is below 1 or `samples` below 2.
    """
    if period is not None and period < 1:
        raise ValueError(f"`period` must be at least 1 round, or None for a random network, got {period}.")
    if samples < 2:
        raise ValueError(f"`samples` must be at least 2 to give a standard error, got {samples}.")
    search_key, fresh_key = jax.random.split(key)
    network = Network(*map(as_data, network))
    rounds = samples if period is None else period
    mean, second, links, connected = _moments(network, clients, rounds, search_key)
    slowest, standard_error = sigma_2(mean), 0.0
    values, vectors = np.linalg.eigh(np.asarray(second, np.float64) - 1 / clients)  # ascending
    rho = slowest**2 if period == 1 else values[-1]  # the square in float64, of one matrix
    if period is None:
        contraction = np.asarray(_contractions(network, samples, fresh_key, jnp.asarray(vectors[:, -1])), np.float64)
        rho, standard_error = contraction.mean(), contraction.std(ddof=1) / math.sqrt(samples)
    return Spectrum(
        rho=round(float(np.clip(rho, 0, 1)), DIGITS),
        rho_is_exact=period is not None,
        standard_error=float(standard_error),
        samples=rounds,
        sigma_2=slowest,
        gap=1 - slowest,
        links=float(links),
        connected=float(connected),
    )


def rounds_to_consensus(network: Network, clients: int, period: int | None) -> int | None:
    """Rounds after which all clients hold the mean whatever they held at first; None where one period is not enough.

    All rows of the product of the weights from round 0 must agree to float32 rounding, which a long period also
    reaches by contraction. `period` is the topology's: without one nothing is certain, which gives None too.
    """
    product, weights = np.eye(clients), jax.jit(network.weights)
    for round in range(period or 0):
        product = np.asarray(weights(jax.random.key(0), round), np.float64) @ product
        if np.linalg.norm(product - product.mean(0)) < ROUNDING:
            return round + 1
    return None


def recommended_period(rho: float) -> int:
    """TAD-LoRA's switching period T* = max(1, round(3 / sqrt(1 - rho))), in rounds.

    The scaling T* ~ 1 / sqrt(1 - rho) is the paper's (arXiv 2602.00451), known at second hand. The constant 3 is
    inferred, not the authors': ADF-LoRA does best with T = 5 at pairwise probability 0.1, where 1 / sqrt(1 - rho) is
    about 1.67 (1.58 for meetings one after another). Always run T = 1 beside it.

    Raises:
        ValueError: `rho` is outside [0, 1).
    """
    if not 0 <= rho < 1 - 1e-7:  # nearer to 1 is float32 rounding
        raise ValueError(
            f"`rho` must lie in [0, 1), got {rho}; at 1 the network never mixes and no finite period suits it."
        )
    return max(1, round(3 / math.sqrt(1 - rho)))


@partial(jax.jit, static_argnums=(1, 2))
def _moments(network: Network, clients: int, rounds: int, key: Key[Array, ""]) -> tuple[Array, Array, Array, Array]:
    """Over rounds 0, 1, ...: mean W, mean W^T W, mean number of links, share of rounds connected."""

    def update(means: tuple, round: Array) -> tuple[tuple, None]:
        weights = network.weights(jax.random.fold_in(key, round), round)
        links = (weights > 0) & ~jnp.eye(clients, dtype=bool)
        square = jnp.matmul(weights.T, weights, precision="highest")
        values = (weights, square, links.sum(), _connects(links))
        return jax.tree.map(lambda mean, value: mean + (value - mean) / (round + 1), means, values), None

    zero = jnp.zeros((clients, clients))
    means, _ = jax.lax.scan(update, (zero, zero, jnp.float32(0), jnp.float32(0)), jnp.arange(rounds))
    return means


@partial(jax.jit, static_argnums=1)
def _contractions(
    network: Network, rounds: int, key: Key[Array, ""], direction: Float[Array, " clients"]
) -> Float[Array, " rounds"]:
    """|W v|^2 / |v|^2 in each of the rounds, v being the direction less its mean; 0 if nothing is left of it."""
    direction = direction - direction.mean()

    def contraction(round: Array) -> Float[Array, ""]:
        weights = network.weights(jax.random.fold_in(key, round), round)
        moved = jnp.matmul(weights, direction, precision="highest")
        return jnp.sum(jnp.square(moved)) / jnp.maximum(jnp.sum(jnp.square(direction)), 1e-30)

    return jax.lax.map(contraction, jnp.arange(rounds))


def _connects(links: Bool[Array, "clients clients"]) -> Bool[Array, ""]:
    """Whether word from client 0 reaches everyone; with doubly stochastic weights, then from anyone to anyone."""

    def spread(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        reached, frontier = carry
        frontier = (links & frontier).any(1) & ~reached
        return reached | frontier, frontier

    start = jnp.arange(len(links)) == 0
    reached, _ = jax.lax.while_loop(lambda carry: carry[1].any(), spread, (start, start))
    return reached.all()
