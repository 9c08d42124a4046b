"""Exact agreement after one period, for every number of clients, with few neighbours in every round (P15)."""

import math
from functools import reduce

import numpy as np
import pytest

from jaxdfl.topology import base, build, graphs, rounds_to_consensus, weights

CLIENTS, DEGREES = range(2, 33), (1, 2, 3, 4)


def exists(construction, clients, degree):
    return construction is not base.hyper_hypercube or base._rest(clients, degree) == 1


def constructed():
    for construction in (base.hyper_hypercube, base.simple_base, base.base):
        for clients in CLIENTS:
            for degree in DEGREES:
                if exists(construction, clients, degree):
                    yield construction, clients, degree


def test_a_period_is_exact_averaging_for_every_number_of_clients():
    for construction, clients, degree in constructed():
        stack = construction(clients, degree)
        product = reduce(lambda product, mixing: mixing @ product, stack, np.eye(clients))
        np.testing.assert_allclose(
            product, 1 / clients, rtol=0, atol=1e-12, err_msg=f"{construction} {clients} {degree}"
        )


def test_a_period_in_float32_is_averaging_to_its_rounding():
    for construction, clients, degree in constructed():
        stack = weights.validate(construction(clients, degree), symmetric=True)
        product = reduce(lambda product, mixing: mixing @ product, stack, np.eye(clients, dtype=np.float32))
        np.testing.assert_allclose(product, 1 / clients, rtol=0, atol=1e-6)


def test_no_client_has_more_neighbours_than_the_degree_in_any_round():
    for construction, clients, degree in constructed():
        links = (construction(clients, degree) > 0) & ~np.eye(clients, dtype=bool)
        assert links.sum(2).max() <= degree


def test_a_client_always_keeps_some_of_its_own():
    for construction, clients, degree in constructed():
        assert (construction(clients, degree).diagonal(axis1=1, axis2=2) > 0).all()


def test_rounds_are_at_most_two_logarithms_and_two():
    """The bound of the paper's abstract and theorem, O(log_(k+1) n); the base graph is never the longer one."""
    for construction, clients, degree in constructed():
        rounds = len(construction(clients, degree))
        assert rounds <= 2 * math.log(clients, degree + 1) + 2 + 1e-9
        assert len(base.base(clients, degree)) <= len(base.simple_base(clients, degree))


@pytest.mark.parametrize(
    ("clients", "degree", "simple", "factored"),
    [
        (5, 1, 5, 5),
        (6, 1, 5, 4),
        (6, 2, 2, 2),
        (7, 1, 5, 5),
        (12, 1, 7, 5),
        (25, 1, 9, 9),
        (25, 2, 6, 6),
        (25, 4, 2, 2),
    ],
)
def test_rounds_are_those_of_the_construction(clients, degree, simple, factored):
    """len H(n_1) + p_1 + 1 by the digits of n, and for 6 = 2 * 3 with one neighbour 3 + 1 = 4 instead of 5."""
    assert (len(base.simple_base(clients, degree)), len(base.base(clients, degree))) == (simple, factored)


def test_the_rounds_of_five_clients_with_one_neighbour_are_those_done_by_hand():
    """4 + 1: the four agree in two rounds, client 4 meets one of them with weight 4/5, the four agree again."""

    def pairs(*links):
        mixing = np.eye(5)
        for i, j, weight in links:
            mixing[i, j] = mixing[j, i] = weight
            mixing[i, i] = mixing[j, j] = 1 - weight
        return mixing

    near, far = pairs((0, 1, 0.5), (2, 3, 0.5)), pairs((0, 2, 0.5), (1, 3, 0.5))
    # The clients that meet nobody behind average among themselves, two at a time.
    expected = [near, far, pairs((0, 4, 0.8), (1, 2, 0.5)), near, far]
    np.testing.assert_allclose(base.simple_base(5, 1), expected, atol=1e-15)


@pytest.mark.parametrize("clients", [2, 4, 8, 16])
def test_with_one_neighbour_it_is_the_one_peer_hypercube(clients):
    stack = base.hyper_hypercube(clients, 1)
    np.testing.assert_array_equal(stack[stack > 0], 0.5)
    links = (stack > 0) & ~np.eye(clients, dtype=bool)
    np.testing.assert_array_equal(links.sum(2), 1)
    np.testing.assert_array_equal(links.any(0), graphs.hypercube(clients))
    np.testing.assert_array_equal(base.simple_base(clients, 1), stack)


def test_sides_are_few_and_then_even():
    assert sorted(base._sides(16, 8)) == [4, 4]  # not 2 * 8, which takes two rounds too but more messages
    assert sorted(base._sides(12, 3)) == [2, 2, 3]
    assert base._sides(6, 6) == (6,)


def test_enough_neighbours_are_one_round_of_averaging():
    for construction in (base.hyper_hypercube, base.simple_base, base.base):
        np.testing.assert_allclose(construction(7, 6), np.full((1, 7, 7), 1 / 7))
        np.testing.assert_array_equal(construction(1, 3), np.ones((1, 1, 1)))


@pytest.mark.parametrize(
    ("spec", "clients", "rounds"),
    [
        ("base:1", 6, 4),
        ("simple_base:2", 25, 6),
        ("hyper_hypercube:2", 12, 3),
        ("one_peer_exponential", 16, 4),
        ("complete", 9, 1),
        ("one_peer_exponential", 6, None),
        ("ring", 6, None),
        ("erdos_renyi:1", 6, None),
    ],
)
def test_rounds_to_consensus_are_known_where_they_are_certain(spec, clients, rounds):
    topology = build(spec, clients)
    assert rounds_to_consensus(topology.network, clients, topology.period) == rounds


def test_a_number_without_a_hyper_hypercube_is_told_what_to_take():
    with pytest.raises(
        ValueError, match=r"no prime factor above 3, got 10 with 5 left over; .* or base:2, which exists"
    ):
        base.hyper_hypercube(10, 2)


@pytest.mark.parametrize("construction", [base.hyper_hypercube, base.simple_base, base.base])
def test_no_neighbours_or_no_clients_are_refused(construction):
    with pytest.raises(ValueError, match="`degree` must be at least 1 neighbour, got 0"):
        construction(4, 0)
    with pytest.raises(ValueError, match="`clients` must be at least 1, got 0"):
        construction(0, 1)
