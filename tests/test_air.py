"""Channels that add noise: as much as they say, on what is received over a link, and on nothing else."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from test_mixing import ALL, RING, exchange, mixed
from test_mixing import TRIANGLE_AND_AN_EDGE as SPARSE

from jaxdfl.mixing import gossip, noisy, over_the_air
from jaxdfl.protocol import PerBlock

ENTRIES = 2000
W = np.asarray(toy.metropolis(jnp.float32(SPARSE)))  # client 5 meets nobody
EXACT = float("inf")


def normal_blocks(clients=6):
    a, b = jax.random.normal(jax.random.key(5), (2, clients, 1, ENTRIES))
    return PerBlock({"x": a}, {"x": jnp.swapaxes(b, 1, 2)}, {})


@cache
def noise_of(mixer, clients, weights=None, draws=200):
    """[draws, clients]: mean square over the entries of A of what the mixer adds to exact gossip of resting zeros."""
    weights = np.full((clients, clients), 1 / clients) if weights is None else np.array(weights)
    zeros, blocks = jax.tree.map(jnp.zeros_like, normal_blocks(clients)), normal_blocks(clients)

    def one(key):
        out = mixer.mix(exchange(weights)._replace(key=key), blocks, mixer.init(zeros))[0].a["x"]
        plain = gossip().mix(exchange(weights), blocks, ())[0].a["x"]
        return jnp.mean(jnp.square(out - plain), axis=(1, 2))

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), draws)), np.float64)


def test_received_noise_has_the_variance_of_independent_noise_on_every_message():
    found = noise_of(noisy(gossip(), 0.5), 6, tuple(map(tuple, W))).mean(0)
    off = W - np.diag(np.diag(W))
    expected = 0.25 * np.square(off).sum(1)
    assert expected[5] == found[5] == 0
    # 400 000 squares of a normal number: a standard error of sqrt(2 / 400 000), times five
    np.testing.assert_allclose(found[:5], expected[:5], rtol=5 * np.sqrt(2 / (200 * ENTRIES)))


@pytest.mark.parametrize("mixer", [noisy(gossip(), 0.5), over_the_air(gossip(), 0.0, truncation=0.01)])
def test_noise_falls_on_what_is_received_and_nothing_else(mixer):
    blocks = toy.blocks(spread=1.0)
    state = mixer.init(jax.tree.map(jnp.zeros_like, blocks))
    shared = PerBlock(*map(jnp.asarray, (True, False, True)))
    found, _, _ = mixer.mix(exchange(W)._replace(shared=shared), blocks, state)
    plain, _ = mixed(W, blocks, shared)
    toy.assert_equal(found.b, blocks.b)
    for block, exact in ((found.a, plain.a), (found.head, plain.head)):
        for x, y in zip(jax.tree.leaves(block), jax.tree.leaves(exact), strict=True):
            np.testing.assert_array_equal(x[5], y[5])
            assert (x[:5] != y[:5]).all()


def test_a_cached_copy_is_heard_without_noise():
    blocks, links = toy.blocks(spread=1.0), np.zeros((6, 6), bool)
    for mixer in (noisy(gossip(), 0.5), over_the_air(gossip(), 0.0, "models")):
        state = mixer.init(blocks)
        found, _, _ = mixer.mix(exchange(W, ALL, links), blocks, state)
        toy.assert_close(found, mixed(W, blocks)[0])


@pytest.mark.parametrize("transmit", ["differences", "models"])
def test_perfect_inversion_without_noise_is_exact_gossip(transmit):
    mixer = over_the_air(gossip(), EXACT, transmit, truncation=0.0)
    blocks = toy.blocks(spread=1.0)
    found, _, _ = mixer.mix(exchange(W), blocks, mixer.init(blocks))
    toy.assert_close(found, mixed(W, blocks)[0])


@pytest.mark.parametrize("clients", [2, 6])
def test_noise_over_the_air_is_set_by_the_weakest_sender_and_the_square_of_the_weights(clients):
    """(1 / SNR) max_j w^2 power / |h_j|^2, as drawn by numpy; nobody is silent at so small a truncation."""
    truncation, snr, draws = 1e-2, 100.0, 1500
    found = noise_of(over_the_air(gossip(), 20.0, "models", 1e-2), clients, draws=draws // clients)
    gains = np.random.default_rng(0).exponential(size=(200_000, clients - 1))
    gains = gains[(gains > truncation).all(1)]
    expected = (1 / gains).max(1) / snr / clients**2
    found = found[found < 1.5 * expected.max()]  # beyond: someone was silent, and the weights differ
    error = expected.std() / np.sqrt(found.size)
    # the senders' mean squares differ by sqrt(2 / ENTRIES) from 1, some more for the largest
    assert abs(found.mean() - expected.mean()) < 5 * error + 0.1 * expected.mean()


def test_a_resting_factor_gets_no_noise_from_differences_and_some_from_models():
    """Section 22: transmission of updates keeps a frozen block exact."""
    blocks, weights = toy.blocks(), np.full((6, 6), 1 / 6)
    trained = blocks._replace(b=jax.tree.map(lambda b: b + 1.0, blocks.b))
    for transmit, rests in (("differences", True), ("models", False)):
        mixer = over_the_air(gossip(), 10.0, transmit, truncation=0.01)
        found, (last, _), _ = mixer.mix(exchange(weights), trained, mixer.init(blocks))
        toy.assert_equal(last, found if transmit == "differences" else ())
        assert np.abs(found.b["layer/query"] - trained.b["layer/query"]).max() > 1e-3
        distance = max(np.abs(found.a[path] - blocks.a[path]).max() for path in blocks.a)
        assert distance < 1e-6 if rests else distance > 1e-3


def test_with_one_plain_step_the_noise_scales_with_the_learning_rate():
    """Differences are then gradients: half the step, half the noise."""
    start, gradient = toy.blocks(spread=1.0), toy.blocks(key=3, spread=1.0)
    mixer = over_the_air(gossip(), 10.0, truncation=0.01)

    def noise(rate):
        blocks = jax.tree.map(lambda x, g: x - rate * g, start, gradient)
        quiet = over_the_air(gossip(), EXACT, truncation=0.01)  # the same fading
        outs = (each.mix(exchange(W), blocks, each.init(start))[0] for each in (mixer, quiet))
        return jax.tree.map(jnp.subtract, *outs)

    small, large = noise(0.5), noise(1.0)
    toy.assert_close(jax.tree.map(lambda x: 2 * x, small), large, rtol=1e-3, atol=1e-5)  # a difference of rounded sums
    assert np.abs(large.a["layer/query"][0]).max() > 1e-2


def test_faded_senders_are_silent_and_the_receiver_stands_in_for_them():
    mixer, weights = over_the_air(gossip(), EXACT, "models", truncation=0.5), np.full((6, 6), 1 / 6)
    unit = PerBlock({"x": jnp.eye(6)[:, None]}, {}, {})

    def one(key):
        return mixer.mix(exchange(weights)._replace(key=key), unit, mixer.init(unit))[0].a["x"][:, 0]

    found = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 1000)))
    np.testing.assert_allclose(found.sum(2), 1, atol=1e-6)
    silent = found[:, ~np.eye(6, dtype=bool)] == 0
    chance = 1 - np.exp(-0.5)
    assert abs(silent.mean() - chance) < 5 * 0.5 / np.sqrt(silent.size)  # five standard errors


def test_channel_uses_count_receivers_and_not_senders():
    blocks, mixer = toy.blocks(), over_the_air(gossip(), 10.0)
    entries = 2 * (2 * 7) + 2 * (5 * 2) + 5
    for adjacency, receivers in ((RING, 6), (1 - np.eye(6), 6), (SPARSE, 5)):
        weights = toy.metropolis(jnp.float32(adjacency))
        info = mixer.mix(exchange(weights), blocks, mixer.init(blocks))[2]
        assert info["channel_uses"] == receivers * entries
        assert info["messages"] == np.asarray(adjacency).sum()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((float("nan"),), "`snr_db` must be a number in dB, got nan"),
        ((3.0, "models", -0.1), "`truncation` must be 0 or above, got -0.1"),
    ],
)
def test_an_impossible_channel_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        over_the_air(gossip(), *settings)
