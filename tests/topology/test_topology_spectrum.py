"""Spectra against closed forms, the table of the paper's network, and measured contraction."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdfl.topology import build, dynamic, graphs, recommended_period, spectrum, weights
from jaxdfl.topology.spectrum import gap, sigma_2

KEY = jax.random.key(3)


@cache
def of(spec, clients=10, **options):
    topology = build(spec, clients)
    return spectrum(topology.network, clients, KEY, period=topology.period, **options)


@pytest.mark.parametrize("clients", [5, 10, 33])
def test_sigma_2_of_the_ring_is_its_cosine(clients):
    expected = (1 + 2 * np.cos(2 * np.pi / clients)) / 3
    assert sigma_2(weights.uniform(graphs.ring(clients))) == pytest.approx(expected, abs=1e-6)


def test_sigma_2_of_the_hypercube_and_the_ends():
    assert sigma_2(weights.uniform(graphs.hypercube(16))) == pytest.approx(1 - 2 / 5, abs=1e-6)
    assert sigma_2(np.full((4, 4), 0.25)) == 0
    assert gap(np.eye(4)) == pytest.approx(0, abs=1e-12)
    assert sigma_2(np.ones((1, 1))) == 0


def test_sigma_2_of_a_shift_is_one_since_a_shift_only_moves_values_around():
    assert sigma_2(np.roll(np.eye(5), 1, axis=0)) == pytest.approx(1)


def test_rho_of_the_ring_of_ten_is_the_table_value():
    found = of("ring")
    assert found.rho == pytest.approx(0.762, abs=5e-4)
    assert found.rho == pytest.approx(found.sigma_2**2, abs=1e-6)
    assert (found.rho_is_exact, found.standard_error, found.samples) == (True, 0.0, 1)
    assert (found.links, found.connected) == (20, 1)


def test_rho_of_one_peer_exponential_is_exact_over_its_period():
    """|(1 + exp(i theta)) / 2|^2 = cos^2(theta / 2) on each Fourier mode; rho is the worst mode's mean over shifts."""
    modes = np.pi * np.arange(1, 10)[:, None] * np.array([1, 2, 4, 8]) / 10
    found = of("one_peer_exponential")
    assert found.rho == pytest.approx((np.cos(modes) ** 2).mean(1).max(), abs=1e-6)
    assert found.rho_is_exact
    assert found.samples == 4
    assert found.links == 10


def test_a_cycled_network_is_averaged_over_its_stack():
    stack = np.stack([np.eye(6), np.asarray(weights.uniform(graphs.ring(6)))])
    found = spectrum(dynamic.cycled(stack), 6, KEY, period=2)
    assert found.rho == pytest.approx((1 + sigma_2(stack[1]) ** 2) / 2, abs=1e-6)
    assert (found.links, found.connected) == (6, 0.5)


# methods.md 1.3: p, rho, lambda_2(E W), share of rounds connected, edges in the mean round. Its rho was read off the
# 6000 rounds that also chose the direction, which lies above the truth by up to 0.012; the other columns have no bias.
TABLE = [
    (0.5, 0.156, 0.243, 0.978, 22.5),
    (0.2, 0.434, 0.500, 0.222, 9.0),
    (0.1, 0.643, 0.677, 0.006, 4.5),
    (0.05, 0.799, 0.813, 0.000, 2.2),
    (0.02, 0.912, 0.915, 0.000, 0.89),
    (0.01, 0.955, 0.956, 0.000, 0.46),
]


@pytest.mark.parametrize(("p", "rho", "lambda_2", "connected", "edges"), TABLE)
def test_the_paper_network_has_the_spectrum_of_the_table(p, rho, lambda_2, connected, edges):
    found = of(f"erdos_renyi:{p}")
    assert not found.rho_is_exact
    assert -0.012 - 4 * found.standard_error < found.rho - rho < 4 * found.standard_error
    assert found.sigma_2 == pytest.approx(lambda_2, abs=0.015)  # both are largest eigenvalues of sampled means
    assert found.connected == pytest.approx(connected, abs=0.03)  # 4 standard errors at 4000 rounds
    assert found.links / 2 == pytest.approx(edges, rel=0.05)  # as many at p = 0.01, which has 1800 edges


@pytest.mark.parametrize("spec", ["erdos_renyi:0.1", "erdos_renyi:0.02", "pairwise_meetings:0.1"])
def test_sampled_rho_is_unbiased_where_all_directions_are_alike(spec):
    """Clients are exchangeable, so E[W^T W] - J is rho (I - J), and rho = (E |W|_F^2 - 1) / (clients - 1)."""
    network = build(spec, 10).network
    squares = jax.vmap(lambda round: jnp.sum(network.weights(KEY, round) ** 2))(jnp.arange(5000))
    found = of(spec)
    error = np.hypot(found.standard_error, float(squares.std()) / 9 / np.sqrt(5000))
    assert abs(found.rho - (float(squares.mean()) - 1) / 9) < 4 * error


def test_sampling_a_fixed_network_finds_its_exact_rho():
    network = build("two_cliques", 10).network
    sampled, exact = spectrum(network, 10, KEY, samples=5), spectrum(network, 10, KEY, period=1)
    assert sampled.rho == pytest.approx(exact.rho, abs=1e-6)
    assert sampled.standard_error == pytest.approx(0, abs=1e-6)


def test_two_clients_that_meet_by_chance_have_rho_and_its_error_in_closed_form():
    """|W v|^2 is 0 with probability p and 1 otherwise."""
    found = of("erdos_renyi:0.3", clients=2, samples=2000)
    assert found.standard_error == pytest.approx(np.sqrt(0.3 * 0.7 / 2000), rel=0.05)
    assert abs(found.rho - 0.7) < 4 * found.standard_error


@pytest.mark.parametrize("spec", ["erdos_renyi:0.1", "random_links:0.5:ring", "pairwise_meetings:0.1"])
def test_measured_disagreement_never_rises_and_contracts_at_rho_in_the_mean(spec):
    """P3."""
    network, rounds = build(spec, 10).network, 1000
    blocks = jax.random.normal(KEY, (10, 30))
    blocks = blocks - blocks.mean(0)
    mixed = jax.vmap(lambda round: network.weights(KEY, round) @ blocks)(jnp.arange(rounds))
    ratios = np.asarray(jnp.sum(mixed**2, axis=(1, 2)) / jnp.sum(blocks**2))
    found = of(spec)
    assert ratios.max() <= 1 + 1e-6
    assert ratios.mean() < found.rho + 4 * np.hypot(found.standard_error, ratios.std() / np.sqrt(rounds))


def test_a_network_without_links_never_mixes_and_the_complete_one_mixes_at_once():
    assert of("isolated").rho == 1
    assert of("erdos_renyi:0", samples=10).rho == 1
    assert of("erdos_renyi:1", samples=10).rho == pytest.approx(0, abs=1e-6)
    assert (of("isolated").connected, of("complete").connected) == (0, 1)


@pytest.mark.parametrize("clients", [3, 10, 33, 100])
def test_rho_of_a_fixed_network_is_exactly_0_or_1_where_mathematics_says_so(clients):
    assert (of("complete", clients).rho, of("isolated", clients).rho) == (0, 1)
    assert spectrum(dynamic.fixed(np.roll(np.eye(clients), 1, axis=0)), clients, KEY, period=1).rho == 1


@pytest.mark.parametrize("spec", ["complete", "isolated", "erdos_renyi:0.5", "pairwise_meetings:0.5"])
def test_one_client_agrees_with_itself(spec):
    found = of(spec, clients=1, samples=4)
    assert (found.rho, found.sigma_2, found.links, found.connected) == (0, 0, 0, 1)


def test_the_recommended_period_grows_as_the_network_thins():
    """methods.md 1.4: 3.3, 4, 5, 6.7, 10, 14 before rounding."""
    assert [recommended_period(rho) for _, rho, *_ in TABLE] == [3, 4, 5, 7, 10, 14]
    assert recommended_period(0.0) == 3


@pytest.mark.parametrize("rho", [1.0, 1 - 1e-8, -0.1, 1.5, float("nan")])
def test_no_period_suits_a_network_that_never_mixes(rho):
    with pytest.raises(ValueError, match=r"`rho` must lie in \[0, 1\), got"):
        recommended_period(rho)


def test_a_spectrum_over_no_rounds_is_refused():
    network = dynamic.fixed(np.eye(2))
    with pytest.raises(ValueError, match="`period` must be at least 1 round"):
        spectrum(network, 2, KEY, period=0)
    with pytest.raises(ValueError, match="`samples` must be at least 2"):
        spectrum(network, 2, KEY, samples=1)
