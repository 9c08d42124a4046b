"""Shares of local steps, by name and by construction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdfl.topology import WORK, build_work, dynamic, work

KEY = jax.random.key(7)
ARGUMENTS = {"stragglers": ":0.3:0.5", "uneven": ":0.2", "random": ":0.2"}
SPECS = [name + ARGUMENTS.get(name, "") for name in WORK]


def draws(shares, count):
    return np.asarray(jax.jit(jax.vmap(lambda round: shares(KEY, round)))(jnp.arange(count)))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("clients", [1, 8])
def test_work_is_a_share_for_each_client_and_the_same_bits_under_jit_and_vmap(spec, clients):
    shares = build_work(spec, clients)
    eager = np.stack([shares(KEY, round) for round in range(4)])
    assert eager.shape == (4, clients)
    assert (eager >= 0).all()
    assert (eager <= 1).all()
    np.testing.assert_array_equal(draws(shares, 4), eager)
    np.testing.assert_array_equal([jax.jit(shares)(KEY, round) for round in range(4)], eager)


def test_everybody_finishes_all_steps_unless_told_otherwise():
    np.testing.assert_array_equal(dynamic.one_peer_exponential(4).work(KEY, 0), np.ones(4))
    np.testing.assert_array_equal(build_work("steady", 4)(KEY, 0), np.ones(4))


def test_stragglers_are_a_new_random_fraction_in_each_round():
    shares = draws(build_work("stragglers:0.3:0.5", 10), 2000)
    np.testing.assert_array_equal((shares == 0.5).sum(1), np.full(2000, 3))
    np.testing.assert_array_equal((shares == 1.0).sum(1), np.full(2000, 7))
    assert np.abs((shares == 0.5).mean(0) - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 2000)  # standard errors


def test_uneven_clients_always_finish_the_same_share_in_even_steps():
    shares = draws(build_work("uneven:0.2", 5), 3)
    np.testing.assert_allclose(shares, [[0.2, 0.4, 0.6, 0.8, 1.0]] * 3, atol=1e-7)
    np.testing.assert_array_equal(build_work("uneven:0.2", 1)(KEY, 0), [1.0])


def test_random_shares_are_uniform_and_each_client_draws_its_own():
    shares = draws(build_work("random:0.4", 6), 3000)
    assert shares.min() >= 0.4
    # Mean (0.4 + 1) / 2 and variance 0.6^2 / 12; five standard errors, of a correlation in the last line.
    assert np.abs(shares.mean(0) - 0.7).max() < 5 * 0.6 / np.sqrt(12 * 3000)
    assert shares.var() == pytest.approx(0.03, rel=0.05)
    assert np.abs(np.corrcoef(shares.T) - np.eye(6)).max() < 5 / np.sqrt(3000)


def test_random_work_depends_on_its_key_and_on_its_round():
    for spec in ("stragglers:0.5:0.5", "random:0.2"):
        shares = build_work(spec, 20)
        assert (shares(KEY, 0) != shares(KEY, 1)).any()
        assert (shares(KEY, 0) != shares(jax.random.key(8), 0)).any()


@pytest.mark.parametrize(
    ("spec", "clients", "message"),
    [
        ("lazy", 4, "unknown work 'lazy'; known are steady, stragglers, uneven, random."),
        ("unevn:0.5", 4, "unknown work 'unevn'; known are uneven, steady"),
        ("steady:", 4, "`spec` must read 'steady', got 'steady:'"),
        ("steady:1", 4, "`spec` must read 'steady', got 'steady:1'"),
        ("stragglers:0.3", 4, "`spec` must read 'stragglers:fraction:share', got 'stragglers:0.3'"),
        ("uneven:half", 4, "`lowest` in 'uneven:half' must be a number, got 'half'"),
        ("uneven:1.5", 4, r"`lowest` must lie in \[0, 1\], got 1.5"),
        ("random:-0.1", 4, r"`lowest` must lie in \[0, 1\], got -0.1"),
        ("stragglers:1.2:0.5", 4, r"`fraction` must lie in \[0, 1\], got 1.2"),
        ("stragglers:0.2:5", 4, r"`share` must lie in \[0, 1\], got 5.0"),
        ("steady", 0, "`clients` must be at least 1, got 0"),
        ("random:0.5", 0, "`clients` must be at least 1, got 0"),
    ],
)
def test_impossible_work_is_answered_in_one_clear_line(spec, clients, message):
    with pytest.raises(ValueError, match=message) as raised:
        build_work(spec, clients)
    assert "\n" not in str(raised.value)


def test_a_network_takes_any_work():
    network = dynamic.one_peer_exponential(4)._replace(work=work.uneven(4, 0.5))
    assert network.work(KEY, 0)[0] == 0.5
