"""Networks by name: `build("erdos_renyi:0.1", clients=10)`.

A spec is a name and its parameters, separated by colons. `TOPOLOGIES` lists the names with what they mean; a spec may
also be the path of a `.npy` file. One line here makes a new graph available everywhere.
"""

from functools import partial

from jaxdfl.topology import base, builders, dynamic, equi, graphs
from jaxdfl.topology.builders import Request, Topology, from_graph, from_network, from_stack
from jaxdfl.topology.checks import require_clients
from jaxdfl.topology.specs import Family, unknown, values
from jaxdfl.topology.weights import RULES


def build(spec: str, clients: int, *, rule: str = "metropolis_hastings", seed: int = 0) -> Topology:
    """The topology a spec describes, such as `ring`, `erdos_renyi:0.1`, `random_links:0.3:torus` or `weights.npy`.

    `rule` (a name in `weights.RULES`) turns undirected graphs into weights; exponential, base and EquiTopo graphs,
    pairwise meetings, `gap` and files bring their own. `seed` serves graphs, and walks, that are drawn once; what is
    drawn in each round takes the round's key.

    Raises:
        ValueError: unknown name or rule, wrong number or kind of parameters, a graph that does not exist for this
            number of clients or is not connected, or a file whose weights do not fit. The message says which.
    """
    require_clients(clients)
    if rule not in RULES:
        raise ValueError(unknown("rule", rule, RULES) + ".")
    return _resolve(Request(spec, clients, RULES[rule], seed))


def _resolve(request: Request) -> Topology:
    name = request.spec.partition(":")[0]
    if name in TOPOLOGIES:
        family = TOPOLOGIES[name]
        readers = {Topology: lambda spec: _resolve(request._replace(spec=spec))}
        return family.build(request, *values(request.spec, family.parameters, readers))
    if request.spec.endswith(".npy"):
        return builders.file(request)
    raise ValueError(unknown("topology", name, TOPOLOGIES) + ", or a path ending in .npy.")


TOPOLOGIES: dict[str, Family] = {
    "complete": Family("every pair linked", {}, from_graph(graphs.complete)),
    "isolated": Family("nobody linked", {}, builders.isolated),
    "ring": Family("two neighbours each", {}, from_graph(graphs.ring)),
    "torus": Family("periodic grid, as square as can be", {}, from_graph(graphs.torus)),
    "star": Family("all linked with client 0", {}, from_graph(graphs.star)),
    "chain": Family("a ring with one link cut", {}, from_graph(graphs.chain)),
    "hypercube": Family("clients linked that differ in one bit; a power of two", {}, from_graph(graphs.hypercube)),
    "tree": Family("binary tree", {}, from_graph(graphs.tree)),
    "two_cliques": Family("two complete halves joined by one link", {}, from_graph(graphs.two_cliques)),
    "exponential": Family("directed: i sends to i + 2^j, equal weights", {}, builders.exponential),
    "one_peer_exponential": Family("one shift by 2^j each round, half and half", {}, builders.one_peer_exponential),
    "erdos_renyi": Family(
        "each pair linked with probability p, anew each round (TAD-LoRA)", {"p": float}, builders.erdos_renyi
    ),
    "random_links": Family(
        "each link of a fixed graph active with probability p, anew each round",
        {"p": float, "base": Topology},
        builders.random_links,
    ),
    "pairwise_meetings": Family(
        "pairs meet with probability p and average (ADF-LoRA)",
        {"p": float},
        from_network(dynamic.pairwise_meetings),
    ),
    "fixed_erdos_renyi": Family(
        "each pair linked with probability p, once for all rounds",
        {"p": float},
        from_graph(graphs.erdos_renyi, drawn=True),
    ),
    "random_regular": Family(
        "degree random neighbours each, one draw", {"degree": int}, from_graph(graphs.random_regular, drawn=True)
    ),
    "small_world": Family(
        "ring of degree neighbours, each link rewired with probability p, one draw",
        {"degree": int, "p": float},
        from_graph(graphs.small_world, drawn=True),
    ),
    "random_geometric": Family(
        "points in the unit square linked within radius, one draw",
        {"radius": float},
        from_graph(graphs.random_geometric, drawn=True),
    ),
    "gap": Family("every pair linked, with the spectral gap asked for", {"value": float}, builders.gap),
    "hyper_hypercube": Family(
        "a grid averaged along one axis a round, degree neighbours at most; degree 1 is the one-peer hypercube",
        {"degree": int},
        from_stack(base.hyper_hypercube),
    ),
    "simple_base": Family(
        "exact agreement of any number of clients, degree neighbours at most in a round",
        {"degree": int},
        from_stack(base.simple_base),
    ),
    "base": Family(
        "as simple_base, with common factors taken out first where that is shorter",
        {"degree": int},
        from_stack(base.base),
    ),
    "equi_static": Family("directed: the mean of random shifts, one draw", {"shifts": int}, builders.equi_static),
    "u_equi_static": Family("the same, made symmetric", {"shifts": int}, partial(builders.equi_static, symmetric=True)),
    "equi_dynamic": Family(
        "directed: one random shift each round, followed by eta", {"eta": float}, from_network(equi.equi_dynamic)
    ),
    "u_equi_dynamic": Family(
        "one random matching each round, followed by eta", {"eta": float}, from_network(equi.u_equi_dynamic)
    ),
    "mobility": Family(
        "random waypoint at speed in the unit square, linked within radius, one draw",
        {"speed": float, "radius": float},
        builders.random_waypoint,
    ),
}
