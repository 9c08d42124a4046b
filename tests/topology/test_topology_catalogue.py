"""Every topology by name, and what an impossible spec is told."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdfl.topology import RULES, TOPOLOGIES, build, validate
from jaxdfl.topology import graphs as graph
from jaxdfl.topology import weights as rules
from jaxdfl.topology.spectrum import gap

ARGUMENTS = {
    "erdos_renyi": ":0.3",
    "random_links": ":0.5:ring",
    "pairwise_meetings": ":0.3",
    "fixed_erdos_renyi": ":0.6",
    "random_regular": ":3",
    "small_world": ":4:0.2",
    "random_geometric": ":0.7",
    "gap": ":0.3",
    "hyper_hypercube": ":2",
    "simple_base": ":1",
    "base": ":2",
    "equi_static": ":3",
    "u_equi_static": ":3",
    "equi_dynamic": ":0.5",
    "u_equi_dynamic": ":0.5",
    "mobility": ":0.1:0.4",
}
SPECS = [name + ARGUMENTS.get(name, "") for name in TOPOLOGIES]
ROUNDS = 6


@cache
def mixing_of(spec, seed):
    return rounds_of(build(spec, 8), jax.random.key(seed))


def rounds_of(topology, key):
    return np.asarray(jax.vmap(lambda round: topology.network.weights(key, round))(jnp.arange(ROUNDS)))


@pytest.mark.parametrize("spec", SPECS)
def test_a_topology_mixes_over_its_links_with_doubly_stochastic_weights(spec):
    """P1."""
    topology = build(spec, 8)
    mixing = mixing_of(spec, 0)
    validate(mixing)
    assert (mixing.diagonal(axis1=1, axis2=2) > 0).all()
    links = (mixing > 0).any(0) & ~np.eye(8, dtype=bool)
    assert not (links & ~topology.adjacency).any()
    assert topology.name == spec
    assert topology.clients == 8
    assert topology.network.work(jax.random.key(0), 0).shape == (8,)


@pytest.mark.parametrize("spec", SPECS)
def test_every_round_keeps_the_mean_and_raises_no_disagreement(spec):
    """P2 and P3."""
    blocks = np.random.default_rng(0).normal(3.0, 1.0, (8, 20))
    mixed = mixing_of(spec, 0).astype(np.float64) @ blocks  # [rounds, clients, 20]
    np.testing.assert_allclose(mixed.mean(1), np.tile(blocks.mean(0), (ROUNDS, 1)), rtol=1e-6)
    assert (mixed.var(1).sum(1) <= blocks.var(0).sum() * (1 + 1e-6)).all()


@pytest.mark.parametrize("spec", SPECS)
def test_weights_repeat_after_the_period_whatever_the_key(spec):
    period, first, second = build(spec, 8).period, mixing_of(spec, 0), mixing_of(spec, 1)
    if period is None:
        assert (first != second).any()
    else:
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first, first[np.arange(ROUNDS) % period])


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("rule", ["laplacian", "max_degree"])
def test_every_topology_takes_every_rule_for_undirected_graphs(spec, rule):
    topology = build(spec, 8, rule=rule)
    validate(topology.network.weights(jax.random.key(0), 0))


@pytest.mark.parametrize(
    "spec",
    [
        "complete",
        "isolated",
        "ring",
        "torus",
        "star",
        "chain",
        "hypercube",
        "tree",
        "base:1",
        "equi_static:2",
        "mobility:0.1:0.1",
    ],
)
def test_one_client_keeps_what_it_has(spec):
    np.testing.assert_array_equal(build(spec, 1).network.weights(jax.random.key(0), 0), [[1.0]])


def test_erdos_renyi_is_random_links_on_the_complete_graph():
    key = jax.random.key(0)
    one, other = build("erdos_renyi:0.3", 7), build("random_links:0.3:complete", 7)
    np.testing.assert_array_equal(rounds_of(one, key), rounds_of(other, key))


def test_erdos_renyi_at_its_ends_is_no_mixing_and_the_mean():
    """P20."""
    key = jax.random.key(0)
    np.testing.assert_array_equal(build("erdos_renyi:0", 10).network.weights(key, 0), np.eye(10))
    np.testing.assert_array_equal(
        build("erdos_renyi:1", 10).network.weights(key, 0), np.full((10, 10), np.float32(0.1))
    )


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_the_gap_is_the_one_asked_for(value):
    assert gap(build(f"gap:{value}", 7).network.weights(jax.random.key(0), 0)) == pytest.approx(value, abs=1e-6)


def test_a_base_graph_keeps_its_own_parameters():
    topology = build("random_links:0.5:small_world:4:0.2", 9, seed=5)
    np.testing.assert_array_equal(topology.adjacency, graph.small_world(9, 4, 0.2, seed=5))


def test_the_rule_and_the_seed_reach_the_weights():
    expected = rules.laplacian(graph.random_regular(10, 3, seed=4))
    found = build("random_regular:3", 10, rule="laplacian", seed=4).network.weights(jax.random.key(0), 0)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_a_matrix_or_a_stack_comes_from_a_file(tmp_path):
    stack = np.stack([np.eye(4), np.asarray(rules.uniform(graph.ring(4)))])
    one, many = str(tmp_path / "one.npy"), str(tmp_path / "many.npy")
    np.save(one, stack[1])
    np.save(many, stack)
    fixed, cycled = build(one, 4), build(many, 4)
    assert (fixed.period, cycled.period) == (1, 2)
    np.testing.assert_array_equal(cycled.adjacency, graph.ring(4))
    np.testing.assert_array_equal(rounds_of(cycled, jax.random.key(0)), np.stack([*stack] * 3))
    np.testing.assert_array_equal(build(f"random_links:0.5:{one}", 4).adjacency, graph.ring(4))


def test_a_file_of_objects_is_never_unpickled(tmp_path):
    path = str(tmp_path / "objects.npy")
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="no array of numbers; write one"):
        build(path, 4)


def test_a_file_that_does_not_fit_is_refused_with_its_name(tmp_path):
    path = str(tmp_path / "weights.npy")
    np.save(path, np.eye(3))
    with pytest.raises(ValueError, match=r"`clients` is 4, but the weights in .*weights\.npy' are for 3"):
        build(path, 4)
    closed = graph.star(4) + np.eye(4)
    np.save(path, closed / closed.sum(1, keepdims=True))
    with pytest.raises(ValueError, match=r"weights\.npy` is row-stochastic only"):
        build(path, 4)
    with pytest.raises(ValueError, match=r"cannot read weights from .*absent\.npy"):
        build(str(tmp_path / "absent.npy"), 4)


@pytest.mark.parametrize(
    ("spec", "clients", "message"),
    [
        ("rng", 4, "unknown topology 'rng'; known are ring, complete, .*, or a path ending in .npy"),
        ("", 4, "unknown topology ''; known are complete"),
        ("ring", 0, "`clients` must be at least 1, got 0"),
        ("ring:", 4, "`spec` must read 'ring', got 'ring:'"),
        ("ring:3", 4, "`spec` must read 'ring', got 'ring:3'"),
        ("erdos_renyi", 4, "`spec` must read 'erdos_renyi:p', got 'erdos_renyi'"),
        ("small_world:4", 8, "`spec` must read 'small_world:degree:p', got 'small_world:4'"),
        ("random_links:0.3", 8, "`spec` must read 'random_links:p:base', got 'random_links:0.3'"),
        ("erdos_renyi:0.1:0.2", 4, "`p` in 'erdos_renyi:0.1:0.2' must be a number, got '0.1:0.2'"),
        ("erdos_renyi:often", 4, "`p` in 'erdos_renyi:often' must be a number, got 'often'"),
        ("erdos_renyi:1.2", 4, r"`p` must lie in \[0, 1\], got 1.2"),
        ("erdos_renyi:nan", 4, r"`p` must lie in \[0, 1\], got nan"),
        ("random_regular:2.5", 4, "`degree` in 'random_regular:2.5' must be a whole number, got '2.5'"),
        ("hypercube", 6, r"must be a power of two \(4 or 8\), got 6"),
        ("random_links:0.3:hypercube", 6, r"must be a power of two \(4 or 8\), got 6"),
        ("random_geometric:0.01", 10, "'random_geometric:0.01' is not connected for 10 clients and seed 0"),
        ("random_links:0.3:isolated", 4, "'random_links:0.3:isolated' is not connected for 4 clients"),
        ("random_links:0.3:erdos_renyi:0.5", 4, "`base` .* must be a fixed graph, got 'erdos_renyi:0.5'"),
        ("random_links:0.3:exponential", 5, "`adjacency` must be symmetric"),
        ("random_links:0.3:base:1", 6, "`base` .* must be a fixed graph, got 'base:1', which changes by itself"),
        ("hyper_hypercube:1", 6, "no prime factor above 2, got 6 with 3 left over; .* or base:1, which exists for any"),
        ("base:0", 6, "`degree` must be at least 1 neighbour, got 0"),
        ("equi_static:1", 8, "'equi_static:1' is not connected for 8 clients and seed 0"),
        ("equi_dynamic:1.5", 6, r"`eta` must lie in \(0, 1\], got 1.5"),
        ("gap:1.5", 6, r"`value` must lie in \[0, 1\], got 1.5"),
        ("mobility:0.1", 6, "`spec` must read 'mobility:speed:radius', got 'mobility:0.1'"),
    ],
)
def test_an_impossible_spec_is_answered_in_one_clear_line(spec, clients, message):
    with pytest.raises(ValueError, match=message) as raised:
        build(spec, clients)
    assert "\n" not in str(raised.value)


def test_an_unknown_rule_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=f"unknown rule 'metropolis'; known are {', '.join(RULES)}"):
        build("ring", 4, rule="metropolis")
    with pytest.raises(ValueError, match="must be regular"):
        build("star", 4, rule="uniform")
    with pytest.raises(ValueError, match="need a fixed graph"):
        build("erdos_renyi:0.1", 4, rule="uniform")
