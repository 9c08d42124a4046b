"""RelaySGD: what is relayed on a tree, against a loop with a message per directed edge, and what happens elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_optimisers import DIM, OPTIMUM, compiled, exchange, flat, in_blocks, run

from jaxdfl.methods.relay_sgd import require_tree
from jaxdfl.topology import graphs
from jaxdfl.topology.weights import metropolis_hastings

CHAIN = graphs.chain(6)


def models(seed, clients=6):
    """Whole numbers, so that sums are exact."""
    return np.random.default_rng(seed).integers(-50, 50, (clients, DIM)).astype(float)


def relayed(spec, adjacency, models_by_round):
    """The client's blocks [clients, 7] and the mixer's state after each round, for models given from outside."""
    start, mix = compiled(spec)
    state = start(in_blocks(models_by_round[0]))
    for t, x in enumerate(models_by_round):
        out, state, info = mix(exchange(t, metropolis_hastings(adjacency)), in_blocks(x), state)
        yield np.asarray(flat(out)), state, info


def loop(adjacency, models_by_round, first=None):
    """The published equations with dictionaries; messages by (sender, receiver)."""
    clients, old, old_counts = len(adjacency), {}, {}
    near = [np.flatnonzero(row).tolist() for row in adjacency]
    for x in models_by_round:
        new, counts = {}, {}
        for i in range(clients):
            for j in near[i]:
                others = [(n, i) for n in near[i] if n != j and (n, i) in old]
                new[i, j] = x[i] + sum(old[edge] for edge in others)
                counts[i, j] = 1 + sum(old_counts[edge] for edge in others)
        old, old_counts = new, counts
        count = np.array([1 + sum(counts[j, i] for j in near[i]) for i in range(clients)])
        total = np.stack([x[i] + sum(new[j, i] for j in near[i]) for i in range(clients)])
        if first is not None:
            total, count = total + first * (clients - count)[:, None], np.full(clients, clients)
        yield total / count[:, None]


@pytest.mark.parametrize("adjacency", [CHAIN, graphs.star(6), graphs.tree(6)], ids=["chain", "star", "tree"])
@pytest.mark.parametrize("missing", ["left_out", "first"])
def test_relaying_is_what_a_loop_over_directed_edges_computes(adjacency, missing):
    given = [models(t) for t in range(9)]
    expected = loop(adjacency, given, given[0] if missing == "first" else None)
    for (found, _, _), wanted in zip(relayed(f"relay_sgd:{missing}", adjacency, given), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-5)


def test_on_a_chain_of_six_all_counts_are_six_and_sums_exact_after_five_rounds():
    """P16: five links from end to end."""
    x = models(0)
    for t, (found, state, info) in enumerate(relayed("relay_sgd", CHAIN, [x] * 8), start=1):  # noqa: B007
        counts = 1 + np.asarray(state.counts.a).sum(1)
        assert (counts == 6).all() == (t >= 5)
        assert info["messages"] == 2 * 5
    np.testing.assert_array_equal(flat(jax.tree.map(lambda s: s.sum(1), state.sums)) + x, np.tile(x.sum(0), (6, 1)))
    np.testing.assert_allclose(found, np.tile(x.mean(0), (6, 1)), rtol=1e-6)


def test_relay_sgd_reaches_the_centralised_optimum_on_a_tree():
    weights = np.asarray(metropolis_hastings(graphs.tree(8)))
    assert np.abs(run("relay_sgd", weights.astype(np.float64))[-1] - OPTIMUM).max() < 1e-8


def test_a_lost_message_takes_its_whole_side_of_the_tree_with_it():
    x, weights = in_blocks(models(0)), metropolis_hastings(CHAIN)
    start, mix = compiled("relay_sgd")
    state, reached = start(x), []
    for t in range(8):
        here = exchange(t, weights)
        if t == 6:  # client 2 does not hear 3, which is paid for all the same
            here = here._replace(weights=weights.at[2, 3].set(0))
        _, state, info = mix(here, x, state)
        assert info["messages"] == 10
        reached.append((1 + np.asarray(state.counts.b).sum(1)).tolist())
    assert reached[5:] == [[6, 6, 6, 6, 6, 6], [6, 6, 3, 6, 6, 6], [6, 3, 6, 6, 6, 6]]  # nor is it relayed


@pytest.mark.parametrize("adjacency", [graphs.ring(6), graphs.complete(6)], ids=["ring", "complete"])
def test_where_there_are_circles_clients_stay_means_of_past_models(adjacency):
    """Without the scaling the counts on the complete graph would grow as 4^t."""
    x = models(1)
    for found, state, _ in relayed("relay_sgd", adjacency, [x] * 80):
        assert (found <= x.max(0) + 1e-4).all()
        assert (found >= x.min(0) - 1e-4).all()
        assert np.asarray(state.counts.a).max() <= 6


def test_a_client_alone_keeps_its_model():
    x = models(2)
    found, _, info = next(iter(relayed("relay_sgd", graphs.isolated(6), [x])))
    np.testing.assert_array_equal(found, jnp.asarray(x, jnp.float32))
    assert info["bytes"] == 0


@pytest.mark.parametrize("adjacency", [CHAIN, graphs.star(5), graphs.tree(9), graphs.chain(2), graphs.chain(1)])
def test_trees_are_trees(adjacency):
    require_tree(adjacency)


@pytest.mark.parametrize(
    ("adjacency", "message"),
    [
        (graphs.ring(6), "the network must be a tree for relay_sgd, got 6 links of 6 clients in 1 connected part; use"),
        (graphs.isolated(3), "got 0 links of 3 clients in 3 connected parts"),
        (graphs.exponential(5), "the network must be a tree for relay_sgd, with links both ways, but 3 sends to 0 and"),
    ],
)
def test_what_is_not_a_tree_is_refused_in_one_clear_line(adjacency, message):
    with pytest.raises(ValueError, match=message) as error:
        require_tree(adjacency)
    assert "\n" not in str(error.value)
