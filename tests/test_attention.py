"""Attention on the links, and sending the modules that moved most: the weights and messages, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from test_mixing import ALL, RING, TRIANGLE_AND_AN_EDGE, exchange

from jaxdfl.mixing import attention, concentrated, gossip
from jaxdfl.mixing.attention import similarity, sinkhorn
from jaxdfl.mixing.concentrated import leading
from jaxdfl.protocol import Mixer, PerBlock
from jaxdfl.topology import build
from jaxdfl.topology.weights import metropolis_hastings

RING_WEIGHTS = toy.metropolis(jnp.float32(RING))


def attended(weights, blocks, temperature, shared=ALL):
    """The weights that reach the wire."""
    seen = []

    def mix(exchange, blocks, state):
        seen.append(exchange.weights)
        return blocks, state, {}

    spy = Mixer(lambda blocks: (), mix)
    attention(spy, temperature).mix(exchange(weights, shared), blocks, ())
    return np.asarray(seen[0])


def apart(seed=0, clients=6):
    return toy.blocks(clients=clients, key=seed, spread=1.0)


@pytest.mark.parametrize("seed", range(3))
def test_sinkhorn_is_the_scaling_that_dividing_rows_and_columns_in_turn_finds(seed):
    draw = np.random.default_rng(seed)
    matrix = draw.exponential(size=(7, 7)) + 0.01
    matrix = matrix + matrix.T
    expected = matrix.copy()
    for _ in range(500):
        expected /= expected.sum(1, keepdims=True)
        expected /= expected.sum(0, keepdims=True)
    np.testing.assert_allclose(sinkhorn(jnp.float32(matrix), jnp.ones(7)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["complete", "ring", "torus", "star", "chain", "tree", "two_cliques"])
@pytest.mark.parametrize("temperature", [0.01, 0.3, 5.0])
def test_attended_weights_are_symmetric_doubly_stochastic_and_on_the_same_links(name, temperature):
    weights = np.asarray(build(name, 16).network.weights(jax.random.key(0), 0))
    found = attended(weights, apart(clients=16), temperature)
    np.testing.assert_allclose([found.sum(0), found.sum(1)], 1, atol=1e-6)
    np.testing.assert_allclose(found, found.T, atol=1e-7)
    off_diagonal = ~np.eye(16, dtype=bool)
    np.testing.assert_array_equal((found != 0) & off_diagonal, (weights != 0) & off_diagonal)
    assert found.min() > -1e-7


def test_a_slow_network_is_scaled_and_not_only_filled_up_on_the_diagonal():
    """On a ring of 64, lambda is near 1: rows and columns in turn would still be off after a hundred passes."""
    ring = np.roll(np.eye(64), 1, 0) + np.roll(np.eye(64), -1, 0) > 0
    points = np.random.default_rng(0).normal(size=(64, 4))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    matrix = np.asarray(metropolis_hastings(ring) * np.exp((points @ points.T - 1) / 0.5), np.float32)
    found = np.asarray(sinkhorn(jnp.asarray(matrix), jnp.ones(64)))
    ratio = found / np.where(matrix > 0, matrix, 1)  # d_i d_j, on the diagonal too
    diagonal = np.sqrt(np.diag(ratio))
    np.testing.assert_allclose(ratio[ring], np.outer(diagonal, diagonal)[ring], rtol=1e-5)
    alternating = np.asarray(matrix, np.float64)
    for _ in range(100):
        alternating = alternating / alternating.sum(1, keepdims=True)
        alternating = alternating / alternating.sum(0, keepdims=True)
    assert np.abs(alternating.sum(1) - 1).max() > 1e-4


@pytest.mark.parametrize("weights", [RING_WEIGHTS, toy.metropolis(jnp.float32(TRIANGLE_AND_AN_EDGE))])
def test_a_high_temperature_approaches_the_networks_own_weights_and_inf_is_inner(weights):
    np.testing.assert_allclose(attended(weights, apart(), 1e7), weights, atol=1e-6)
    assert attention(gossip(), float("inf")) is gossip()


def test_an_isolated_client_keeps_to_itself():
    found = attended(toy.metropolis(jnp.float32(TRIANGLE_AND_AN_EDGE)), apart(), 0.2)
    np.testing.assert_allclose(found[5], np.eye(6)[5], atol=1e-7)


def test_one_way_links_are_left_as_they_are():
    one_way = 0.5 * np.eye(6) + 0.3 * np.roll(np.eye(6), 1, 0) + 0.2 * np.roll(np.eye(6), 2, 0)
    np.testing.assert_allclose(attended(one_way, apart(), 0.1), one_way, atol=1e-6)


def test_clients_of_a_kind_weigh_more_and_strangers_less():
    """Two kinds with opposite products; on a complete graph each kind ends up nearly among itself."""
    blocks = toy.blocks(spread=0.0)
    b = {
        path: jnp.ones((1, toy.D_OUT, toy.RANK)) * jnp.float32([1, 1, 1, -1, -1, -1])[:, None, None]
        for path in blocks.b
    }
    found = attended(np.full((6, 6), 1 / 6), blocks._replace(b=b), 0.5)
    same, other = 1 / (3 + 3 * np.exp(-4)), np.exp(-4) / (3 + 3 * np.exp(-4))
    kinds = np.kron(np.eye(2), np.ones((3, 3)))
    np.testing.assert_allclose(found, np.where(kinds, same, other), rtol=1e-5)


def test_similarity_is_the_cosine_of_the_stacked_products():
    blocks = apart()
    products = np.concatenate(
        [np.einsum("mor,mri->moi", blocks.b[path], blocks.a[path]).reshape(6, -1) for path in blocks.a], axis=1
    )
    unit = products / np.linalg.norm(products, axis=1, keepdims=True)
    np.testing.assert_allclose(similarity(blocks, ALL), unit @ unit.T, atol=1e-5)


def test_similarity_does_not_know_the_gauge():
    blocks = apart()
    gauge = jax.random.normal(jax.random.key(9), (6, toy.RANK, toy.RANK)) + 2 * jnp.eye(toy.RANK)
    a = {path: jnp.linalg.solve(gauge, x) for path, x in blocks.a.items()}
    b = {path: x @ gauge for path, x in blocks.b.items()}
    turned = similarity(blocks._replace(a=a, b=b), ALL)
    np.testing.assert_allclose(turned, similarity(blocks, ALL), atol=1e-4)  # the gauges' condition numbers


def test_where_only_one_factor_is_shared_that_factor_alone_is_compared():
    blocks = apart()
    flat = np.concatenate([np.reshape(blocks.a[path], (6, -1)) for path in blocks.a], axis=1)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    only_a = PerBlock(True, False, False)
    np.testing.assert_allclose(similarity(blocks, PerBlock(*map(jnp.asarray, only_a))), unit @ unit.T, atol=1e-5)


def test_adapters_of_zeros_leave_the_networks_weights():
    np.testing.assert_allclose(attended(RING_WEIGHTS, toy.blocks(), 0.1), RING_WEIGHTS, atol=1e-6)


def test_the_fewest_modules_that_hold_the_share_are_sent():
    energy = jnp.float32([[4, 1, 0, 0], [3, 1, 0, 5], [2, 1, 0, 0], [1, 1, 0, 0]])  # [modules, clients]
    assert np.array(leading(energy, 0.5)).T.tolist() == [
        [True, True, False, False],  # 4 of 10 are too few
        [True, True, False, False],  # of equals the earlier
        [False, False, False, False],
        [False, True, False, False],
    ]
    assert np.array(leading(energy, 0.4)).T.tolist()[0] == [True, False, False, False]


def test_only_the_modules_sent_move_the_others_and_the_mean_stays():
    """Copies are the first blocks, then client by client a different module moves."""
    start = toy.blocks()
    mixer = concentrated(gossip(), 0.9, 1.0)
    moved = start._replace(b={path: x + (path == "layer/query") for path, x in start.b.items()})
    blocks = jax.tree.map(
        lambda x, y: jnp.where(jnp.arange(6).reshape(-1, *[1] * (x.ndim - 1)) == 2, y, x), start, moved
    )
    mixed, _, info = mixer.mix(exchange(RING_WEIGHTS), blocks, mixer.init(start))
    for x, y in zip(jax.tree.leaves(mixed), jax.tree.leaves(blocks), strict=True):
        np.testing.assert_allclose(x.mean(0), y.mean(0), atol=1e-6)
    np.testing.assert_allclose(mixed.b["layer/query"][:, 0, 0], [0, 1 / 3, 1 / 3, 1 / 3, 0, 0], atol=1e-6)
    toy.assert_equal(mixed.b["layer/value"], blocks.b["layer/value"])
    assert info["modules"] == 1
    assert info["messages"] == 2
    assert info["bytes"] == 2 * 4 * toy.D_OUT * toy.RANK


def test_bytes_are_those_of_the_modules_that_each_client_sends():
    start, blocks = toy.blocks(), apart()
    mixer = concentrated(gossip(), 0.5)
    _, (copies, _), info = mixer.mix(exchange(RING_WEIGHTS), blocks, mixer.init(start))
    sent = [
        np.array([not np.array_equal(new, old) for new, old in zip(x, y, strict=True)]) * x[0].nbytes
        for x, y in zip(jax.tree.leaves(copies), jax.tree.leaves(start), strict=True)
    ]
    assert 0 < np.sum(sent) < sum(x.nbytes for x in jax.tree.leaves(start))
    assert info["bytes"] == 2 * np.sum(sent)  # two neighbours each
    assert info["modules"] == np.count_nonzero(sent)


def test_a_payload_set_outside_shrinks_in_proportion():
    start, blocks = toy.blocks(), apart()
    mixer, halves = concentrated(gossip(), 0.5), PerBlock(*(0.5 * jnp.float32(n) for n in (112, 80, 20)))
    full = mixer.mix(exchange(RING_WEIGHTS), blocks, mixer.init(start))[2]["bytes"]
    half = mixer.mix(exchange(RING_WEIGHTS)._replace(payload=halves), blocks, mixer.init(start))[2]["bytes"]
    np.testing.assert_allclose(half, full / 2, rtol=1e-6)


@pytest.mark.parametrize("weights", [RING_WEIGHTS, np.full((6, 6), 1 / 6)])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_clients_agree_on_the_mean_though_modules_go_one_by_one(share, weights):
    mixer, start = concentrated(gossip(), share), apart()

    def once(carry, _):
        blocks, state, _ = mixer.mix(exchange(weights), *carry)
        return (blocks, state), None

    (blocks, _), _ = jax.lax.scan(once, (start, mixer.init(toy.blocks())), length=300)
    for x, y in zip(jax.tree.leaves(blocks), jax.tree.leaves(start), strict=True):
        np.testing.assert_allclose(x, np.broadcast_to(np.mean(y, 0), y.shape), atol=1e-2)


def test_a_block_that_is_not_shared_is_neither_sent_nor_touched():
    start, blocks = toy.blocks(), apart()
    mixer = concentrated(gossip(), 0.9)
    only_b = PerBlock(False, True, False)
    mixed, (copies, _), _ = mixer.mix(exchange(RING_WEIGHTS, only_b), blocks, mixer.init(start))
    toy.assert_equal((mixed.a, mixed.head, copies.a, copies.head), (blocks.a, blocks.head, start.a, start.head))
    assert not np.array_equal(mixed.b["layer/query"], blocks.b["layer/query"])


def test_a_client_without_links_keeps_its_displacement_for_later():
    start, blocks = toy.blocks(), apart()
    mixer = concentrated(gossip(), 0.5)
    weights = toy.metropolis(jnp.float32(TRIANGLE_AND_AN_EDGE))
    _, (copies, _), _ = mixer.mix(exchange(weights), blocks, mixer.init(start))
    toy.assert_equal(*(jax.tree.map(lambda x: x[5], tree) for tree in (copies, start)))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: attention(gossip(), 0.0), "`temperature` must be positive, got 0.0; inf"),
        (lambda: concentrated(gossip(), 0.0), r"`share` must lie in \(0, 1\], got 0.0"),
        (lambda: concentrated(gossip(), 0.5, 2.0), r"`step` must lie in \(0, 1\], got 2.0"),
    ],
)
def test_settings_out_of_range_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
