"""Random waypoint: contacts of one walk, so that a round's graph resembles the last one's."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdfl.topology import build, mobility, weights

CLIENTS, RADIUS, KEY = 10, 0.3, jax.random.key(0)
UPPER = np.triu_indices(CLIENTS, 1)


SPEED = 0.05


@cache
def mixing():
    """Weights of all rounds of one period, [rounds, clients, clients]."""
    network = mobility.mobility(mobility.random_waypoint(CLIENTS, SPEED), RADIUS)
    return np.asarray(jax.jit(jax.vmap(lambda round: network.weights(KEY, round)))(jnp.arange(mobility.PERIOD)))


@cache
def near(speed, seed=0):
    """Who is near whom along the walk, [places, clients, clients]."""
    walk = mobility.random_waypoint(CLIENTS, speed, seed=seed)
    return (np.linalg.norm(walk[:, :, None] - walk[:, None], axis=-1) <= RADIUS) & ~np.eye(CLIENTS, dtype=bool)


def autocorrelation(met):
    return np.corrcoef(met[:-1].ravel(), met[1:].ravel())[0, 1]


def test_weights_are_symmetric_and_doubly_stochastic_in_every_round():
    weights.validate(mixing(), symmetric=True)
    assert (mixing().diagonal(axis1=1, axis2=2) > 0).all()


def test_everybody_walks_at_the_speed_asked_for_and_inside_the_square():
    walk = mobility.random_waypoint(6, 0.02)
    assert walk.shape == (mobility.ROUNDS + 1, 6, 2)
    assert walk.min() >= 0
    assert walk.max() <= 1
    steps = np.linalg.norm(np.diff(walk, axis=0), axis=-1)
    assert steps.max() < 0.02 + 1e-12
    # A corner shortens a step: one in 26 rounds, at 0.02 a round and a mean way of 0.52 between points.
    assert np.isclose(steps, 0.02).mean() > 0.9


def test_a_faster_walk_goes_further_on_the_same_path():
    slow, fast = (mobility.random_waypoint(4, speed, seed=2) for speed in (0.01, 0.02))
    np.testing.assert_allclose(fast[:501], slow[:1001:2], atol=1e-12)


def test_clients_that_are_near_meet():
    met = (mixing() > 0) & ~np.eye(CLIENTS, dtype=bool)
    np.testing.assert_array_equal(met[: mobility.ROUNDS + 1], near(SPEED))


def test_the_walk_is_walked_back_so_that_nobody_jumps():
    rounds = mixing()
    np.testing.assert_array_equal(rounds[1:], rounds[:0:-1])


def test_contacts_change_slowly_and_the_slower_the_clients_the_more_so():
    """Measured: 0.84 at speed 0.05 and 0.97 at 0.01. Those of erdos_renyi of the same density are drawn anew."""
    slow, fast = (autocorrelation(near(speed)[:, *UPPER]) for speed in (0.01, SPEED))
    random = build(f"erdos_renyi:{near(SPEED)[:, *UPPER].mean()}", CLIENTS).network
    drawn = (jax.vmap(lambda round: random.weights(KEY, round))(jnp.arange(mobility.ROUNDS)) > 0)[:, *UPPER]
    assert abs(autocorrelation(drawn)) < 5 / np.sqrt(drawn.size)  # standard errors
    assert 0.7 < fast < slow < 1


def test_faster_clients_mix_better_over_a_horizon_at_the_same_density():
    """Squared disagreement left after 50 rounds: 1.1, 0.03 and 0.0001 at these speeds, of 9 at first."""

    rule = jax.jit(jax.vmap(weights.metropolis_hastings))

    def left(speed, seed):
        product = np.eye(CLIENTS)
        for round in np.asarray(rule(near(speed, seed)[:50]), np.float64):
            product = round @ product
        return np.sum((product - 1 / CLIENTS) ** 2)

    means = [np.mean([left(speed, seed) for seed in range(4)]) for speed in (0.002, 0.01, SPEED)]
    assert means[0] > 5 * means[1] > 25 * means[2]


def test_the_walk_comes_from_the_seed_and_not_from_the_key():
    one, other = build("mobility:0.05:0.4", 8, seed=1).network, build("mobility:0.05:0.4", 8, seed=2).network
    np.testing.assert_array_equal(one.weights(KEY, 3), one.weights(jax.random.key(1), 3))
    assert (one.weights(KEY, 3) != other.weights(KEY, 3)).any()


def test_a_topology_knows_who_ever_meets():
    topology = build("mobility:0.05:0.3", CLIENTS)
    np.testing.assert_array_equal(topology.adjacency, near(SPEED).any(0))
    assert topology.period == mobility.PERIOD


@pytest.mark.parametrize(
    ("spec", "rule", "message"),
    [
        ("mobility:0:0.3", "max_degree", r"`speed` must lie in \(0, 1\] sides of the square per round, got 0.0; .*"),
        ("mobility:0.1:0", "max_degree", "`radius` must be positive"),
        ("mobility:0.1:0.2", "uniform", "`uniform` weights need a fixed graph"),
        ("mobility:0.0001:0.1", "max_degree", "'mobility:0.0001:0.1' is not connected for 10 clients and seed 0"),
    ],
)
def test_impossible_movement_is_refused(spec, rule, message):
    with pytest.raises(ValueError, match=message):
        build(spec, CLIENTS, rule=rule)
