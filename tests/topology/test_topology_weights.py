"""Rules against closed forms and networkx; what `validate` lets pass and what it says of the rest."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxdfl.topology import graphs, weights

TRACEABLE = [weights.metropolis_hastings, weights.laplacian, weights.max_degree]
name_of = {"ids": lambda rule: rule.__name__}


@st.composite
def adjacencies(draw):
    clients = draw(st.integers(1, 6))
    upper = np.triu(draw(hnp.arrays(bool, (clients, clients))), 1)
    return upper | upper.T


@pytest.mark.parametrize("rule", TRACEABLE, **name_of)
@given(adjacency=adjacencies())
@settings(max_examples=25, deadline=None)
def test_a_rule_gives_symmetric_doubly_stochastic_weights_on_any_graph(rule, adjacency):
    mixing = weights.validate(rule(adjacency), symmetric=True)
    assert (mixing.diagonal() > 0).all()
    np.testing.assert_array_equal((mixing > 0) & ~np.eye(len(mixing), dtype=bool), adjacency)


@pytest.mark.parametrize("rule", TRACEABLE, **name_of)
def test_a_rule_maps_over_traced_graphs_with_the_same_numbers(rule):
    stack = np.stack([graphs.erdos_renyi(8, 0.4, seed=seed) for seed in range(5)])
    one_by_one = np.stack([rule(adjacency) for adjacency in stack])
    np.testing.assert_allclose(jax.jit(jax.vmap(rule))(stack), one_by_one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", TRACEABLE, **name_of)
def test_an_isolated_client_keeps_all_weight_on_itself(rule):
    adjacency = np.pad(graphs.star(4), (0, 1))
    np.testing.assert_array_equal(rule(adjacency)[4], [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(rule(graphs.isolated(4)), np.eye(4))


@pytest.mark.parametrize("clients", [1, 2, 7, 10, 31])
def test_metropolis_hastings_on_the_complete_graph_is_the_mean_bit_for_bit(clients):
    mixing = weights.metropolis_hastings(graphs.complete(clients))
    np.testing.assert_array_equal(mixing, np.full((clients, clients), 1 / np.float32(clients)))


def test_metropolis_hastings_is_one_over_one_plus_the_larger_degree():
    expected = [
        [3 / 4, 1 / 4, 0, 0],
        [1 / 4, 1 / 4, 1 / 4, 1 / 4],
        [0, 1 / 4, 5 / 12, 1 / 3],
        [0, 1 / 4, 1 / 3, 5 / 12],
    ]
    adjacency = graphs.from_networkx(nx.Graph([(0, 1), (1, 2), (1, 3), (2, 3)]))
    np.testing.assert_allclose(weights.metropolis_hastings(adjacency), expected, atol=1e-7)


@pytest.mark.parametrize("adjacency", [graphs.star(9), graphs.erdos_renyi(12, 0.4, seed=3), graphs.two_cliques(8)])
def test_laplacian_weights_have_the_spectrum_that_networkx_predicts(adjacency):
    spectrum = nx.laplacian_spectrum(nx.from_numpy_array(adjacency))
    expected = np.sort(1 - 2 * spectrum / (3 * spectrum.max()))
    found = np.linalg.eigvalsh(np.asarray(weights.laplacian(adjacency), np.float64))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[0] == pytest.approx(1 / 3, abs=1e-6)


def test_all_rules_but_the_laplacian_agree_on_a_regular_graph():
    third = np.float32(1) / 3
    ring = third * (graphs.ring(10) + np.eye(10, dtype=np.float32))
    for rule in (weights.metropolis_hastings, weights.max_degree, weights.uniform):
        np.testing.assert_allclose(rule(graphs.ring(10)), ring, atol=1e-7)


def test_max_degree_weights_are_one_number_on_all_links():
    mixing = np.asarray(weights.max_degree(graphs.star(5)))
    np.testing.assert_allclose(mixing[0], np.full(5, 0.2), atol=1e-7)
    np.testing.assert_allclose(mixing.diagonal()[1:], np.full(4, 0.8), atol=1e-7)


def test_uniform_weights_on_the_exponential_graph_are_doubly_stochastic_and_directed():
    mixing = weights.validate(weights.uniform(graphs.exponential(10)))
    assert set(np.unique(mixing)) == {np.float32(0), np.float32(1) / 5}
    assert (mixing != mixing.T).any()


def test_uniform_weights_refuse_an_irregular_graph():
    with pytest.raises(ValueError, match=r"`adjacency` must be regular .* got degrees 1 to 3"):
        weights.uniform(graphs.star(4))


def test_uniform_weights_refuse_a_traced_graph():
    with pytest.raises(ValueError, match="`uniform` weights need a fixed graph"):
        jax.jit(weights.uniform)(graphs.ring(4))


@pytest.mark.parametrize("rule", TRACEABLE, **name_of)
def test_a_rule_for_undirected_graphs_refuses_a_one_way_link(rule):
    with pytest.raises(ValueError, match="`adjacency` must be symmetric for this rule, but 3 sends to 0 and not back"):
        rule(graphs.exponential(4) & ~graphs.chain(4))


def test_mixing_keeps_the_mean_and_never_raises_disagreement():
    """P2 and P3 for one draw of blocks."""
    blocks = jax.random.normal(jax.random.key(0), (10, 4, 6)) + 3.0
    for rule in TRACEABLE:
        mixed = jnp.tensordot(rule(graphs.erdos_renyi(10, 0.3, seed=1)), blocks, axes=1)
        np.testing.assert_allclose(mixed.mean(0), blocks.mean(0), rtol=1e-6)
        assert mixed.var(0).sum() <= blocks.var(0).sum()


@given(st.integers(1, 6), st.lists(st.integers(0, 719), min_size=1, max_size=4), st.data())
@settings(max_examples=50, deadline=None)
def test_validate_passes_every_mean_of_permutations(clients, seeds, data):
    """Birkhoff: these are all the doubly stochastic matrices there are."""
    shares = np.array(data.draw(st.lists(st.floats(0.1, 1), min_size=len(seeds), max_size=len(seeds))))
    permutations = [np.eye(clients)[np.random.default_rng(seed).permutation(clients)] for seed in seeds]
    matrix = np.tensordot(shares / shares.sum(), np.stack(permutations), axes=1)
    valid = weights.validate(matrix)
    assert valid.dtype == np.float32
    np.testing.assert_allclose(valid, matrix, atol=1e-7)


@given(st.integers(2, 6), st.data(), st.floats(1e-4, 0.5))
@settings(max_examples=50, deadline=None)
def test_validate_refuses_an_entry_that_is_off(clients, data, error):
    i, j = (data.draw(st.integers(0, clients - 1)) for _ in range(2))
    matrix = np.full((clients, clients), 1 / clients)
    matrix[i, j] += error
    with pytest.raises(ValueError, match=f"row {i} sums to one .* and column {j} to one"):
        weights.validate(matrix)


def test_validate_says_that_a_row_normalised_matrix_is_row_stochastic_only():
    closed = graphs.star(4) + np.eye(4)
    with pytest.raises(ValueError, match=r"`weights` is row-stochastic only: column 0 sums to one \+0.75"):
        weights.validate(closed / closed.sum(1, keepdims=True))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 3)), r"`mine` must have shape .* got \[2, 3\]"),
        (np.ones(3), r"`mine` must have shape .* got \[3\]"),
        (np.ones((0, 0)), r"`mine` must have shape .* got \[0, 0\]"),
        (np.eye(2) + 0j, "`mine` must hold real numbers, got complex128"),
        ([["1"]], "`mine` must hold real numbers, got <U1"),
        ([[np.nan, 1], [1, 0]], "`mine` must be finite, got nan in row 0, column 0"),
        ([[1.5, -0.5], [-0.5, 1.5]], "`mine` must be non-negative, got -0.5 in row 0, column 1"),
        ([[0.5, 0.2], [0.5, 0.8]], r"`mine` is column-stochastic only: row 0 sums to one -0.3"),
        ([np.eye(2), [[0.5, 0.6], [0.5, 0.5]]], r"`mine` in round 1 must be doubly stochastic, but row 0 .* \+0.1"),
    ],
)
def test_validate_says_where_a_matrix_fails_and_by_how_much(matrix, message):
    with pytest.raises(ValueError, match=message):
        weights.validate(matrix, name="mine")


def test_validate_checks_symmetry_only_where_it_is_claimed():
    shift = np.roll(np.eye(3), 1, axis=0)
    np.testing.assert_array_equal(weights.validate(shift), shift)
    with pytest.raises(ValueError, match=r"must be symmetric, but entries \(0, 1\) and \(1, 0\) differ by 1"):
        weights.validate(shift, symmetric=True)
