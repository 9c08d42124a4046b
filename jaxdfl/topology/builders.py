"""How each family of `catalogue.TOPOLOGIES` is built: (request, *parameters) -> topology."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxdfl.protocol import Network
from jaxdfl.topology import base, dynamic, equi, graphs, mobility
from jaxdfl.topology.checks import require_probability
from jaxdfl.topology.graphs import Adjacency
from jaxdfl.topology.weights import Rule, uniform, validate


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


def from_graph(generator: Callable[..., Adjacency], *, drawn: bool = False) -> Callable[..., Topology]:
    """Builder of a fixed graph, `drawn` by the seed or not, with weights by the rule asked for."""

    def build(request: Request, *parameters: Any) -> Topology:
        seed = {"seed": request.seed} if drawn else {}
        adjacency = _require_connected(generator(request.clients, *parameters, **seed), request)
        return Topology(request.spec, dynamic.fixed(request.rule(adjacency)), 1, adjacency)

    return build


def from_stack(generator: Callable[..., base.Stack]) -> Callable[..., Topology]:
    """Builder of rounds of weights [rounds, clients, clients] that are cycled."""

    def build(request: Request, *parameters: Any) -> Topology:
        return _cycled(generator(request.clients, *parameters), request)

    return build


def from_network(network: Callable[..., Network]) -> Callable[..., Topology]:
    """Builder of a network that is random in each round and in which anybody may hear anybody."""

    def build(request: Request, *parameters: Any) -> Topology:
        return Topology(request.spec, network(request.clients, *parameters), None, graphs.complete(request.clients))

    return build


def exponential(request: Request) -> Topology:
    return _cycled(uniform(graphs.exponential(request.clients)), request)


def isolated(request: Request) -> Topology:
    return _cycled(np.eye(request.clients), request)


def gap(request: Request, value: float) -> Topology:
    """W = value J + (1 - value) I: every pair linked, spectral gap as asked for."""
    require_probability("value", value)
    return _cycled(value / request.clients + (1 - value) * np.eye(request.clients), request)


def one_peer_exponential(request: Request) -> Topology:
    network = dynamic.one_peer_exponential(request.clients)
    period = dynamic.exponential_period(request.clients)
    return Topology(request.spec, network, period, graphs.exponential(request.clients))


def random_links(request: Request, p: float, fixed: Topology) -> Topology:
    if fixed.period != 1:
        raise ValueError(
            f"`base` in {request.spec!r} must be a fixed graph, got {fixed.name!r}, which changes by itself."
        )
    adjacency = _require_connected(fixed.adjacency, request)
    return Topology(request.spec, dynamic.random_links(adjacency, p, request.rule), None, adjacency)


def erdos_renyi(request: Request, p: float) -> Topology:
    adjacency = graphs.complete(request.clients)
    return Topology(request.spec, dynamic.random_links(adjacency, p, request.rule), None, adjacency)


def equi_static(request: Request, shifts: int, *, symmetric: bool = False) -> Topology:
    weights = equi.equi_static(request.clients, shifts, symmetric=symmetric, seed=request.seed)
    topology = _cycled(weights, request)
    _require_connected(topology.adjacency, request)
    return topology


def random_waypoint(request: Request, speed: float, radius: float) -> Topology:
    walk = mobility.random_waypoint(request.clients, speed, seed=request.seed)
    adjacency = _require_connected(mobility.ever_near(walk, radius), request)
    return Topology(request.spec, mobility.mobility(walk, radius, request.rule), mobility.PERIOD, adjacency)


def file(request: Request) -> Topology:
    """A matrix [clients, clients], or a stack [rounds, clients, clients] that is cycled."""
    try:
        values = np.load(request.spec, mmap_mode="r", allow_pickle=False)  # of a huge shape, nothing is allocated
    except OSError as error:
        raise ValueError(f"cannot read weights from {request.spec!r}: {error}.") from error
    except (EOFError, ValueError, OverflowError) as error:  # numpy then advises to load pickles
        said = f"cannot read weights from {request.spec!r}: no array of numbers; write one with numpy.save."
        raise ValueError(said) from error
    values = validate(values, name=request.spec)
    if values.shape[-1] != request.clients:
        raise ValueError(
            f"`clients` is {request.clients}, but the weights in {request.spec!r} are for {values.shape[-1]}."
        )
    return _cycled(values, request)


def _cycled(weights: ArrayLike, request: Request) -> Topology:
    """One matrix or a stack of them, with the links that they show."""
    stack = np.asarray(weights).reshape(-1, request.clients, request.clients)
    links = (stack > 0).any(0) & ~np.eye(request.clients, dtype=bool)
    return Topology(request.spec, dynamic.cycled(stack), len(stack), links)


def _require_connected(adjacency: Adjacency, request: Request) -> Adjacency:
    if not graphs.is_connected(adjacency):
        raise ValueError(
            f"{request.spec!r} is not connected for {request.clients} clients and seed {request.seed}, so they could "
            "never agree; ask for more links or another seed."
        )
    return adjacency
