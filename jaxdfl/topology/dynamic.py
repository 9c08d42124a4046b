"""Networks in time: (key, round) -> weights.

Each constructor returns a `protocol.Network` in which everybody finishes all local steps; for other clients write
`network._replace(work=build_work(...))`. A network is a function of its key and its round only: it can be traced, and
the same two arguments give the same bits under `jit`, `vmap` and `scan`. The round is folded into the key, so the
key may be new in each round or one for the whole run.

Where networks of a kind differ in numbers alone (probability, graph), these are bound by a `Partial`: data, of one
compiled program.
"""

import math
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

from jaxdfl.protocol import Network, Round, RoundKey
from jaxdfl.topology.checks import require_clients, require_probability
from jaxdfl.topology.graphs import Adjacency
from jaxdfl.topology.weights import Rule, metropolis_hastings, validate
from jaxdfl.topology.work import steady

Weights = Float[Array, "clients clients"]


def fixed(weights: ArrayLike) -> Network:
    """The same weights [clients, clients] in every round.

    Raises:
        ValueError: they are not doubly stochastic (see `weights.validate`).
    """
    return cycled(np.asarray(weights)[None])


def cycled(stack: ArrayLike) -> Network:
    """Weights from a stack [rounds, clients, clients], started over at its end.

    Raises:
        ValueError: a round's weights are not doubly stochastic (see `weights.validate`).
    """
    if np.ndim(stack) != 3:
        raise ValueError(f"`stack` must have shape [rounds, clients, clients], got {list(np.shape(stack))}.")
    rounds = jnp.asarray(validate(stack))
    return Network(Partial(_in_turn, rounds), steady(rounds.shape[-1]))


def _in_turn(rounds: Float[Array, "rounds clients clients"], key: RoundKey, round: Round) -> Weights:
    return rounds[round % len(rounds)]


def random_links(adjacency: Adjacency, p: float, rule: Rule = metropolis_hastings) -> Network:
    """Each link of an undirected graph is active with probability `p`, independently, anew in each round.

    `rule` turns the active graph into weights. On the complete graph this is the network of TAD-LoRA (arXiv
    2602.00451): Erdos-Renyi edge activation. Disconnected draws are kept, and at small `p` nearly all are.

    Raises:
        ValueError: `p` is outside [0, 1], the graph has a one-way link, or the rule needs a fixed graph.
    """
    require_probability("p", p)
    if (adjacency != adjacency.T).any():
        raise ValueError("`adjacency` must be symmetric (a link is active in both directions), got one-way links.")
    weights = Partial(_active(rule), jnp.asarray(np.triu(adjacency, 1)), jnp.float32(p))
    jax.eval_shape(weights, jax.random.key(0), 0)  # a rule that cannot be traced fails here, not in the first round
    return Network(weights, steady(len(adjacency)))


@cache  # one object for a rule
def _active(rule: Rule) -> Callable[..., Weights]:
    def weights(upper: Bool[Array, "clients clients"], p: Float[Array, ""], key: RoundKey, round: Round) -> Weights:
        active = upper & jax.random.bernoulli(jax.random.fold_in(key, round), p, upper.shape)
        return rule(active | active.T)

    return weights


def pairwise_meetings(clients: int, p: float) -> Network:
    """Every pair meets with probability `p` in a round; those who meet average half and half, in random order.

    The network of ADF-LoRA (arXiv 2511.18291), read as meetings one after another: W is a product of pair matrices,
    doubly stochastic but not symmetric. The other reading averages all meetings of a round at once, with one
    symmetric W; that is `random_links(complete(clients), p)`. The paper's text could not be read to decide; at ten
    clients and p = 0.1 the two contract at rho = 0.59 and 0.63.

    Non-zero weights over-count messages here: if 1 meets 2 and 2 then meets 3, client 3 also holds a share of 1,
    passed on by 2. Links read off the weights count 1 to 3 as sent; truly there were two messages for each meeting.
    Ten clients at p = 0.1 show 12.6 links in the mean round, where 9 messages are sent. Nothing is under-counted.

    Raises:
        ValueError: `clients` is below 1, or `p` is outside [0, 1].
    """
    require_clients(clients)
    require_probability("p", p)
    if clients == 1:
        return fixed(np.ones((1, 1)))  # nobody to meet
    pairs = jnp.stack(np.triu_indices(clients, 1), axis=1)
    return Network(Partial(_meetings, pairs, jnp.eye(clients), jnp.float32(p)), steady(clients))


def _meetings(
    pairs: Int[Array, "pairs 2"], apart: Weights, p: Float[Array, ""], key: RoundKey, round: Round
) -> Weights:
    moment = jax.random.uniform(
        jax.random.fold_in(key, round), (len(pairs),), jnp.float32
    )  # pairs meet if it comes before p
    order = jnp.argsort(moment)

    def meet(k: Array, product: Weights) -> Weights:
        pair = pairs[order[k]]
        return product.at[pair].set(product[pair].mean(0))

    return jax.lax.fori_loop(0, (moment < p).sum(), meet, apart)


def one_peer_exponential(clients: int) -> Network:
    """In round t client i averages half and half with client i - 2^(t mod ceil(log2 clients)); directed.

    For a power of two, the product over one period of ceil(log2 clients) rounds is exactly J.

    Raises:
        ValueError: `clients` is below 1.
    """
    period = exponential_period(clients)

    def weights(key: RoundKey, round: Round) -> Weights:
        shift = 2 ** (jnp.asarray(round) % period)
        identity = jnp.eye(clients)
        return (identity + jnp.roll(identity, shift, axis=0)) / 2

    return Network(weights, steady(clients))


def exponential_period(clients: int) -> int:
    """Rounds after which `one_peer_exponential` starts over: ceil(log2 clients), at least 1."""
    require_clients(clients)
    return max(1, math.ceil(math.log2(clients)))
