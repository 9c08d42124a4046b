"""Losses of messages: what receivers make of them, what they cost, and what they do to the mean."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from test_mixing import RING, exchange, mixed

from jaxdfl.mixing import gossip, noisy, packet_loss, rayleigh, repeated
from jaxdfl.mixing.links import outage_rates, rayleigh_outage
from jaxdfl.protocol import PerBlock

RULES = ("self_substitution", "renormalise", "compensate", "compensate_differences")
W = np.asarray(toy.metropolis(jnp.float32(RING + np.diag(np.ones(3), 3) + np.diag(np.ones(3), -3))))
DRAWS = 3000

every_rule = pytest.mark.parametrize("rule", RULES)


def alone(x):
    """[clients, ...] as the only block there is."""
    return PerBlock({"x": x}, {}, {})


@cache
def effective(mixer, draws=DRAWS):
    """[draws, m, m]: the weights that the mixer turns W into, read off from what it makes of unit vectors."""

    def one(key):
        start = alone(jnp.eye(6)[:, None])
        return mixer.mix(exchange(W)._replace(key=key), start, mixer.init(start))[0].a["x"][:, 0]

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), draws)), np.float64)


def assert_expected(draws, expected):
    """The mean over draws, to five standard errors (1e-6 of rounding where nothing varies)."""
    error = draws.std(0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - expected) <= 5 * error + 1e-6).all()


@every_rule
def test_without_losses_repeated_aggregation_is_a_power_of_the_weights(rule):
    found = effective(repeated(packet_loss(gossip(), 0.0, rule), 3), draws=2)
    np.testing.assert_allclose(found, np.broadcast_to(np.linalg.matrix_power(W, 3), (2, 6, 6)), atol=1e-6)


@pytest.mark.parametrize("rule", RULES[:2])
def test_rows_sum_to_one_in_every_draw_unless_losses_are_compensated(rule):
    np.testing.assert_allclose(effective(packet_loss(gossip(), 0.4, rule)).sum(2), 1, atol=1e-6)


def test_compensated_differences_expect_the_weights_and_keep_their_row_sums():
    found = effective(packet_loss(gossip(), 0.4, "compensate_differences"))
    assert_expected(found, W)
    np.testing.assert_allclose(found.sum(2), 1, atol=1e-6)
    assert found.std(0).max() > 0.1  # and the draws do differ


def test_compensated_losses_expect_the_weights_and_break_their_row_sums():
    found = effective(packet_loss(gossip(), 0.4, "compensate"))
    assert_expected(found, W)
    assert found.sum(2).std() > 0.1


def test_substituting_oneself_expects_lazier_weights():
    expected = 0.6 * W + 0.4 * np.eye(6)
    assert_expected(effective(packet_loss(gossip(), 0.4)), expected)


def test_renormalised_rows_share_the_missing_weight_in_proportion():
    found = effective(packet_loss(gossip(), 0.4, "renormalise"), draws=50)
    kept = np.where(found > 0, W, 0)
    np.testing.assert_allclose(found, kept / kept.sum(2, keepdims=True), atol=1e-6)


def test_symmetric_losses_leave_the_weights_symmetric_and_doubly_stochastic():
    found = effective(packet_loss(gossip(), 0.4, "self_substitution", True))
    np.testing.assert_allclose(found, found.swapaxes(1, 2), atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    assert_expected(found, 0.6 * W + 0.4 * np.eye(6))


@pytest.mark.parametrize(("symmetric", "stays"), [(True, True), (False, False)])
def test_losses_in_one_direction_drift_the_mean_and_losses_of_whole_edges_do_not(symmetric, stays):
    """P14: 200 rounds at a rate of 0.3, from clients of unit spread, in float64."""
    with jax.enable_x64(True):
        mixer = packet_loss(gossip(), 0.3, symmetric=symmetric)
        weights = jnp.asarray(RING / 3 + np.eye(6) / 3)
        start = jnp.asarray(np.random.default_rng(0).normal(size=(6, 1, 40)))

        def step(x, key):
            return mixer.mix(exchange(weights)._replace(key=key, weights=weights), alone(x), ())[0].a["x"], ()

        end, _ = jax.jit(partial(jax.lax.scan, step))(start, jax.random.split(jax.random.key(0), 200))
        drift = float(jnp.sqrt(jnp.mean(jnp.square(end.mean(0) - start.mean(0)))))
    assert drift < 1e-12 if stays else drift > 0.05


@cache
def distance_by_aggregations(mixer, times=12, trials=100):
    """[times]: mean squared distance of the clients to their first mean after 1, 2, ... aggregations."""
    start = jax.random.normal(jax.random.key(1), (6, 1, 50))
    first = start.mean(0)

    def one(key):
        def step(x, key):
            x = mixer.mix(exchange(W)._replace(key=key), alone(x), ())[0].a["x"]
            return x, jnp.mean(jnp.square(x - first))

        return jax.lax.scan(step, start, jax.random.split(key, times))[1]

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), trials)).mean(0))


@pytest.mark.parametrize("mixer", [packet_loss(gossip(), 0.3, "compensate"), noisy(gossip(), 0.3)])
def test_where_errors_add_up_there_is_a_best_number_of_aggregations(mixer):
    """The claim of section 20's paper; no aggregation at all is a distance of 0.83 here."""
    distance = distance_by_aggregations(mixer)
    best = int(distance.argmin())
    assert 0 < best < len(distance) - 1
    assert distance[-1] > 1.05 * distance[best]


@pytest.mark.parametrize("rule", RULES[:2])
def test_where_rows_sum_to_one_more_aggregations_never_hurt(rule):
    """The drift is fed by disagreement alone and ends with it: both shrink the distance, or leave it (to 1e-4)."""
    assert (np.diff(distance_by_aggregations(packet_loss(gossip(), 0.3, rule))) < 1e-4).all()


@every_rule
def test_a_lost_message_is_paid_for(rule):
    rate = 0.999 if rule.startswith("compensate") else 1.0
    blocks = toy.blocks(spread=1.0)
    _, plain = mixed(W, blocks)
    _, info = mixed(W, blocks, mixer=packet_loss(gossip(), rate, rule))
    assert info["messages"] == plain["messages"] == 6 * 3
    assert info["bytes"] == plain["bytes"]
    assert info["lost"] == 6 * 3


def test_who_hears_nothing_stays_as_it_is():
    blocks = toy.blocks(spread=1.0)
    for rule in RULES[:2]:
        toy.assert_close(mixed(W, blocks, mixer=packet_loss(gossip(), 1.0, rule))[0], blocks)


def test_what_was_not_sent_cannot_be_lost():
    blocks, silent = toy.blocks(spread=1.0), np.zeros((6, 6), bool)
    found, info = mixed(W, blocks, mixer=packet_loss(gossip(), 1.0), links=silent)
    toy.assert_equal(found, mixed(W, blocks)[0])
    assert info["lost"] == info["messages"] == 0
    nothing = PerBlock(False, False, False)
    assert mixed(W, blocks, nothing, packet_loss(gossip(), 1.0))[1]["lost"] == 0


def test_a_message_is_lost_once_however_many_wrappers_lose_it():
    _, info = mixed(W, toy.blocks(), mixer=packet_loss(rayleigh(packet_loss(gossip(), 1.0), -10.0), 0.5))
    assert info["lost"] == info["messages"] == 6 * 3


def test_outage_is_the_chance_that_an_exponential_gain_falls_short():
    gains = np.random.default_rng(0).exponential(size=20_000)
    snr = np.array([0.5, 2.0, 30.0], np.float32)
    found = rayleigh_outage(jnp.asarray(snr), 1.5)
    np.testing.assert_allclose(found, 1 - np.exp(-1.5 / snr), rtol=1e-5)
    chance = (gains[:, None] * snr < 1.5).mean(0)
    np.testing.assert_allclose(found, chance, atol=5 * 0.5 / np.sqrt(20_000))  # five standard errors at most


def test_outage_follows_the_path_loss():
    places = jnp.array([[0.0, 0.0], [0.3, 0.4], [0.0, 1.0]])
    found = np.asarray(outage_rates(places, power=8.0, exponent=3.0, noise=2.0, threshold=1.0))
    assert (np.diag(found) == 0).all()
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found[0, 1:], 1 - np.exp(-(np.array([0.5, 1.0]) ** 3) / 4), rtol=1e-5)
    assert found[0, 1] < found[0, 2]


def test_rayleigh_links_lose_messages_at_the_rates_of_their_distances():
    places = jax.random.uniform(jax.random.key(3), (6, 2))
    rates = np.asarray(outage_rates(places, power=1.0, exponent=2.0, noise=1.0, threshold=10**0.2))
    assert rates.std() > 0.1
    found = effective(rayleigh(gossip(), 0.0, threshold_db=2.0, exponent=2.0, seed=3))
    off = ~np.eye(6, dtype=bool)
    assert_expected(found[:, off], (W * (1 - rates))[off])


def test_known_rates_of_any_pattern_are_compensated():
    assert_expected(effective(rayleigh(gossip(), 3.0, rule="compensate", symmetric=True)), W)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: packet_loss(gossip(), 1.2), r"`rate` must lie in \[0, 1\], got 1.2"),
        (lambda: packet_loss(gossip(), 1.0, "compensate"), "`rate` must be below 1 for the rule 'compensate', got 1.0"),
        (
            lambda: rayleigh(gossip(), float("nan")),
            "`snr_db` and `threshold_db` must be numbers in dB, got nan and 0.0",
        ),
        (lambda: rayleigh(gossip(), 3.0, exponent=0.0), "`exponent` must be above 0, got 0.0"),
        (lambda: noisy(gossip(), -1.0), "`deviation` must be 0 or a finite number above it, got -1.0"),
    ],
)
def test_an_impossible_channel_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
