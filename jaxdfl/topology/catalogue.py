"""Networks by name: `build("erdos_renyi:0.1", clients=10)`.

A spec is a name and its parameters, separated by colons. `TOPOLOGIES` lists the names with what they mean; a spec may
also be the path of a `.npy` file. One line here makes a new graph available everywhere.
"""

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxdfl.protocol import Network
from jaxdfl.topology import dynamic, graphs
from jaxdfl.topology.checks import require_clients
from jaxdfl.topology.graphs import Adjacency
from jaxdfl.topology.weights import RULES, Rule, uniform, validate


class Topology(NamedTuple):
    """A network with what is known about it beforehand."""

    name: str  # the spec it was built from
    network: Network
    period: int | None  # rounds after which the weights repeat whatever the key; None where they are random
    adjacency: Adjacency  # [i, j]: j may send to i in some round

    @property
    def clients(self) -> int:
        return len(self.adjacency)


class Request(NamedTuple):
    """What a builder is told besides the parameters of its spec."""

    spec: str
    clients: int
    rule: Rule  # graph -> weights
    seed: int  # of graphs drawn once


class Family(NamedTuple):
    """One line of `TOPOLOGIES`: a family of networks and the parameters that pick one of them."""

    about: str
    parameters: dict[str, type]  # name -> float, int, or str, which is the spec of another topology and comes last
    build: Callable[..., Topology]  # (request, *parameters) -> topology


def build(spec: str, clients: int, *, rule: str = "metropolis_hastings", seed: int = 0) -> Topology:
    """The topology a spec describes, such as `ring`, `erdos_renyi:0.1`, `random_links:0.3:torus` or `weights.npy`.

    `rule` (a name in `weights.RULES`) turns undirected graphs into weights; exponential graphs, pairwise meetings and
    files bring their own. `seed` serves graphs that are drawn once; those drawn in each round take the round's key.

    Raises:
        ValueError: unknown name or rule, wrong number or kind of parameters, a graph that does not exist for this
            number of clients or is not connected, or a file whose weights do not fit. The message says which.
    """
    require_clients(clients)
    if rule not in RULES:
        raise ValueError(_unknown("rule", rule, RULES) + ".")
    return _resolve(Request(spec, clients, RULES[rule], seed))


def _resolve(request: Request) -> Topology:
    name = request.spec.partition(":")[0]
    if name in TOPOLOGIES:
        family = TOPOLOGIES[name]
        return family.build(request, *_values(request.spec, family.parameters))
    if request.spec.endswith(".npy"):
        return _file(request)
    raise ValueError(_unknown("topology", name, TOPOLOGIES) + ", or a path ending in .npy.")


def _graph(generator: Callable[..., Adjacency], *, drawn: bool = False) -> Callable[..., Topology]:
    """Builder of a fixed graph, `drawn` by the seed or not, with weights by the rule asked for."""

    def build_graph(request: Request, *parameters: Any) -> Topology:
        seed = {"seed": request.seed} if drawn else {}
        adjacency = _require_connected(generator(request.clients, *parameters, **seed), request)
        return Topology(request.spec, dynamic.fixed(request.rule(adjacency)), 1, adjacency)

    return build_graph


def _isolated(request: Request) -> Topology:
    return Topology(request.spec, dynamic.fixed(np.eye(request.clients)), 1, graphs.isolated(request.clients))


def _exponential(request: Request) -> Topology:
    adjacency = graphs.exponential(request.clients)
    return Topology(request.spec, dynamic.fixed(uniform(adjacency)), 1, adjacency)


def _one_peer_exponential(request: Request) -> Topology:
    network = dynamic.one_peer_exponential(request.clients)
    period = dynamic.exponential_period(request.clients)
    return Topology(request.spec, network, period, graphs.exponential(request.clients))


def _pairwise_meetings(request: Request, p: float) -> Topology:
    network = dynamic.pairwise_meetings(request.clients, p)
    return Topology(request.spec, network, None, graphs.complete(request.clients))


def _random_links(request: Request, p: float, base: str) -> Topology:
    topology = _resolve(request._replace(spec=base))
    if topology.period != 1:
        raise ValueError(f"`base` in {request.spec!r} must be a fixed graph, got {base!r}, which changes by itself.")
    adjacency = _require_connected(topology.adjacency, request)
    return Topology(request.spec, dynamic.random_links(adjacency, p, request.rule), None, adjacency)


def _erdos_renyi(request: Request, p: float) -> Topology:
    adjacency = graphs.complete(request.clients)
    return Topology(request.spec, dynamic.random_links(adjacency, p, request.rule), None, adjacency)


def _file(request: Request) -> Topology:
    """A matrix [clients, clients], or a stack [rounds, clients, clients] that is cycled."""
    try:
        values = np.load(request.spec, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"cannot read weights from {request.spec!r}: {error}.") from error
    values = validate(values, name=request.spec)
    if values.shape[-1] != request.clients:
        raise ValueError(
            f"`clients` is {request.clients}, but the weights in {request.spec!r} are for {values.shape[-1]}."
        )
    stack = values.reshape(-1, request.clients, request.clients)
    links = (stack > 0).any(0) & ~np.eye(request.clients, dtype=bool)
    return Topology(request.spec, dynamic.cycled(stack), len(stack), links)


TOPOLOGIES: dict[str, Family] = {
    "complete": Family("every pair linked", {}, _graph(graphs.complete)),
    "isolated": Family("nobody linked", {}, _isolated),
    "ring": Family("two neighbours each", {}, _graph(graphs.ring)),
    "torus": Family("periodic grid, as square as can be", {}, _graph(graphs.torus)),
    "star": Family("all linked with client 0", {}, _graph(graphs.star)),
    "chain": Family("a ring with one link cut", {}, _graph(graphs.chain)),
    "hypercube": Family("clients linked that differ in one bit; a power of two", {}, _graph(graphs.hypercube)),
    "tree": Family("binary tree", {}, _graph(graphs.tree)),
    "two_cliques": Family("two complete halves joined by one link", {}, _graph(graphs.two_cliques)),
    "exponential": Family("directed: i sends to i + 2^j, equal weights", {}, _exponential),
    "one_peer_exponential": Family("one shift by 2^j each round, half and half", {}, _one_peer_exponential),
    "erdos_renyi": Family(
        "each pair linked with probability p, anew each round (TAD-LoRA)", {"p": float}, _erdos_renyi
    ),
    "random_links": Family(
        "each link of a fixed graph active with probability p, anew each round",
        {"p": float, "base": str},
        _random_links,
    ),
    "pairwise_meetings": Family(
        "pairs meet with probability p and average (ADF-LoRA)", {"p": float}, _pairwise_meetings
    ),
    "fixed_erdos_renyi": Family(
        "each pair linked with probability p, once for all rounds", {"p": float}, _graph(graphs.erdos_renyi, drawn=True)
    ),
    "random_regular": Family(
        "degree random neighbours each, one draw", {"degree": int}, _graph(graphs.random_regular, drawn=True)
    ),
    "small_world": Family(
        "ring of degree neighbours, each link rewired with probability p, one draw",
        {"degree": int, "p": float},
        _graph(graphs.small_world, drawn=True),
    ),
    "random_geometric": Family(
        "points in the unit square linked within radius, one draw",
        {"radius": float},
        _graph(graphs.random_geometric, drawn=True),
    ),
}


def _values(spec: str, parameters: dict[str, type]) -> list[Any]:
    """The values a spec gives to the parameters of its family; the last one keeps any colons left."""
    name, _, rest = spec.partition(":")
    words = rest.split(":", len(parameters) - 1) if rest else []
    if len(words) != len(parameters):
        raise ValueError(f"`spec` must read {':'.join([name, *parameters])!r}, got {spec!r}.")
    return [_value(spec, *parameter, word) for parameter, word in zip(parameters.items(), words, strict=True)]


def _value(spec: str, parameter: str, kind: type, word: str) -> Any:
    try:
        return kind(word)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"`{parameter}` in {spec!r} must be {wanted}, got {word!r}.") from None


def _require_connected(adjacency: Adjacency, request: Request) -> Adjacency:
    if not graphs.is_connected(adjacency):
        raise ValueError(
            f"{request.spec!r} is not connected for {request.clients} clients and seed {request.seed}, so they could "
            "never agree; ask for more links or another seed."
        )
    return adjacency


def _unknown(what: str, name: str, known: dict[str, Any]) -> str:
    """Says that a name is unknown and lists the known ones, the closest first."""
    closest = difflib.get_close_matches(name, known)
    listed = dict.fromkeys([*closest, *known])  # each once, in this order
    return f"unknown {what} {name!r}; known are {', '.join(listed)}"
