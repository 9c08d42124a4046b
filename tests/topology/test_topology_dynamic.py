"""Networks in time: distributions of the random ones, products of the cyclic ones."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdfl.topology import dynamic, equi, graphs, mobility, weights

KEY = jax.random.key(7)


def draws(network, count):
    """Weights of rounds 0, 1, ..., all from one key."""
    return np.asarray(jax.vmap(lambda round: network.weights(KEY, round))(jnp.arange(count)))


def test_a_fixed_network_has_the_same_weights_in_every_round():
    mixing = weights.metropolis_hastings(graphs.star(5))
    np.testing.assert_array_equal(draws(dynamic.fixed(mixing), 3), np.stack([mixing] * 3))


def test_a_cycled_network_starts_over_at_the_end_of_its_stack():
    stack = np.stack([np.eye(3), np.full((3, 3), 1 / 3), np.roll(np.eye(3), 1, 0)]).astype(np.float32)
    np.testing.assert_array_equal(draws(dynamic.cycled(stack), 7), stack[np.arange(7) % 3])


def test_each_link_is_active_with_its_probability_and_independently():
    rounds, p = 4000, 0.3
    active = draws(dynamic.random_links(graphs.ring(5), p), rounds) > 0
    links = np.stack([active[:, i, (i + 1) % 5] for i in range(5)], axis=1)
    # Five standard errors of a mean of Bernoulli draws, and of a product of two independent ones.
    assert np.abs(links.mean(0) - p).max() < 5 * np.sqrt(p * (1 - p) / rounds)
    pairs = (links[:, :, None] & links[:, None, :]).mean(0)[np.triu_indices(5, 1)]
    assert np.abs(pairs - p * p).max() < 5 * np.sqrt(p * p * (1 - p * p) / rounds)
    assert not active[:, 0, 2].any()


def test_links_at_probability_zero_and_one_give_identity_and_mean_exactly():
    """P20."""
    np.testing.assert_array_equal(draws(dynamic.random_links(graphs.complete(10), 0.0), 5), np.stack([np.eye(10)] * 5))
    mean = np.full((5, 10, 10), np.float32(0.1))
    np.testing.assert_array_equal(draws(dynamic.random_links(graphs.complete(10), 1.0), 5), mean)


def test_disconnected_draws_are_kept():
    mixing = draws(dynamic.random_links(graphs.complete(10), 0.02), 200)
    assert (mixing == np.eye(10)).all((1, 2)).mean() == pytest.approx(0.98**45, abs=0.15)  # four standard errors


def test_pairs_meet_with_their_probability():
    rounds, p = 4000, 0.2
    untouched = (draws(dynamic.pairwise_meetings(4, p), rounds) == np.eye(4)).all((1, 2))
    silent = (1 - p) ** 6
    assert abs(untouched.mean() - silent) < 5 * np.sqrt(silent * (1 - silent) / rounds)


def test_meetings_are_half_and_half_averages_in_every_order_alike():
    """With p = 1 and three clients, W is one of the 3! ordered products of pair matrices, each as likely."""

    def meeting(i, j):
        pair = np.eye(3)
        pair[np.ix_([i, j], [i, j])] = 0.5
        return pair

    pairs = [meeting(0, 1), meeting(0, 2), meeting(1, 2)]
    products = np.stack([third @ second @ first for first, second, third in itertools.permutations(pairs)])
    found = draws(dynamic.pairwise_meetings(3, 1.0), 3000)
    matches = (found[:, None] == products[None]).all((2, 3))  # [rounds, orders]
    assert (matches.sum(1) == 1).all()
    assert np.abs(matches.mean(0) - 1 / 6).max() < 5 * np.sqrt(5 / 36 / 3000)


def test_meetings_are_doubly_stochastic_but_not_symmetric():
    mixing = weights.validate(draws(dynamic.pairwise_meetings(8, 0.5), 50))
    assert (mixing.diagonal(axis1=1, axis2=2) > 0).all()
    assert (mixing != mixing.transpose(0, 2, 1)).any()


@pytest.mark.parametrize("clients", [1, 2, 4, 8, 16, 32])
def test_one_peer_exponential_agrees_exactly_after_one_period_of_a_power_of_two(clients):
    """P15."""
    period = dynamic.exponential_period(clients)
    product = np.linalg.multi_dot([np.eye(clients), *draws(dynamic.one_peer_exponential(clients), period)])
    np.testing.assert_array_equal(product, np.full((clients, clients), 1 / clients))


def test_one_peer_exponential_misses_the_mean_for_six_clients():
    """P15, the other half: the largest error after a period is 1/12."""
    product = np.linalg.multi_dot(draws(dynamic.one_peer_exponential(6), 3))
    assert np.abs(product - 1 / 6).max() == pytest.approx(1 / 12)


def test_one_peer_exponential_uses_one_link_of_the_exponential_graph_at_a_time():
    stack = draws(dynamic.one_peer_exponential(10), 4)
    links = (stack > 0) & ~np.eye(10, dtype=bool)
    np.testing.assert_array_equal(links.sum(2), np.ones((4, 10)))
    np.testing.assert_array_equal(links.any(0), graphs.exponential(10))


@pytest.mark.parametrize(
    "network",
    [
        dynamic.random_links(graphs.complete(6), 0.4),
        dynamic.random_links(graphs.complete(6), 0.4, weights.max_degree),
        dynamic.pairwise_meetings(6, 0.4),
        dynamic.one_peer_exponential(6),
        equi.equi_dynamic(6, 0.5),
        equi.u_equi_dynamic(6, 0.5),
        mobility.mobility(mobility.random_waypoint(6, 0.1), 0.5),
    ],
    ids=[
        "random_links",
        "max_degree",
        "pairwise_meetings",
        "one_peer_exponential",
        "equi_dynamic",
        "u_equi_dynamic",
        "mobility",
    ],
)
def test_a_network_gives_the_same_bits_under_jit_vmap_and_scan(network):
    eager = np.stack([network.weights(KEY, round) for round in range(4)])
    jitted = jax.jit(network.weights)
    np.testing.assert_array_equal(np.stack([jitted(KEY, round) for round in range(4)]), eager)
    np.testing.assert_array_equal(draws(network, 4), eager)
    _, scanned = jax.lax.scan(lambda carry, round: (carry, network.weights(KEY, round)), None, jnp.arange(4))
    np.testing.assert_array_equal(scanned, eager)


@pytest.mark.parametrize(
    "network",
    [
        dynamic.random_links(graphs.complete(8), 0.5),
        dynamic.pairwise_meetings(8, 0.5),
        equi.equi_dynamic(8, 0.5),
        equi.u_equi_dynamic(8, 0.5),
    ],
    ids=["links", "pairs", "shifts", "matchings"],
)
def test_a_random_network_depends_on_its_key_and_on_its_round(network):
    rounds = draws(network, 4)  # several: one of few shifts may well come up twice
    assert (rounds[1:] != rounds[:-1]).any()
    assert (rounds != jax.vmap(lambda round: network.weights(jax.random.key(8), round))(jnp.arange(4))).any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: dynamic.fixed(np.ones((2, 2))), "must be doubly stochastic"),
        (lambda: dynamic.fixed(np.ones((1, 2, 2))), "`stack` must have shape"),
        (lambda: dynamic.cycled(np.eye(2)), r"`stack` must have shape \[rounds, clients, clients\], got \[2, 2\]"),
        (lambda: dynamic.random_links(graphs.ring(4), -0.1), r"`p` must lie in \[0, 1\], got -0.1"),
        (lambda: dynamic.random_links(graphs.exponential(5), 0.1), "`adjacency` must be symmetric"),
        (lambda: dynamic.random_links(graphs.ring(4), 0.1, weights.uniform), "`uniform` weights need a fixed graph"),
        (lambda: dynamic.pairwise_meetings(4, 2.0), r"`p` must lie in \[0, 1\], got 2.0"),
        (lambda: dynamic.one_peer_exponential(0), "`clients` must be at least 1, got 0"),
    ],
)
def test_an_impossible_network_is_refused_before_the_first_round(build, message):
    with pytest.raises(ValueError, match=message):
        build()
