"""Few neighbours, exact agreement after a few rounds: k-peer hyper-hypercube, simple base-(k+1) and base-(k+1) graphs.

Yuki Takezawa, Ryoma Sato, Han Bao, Kenta Niwa, Makoto Yamada, "Beyond Exponential Graph: Communication-Efficient
Topologies for Decentralized Learning via Finite-time Convergence", NeurIPS 2023, arXiv 2305.11420.

Each function returns the rounds of one period, W [rounds, clients, clients] in float64: symmetric, doubly stochastic,
at most k neighbours for each client in each round (`degree` is the paper's k), with product exactly J = 1 / clients.

* Hyper-hypercube: clients stand on a grid whose sides are at most k + 1, and average along one axis in each round. It
  exists where the number of clients has no prime factor above k + 1. With k = 1 it is the one-peer hypercube.
* Simple base-(k+1): for any number n = sum_l a_l (k+1)^(p_l), written in base k + 1 with p_1 > p_2 > .... Group l has
  a_l parts of (k+1)^(p_l) clients. First each group agrees on its own mean. Then group l, one after another, meets
  all groups behind it: each client there averages with one client of each part, with weight n_l / sum_(m >= l) n_m
  spread over the a_l parts. That brings the mean of each part to the mean of all, so the parts agree within and are
  done. At most 2 log_(k+1)(n) + 2 rounds.
* Base-(k+1): n = smooth * rest, where `smooth` gathers the prime factors up to k + 1. `smooth` copies of the simple
  graph on `rest` clients, then a hyper-hypercube across the copies; or the simple graph on all n where that is shorter.

Constructions and numbers of rounds as in the authors' published code; equations reconstructed from it.
Departures: of the factorisations into fewest sides, the hyper-hypercube takes the one with the fewest messages (the
paper leaves the choice open); which client of a part meets which client of another group is another relabelling.
"""

from functools import cache

import numpy as np
from jaxtyping import Float, Int

from jaxdfl.topology.checks import require_clients

Stack = Float[np.ndarray, "rounds clients clients"]
Parts = Int[np.ndarray, "parts size"]  # numbers of clients


def hyper_hypercube(clients: int, degree: int) -> Stack:
    """Averages along one axis of a grid after another, at most `degree` + 1 clients in a line.

    Raises:
        ValueError: `clients` or `degree` is below 1, or `clients` has a prime factor above `degree` + 1.
    """
    rest = _rest(clients, degree)
    if rest > 1:
        raise ValueError(
            f"`clients` of a {degree}-peer hyper-hypercube must have no prime factor above {degree + 1}, got {clients} "
            f"with {rest} left over; take a larger degree, or base:{degree}, which exists for any number."
        )
    stack, stride = [], 1  # clients from one place on the axis to the next
    for side in _sides(clients, degree + 1):
        line = np.kron(np.full((side, side), 1 / side), np.eye(stride))
        stride *= side
        stack.append(np.kron(np.eye(clients // stride), line))
    return np.stack(stack)


def simple_base(clients: int, degree: int) -> Stack:
    """Simple base-(k+1) graph with k = `degree`; the hyper-hypercube where that exists.

    Raises:
        ValueError: `clients` or `degree` is below 1.
    """
    if _rest(clients, degree) == 1:
        return hyper_hypercube(clients, degree)
    groups = _groups(clients, degree + 1)  # at least two, or a hyper-hypercube would exist
    last = len(groups) - 1
    agree = [hyper_hypercube(group.size, degree) for group in groups]  # the first takes the most rounds
    parts = [group if group.shape[1] > 1 else group.T for group in groups]  # parts of one client settle together
    settle = [hyper_hypercube(part.shape[1], degree) for part in parts]
    stack = np.stack([np.eye(clients)] * (len(agree[0]) + 1 + len(settle[0])))
    for turn, weights in enumerate(stack[: len(agree[0])]):
        for group, cube in zip(groups, agree, strict=True):
            _fill(weights, group.reshape(1, -1), cube[turn % len(cube)])  # going round again, it stays agreed
    for turn, weights in enumerate(stack[len(agree[0]) :]):
        if turn < last:
            _meet(weights, groups[turn], np.concatenate([group.ravel() for group in groups[turn + 1 :]]), degree)
        for place, cube in enumerate(settle):
            since = turn - 1 - min(place, last - 1)  # rounds since it met; the last two groups meet each other
            if since >= 0:
                _fill(weights, parts[place], cube[since % len(cube)])
    return stack


def base(clients: int, degree: int) -> Stack:
    """Base-(k+1) graph with k = `degree`: the shorter of the simple one and the factored one.

    Raises:
        ValueError: `clients` or `degree` is below 1.
    """
    simple, rest = simple_base(clients, degree), _rest(clients, degree)
    smooth = clients // rest
    within = [np.kron(np.eye(smooth), weights) for weights in simple_base(rest, degree)]
    across = [np.kron(weights, np.eye(rest)) for weights in hyper_hypercube(smooth, degree)]
    return simple if len(simple) < len(within) + len(across) else np.stack([*within, *across])


def _meet(weights: Float[np.ndarray, "n n"], parts: Parts, behind: Int[np.ndarray, " later"], degree: int) -> None:
    """Each client behind averages with one of each part, which hears it alone; idle ones average among themselves."""
    share = parts.size / (parts.size + len(behind))
    met, idle = parts[:, : len(behind)], parts[:, len(behind) :].ravel()
    weights[met, behind] = weights[behind, met] = share / len(parts)
    weights[met, met] = 1 - share / len(parts)
    weights[behind, behind] = 1 - share
    for start in range(0, len(idle), degree + 1):
        few = idle[None, start : start + degree + 1]
        _fill(weights, few, np.full((few.size, few.size), 1 / few.size))


def _fill(weights: Float[np.ndarray, "n n"], parts: Parts, block: Float[np.ndarray, "size size"]) -> None:
    """Writes the same block for each part."""
    for part in parts:
        weights[np.ix_(part, part)] = block


def _groups(clients: int, radix: int) -> list[Parts]:
    """The clients by the digits of their number: group l has a_l parts of radix^(p_l), the largest parts first."""
    size = 1
    while size * radix <= clients:
        size *= radix
    groups, start = [], 0
    while size:
        stop = start + (clients - start) // size * size
        if stop > start:
            groups.append(np.arange(start, stop).reshape(-1, size))
        start, size = stop, size // radix
    return groups


def _rest(clients: int, degree: int) -> int:
    """`clients` without its prime factors up to `degree` + 1; checks both."""
    require_clients(clients)
    if degree < 1:
        raise ValueError(f"`degree` must be at least 1 neighbour, got {degree}.")
    rest = clients
    for factor in range(2, min(degree + 1, clients) + 1):
        while rest % factor == 0:
            rest //= factor
    return rest


@cache
def _sides(number: int, longest: int) -> tuple[int, ...]:
    """Fewest factors up to `longest` with product `number`, and of those the smallest sum; it must have such."""
    if number <= longest:
        return (number,)
    divisors = [side for side in range(2, longest + 1) if number % side == 0]
    return min(
        ((side, *_sides(number // side, longest)) for side in divisors), key=lambda sides: (len(sides), sum(sides))
    )
