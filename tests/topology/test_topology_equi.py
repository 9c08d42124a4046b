"""EquiTopo: mixing that does not slow down with the number of clients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdfl.topology import equi, spectrum, weights
from jaxdfl.topology.spectrum import sigma_2

KEY = jax.random.key(11)
ROUNDS = 300


def draws(network):
    return np.asarray(jax.jit(jax.vmap(lambda round: network.weights(KEY, round)))(jnp.arange(ROUNDS)), np.float64)


@pytest.mark.parametrize("clients", [16, 64, 256])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_static_graph_mixes_at_the_epsilon_of_its_theory(clients, symmetric):
    epsilon, failure = 0.5, 0.01
    shifts = math.ceil(8 * math.log(2 * clients / failure) / (3 * epsilon**2))  # 87, 101 and 116
    found = [sigma_2(equi.equi_static(clients, shifts, symmetric=symmetric, seed=seed)) for seed in range(3)]
    assert max(found) < epsilon


def test_as_many_shifts_mix_as_well_for_any_number_of_clients():
    """The mean of 16 random phases has length 1/4; the worst of the modes is measured, a ring of 256 has 0.9998."""
    for clients in (16, 64, 256):
        assert sigma_2(equi.equi_static(clients, 16)) < 0.75


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_static_graph_is_doubly_stochastic_with_few_neighbours(symmetric):
    mixing = weights.validate(equi.equi_static(20, 5, symmetric=symmetric, seed=1), symmetric=symmetric)
    links = (mixing > 0) & ~np.eye(20, dtype=bool)
    assert links.sum(1).max() <= (10 if symmetric else 5)
    np.testing.assert_allclose(mixing.diagonal(), 1 / 20, atol=1e-8)
    assert symmetric or (mixing != mixing.T).any()


def test_the_symmetric_graph_is_the_directed_one_and_its_transpose_halved():
    directed = equi.equi_static(12, 4, seed=3)
    np.testing.assert_allclose(equi.equi_static(12, 4, symmetric=True, seed=3), (directed + directed.T) / 2)


@pytest.mark.parametrize("dynamic", [equi.equi_dynamic, equi.u_equi_dynamic])
def test_every_draw_is_doubly_stochastic_with_one_peer_at_most(dynamic):
    mixing = draws(dynamic(9, 0.5))
    weights.validate(mixing, symmetric=dynamic is equi.u_equi_dynamic)
    links = (mixing > 0) & ~np.eye(9, dtype=bool)
    assert links.sum(1).max() == links.sum(2).max() == 1
    assert (mixing.diagonal(axis1=1, axis2=2) > 0).all()


def test_the_mean_round_of_one_peer_shifts_is_exact_averaging():
    """Each of 7 shifts comes up equally often; five standard errors of such a share over the rounds."""
    mixing = draws(equi.equi_dynamic(8, 1.0))
    assert np.abs(mixing.mean(0) - 1 / 8).max() < 7 / 8 * 5 * np.sqrt(1 / 7 * 6 / 7 / ROUNDS)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_rho_of_one_peer_shifts_is_its_closed_form(eta):
    found = spectrum(equi.equi_dynamic(10, eta), 10, KEY, samples=1000)
    assert abs(found.rho - ((1 - eta) ** 2 + eta**2 * 0.8)) < 4 * found.standard_error + 1e-6  # 0: alike at eta = 1


@pytest.mark.parametrize("dynamic", [equi.equi_dynamic, equi.u_equi_dynamic])
@pytest.mark.parametrize("clients", [16, 100])
def test_one_peer_mixing_does_not_slow_down_with_the_number_of_clients(dynamic, clients):
    """1/2 in the limit for shifts; at most 0.57 measured for matchings, where some clients stay alone."""
    assert spectrum(dynamic(clients, 0.5), clients, KEY, samples=200).rho < 0.62


@pytest.mark.parametrize("clients", [7, 8])
def test_a_matching_pairs_clients_one_shift_apart_until_nobody_is_left_to_pair(clients):
    seen = set()
    for mixing in draws(equi.u_equi_dynamic(clients, 1.0)):
        pair = (mixing > 0) & ~np.eye(clients, dtype=bool)
        np.testing.assert_allclose(mixing[pair], 1 - 1 / clients, atol=1e-7)  # not one half
        ones, others = np.nonzero(np.triu(pair))
        steps = {frozenset({(b - a) % clients, (a - b) % clients}) for a, b in zip(ones, others, strict=True)}
        assert len(steps) == 1
        step = min(*steps)
        alone = np.flatnonzero(~pair.any(1))
        assert not set(alone) & set((alone + step) % clients)  # two free clients one shift apart would have met
        seen |= steps
    assert len(seen) == clients // 2


def test_two_clients_all_but_swap_at_full_eta_and_average_at_one_half():
    for dynamic in (equi.equi_dynamic, equi.u_equi_dynamic):
        np.testing.assert_allclose(dynamic(2, 1.0).weights(KEY, 0), [[0.5, 0.5], [0.5, 0.5]])
        np.testing.assert_allclose(dynamic(2, 0.5).weights(KEY, 0), [[0.75, 0.25], [0.25, 0.75]])


def test_one_client_keeps_what_it_has():
    np.testing.assert_array_equal(equi.equi_static(1, 3), [[1.0]])
    np.testing.assert_array_equal(equi.equi_dynamic(1, 0.5).weights(KEY, 0), [[1.0]])
    np.testing.assert_array_equal(equi.u_equi_dynamic(1, 0.5).weights(KEY, 0), [[1.0]])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: equi.equi_static(4, 0), "`shifts` must be at least 1, got 0"),
        (lambda: equi.equi_static(0, 1), "`clients` must be at least 1, got 0"),
        (lambda: equi.equi_dynamic(4, 0.0), r"`eta` must lie in \(0, 1\], got 0.0"),
        (lambda: equi.u_equi_dynamic(4, float("nan")), r"`eta` must lie in \(0, 1\], got nan"),
    ],
)
def test_an_impossible_graph_is_refused_by_name_and_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()
