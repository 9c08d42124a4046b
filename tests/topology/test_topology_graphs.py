"""Graphs against networkx and counting."""

import networkx as nx
import numpy as np
import pytest

from jaxdfl.topology import graphs

UNDIRECTED = [graphs.complete, graphs.ring, graphs.torus, graphs.star, graphs.chain, graphs.tree, graphs.two_cliques]


@pytest.mark.parametrize("graph", [*UNDIRECTED, graphs.exponential], ids=lambda graph: graph.__name__)
@pytest.mark.parametrize("clients", [1, 2, 3, 4, 9, 12])
def test_a_graph_is_connected_and_without_self_loops(graph, clients):
    adjacency = graph(clients)
    assert adjacency.shape == (clients, clients)
    assert not adjacency.diagonal().any()
    assert graphs.is_connected(adjacency)
    assert nx.is_strongly_connected(nx.from_numpy_array(adjacency, create_using=nx.DiGraph))


@pytest.mark.parametrize("graph", UNDIRECTED, ids=lambda graph: graph.__name__)
def test_undirected_graphs_have_symmetric_adjacencies(graph):
    adjacency = graph(10)
    np.testing.assert_array_equal(adjacency, adjacency.T)


@pytest.mark.parametrize(
    ("adjacency", "edges"),
    [
        (graphs.complete(10), 45),
        (graphs.isolated(10), 0),
        (graphs.ring(10), 10),
        (graphs.torus(12), 24),
        (graphs.star(10), 9),
        (graphs.chain(10), 9),
        (graphs.hypercube(16), 32),
        (graphs.tree(10), 9),
        (graphs.two_cliques(10), 21),
        (graphs.small_world(10, 4, 0.3), 20),
        (graphs.random_regular(10, 3), 15),
    ],
)
def test_a_graph_has_the_edges_its_definition_counts(adjacency, edges):
    assert adjacency.sum() == 2 * edges


def test_the_torus_is_as_square_as_the_number_factorises():
    assert nx.is_isomorphic(
        nx.from_numpy_array(graphs.torus(12)), nx.cartesian_product(nx.cycle_graph(3), nx.cycle_graph(4))
    )
    np.testing.assert_array_equal(graphs.torus(7), graphs.ring(7))


def test_the_hypercube_is_the_one_of_networkx():
    assert nx.is_isomorphic(nx.from_numpy_array(graphs.hypercube(8)), nx.hypercube_graph(3))


def test_the_cliques_are_joined_by_one_link():
    assert nx.is_isomorphic(nx.from_numpy_array(graphs.two_cliques(8)), nx.barbell_graph(4, 0))
    assert len(list(nx.bridges(nx.from_numpy_array(graphs.two_cliques(9))))) == 1


def test_exponential_clients_send_to_powers_of_two_ahead():
    receivers = np.flatnonzero(graphs.exponential(6)[:, 3])
    assert set(receivers) == {(3 + 1) % 6, (3 + 2) % 6, (3 + 4) % 6}


def test_an_arc_of_networkx_is_a_message_from_tail_to_head():
    np.testing.assert_array_equal(graphs.from_networkx(nx.DiGraph([(0, 1)])), [[False, False], [True, False]])


def test_networkx_self_loops_and_edge_weights_are_not_read():
    graph = nx.Graph([(0, 0), (0, 1)])
    graph[0][1]["weight"] = 0.0
    np.testing.assert_array_equal(graphs.from_networkx(graph), [[False, True], [True, False]])


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: graphs.erdos_renyi(20, 0.3, seed=seed),
        lambda seed: graphs.small_world(20, 4, 0.5, seed=seed),
        lambda seed: graphs.random_regular(20, 4, seed=seed),
        lambda seed: graphs.random_geometric(20, 0.4, seed=seed),
    ],
    ids=["erdos_renyi", "small_world", "random_regular", "random_geometric"],
)
def test_a_drawn_graph_is_fixed_by_its_seed(draw):
    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()
    np.testing.assert_array_equal(draw(1), draw(1).T)


def test_erdos_renyi_at_its_ends_is_isolated_and_complete():
    np.testing.assert_array_equal(graphs.erdos_renyi(6, 0.0), graphs.isolated(6))
    np.testing.assert_array_equal(graphs.erdos_renyi(6, 1.0), graphs.complete(6))


def test_a_graph_in_two_pieces_is_not_connected():
    assert not graphs.is_connected(np.kron(np.eye(2), ~np.eye(3, dtype=bool)).astype(bool))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: graphs.ring(0), "`clients` must be at least 1, got 0"),
        (lambda: graphs.hypercube(6), r"power of two \(4 or 8\), got 6"),
        (lambda: graphs.erdos_renyi(5, 1.5), r"`p` must lie in \[0, 1\], got 1.5"),
        (lambda: graphs.erdos_renyi(5, float("nan")), r"`p` must lie in \[0, 1\], got nan"),
        (lambda: graphs.small_world(10, 3, 0.1), "`degree` of a small world must be even.*got 3"),
        (lambda: graphs.small_world(4, 4, 0.1), r"`degree` must lie in 0..3 for 4 clients, got 4"),
        (lambda: graphs.random_regular(5, 3), r"even for an odd number of clients \(5\), got 3"),
        (lambda: graphs.random_geometric(5, 0.0), "`radius` must be positive"),
        (lambda: graphs.from_networkx(nx.Graph()), "`graph` must have at least one node"),
    ],
)
def test_an_impossible_graph_is_refused_by_name_and_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()
