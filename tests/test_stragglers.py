"""Clients that don't get to the end: updates of the last layers alone (SALF), and weights that follow the work."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from test_mixing import ALL, RING, exchange

from jaxdfl.methods import build
from jaxdfl.mixing import gossip, salf, work_weighted
from jaxdfl.mixing.salf import count_layers, reach
from jaxdfl.protocol import Mixer, PerBlock

CIRCLE = np.asarray(toy.metropolis(jnp.float32(RING)))
PATHS = ("layers/0/query", "layers/0/value", "layers/1/query", "layers/10/query", "pooler/dense")  # 10 lies above 1
HEIGHT = dict(zip(PATHS, (4, 4, 3, 2, 1), strict=True))
LAYERS = 5  # four of targets, and the head


def deep(value, clients=6, head=True):
    """Blocks of four layers and a head, every entry the same."""
    return PerBlock(
        a={path: jnp.full((clients, 1, 2), value) for path in PATHS},
        b={path: jnp.full((clients, 2, 1), value) for path in PATHS},
        head={"bias": jnp.full((clients, 3), value)} if head else {},
    )


def test_layers_are_counted_from_the_targets_numbers_and_the_head():
    assert count_layers(deep(0.0)) == LAYERS
    assert count_layers(deep(0.0, head=False)) == LAYERS - 1
    assert count_layers(toy.blocks(head=False)) == 1


@pytest.mark.parametrize("head", [True, False])
def test_a_depth_reaches_the_layers_on_top_and_leaves_the_others_as_they_were(head):
    start, trained, layers = deep(0.0, head=head), deep(1.0, head=head), LAYERS if head else LAYERS - 1
    depth = jnp.minimum(jnp.arange(1, 7), layers)
    found = reach(trained, start, depth)
    for path in PATHS:
        expected = np.asarray(depth) > HEIGHT[path] - (not head)
        np.testing.assert_array_equal(found.a[path][:, 0, 0], expected)
        np.testing.assert_array_equal(found.b[path][:, 0, 0], expected)
    toy.assert_equal(found.head, trained.head)


def test_who_reaches_every_layer_keeps_its_update_bit_for_bit():
    start, trained = toy.blocks(spread=1.0), toy.blocks(key=5, spread=1.0)
    depth = jnp.full(6, count_layers(start))
    toy.assert_equal(reach(trained, start, depth), trained)
    toy.assert_equal(reach(trained, start, depth, jnp.zeros(6, bool)), trained)


@cache
def many_rounds(fraction, correction, redrawn=False, rounds=4000):
    """Blocks [rounds, clients, ...] after a round that trains every entry from 0 to 1, alone; and the infos."""
    method = salf(build("dec_lora"), fraction, correction, redrawn)
    keys = jax.random.split(jax.random.key(1), rounds)
    state = method.mixer.init(deep(0.0))
    alone = jax.vmap(lambda key: method.mixer.mix(exchange(np.eye(6))._replace(key=key), deep(1.0), state))
    blocks, _, infos = jax.jit(alone)(keys)
    return blocks, infos


def test_the_expected_update_of_a_layer_is_its_chance_of_being_reached():
    """E = (1 - P[miss l]) x the full update = (L - height) / L for stragglers; within 4 standard errors."""
    blocks, infos = many_rounds(0.5, False)
    for path in PATHS:
        chance, found = (LAYERS - HEIGHT[path]) / LAYERS, blocks.a[path][:, :, 0, 0].mean(0)
        np.testing.assert_allclose(found[:3], chance, atol=4 * (chance * (1 - chance) / 4000) ** 0.5)
        np.testing.assert_array_equal(found[3:], 1)
    assert (infos["unreached"] <= 3 * (LAYERS - 1)).all()
    assert abs(infos["unreached"].mean() - 3 * (LAYERS - 1) / 2) < 4 * (3 * 2 / 4000) ** 0.5  # variance (L^2 - 1) / 12


def test_the_correction_makes_the_update_right_on_average():
    """Reached layers count 1 / P[reached], so the variance of an update of 1 is (1 - P) / P."""
    blocks, _ = many_rounds(0.5, True)
    for path in PATHS:
        chance, found = (LAYERS - HEIGHT[path]) / LAYERS, blocks.b[path][:, :, 0, 0].mean(0)
        np.testing.assert_allclose(found[:3], 1, atol=4 * ((1 - chance) / chance / 4000) ** 0.5)
        np.testing.assert_array_equal(found[3:], 1)


def test_stragglers_drawn_anew_are_as_many_in_every_round_and_are_all_in_turn():
    blocks, _ = many_rounds(0.5, False, True)
    whole = np.asarray(blocks.a["layers/0/query"][:, :, 0, 0]) == 1  # [rounds, clients]
    assert (whole.sum(1) >= 3).all()
    chance = 0.5 + 0.5 / LAYERS
    np.testing.assert_allclose(whole.mean(0), chance, atol=4 * (chance * (1 - chance) / 4000) ** 0.5)


def test_what_was_not_reached_is_mixed_and_paid_for_like_all_else():
    method = salf(build("dec_lora"), 1.0)
    start, trained = toy.blocks(spread=1.0, head=False), toy.blocks(key=5, spread=1.0, head=False)
    plain, _, costs = gossip().mix(exchange(CIRCLE), trained, ())
    found, state, info = method.mixer.mix(exchange(CIRCLE), trained, method.mixer.init(start))
    toy.assert_equal(found, plain)  # one layer: always reached
    toy.assert_equal(state.start, found)
    assert (info["messages"], info["bytes"], info["unreached"]) == (costs["messages"], costs["bytes"], 0)
    begun = deep(0.0)._replace(a=jax.tree.map(lambda x: x.at[0].set(6.0), deep(0.0).a))
    depths = exchange(np.full((6, 6), 1 / 6))
    found, _, info = method.mixer.mix(depths, begun, method.mixer.init(begun))
    assert info["unreached"] > 0
    np.testing.assert_allclose(found.a[PATHS[0]], 1, rtol=1e-6)  # nothing was trained, and the mean is taken


def test_the_corrections_and_merged_weights_of_a_method_reach_through_the_wrapper():
    counting = Mixer(init=lambda blocks: jnp.zeros(()), mix=lambda exchange, blocks, state: (blocks, state + 1, {}))

    def correction(state):
        return PerBlock(state, state, state)

    method = build("dec_lora")._replace(mixer=counting, correction=correction, merged=correction)
    wrapped = salf(method, 0.5)
    state = wrapped.mixer.init(deep(0.0))
    _, state, _ = wrapped.mixer.mix(exchange(np.eye(6)), deep(1.0), state)
    assert wrapped.correction(state).a == wrapped.merged(state).a == 1
    assert salf(method, 0.5) == wrapped  # so that runs share a program


def test_a_fraction_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"`fraction` must lie in \[0, 1\], got 1.5"):
        salf(build("dec_lora"), 1.5)


def realised(weights, work, floor=0.01):
    """The weights that `work_weighted` hands to its inner mixer."""
    seen = []

    def spy(exchange, blocks, state):
        seen.append(exchange.weights)
        return gossip().mix(exchange, blocks, state)

    mixer = work_weighted(Mixer(gossip().init, spy), floor)
    mixer.mix(exchange(weights, ALL)._replace(work=jnp.asarray(work)), toy.blocks(), ())
    return np.asarray(seen[0], np.float64)


WORK = np.array([1.0, 0.5, 0.25, 1.0, 0.1, 0.0], np.float32)


def test_the_work_is_the_stationary_distribution_of_the_weights_that_follow_it():
    """In detailed balance: pi_i P_ij = pi_j P_ji; rows sum to one. The floor stands for no work."""
    found, pi = realised(CIRCLE, WORK), np.maximum(WORK, 0.01)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(pi[:, None] * found, (pi[:, None] * found).T, atol=1e-7)
    np.testing.assert_allclose(pi @ found, pi, rtol=1e-6)
    assert (found >= 0).all()


def test_mixing_by_work_ends_at_the_mean_weighted_by_work():
    """The ring contracts by at least 0.99 a round under these weights; 2000 rounds leave rounding."""
    blocks, pi = toy.blocks(spread=1.0), np.maximum(WORK, 0.01)
    limit = np.linalg.matrix_power(realised(CIRCLE, WORK), 2000)
    for x in jax.tree.leaves(blocks):
        x = np.asarray(x, np.float64)
        expected = np.tensordot(pi / pi.sum(), x, 1)
        np.testing.assert_allclose(np.tensordot(limit, x, 1), np.broadcast_to(expected, x.shape), atol=1e-4)


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_equal_work_leaves_the_weights_bit_for_bit(share):
    np.testing.assert_array_equal(realised(CIRCLE, np.full(6, share, np.float32)), CIRCLE.astype(np.float64))


def test_a_floor_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"`floor` must lie in \(0, 1\], got 0"):
        work_weighted(gossip(), 0.0)
