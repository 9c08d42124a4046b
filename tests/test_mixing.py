"""Gossip against a loop in numpy, and what it costs, counted by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxdfl.mixing import everyone, gossip
from jaxdfl.mixing.weighted import MANY_CLIENTS, MOST_HEARD, matrix_product, weighted
from jaxdfl.protocol import Exchange, PerBlock

ALL = PerBlock(True, True, True)
BYTES_A, BYTES_B, BYTES_HEAD = 4 * 2 * (2 * 7), 4 * 2 * (5 * 2), 4 * 5  # two layers: A [2, 7], B [5, 2]; a bias [5]
RING = np.roll(np.eye(6), 1, 0) + np.roll(np.eye(6), -1, 0)
TRIANGLE_AND_AN_EDGE = np.zeros((6, 6))  # what Erdos-Renyi may draw: client 5 meets nobody
for i, j in ((0, 1), (1, 2), (0, 2), (3, 4)):
    TRIANGLE_AND_AN_EDGE[i, j] = TRIANGLE_AND_AN_EDGE[j, i] = 1


def exchange(weights, shared=ALL, links=None):
    weights = jnp.float32(weights)
    links = (weights != 0) & ~jnp.eye(len(weights), dtype=bool) if links is None else jnp.asarray(links)
    return Exchange(jax.random.key(0), 0, weights, links, jnp.ones(len(weights)), PerBlock(*map(jnp.asarray, shared)))


def mixed(weights, blocks, shared=ALL, mixer=None, links=None):
    blocks, state, info = (mixer or gossip()).mix(exchange(weights, shared, links), blocks, ())
    assert state == ()
    return blocks, info


def random_weights(seed, clients=6):
    """A mean of random permutations: doubly stochastic, and not symmetric."""
    draw = np.random.default_rng(seed)
    return np.mean([np.eye(clients)[draw.permutation(clients)] for _ in range(5)], axis=0)


@pytest.mark.parametrize("seed", range(3))
def test_gossip_is_the_weighted_sum_over_neighbours_that_a_loop_computes(seed):
    weights, blocks = random_weights(seed), toy.blocks(spread=1.0)
    found, _ = mixed(weights, blocks)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(blocks), strict=True):
        y, expected = np.asarray(y, np.float64), np.zeros(y.shape)
        for i in range(6):
            for j in range(6):
                expected[i] += weights[i, j] * y[j]
        np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_gossip_keeps_the_mean_of_every_block_over_many_rounds(seed):
    """P2: to 1e-6 of the entries' size, fifty exchanges on."""
    blocks = start = jax.tree.map(lambda x: x + 3.0, toy.blocks(key=seed, spread=1.0))
    step = jax.jit(partial(weighted, jnp.float32(random_weights(seed))))
    for _ in range(50):
        blocks = step(blocks)
    for x, y in zip(jax.tree.leaves(blocks), jax.tree.leaves(start), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x.mean(0), y.mean(0), rtol=1e-6)
        assert x.std(0).max() < 0.1 * y.std(0).max()  # and it does mix


def sparse_weights(seed, heard=5, clients=MANY_CLIENTS):
    """At most `heard` entries in each row of a mean of random permutations."""
    draw = np.random.default_rng(seed)
    return np.mean([np.eye(clients)[draw.permutation(clients)] for _ in range(heard)], axis=0, dtype=np.float32)


def one_way_losses_compensated(seed):
    """Rows sum to one, columns do not, and a quarter of the entries is below zero."""
    weights = sparse_weights(seed) * np.random.default_rng(seed).choice([-1, 1, 1, 1], (MANY_CLIENTS, MANY_CLIENTS))
    return weights + np.diag(1 - weights.sum(1))


def some_clients_silent(seed):
    weights = sparse_weights(seed)
    weights[::3] = 0
    return weights


@pytest.mark.parametrize(
    "weights",
    [sparse_weights(0), one_way_losses_compensated(1), some_clients_silent(2), sparse_weights(3, MOST_HEARD),
     sparse_weights(4, MOST_HEARD + 30), np.zeros((MANY_CLIENTS,) * 2), np.eye(MANY_CLIENTS)],
    ids=["doubly_stochastic", "negative", "zero_rows", "fullest", "too_full", "zero", "identity"],
)  # fmt: skip
def test_many_clients_mix_as_the_matrix_product_does(weights):
    blocks = toy.blocks(spread=1.0, clients=MANY_CLIENTS)
    exact = jax.tree.map(lambda x: np.tensordot(np.float64(weights), np.float64(x), 1), blocks)
    for x, y in zip(*map(jax.tree.leaves, (jax.jit(weighted)(jnp.float32(weights), blocks), exact)), strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_several_runs_of_many_clients_mix_as_each_alone_and_by_one_of_the_two_ways(shared):
    """Under `vmap` a plain condition is a choice among both results; the weights may be one for all runs."""
    weights = jnp.stack([jnp.eye(MANY_CLIENTS), jnp.full((MANY_CLIENTS,) * 2, 1 / MANY_CLIENTS)])
    blocks = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), toy.blocks(spread=1.0, clients=MANY_CLIENTS))
    given = (weights[1] if shared else weights), blocks
    both = jax.vmap(weighted, (None, 0) if shared else (0, 0))
    assert "cond[" in str(jax.make_jaxpr(both)(*given))
    alone = [
        weighted(weights[1 if shared else run], jax.tree.map(lambda x, run=run: x[run], blocks)) for run in range(2)
    ]
    toy.assert_close(both(*given), jax.tree.map(lambda *each: jnp.stack(each), *alone))


def test_many_clients_keep_their_mean_over_many_rounds():
    blocks = start = jax.tree.map(lambda x: x + 3.0, toy.blocks(spread=1.0, clients=MANY_CLIENTS))
    step = jax.jit(partial(weighted, jnp.float32(sparse_weights(0))))
    for _ in range(50):
        blocks = step(blocks)
    for x, y in zip(jax.tree.leaves(blocks), jax.tree.leaves(start), strict=True):
        np.testing.assert_allclose(np.mean(x, 0, dtype=float), np.mean(y, 0, dtype=float), rtol=1e-6)


def test_a_diverged_client_reaches_only_those_who_hear_it():
    ring = toy.metropolis(jnp.float32(np.roll(np.eye(MANY_CLIENTS), 1, 0) + np.roll(np.eye(MANY_CLIENTS), -1, 0)))
    x = jnp.ones((MANY_CLIENTS, 3)).at[7].set(jnp.nan)
    assert list(np.flatnonzero(np.isnan(weighted(ring, x)[:, 0]))) == [6, 7, 8]


def test_few_clients_are_mixed_by_the_matrix_product():
    few = jnp.eye(MANY_CLIENTS - 1)
    blocks = toy.blocks(clients=MANY_CLIENTS - 1)
    programs = [
        jax.jit(lambda w, x, way=way: way(w, x)).lower(few, blocks).as_text() for way in (weighted, matrix_product)
    ]
    assert programs[0] == programs[1]


@pytest.mark.parametrize("shared", [PerBlock(*map(bool, flags)) for flags in np.ndindex(2, 2, 2)])
def test_a_block_that_is_not_shared_stays_bit_for_bit(shared):
    blocks = toy.blocks(spread=1.0)
    found, _ = mixed(toy.metropolis(jnp.float32(RING)), blocks, shared)
    for sent, new, old in zip(shared, found, blocks, strict=True):
        same = [np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (new, old)), strict=True)]
        assert all(same) if not sent else not any(same)


def test_bfloat16_factors_are_mixed_in_float32_and_rounded_once():
    weights = jnp.float32(random_weights(0))
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toy.blocks(spread=1.0))
    full = weighted(weights, jax.tree.map(lambda x: x.astype(jnp.float32), halves))
    found = weighted(weights, halves)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(found))
    toy.assert_equal(found, jax.tree.map(lambda x: x.astype(jnp.bfloat16), full))


def test_the_product_with_the_weights_asks_for_full_precision():
    """Accelerators would otherwise round float32 to TF32 or bfloat16, and the mean would drift."""
    program = jax.jit(weighted).lower(jnp.eye(6), toy.blocks()).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert products
    assert all("HIGHEST" in line for line in products)


@pytest.mark.parametrize(
    ("adjacency", "messages"), [(RING, 12), (TRIANGLE_AND_AN_EDGE, 8), (np.zeros((6, 6)), 0), (1 - np.eye(6), 30)]
)
@pytest.mark.parametrize(
    ("shared", "size"),
    [
        (ALL, BYTES_A + BYTES_B + BYTES_HEAD),
        (PerBlock(True, False, False), BYTES_A),
        (PerBlock(False, True, True), BYTES_B + BYTES_HEAD),
        (PerBlock(False, False, False), 0),
    ],
)
def test_messages_and_bytes_are_the_hand_count(adjacency, messages, shared, size):
    """Every active link carries the shared blocks both ways, once; where nothing is shared nothing is sent."""
    _, info = mixed(toy.metropolis(jnp.float32(adjacency)), toy.blocks(), shared)
    assert info["messages"] == (messages if size else 0)
    assert info["bytes"] == messages * size
    assert info["messages"].dtype == jnp.int32


def test_what_is_paid_for_follows_the_links_and_not_the_weights():
    """A message that is lost on its way is paid for."""
    _, info = mixed(np.eye(6), toy.blocks(), links=RING > 0)
    assert info["messages"] == 12


def test_sharing_a_head_that_is_not_there_sends_nothing():
    _, info = mixed(toy.metropolis(jnp.float32(RING)), toy.blocks(head=False), PerBlock(False, False, True))
    assert info["messages"] == info["bytes"] == 0


def test_bfloat16_blocks_cost_half():
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toy.blocks())
    _, info = mixed(toy.metropolis(jnp.float32(RING)), halves)
    assert info["bytes"] == 12 * (BYTES_A + BYTES_B + BYTES_HEAD) / 2


def test_bytes_do_not_overflow_past_two_gibibytes():
    clients = 3600
    one = toy.blocks(clients=1)
    blocks = jax.tree.map(lambda x: jnp.broadcast_to(x, (clients, *x.shape[1:])), one)
    links = np.ones((clients, clients), bool)
    info = jax.jit(lambda e, b: gossip().mix(e, b, ())[2])(exchange(np.eye(clients), links=links), blocks)
    expected = clients**2 * (BYTES_A + BYTES_B + BYTES_HEAD)
    assert expected > 2**31
    np.testing.assert_allclose(info["bytes"], expected, rtol=6e-8)


@pytest.mark.parametrize("weights", [np.eye(6), toy.metropolis(jnp.float32(RING))])
def test_everyone_gives_all_clients_the_mean_whatever_the_network(weights):
    blocks = toy.blocks(spread=1.0)
    found, info = mixed(weights, blocks, PerBlock(True, True, False), everyone(gossip()))
    for x, y in zip(*map(jax.tree.leaves, ((found.a, found.b), (blocks.a, blocks.b))), strict=True):
        np.testing.assert_allclose(x, np.broadcast_to(np.mean(y, 0), y.shape), rtol=1e-5, atol=1e-6)
    toy.assert_equal(found.head, blocks.head)
    assert info["messages"] == 6 * 5
    assert info["bytes"] == 6 * 5 * (BYTES_A + BYTES_B)


def test_equal_mixers_are_one_object_so_that_methods_share_a_program():
    assert gossip() is gossip()
    assert everyone(gossip()) is everyone(gossip())
