"""Who may talk to whom: boolean adjacency matrices [clients, clients] on the host, without self loops.

Entry [i, j] says that client j sends to client i, as in `protocol.Exchange.links`. All graphs but `exponential` are
undirected, so their matrices are symmetric. With one client every graph is the single entry False.
"""

import math

import networkx as nx
import numpy as np
from jaxtyping import Bool

from jaxdfl.topology.checks import require_clients, require_probability

Adjacency = Bool[np.ndarray, "clients clients"]


def from_networkx(graph: nx.Graph) -> Adjacency:
    """Any networkx graph, clients in node order; an arc u -> v of a directed one means that u sends to v.

    Self loops are dropped, since a client always has its own copy. Edge weights are not read.

    Raises:
        ValueError: the graph has no nodes.
    """
    if len(graph) == 0:
        raise ValueError("`graph` must have at least one node, got an empty graph.")
    return _without_loops(nx.to_numpy_array(graph, weight=None).T > 0)  # pyright: ignore[reportArgumentType]


def is_connected(adjacency: Adjacency) -> bool:
    """Whether word from client 0 reaches every client. For undirected and regular graphs, from any client to any."""
    reached = np.arange(len(adjacency)) == 0  # [clients]
    frontier = reached
    while frontier.any():
        frontier = adjacency[:, frontier].any(1) & ~reached
        reached = reached | frontier
    return bool(reached.all())


def complete(clients: int) -> Adjacency:
    """Every pair linked."""
    require_clients(clients)
    return _without_loops(np.ones((clients, clients), bool))


def isolated(clients: int) -> Adjacency:
    """Nobody linked."""
    require_clients(clients)
    return np.zeros((clients, clients), bool)


def ring(clients: int) -> Adjacency:
    """Client i linked with i - 1 and i + 1, modulo the number of clients."""
    require_clients(clients)
    return from_networkx(nx.cycle_graph(clients))


def torus(clients: int) -> Adjacency:
    """Periodic grid, as square as the number of clients factorises (12 is 3 x 4; a prime number gives the ring)."""
    require_clients(clients)
    rows = max(side for side in range(1, math.isqrt(clients) + 1) if clients % side == 0)
    return from_networkx(nx.grid_2d_graph(rows, clients // rows, periodic=True))


def star(clients: int) -> Adjacency:
    """Client 0 linked with everyone, the others with client 0 alone."""
    require_clients(clients)
    return from_networkx(nx.star_graph(clients - 1))


def chain(clients: int) -> Adjacency:
    """Client i linked with i + 1: a ring with one link cut."""
    require_clients(clients)
    return from_networkx(nx.path_graph(clients))


def hypercube(clients: int) -> Adjacency:
    """Clients linked whose numbers differ in one bit.

    Raises:
        ValueError: the number of clients is not a power of two.
    """
    require_clients(clients)
    if clients & (clients - 1):
        below = 1 << (clients.bit_length() - 1)
        raise ValueError(f"`clients` of a hypercube must be a power of two ({below} or {2 * below}), got {clients}.")
    numbers = np.arange(clients)
    return np.bitwise_count(numbers[:, None] ^ numbers) == 1


def tree(clients: int) -> Adjacency:
    """Binary tree filled level by level: client i linked with its children 2i + 1 and 2i + 2."""
    require_clients(clients)
    return from_networkx(nx.full_rary_tree(2, clients))


def two_cliques(clients: int) -> Adjacency:
    """Two halves, complete inside, joined by one link; the second half has the odd client."""
    require_clients(clients)
    half = clients // 2
    second = np.arange(clients) >= half
    adjacency = second[:, None] == second
    if half > 0:
        adjacency[half - 1, half] = adjacency[half, half - 1] = True
    return _without_loops(adjacency)


def exponential(clients: int) -> Adjacency:
    """Directed: i sends to i + 2^j modulo the number of clients, for each power of two below that number."""
    require_clients(clients)
    numbers = np.arange(clients)
    ahead = (numbers[:, None] - numbers) % clients  # [i, j]: steps from sender j to receiver i
    return np.bitwise_count(ahead) == 1


def erdos_renyi(clients: int, p: float, *, seed: int = 0) -> Adjacency:
    """One draw in which each pair is linked with probability `p`; it may be disconnected."""
    require_clients(clients)
    require_probability("p", p)
    return from_networkx(nx.gnp_random_graph(clients, p, seed=seed))


def small_world(clients: int, degree: int, p: float, *, seed: int = 0) -> Adjacency:
    """Watts and Strogatz: a ring of `degree` nearest neighbours, each link rewired with probability `p`; one draw.

    Raises:
        ValueError: `degree` is odd, or not in 0..clients - 1; `p` is outside [0, 1].
    """
    require_clients(clients)
    require_probability("p", p)
    _require_degree(degree, clients)
    if degree % 2:
        raise ValueError(f"`degree` of a small world must be even (as many neighbours on each side), got {degree}.")
    return from_networkx(nx.watts_strogatz_graph(clients, degree, p, seed=seed))


def random_regular(clients: int, degree: int, *, seed: int = 0) -> Adjacency:
    """One draw from the graphs in which every client has `degree` neighbours; it may be disconnected.

    Raises:
        ValueError: `degree` is not in 0..clients - 1, or clients * degree is odd.
    """
    require_clients(clients)
    _require_degree(degree, clients)
    if clients * degree % 2:
        raise ValueError(f"`degree` must be even for an odd number of clients ({clients}), got {degree}.")
    return from_networkx(nx.random_regular_graph(degree, clients, seed=seed))


def random_geometric(clients: int, radius: float, *, seed: int = 0) -> Adjacency:
    """Uniform points in the unit square, linked when at most `radius` apart; one draw, which may be disconnected.

    Raises:
        ValueError: `radius` is not positive.
    """
    require_clients(clients)
    if not radius > 0:
        raise ValueError(f"`radius` must be positive (the square has side 1), got {radius}.")
    return from_networkx(nx.random_geometric_graph(clients, radius, seed=seed))


def _require_degree(degree: int, clients: int) -> None:
    if not 0 <= degree < clients:
        raise ValueError(f"`degree` must lie in 0..{clients - 1} for {clients} clients, got {degree}.")


def _without_loops(adjacency: Adjacency) -> Adjacency:
    return adjacency & ~np.eye(len(adjacency), dtype=bool)
