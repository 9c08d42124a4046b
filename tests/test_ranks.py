"""Clients of different ranks in arrays of one: what stays zero, what is averaged with whom, and what is sent."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from test_mixing import ALL, RING, exchange

from jaxdfl.lora import init_factors
from jaxdfl.methods import build
from jaxdfl.methods.ranks import own_ranks, ranks, truncate
from jaxdfl.methods.schedules import nothing
from jaxdfl.mixing import ef_hc, event_triggered, gossip, packet_loss, random_gossip, renormalised
from jaxdfl.protocol import PerBlock
from jaxdfl.simulate.rounds import init, make_round
from jaxdfl.trees import stack

RANK, LOWEST = 4, 1
HELD = np.arange(RANK) < np.array([1, 2, 2, 3, 3, 4])[:, None]  # [clients, rank]
WEIGHTS = np.asarray(toy.metropolis(jnp.float32(RING)))


def blocks(spread=0.0):
    """The toy federation's blocks, of rank 4."""
    a, b = init_factors(jax.random.key(0), {path: (toy.D_IN, toy.D_OUT) for path in toy.BASE}, RANK)
    leaves, tree = jax.tree.flatten(stack(PerBlock(a, b, {"bias": jnp.zeros(toy.D_OUT)}), toy.CLIENTS))
    keys = jax.random.split(jax.random.key(9), len(leaves))
    noisy = [x + spread * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def first_rows(blocks, client, rank):
    """One client's blocks, cut to `rank` rows and columns."""
    return PerBlock(
        a={path: x[client : client + 1, :rank] for path, x in blocks.a.items()},
        b={path: x[client : client + 1, :, :rank] for path, x in blocks.b.items()},
        head=jax.tree.map(lambda x: x[client : client + 1], blocks.head),
    )


def not_held(blocks):
    """All entries of the rows and columns that their clients do not hold."""
    rows = [np.asarray(x)[~HELD] for x in blocks.a.values()]
    columns = [np.asarray(x).swapaxes(1, 2)[~HELD] for x in blocks.b.values()]
    return np.concatenate([x.ravel() for x in rows + columns])


@cache
def compiled_round(method, clients=toy.CLIENTS):
    return jax.jit(make_round(toy.loss, toy.ADAMW, method, toy.random_network(clients=clients)))


def test_ranks_are_spread_evenly_from_the_lowest_to_the_full():
    np.testing.assert_array_equal(own_ranks(6, 1, 4), HELD.sum(1))
    np.testing.assert_array_equal(own_ranks(3, 2, 8), [2, 5, 8])
    np.testing.assert_array_equal(own_ranks(5, 8, 8), 8)


def test_rows_that_a_client_does_not_hold_stay_exactly_zero_through_adamw():
    """Local steps alone, with weight decay and without truncation: their gradients are zero by themselves."""
    alone = ranks(build("dec_lora"), LOWEST)._replace(mixer=gossip(), shares=nothing)
    state = init(jax.random.key(0), blocks(), alone, toy.ADAMW)
    assert not not_held(state.blocks).any()
    state, _ = toy.run(compiled_round(alone), state, toy.batches(rounds=6))
    assert not not_held(state.blocks).any()
    assert all(np.all(np.asarray(x)[HELD].any(-1)) for x in state.blocks.a.values())


@pytest.mark.parametrize("client", [0, 2])
def test_a_client_of_lower_rank_trains_as_if_its_arrays_had_no_more_rows(client):
    """To float32 rounding over 18 AdamW steps."""
    alone, rank = ranks(build("dec_lora"), LOWEST)._replace(shares=nothing), int(HELD[client].sum())
    together = init(jax.random.key(0), blocks(), alone, toy.ADAMW)
    together, _ = toy.run(compiled_round(alone), together, toy.batches(rounds=6))
    small = build("dec_lora")._replace(shares=nothing)
    single = init(jax.random.key(0), first_rows(blocks(), client, rank), small, toy.ADAMW)
    its_batches = jax.tree.map(lambda x: x[:, client : client + 1], toy.batches(rounds=6))
    single, _ = toy.run(compiled_round(small, 1), single, its_batches)
    toy.assert_close(first_rows(together.blocks, client, rank), single.blocks, rtol=1e-3, atol=1e-4)


def padded(blocks):
    return truncate(blocks, LOWEST)


def test_rows_are_averaged_with_zeros_and_cut_to_each_clients_rank():
    method, start = ranks(build("dec_lora"), LOWEST), padded(blocks(spread=1.0))
    found, _, _ = method.mixer.mix(exchange(WEIGHTS), start, ())
    for path, x in start.a.items():
        expected = HELD[:, :, None] * np.einsum("ij,jrd->ird", WEIGHTS, x)
        np.testing.assert_allclose(found.a[path], expected, atol=1e-6)
    for path, x in start.b.items():
        expected = HELD[:, None, :] * np.einsum("ij,jor->ior", WEIGHTS, x)
        np.testing.assert_allclose(found.b[path], expected, atol=1e-6)
    np.testing.assert_allclose(found.head["bias"], WEIGHTS @ start.head["bias"], atol=1e-6)


def test_a_client_pays_for_the_rows_of_its_own_rank():
    """On a ring everybody sends twice: 4 bytes by (7 + 5) entries a row and layer, and a head of 5."""
    method = ranks(build("dec_lora"), LOWEST)
    _, _, info = method.mixer.mix(exchange(WEIGHTS), padded(blocks()), ())
    assert info["messages"] == 12
    assert info["bytes"] == 2 * sum(4 * (2 * (toy.D_IN + toy.D_OUT) * rank + 5) for rank in HELD.sum(1))
    only_a = exchange(WEIGHTS, PerBlock(True, False, False))
    assert method.mixer.mix(only_a, padded(blocks()), ())[2]["bytes"] == 2 * 4 * 2 * toy.D_IN * HELD.sum()


def test_renormalised_rows_are_means_over_those_who_hold_them():
    """x_ik = sum_j W_ij h_jk x_jk / sum_j W_ij h_jk, against numpy; where nobody holds a row it stays zero."""
    start = padded(blocks(spread=1.0))
    mixer = renormalised(gossip())
    found, _, info = mixer.mix(exchange(WEIGHTS), start, mixer.init(start))
    share = WEIGHTS @ HELD  # [clients, rank]
    norm = np.where(share > 0, share, 1)
    for path, x in start.a.items():
        np.testing.assert_allclose(found.a[path], np.einsum("ij,jrd->ird", WEIGHTS, x) / norm[:, :, None], atol=1e-6)
    for path, x in start.b.items():
        np.testing.assert_allclose(found.b[path], np.einsum("ij,jor->ior", WEIGHTS, x) / norm[:, None, :], atol=1e-6)
    assert (share == 0).any()
    plain = gossip().mix(exchange(WEIGHTS), start, ())
    toy.assert_equal(found.head, plain[0].head)
    assert info == plain[2]


@pytest.mark.parametrize(
    "inner",
    [packet_loss(gossip(), 0.5), random_gossip(gossip(), 0.4), event_triggered(gossip(), 0.1), ef_hc(gossip(), 0.1)],
    ids=["packet_loss", "random_gossip", "event_triggered", "ef_hc"],
)
@pytest.mark.parametrize("seed", range(3))
def test_renormalised_rows_on_which_all_holders_agree_do_not_move_whatever_lies_between(inner, seed):
    """The weights of every row sum to one over its holders, also where messages are lost, or never sent."""
    start = padded(jax.tree.map(jnp.ones_like, blocks()))
    mixer = renormalised(inner)
    state, mix = mixer.init(start), jax.jit(mixer.mix)
    found = start
    for key in jax.random.split(jax.random.key(seed), 3):
        found, state, _ = mix(exchange(WEIGHTS)._replace(key=key), found, state)
        found = padded(found)
    toy.assert_close(found, start, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shared", [PerBlock(True, False, True), PerBlock(False, True, False)])
def test_renormalised_blocks_that_are_not_shared_stay_bit_for_bit(shared):
    start = padded(blocks(spread=1.0))
    mixer = renormalised(gossip())
    found, _, _ = mixer.mix(exchange(WEIGHTS, shared), start, mixer.init(start))
    for sent, new, old in zip(shared, found, start, strict=True):
        same = [np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (new, old)), strict=True)]
        assert all(same) != sent


@pytest.mark.parametrize("spec", ["tad_lora:2+ranks:1+renormalised+packet_loss:0.2", "dec_lora+salf:0.5+ranks:1"])
def test_rows_that_are_not_held_stay_zero_in_a_composition_that_learns(spec):
    method = build(spec)
    state = init(jax.random.key(0), blocks(), method, toy.ADAMW)
    state, infos = toy.run(compiled_round(method), state, toy.batches(rounds=20))
    assert not not_held(state.blocks).any()
    assert np.mean([info["loss"] for info in infos[-4:]]) < 0.9 * infos[0]["loss"]


def test_renormalised_is_refused_around_a_mixer_of_products():
    with pytest.raises(
        ValueError, match="averages rows of factors, and this method mixes or corrects products; leave it out"
    ):
        init(jax.random.key(0), blocks(), build("decaf+renormalised"), toy.ADAMW)


def test_a_correction_does_not_move_rows_that_are_not_held():
    ones = jax.tree.map(jnp.ones_like, blocks())
    wrapped = ranks(build("dec_lora")._replace(correction=lambda state: ones), LOWEST)
    assert not not_held(wrapped.correction(())).any()
    toy.assert_equal(wrapped.correction(()), padded(ones))


def test_a_methods_own_start_is_cut_too():
    method = build("dec_lora")._replace(start=lambda key, blocks, base: jax.tree.map(jnp.ones_like, blocks))
    state = init(jax.random.key(0), blocks(), ranks(method, LOWEST), toy.ADAMW)
    toy.assert_equal(state.blocks, padded(jax.tree.map(jnp.ones_like, blocks())))


def test_the_full_rank_as_the_lowest_is_the_method_as_it_was():
    start = blocks(spread=1.0)
    method, plain = ranks(build("dec_lora"), RANK), build("dec_lora")
    toy.assert_equal(method.mixer.mix(exchange(WEIGHTS, ALL), start, ()), plain.mixer.mix(exchange(WEIGHTS), start, ()))
    toy.assert_equal(init(jax.random.key(0), start, method, toy.ADAMW).blocks, start)


def test_equal_ranks_are_equal_methods_so_that_runs_share_a_program():
    method = build("dec_lora")
    assert ranks(method, 2) == ranks(method, 2)


def test_a_lowest_rank_below_one_or_above_the_blocks_is_refused():
    with pytest.raises(ValueError, match="`lowest` must be at least 1, got 0"):
        ranks(build("dec_lora"), 0)
    method = ranks(build("dec_lora"), RANK + 1)
    with pytest.raises(ValueError, match="`lowest` must be at most the blocks' rank 4, got 5"):
        init(jax.random.key(0), blocks(), method, toy.ADAMW)
    with pytest.raises(ValueError, match="`lowest` must be at most the blocks' rank 4, got 5"):
        method.mixer.init(blocks())
