"""Triggers: who speaks, what is paid for, and what becomes of the mean."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from test_mixing import ALL, BYTES_A, BYTES_B, BYTES_HEAD, RING, exchange

from jaxdfl.mixing import ef_hc, event_triggered, gossip, packet_loss, random_gossip
from jaxdfl.mixing.ef_hc import bandwidth, restricted
from jaxdfl.protocol import PerBlock

CIRCLE = np.asarray(toy.metropolis(jnp.float32(RING)))
FORMS = pytest.mark.parametrize("form", ["difference", "replacement"])
WHOLE = BYTES_A + BYTES_B + BYTES_HEAD


def pair(*ends, clients=6):
    """Weights of a network in which two clients meet and the others are alone."""
    adjacency = np.zeros((clients, clients), np.float32)
    adjacency[ends, ends[::-1]] = 1
    return toy.metropolis(jnp.asarray(adjacency))


def step(mixer, weights=CIRCLE, shared=ALL):
    """(blocks, state, round) -> (blocks, state, info), compiled."""
    return jax.jit(lambda blocks, state, t: mixer.mix(exchange(weights, shared)._replace(round=t), blocks, state))


def nudged(blocks, t, size=0.02):
    """A round of training: every client takes a random step of this root mean square, with a common part."""
    leaves, tree = jax.tree.flatten(blocks)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(7), t), len(leaves))
    return jax.tree.unflatten(
        tree, [x + size * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    )


def run(mixer, rounds, start, train=nudged, weights=CIRCLE, shared=ALL):
    """Blocks after each round and the infos."""
    blocks, state, mix = start, mixer.init(start), step(mixer, weights, shared)
    path, infos = [], []
    for t in range(rounds):
        blocks, state, info = mix(train(blocks, t), state, jnp.int32(t))
        path.append(blocks)
        infos.append(info)
    return path, infos


def total(infos, name):
    return sum(int(info[name]) for info in infos)


def mean_drift(make, rounds=20):
    """How far the clients' mean moves while they only mix, in double precision, over blocks of size one."""
    with jax.enable_x64(True):
        start = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), toy.blocks(spread=1.0))
        # The clients move apart before the first exchange, so that snapshots are old from the start.
        blocks = nudged(start, 0, 1.0)
        path, infos = run(make, rounds, start, train=lambda x, t: blocks if t == 0 else x)
        assert 0 < total(infos, "triggered") < 6 * rounds
        means = (jax.tree.map(lambda x: x.mean(0), each) for each in (blocks, path[-1]))
        return max(float(jnp.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, means), strict=True))


def test_the_difference_form_keeps_the_mean_whoever_is_silent():
    """P13. Rounding of doubles over 20 rounds."""
    assert mean_drift(event_triggered(gossip(), 1.0)) < 1e-13


def test_the_replacement_form_moves_the_mean():
    """P13, the other half: by hundredths of the blocks' size."""
    assert mean_drift(event_triggered(gossip(), 1.0, "replacement")) > 1e-2


@FORMS
def test_without_a_threshold_everybody_speaks_and_it_is_plain_gossip(form):
    start = toy.blocks(spread=1.0)
    plain, costs = run(gossip(), 3, start)
    found, infos = run(event_triggered(gossip(), 0.0, form), 3, start)
    toy.assert_close(found, plain)
    assert total(infos, "triggered") == 18
    for name in ("messages", "bytes"):
        assert [info[name] for info in infos] == [info[name] for info in costs]


@FORMS
def test_an_infinite_threshold_sends_nothing_and_from_common_blocks_changes_nothing(form):
    """The first snapshots are the common blocks. Replacement drags clients back to them; difference leaves them be."""
    start = toy.blocks()
    mixer = event_triggered(gossip(), float("inf"), form)
    trained = nudged(start, 0)
    found, state, info = step(mixer)(trained, mixer.init(start), 0)
    assert info["messages"] == info["bytes"] == info["triggered"] == 0
    toy.assert_equal(state.snapshots, start)
    own = 1.0 if form == "difference" else 1 / 3  # W_ii on the ring
    expected = jax.tree.map(lambda x, s: s + own * (x - s), trained, start)
    toy.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_those_who_moved_far_enough_speak_block_by_block_and_pay_their_links():
    """On a ring: client 0 says A and the head, client 3 B. Four messages; a link carries what its sender says."""
    start = toy.blocks()
    mixer = event_triggered(gossip(), 0.1)
    moved = PerBlock(
        a=jax.tree.map(lambda x: x.at[0].add(0.11).at[3].add(0.09), start.a),
        b=jax.tree.map(lambda x: x.at[3].add(-0.11), start.b),
        head=jax.tree.map(lambda x: x.at[0].add(0.11), start.head),
    )
    found, state, info = step(mixer)(moved, mixer.init(start), 0)
    assert (info["triggered"], info["messages"]) == (2, 4)
    assert info["bytes"] == 2 * (BYTES_A + BYTES_HEAD) + 2 * BYTES_B
    toy.assert_equal(state.snapshots.a, jax.tree.map(lambda new, old: old.at[0].set(new[0]), moved.a, start.a))
    a, new, old = (np.asarray(x.a["layer/query"], np.float64) for x in (found, moved, state.snapshots))
    np.testing.assert_allclose(a, new + np.einsum("ij,j...->i...", CIRCLE, old) - old, atol=1e-6)


def test_one_trigger_for_the_whole_client_sends_all_that_is_shared():
    """A alone moves, by 0.11: over A and the head, 28 + 5 entries, that is 0.101."""
    start = toy.blocks()
    moved = start._replace(a=jax.tree.map(lambda x: x.at[0].add(0.11), start.a))
    shared = PerBlock(True, False, True)
    for threshold, messages in ((0.1, 2), (0.102, 0)):
        mixer = event_triggered(gossip(), threshold, per="client")
        _, state, info = step(mixer, shared=shared)(moved, mixer.init(start), 0)
        assert info["messages"] == messages
        assert info["bytes"] == messages * (BYTES_A + BYTES_HEAD)
        toy.assert_equal(state.snapshots.b, start.b)


@FORMS
def test_a_block_that_is_not_shared_stays_bit_for_bit_and_is_not_said(form):
    start, moved = toy.blocks(), toy.blocks(spread=1.0)
    mixer = event_triggered(gossip(), 0.1, form)
    found, state, info = step(mixer, shared=PerBlock(False, True, False))(moved, mixer.init(start), 0)
    toy.assert_equal((found.a, found.head), (moved.a, moved.head))
    toy.assert_equal((state.snapshots.a, state.snapshots.head), (start.a, start.head))
    assert info["bytes"] == info["messages"] * BYTES_B == 12 * BYTES_B


def test_who_missed_a_message_is_sent_the_snapshot_at_the_next_meeting_and_only_then():
    """Client 0 speaks to 1, then meets 2 without having moved: one message to 2, and nothing at their next meeting."""
    start = toy.blocks(head=False)
    moved = jax.tree.map(lambda x: x.at[0].add(1.0), start)
    mixer = event_triggered(gossip(), 0.5, "replacement")
    state, messages = mixer.init(start), []
    for ends in ((0, 1), (0, 2), (0, 2), (0, 1)):
        heard, state, info = step(mixer, pair(*ends))(moved, state, 0)
        messages.append(int(info["messages"]))
        told = jax.tree.map(lambda x, y, end=ends[1]: np.allclose(x[end], (y[0] + y[end]) / 2, atol=1e-6), heard, moved)
        assert all(jax.tree.leaves(told))  # what is used is the latest snapshot
    assert messages == [1, 1, 0, 0]


@pytest.mark.parametrize(("decay", "first"), [("none", None), ("sqrt", 3), ("inverse", 1)])
def test_a_decaying_threshold_is_passed_when_its_schedule_says(decay, first):
    """Everybody is 0.51 from its snapshot; thresholds 1, 1 / sqrt(t + 1) and 1 / (t + 1)."""
    start = toy.blocks()
    mixer = event_triggered(gossip(), 1.0, decay=decay)
    mix, far = step(mixer), jax.tree.map(lambda x: x + 0.51, start)
    speaking = [t for t in range(6) if mix(far, mixer.init(start), t)[2]["messages"]]
    assert speaking == ([] if first is None else list(range(first, 6)))


def test_a_higher_threshold_sends_less():
    messages = [
        total(run(event_triggered(gossip(), threshold), 20, toy.blocks())[1], "messages")
        for threshold in (0.0, 0.06, 1.0)
    ]
    assert messages == sorted(messages, reverse=True)
    assert messages[0] == 240
    assert messages[-1] == 0


@FORMS
def test_a_block_that_is_only_mixed_falls_silent_in_the_replacement_form_alone(form):
    """Without training, replacement comes to rest; the difference form circles at the threshold's size, and speaks."""
    threshold, start = 0.01, toy.blocks(spread=1.0)
    path, infos = run(event_triggered(gossip(), threshold, form), 60, start, train=lambda blocks, t: blocks)
    apart = max(np.std(x, axis=0).max() for x in jax.tree.leaves(path[-1]))
    assert apart < 3 * threshold  # 1 at first; the silent may differ by the threshold over 1 - sigma_2(W) = 1/3
    late = total(infos[-20:], "messages")
    assert late == 0 if form == "replacement" else late > 6 * 20


@pytest.mark.parametrize("make", [partial(event_triggered, threshold=0.03), partial(ef_hc, threshold=0.1)])
def test_triggers_compose_with_losses_and_half_precision(make):
    start = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toy.blocks(spread=0.1))
    path, infos = run(make(packet_loss(gossip(), 0.3)), 5, start)
    assert all(x.dtype == jnp.bfloat16 and np.isfinite(np.float32(x)).all() for x in jax.tree.leaves(path[-1]))
    assert 0 < total(infos, "lost") < total(infos, "messages") < 5 * 12


@pytest.mark.parametrize("make", [event_triggered, ef_hc])
@pytest.mark.parametrize("threshold", [-1.0, float("nan")])
def test_a_threshold_below_zero_is_refused(make, threshold):
    with pytest.raises(ValueError, match=r"`threshold` must be 0 or more .* got (-1|nan)"):
        make(gossip(), threshold)


def test_ef_hc_opens_the_links_of_whoever_moved_both_ways_and_exchanges_current_models():
    """Clients 0 and 1 of the ring moved far, client 2 a little: three links open, six messages, 2's latest included."""
    start = toy.blocks()
    moved = jax.tree.map(lambda x: x.at[0].add(0.2).at[1].add(0.3).at[2].add(0.05), start)
    mixer = ef_hc(gossip(), 0.1)
    found, state, info = step(mixer)(moved, mixer.init(start), 0)
    assert (info["triggered"], info["messages"], info["bytes"]) == (2, 6, 6 * WHOLE)
    x, y = found.a["layer/value"], moved.a["layer/value"]
    np.testing.assert_allclose(x[2], (2 * y[2] + y[1]) / 3, atol=1e-6)
    np.testing.assert_array_equal(x[3:5], y[3:5])
    far = jax.tree.map(lambda x, y: x.at[:2].set(y[:2]), start, moved)
    toy.assert_equal(state.snapshots, far)  # as they were sent, before mixing


def test_who_meets_nobody_in_a_round_has_said_nothing_and_triggers_again():
    """Ends of an edge that is closed in round 0, and open in round 1."""
    start = toy.blocks()
    moved = jax.tree.map(lambda x: x.at[0].add(1.0).at[1].add(-1.0), start)
    mixer = ef_hc(gossip(), 0.1)
    alone, state, info = step(mixer, np.eye(6))(moved, mixer.init(start), 0)
    assert info["triggered"] == info["messages"] == 0
    toy.assert_equal(alone, moved)
    met, _, info = step(mixer, pair(0, 1))(alone, state, 1)
    assert (info["triggered"], info["messages"]) == (2, 2)
    toy.assert_close(jax.tree.map(lambda x: x[0], met), jax.tree.map(lambda x: x[0], start), atol=1e-6)


def test_ef_hc_with_an_infinite_threshold_leaves_everybody_alone():
    start, moved = toy.blocks(), toy.blocks(spread=1.0)
    mixer = ef_hc(gossip(), float("inf"))
    found, _, info = step(mixer)(moved, mixer.init(start), 0)
    toy.assert_equal(found, moved)
    assert info["messages"] == info["triggered"] == 0


def test_the_threshold_of_ef_hc_falls_as_one_over_the_root_of_the_round():
    """Everybody is 0.51 away, and the threshold is 1 / sqrt(1 + t)."""
    start = toy.blocks()
    mixer = ef_hc(gossip(), 1.0)
    mix, far = step(mixer), jax.tree.map(lambda x: x + 0.51, start)
    assert [t for t in range(6) if mix(far, mixer.init(start), t)[2]["triggered"]] == [3, 4, 5]


def test_bandwidths_in_two_slices_are_the_official_ones_over_their_mean():
    """Ten agents, 5000 each on average: eight have 1000, two have 21000."""
    np.testing.assert_allclose(bandwidth("two_slice", 10) * 5000, [1000] * 8 + [21000] * 2)
    for clients in (1, 2, 4, 6, 25):
        np.testing.assert_allclose(bandwidth("two_slice", clients).mean(), 1)
        np.testing.assert_array_equal(bandwidth("equal", clients), 1)


def test_clients_of_weak_bandwidth_trigger_less():
    """All move alike, by 0.02 an entry and round; links weigh nothing, so that nothing else moves them."""
    counts = np.zeros(6)
    mixer, blocks = ef_hc(gossip(), 0.05, "two_slice"), toy.blocks()
    state, heard = mixer.init(blocks), exchange(np.eye(6), links=RING > 0)
    mix = jax.jit(lambda blocks, state, t: mixer.mix(heard._replace(round=t), blocks, state))
    for t in range(40):
        old, blocks = state.snapshots.a["layer/query"], nudged(blocks, t)
        blocks, state, _ = mix(blocks, state, t)
        counts += np.any(np.asarray(state.snapshots.a["layer/query"] != old), axis=(1, 2))
    assert counts[:4].max() < counts[4:].min()
    assert counts[:4].min() > 0


@pytest.mark.parametrize("seed", range(3))
def test_realised_weights_stay_symmetric_and_doubly_stochastic(seed):
    """Whatever links fall silent, in both directions; the mean is kept."""
    draw = np.random.default_rng(seed)
    adjacency = np.triu(draw.random((6, 6)) < 0.6, 1)
    weights = toy.metropolis(jnp.float32(adjacency + adjacency.T))
    speaks = jnp.asarray(draw.random(6) < 0.4)
    found = restricted(exchange(weights), speaks[:, None] | speaks)
    realised = np.asarray(found.weights)
    np.testing.assert_allclose(realised.sum(0), 1, rtol=1e-6)
    np.testing.assert_array_equal(realised, realised.T)
    assert (realised >= 0).all()
    np.testing.assert_array_equal(found.links, (realised != 0) & ~np.eye(6, dtype=bool))


def test_ef_hc_keeps_the_mean():
    with jax.enable_x64(True):
        start = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), toy.blocks(spread=1.0))
        path, infos = run(ef_hc(gossip(), 1.0), 20, start, train=lambda x, t: nudged(x, t, 1.0) if t == 0 else x)
        assert 0 < total(infos, "messages") < 20 * 12
        for x, y in zip(*map(jax.tree.leaves, (path[-1], nudged(start, 0, 1.0))), strict=True):
            np.testing.assert_allclose(x.mean(0), y.mean(0), atol=1e-6)  # the weights themselves are float32


def test_a_link_is_active_where_either_end_wakes():
    """1 - (1 - p)^2 of the ring's twelve messages; over 2000 rounds within 4 standard errors.

    A round has 0 to 12 messages, so their standard deviation is 6 at most.
    """
    probability, blocks = 0.3, toy.blocks(spread=1.0)
    mixer = random_gossip(gossip(), probability)
    keys = jax.random.split(jax.random.key(3), 2000)
    found, _, infos = jax.jit(jax.vmap(lambda key: mixer.mix(exchange(CIRCLE)._replace(key=key), blocks, ())))(keys)
    assert abs(infos["messages"].mean() - 12 * (1 - (1 - probability) ** 2)) < 4 * 6 / 2000**0.5
    assert abs(infos["awake"].mean() - 6 * probability) < 4 * (6 * 0.3 * 0.7 / 2000) ** 0.5
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(blocks), strict=True):
        np.testing.assert_allclose(x.mean(1), np.broadcast_to(y.mean(0), x.mean(1).shape), atol=1e-6)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_a_probability_outside_its_range_is_refused(probability):
    with pytest.raises(ValueError, match=r"`probability` must lie in \[0, 1\], got"):
        random_gossip(gossip(), probability)
