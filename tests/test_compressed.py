"""Compressed messages: the mean stays whatever is sent, clients still agree, and what is paid is what is sent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from test_mixing import ALL, RING, exchange

from jaxdfl.methods import build
from jaxdfl.methods.choco import choco
from jaxdfl.mixing import gossip, packet_loss, quantized, top_k
from jaxdfl.mixing.compressed import Compressor, compressed, grid, largest
from jaxdfl.protocol import PerBlock
from jaxdfl.simulate.rounds import make_round

W = np.asarray(toy.metropolis(jnp.asarray(RING, jnp.float32)))
noise = Compressor(lambda key, x: 0.1 * jax.random.normal(key, x.shape, x.dtype), size=lambda x: 1.0)
COMPRESSORS = {"top_k": largest(0.2), "2 bits": grid(2, False), "dithered": grid(4, True), "noise": noise}


def alone(x):
    """[clients, ...] as the only block there is."""
    return PerBlock({"x": x}, {}, {})


def many_rounds(mixer, x, rounds, weights=W):
    """[clients, ...] after so many exchanges, nobody training."""
    weights = jnp.asarray(weights, x.dtype)
    start = alone(x)

    def step(carry, key):
        return mixer.mix(exchange(weights)._replace(key=key, weights=weights), *carry)[:2], ()

    keys = jax.random.split(jax.random.key(0), rounds)
    return jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0])((start, mixer.init(start)))[0].a["x"]


def spread(seed=0, entries=40):
    return np.random.default_rng(seed).normal(size=(6, 2, entries // 2))


@pytest.mark.parametrize("name", COMPRESSORS)
def test_the_mean_is_kept_for_any_compressor(name):
    """P12: even one that sends noise. 50 exchanges in float64."""
    with jax.enable_x64(True):
        end = many_rounds(compressed(gossip(), COMPRESSORS[name], 0.2), jnp.asarray(spread()), 50)
        assert np.abs(end - spread()).max() > 0.1
        np.testing.assert_allclose(end.mean(0), spread().mean(0), atol=1e-13 * max(1, float(jnp.abs(end).max())))


@pytest.mark.parametrize(
    "mixer", [top_k(gossip(), 0.1), top_k(gossip(), 0.5), quantized(gossip(), 3), quantized(gossip(), 2, 0.4)]
)
def test_clients_agree_on_their_mean_through_compressed_messages(mixer):
    end = many_rounds(mixer, jnp.float32(spread()), 400)
    np.testing.assert_allclose(end, np.broadcast_to(spread().mean(0), end.shape), atol=1e-5)


def test_the_exchange_is_that_of_the_paper():
    """Five exchanges against numpy, from different starts (so the copies start at 0)."""
    x = spread().reshape(6, -1)
    copies = np.zeros_like(x)
    for _ in range(5):
        moves = x - copies
        threshold = np.sort(np.abs(moves), axis=1)[:, -8:][:, :1]  # 0.2 of 40 entries
        copies = copies + np.where(np.abs(moves) >= threshold, moves, 0)
        x = x + 0.3 * (W @ copies - copies)
    found = many_rounds(top_k(gossip(), 0.2, 0.3), jnp.float32(spread()), 5)
    np.testing.assert_allclose(found.reshape(6, -1), x, atol=1e-5)


def test_without_feedback_a_biased_compressor_moves_the_mean_and_a_dithered_one_does_not():
    start = jnp.float32(spread() + 1)
    biased = many_rounds(top_k(gossip(), 0.2, 1.0, feedback=False), start, 20)
    assert np.abs((biased - start).mean(0)).mean() > 0.2
    keys = jax.random.split(jax.random.key(1), 2000)
    mixer = quantized(gossip(), 2, feedback=False)
    mixed = jax.jit(
        jax.vmap(lambda key: mixer.mix(exchange(W)._replace(key=key), alone(start), mixer.init(alone(start)))[0])
    )
    means = np.asarray(mixed(keys).a["x"].mean(1), np.float64)  # [draws, ...]
    error = means.std(0) / np.sqrt(len(means))
    assert error.max() > 1e-3
    assert (np.abs(means.mean(0) - start.mean(0)) < 5 * error + 1e-6).all()


def test_without_feedback_a_client_hears_itself_as_it_is():
    start = jnp.float32(spread())
    found = many_rounds(quantized(gossip(), 2, feedback=False), start, 1, np.eye(6))
    np.testing.assert_allclose(found, start, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_rounding_to_the_nearest_never_makes_an_error_larger_than_the_entry(bits):
    x = jnp.float32(spread(entries=400))
    found = np.asarray(grid(bits, False).compress(jax.random.key(0), x))
    gap = np.abs(x).max((1, 2), keepdims=True) / (2 ** (bits - 1) - 1)
    assert (np.abs(found - x) <= np.minimum(np.abs(x), gap / 2) + 1e-6).all()
    assert all(len(np.unique(np.round(each / g))) <= 2**bits - 1 for each, g in zip(found, gap, strict=True))


def test_a_slice_at_rest_is_sent_as_zeros():
    for each in COMPRESSORS.values():
        if each is not noise:
            assert (each.compress(jax.random.key(0), jnp.zeros((6, 3, 4))) == 0).all()


def test_the_largest_entries_are_sent_as_they_are():
    x = jnp.float32(spread())
    found = np.asarray(largest(0.2).compress(jax.random.key(0), x)).reshape(6, -1)
    flat = np.asarray(x).reshape(6, -1)
    assert ((found != 0).sum(1) == 8).all()
    assert (found[found != 0] == flat[found != 0]).all()
    left, sent = np.where(found == 0, np.abs(flat), 0), np.where(found == 0, np.inf, np.abs(flat))
    assert (left.max(1) <= sent.min(1)).all()
    assert (np.square(left).sum(1) <= 0.8 * np.square(flat).sum(1)).all()  # the contraction that the step rests on


BITS_4 = (2 * (14 / 2 + 4), 2 * (10 / 2 + 4), 5 / 2 + 4)  # two layers of A [2, 7] and B [5, 2], a bias [5]
TOP_02 = (2 * 3 * 8, 2 * 2 * 8, 1 * 8)


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize(("make", "setting", "size"), [(quantized, 4, BITS_4), (top_k, 0.2, TOP_02)])
def test_bytes_are_those_of_the_compressed_message(make, setting, size, feedback):
    blocks, mixer = toy.blocks(), make(gossip(), setting, feedback=feedback)

    def cost(shared=ALL, payload=None):
        return mixer.mix(exchange(W, shared)._replace(payload=payload), blocks, mixer.init(blocks))[2]

    assert cost()["bytes"] == 12 * sum(size)
    assert cost(PerBlock(False, True, False))["bytes"] == 12 * size[1]
    assert cost()["messages"] == 12
    # an outer wrapper sends less of A: half of it, and by three of the six clients alone; of B and the head nothing
    part = PerBlock(jnp.array([56.0, 0.0] * 3), 0, 0)
    np.testing.assert_allclose(cost(payload=part)["bytes"], 6 * size[0] / 2, rtol=1e-6)
    assert cost(payload=part)["messages"] == 6


def test_a_message_never_costs_more_than_the_block():
    blocks, mixer = toy.blocks(), top_k(gossip(), 0.9)
    info = mixer.mix(exchange(W), blocks, mixer.init(blocks))[2]
    assert info["bytes"] == gossip().mix(exchange(W), blocks, ())[2]["bytes"]


def test_copies_start_at_what_everybody_knows():
    """The common first factors; zeros where clients start apart."""
    mixer, common, apart = top_k(gossip(), 0.2), toy.blocks(), toy.blocks(spread=1.0)
    toy.assert_equal(mixer.init(common)[0], common)
    toy.assert_equal(mixer.init(apart)[0], jax.tree.map(jnp.zeros_like, apart))


def test_what_is_not_sent_moves_no_copy():
    """Neither a block that is not shared, nor any of a client that sends to nobody; the others' do move."""
    mixer, blocks = top_k(gossip(), 0.2), toy.blocks(spread=1.0)
    links = RING > 0
    links[:, 2] = False
    shared = PerBlock(*map(jnp.asarray, (True, False, True)))
    found, (copies, _), _ = mixer.mix(exchange(W, shared, links), blocks, mixer.init(blocks))
    toy.assert_equal(found.b, blocks.b)
    assert all((x == 0).all() for x in jax.tree.leaves(copies.b))
    for x in jax.tree.leaves((copies.a, copies.head)):
        assert [bool((each != 0).any()) for each in x] == [True, True, False, True, True, True]


def test_switched_off_a_compressor_is_what_it_wraps():
    assert top_k(gossip(), 1.0) is quantized(gossip(), 32) is gossip()
    assert build("dec_lora+top_k:0.3+packet_loss:0.1").mixer is top_k(packet_loss(gossip(), rate=0.1), 0.3)


def test_many_bits_are_plain_gossip():
    start = jnp.float32(spread())
    found, plain = many_rounds(quantized(gossip(), 20), start, 3), many_rounds(gossip(), start, 3)
    np.testing.assert_allclose(found, plain, atol=5 * 2.0**-19 * np.abs(start).max())  # half a grid step, a few times


def test_the_mean_of_choco_moves_as_local_training_moves_it():
    """Communication moves no mean, so neither can compression; the clients themselves move. From the same state."""
    rounds = {
        name: jax.jit(make_round(toy.loss, toy.SGD, build(name), toy.random_network())) for name in ("choco", "local")
    }
    state, _ = toy.run(rounds["choco"], toy.start(build("choco"), toy.SGD), toy.batches(3))
    batches = toy.batches(1, seed=1)
    sent = toy.run(rounds["choco"], state, batches)[0].blocks
    alone = toy.run(rounds["local"], state._replace(mixer=()), batches)[0].blocks
    toy.assert_close(jax.tree.map(lambda x: x.mean(0), sent), jax.tree.map(lambda x: x.mean(0), alone), atol=1e-6)
    assert np.abs(sent.b["layer/query"] - alone.b["layer/query"]).max() > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: quantized(gossip(), 1), r"`bits` must lie in 2\.\.32, got 1"),
        (lambda: top_k(gossip(), 0.0), "`fraction` must lie above 0 and at most at 1, got 0.0"),
        (lambda: top_k(gossip(), 0.5, 1.5), "`step` must lie above 0 and at most at 1, got 1.5"),
        (lambda: choco(2.0), "`fraction` must lie above 0 and at most at 1, got 2.0"),
    ],
)
def test_an_impossible_compressor_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
