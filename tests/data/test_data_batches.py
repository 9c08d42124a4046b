import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdfl.data.batches import plan

KEY = jax.random.key(0)
PARTITION = [np.arange(0, 50), np.arange(50, 57), np.array([99])]


def stream(indices, client):
    return indices[:, client].ravel()


@given(st.integers(0, 40), st.integers(0, 10), st.integers(1, 4), st.integers(1, 9))
@settings(max_examples=40)
def test_rounds_come_out_the_same_alone_or_with_those_before(start, count, steps, batch_size):
    alone = plan(KEY, PARTITION, range(start, start + count), steps, batch_size)
    whole = plan(KEY, PARTITION, range(start + count), steps, batch_size)
    assert alone.shape == (count, 3, steps, batch_size)
    assert (alone == whole[start:]).all()


def test_a_clients_order_does_not_depend_on_how_many_others_there_are():
    few = plan(KEY, PARTITION[:1], range(5), 2, 8)
    many = plan(KEY, PARTITION, range(5), 2, 8)
    assert (few[:, 0] == many[:, 0]).all()


@pytest.mark.parametrize("client", [0, 1, 2])
def test_each_epoch_holds_every_own_example_once(client):
    own = PARTITION[client]
    walk = stream(plan(KEY, PARTITION, range(25), 3, 8), client)
    epochs = walk[: len(walk) // len(own) * len(own)].reshape(-1, len(own))
    assert len(epochs) >= 12
    assert (np.sort(epochs, axis=1) == own).all()


def test_epochs_have_fresh_orders():
    walk = stream(plan(KEY, PARTITION, range(50), 2, 5), 0).reshape(10, 50)
    assert len({tuple(epoch) for epoch in walk}) == 10


def test_clients_and_keys_have_orders_of_their_own():
    twins = [np.arange(50), np.arange(50)]
    indices = plan(KEY, twins, range(5), 2, 5)
    assert (indices[:, 0] != indices[:, 1]).any()
    assert (plan(jax.random.key(1), twins, range(5), 2, 5) != indices).any()
    assert (plan(KEY, twins, range(5), 2, 5) == indices).all()


def test_every_order_of_a_small_client_is_about_equally_likely():
    walk = stream(plan(KEY, [np.arange(3)], range(600), 3, 10), 0).reshape(-1, 3)
    _, counts = np.unique(walk, axis=0, return_counts=True)
    # 1,000 draws per order: 150 is five standard deviations.
    assert len(counts) == 6
    assert abs(counts - 1_000).max() < 150


def test_the_plan_is_pinned_so_that_old_runs_can_be_resumed():
    assert plan(KEY, [np.arange(10)], range(1), 2, 5).tolist() == [[[[1, 4, 5, 6, 8], [2, 0, 3, 9, 7]]]]


def test_a_thousand_clients_with_one_example_each_are_planned_at_once():
    indices = plan(KEY, [np.array([i]) for i in range(1_000)], range(10), 20, 8)
    assert indices.dtype == np.int32
    assert (indices == np.arange(1_000)[:, None, None]).all()


@pytest.mark.parametrize(
    ("partition", "rounds", "steps", "batch_size", "message"),
    [
        (PARTITION, range(3), 0, 4, "`steps` must be at least 1, got 0"),
        (PARTITION, range(3), 1, 0, "`batch_size` must be at least 1, got 0"),
        (PARTITION, range(0, 9, 2), 1, 4, "`rounds`"),
        (PARTITION, range(-1, 3), 1, 4, "`rounds`"),
        ([*PARTITION, np.array([], np.int64)], range(3), 1, 4, "client 3 no examples"),
    ],
)
def test_impossible_plans_name_the_argument(partition, rounds, steps, batch_size, message):
    with pytest.raises(ValueError, match=message):
        plan(KEY, partition, rounds, steps, batch_size)
