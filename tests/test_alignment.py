"""Alignment of factors before mixing (FedRot-LoRA's law P8), and what it does to gauges."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxdfl.methods import build
from jaxdfl.mixing import aligned, gossip, packet_loss
from jaxdfl.mixing.aligned import HARD, rotation, turned
from jaxdfl.protocol import Exchange, Network, PerBlock
from jaxdfl.simulate.rounds import init, make_round

CLIENTS, RANK = toy.CLIENTS, toy.RANK
ALL = PerBlock(True, True, True)
RING = toy.metropolis(jnp.float32(np.roll(np.eye(6), 1, 0) + np.roll(np.eye(6), -1, 0)))
COMPLETE = jnp.full((6, 6), 1 / 6)
BYTES_A, BYTES_B, BYTES_HEAD = 4 * 2 * (2 * 7), 4 * 2 * (5 * 2), 4 * 5


def exchange(weights, round=1, shared=ALL):
    links = (weights != 0) & ~jnp.eye(len(weights), dtype=bool)
    return Exchange(jax.random.key(0), round, weights, links, jnp.ones(len(weights)), shared)


def mixed(mixer, blocks, weights=RING, round=1, shared=ALL, start=None):
    """One exchange of `blocks`, by a mixer that last returned `start`."""
    state = mixer.init(blocks if start is None else start)
    return jax.jit(mixer.mix)(exchange(weights, round, shared), blocks, state)


def haar(seed, *shape, rank=RANK):
    return jax.random.orthogonal(jax.random.key(seed), rank, shape)


def gauges(seed=0):
    """Another rotation or reflection for every client, the same for both targets."""
    turns = haar(seed, CLIENTS)
    return {path: turns for path in toy.BASE}


def one_product():
    """Clients with equal, full-rank factors."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), toy.blocks(spread=0.5))


def products(blocks):
    return {path: np.asarray(blocks.b[path] @ blocks.a[path]) for path in blocks.a}


# The rotation itself


@pytest.mark.parametrize("softness", [0.0, 0.5, 1.0, HARD])
def test_a_rotation_is_orthogonal_and_keeps_the_product(softness):
    a, b, reference = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(((40, 4, 7), (40, 5, 4), (40, 4, 7)))
    )
    r = rotation(a, reference, softness)
    identity = np.broadcast_to(np.eye(4), (40, 4, 4))
    np.testing.assert_allclose(jnp.swapaxes(r, 1, 2) @ r, identity, atol=2e-6)
    signs = np.unique(np.round(np.linalg.det(r)))
    assert signs.tolist() == ([1] if softness <= 1 else [-1, 1])
    new = turned(PerBlock({"w": a}, {"w": b}, {}), {"w": r})
    np.testing.assert_allclose(new.b["w"] @ new.a["w"], b @ a, atol=1e-5)
    if softness == 0:
        np.testing.assert_allclose(r, identity, atol=1e-6)


def test_no_orthogonal_matrix_brings_the_factor_closer_than_the_hard_rotation():
    a, reference = jax.random.normal(jax.random.key(0), (2, 3, 7))
    others = np.asarray(haar(1, 2000, rank=3))

    def distance(r):
        return np.linalg.norm(np.swapaxes(r, -1, -2) @ np.asarray(a) - np.asarray(reference), axis=(-2, -1))

    best = distance(np.asarray(rotation(a, reference, HARD)))
    assert best <= distance(others).min()
    proper = others[np.linalg.det(others) > 0]
    assert distance(np.asarray(rotation(a, reference, 1.0))) <= distance(proper).min()


@pytest.mark.parametrize("softness", [0.2, 0.5])
def test_a_soft_rotation_turns_each_plane_by_the_angle_of_the_closed_form(softness):
    """P8: two planes of R^4, turned apart by angles of their own."""

    def planes(*angles):
        out = np.zeros((4, 4))
        for k, angle in enumerate(angles):
            out[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = [
                [np.cos(angle), -np.sin(angle)],
                [np.sin(angle), np.cos(angle)],
            ]
        return out

    x, theta = np.random.default_rng(0).normal(size=(4, 9)), np.array([0.7, -2.0])
    phi = np.arctan2(softness * np.sin(theta), 1 - softness + softness * np.cos(theta))
    found = rotation(jnp.float32(x), jnp.float32(planes(*theta).T @ x), softness)
    np.testing.assert_allclose(found, planes(*phi), atol=5e-6)
    if softness == 0.5:
        np.testing.assert_allclose(phi, theta / 2)


def test_there_is_nothing_to_align_with_a_reference_of_zero():
    x = jax.random.normal(jax.random.key(0), (3, 2, 7))
    for softness in (0.5, HARD):
        toy.assert_equal(rotation(x, jnp.zeros_like(x), softness), jnp.broadcast_to(jnp.eye(2), (3, 2, 2)))


# As a mixer


@pytest.mark.parametrize("reference", ["temporal", "neighbourhood", "pairwise"])
@pytest.mark.parametrize("align", ["a", "b"])
def test_clients_that_differ_by_gauge_alone_are_averaged_exactly_after_hard_alignment(reference, align):
    """Plain gossip loses much of their common product. The references start common; pairwise needs none."""
    common = one_product()
    apart = turned(common, gauges())
    weights = COMPLETE if reference == "neighbourhood" else RING
    found, _, _ = mixed(aligned(gossip(), HARD, reference, align), apart, weights, start=common)
    plain, _, _ = mixed(gossip(), apart, weights)
    for path, product in products(common).items():
        np.testing.assert_allclose(products(found)[path], product, rtol=1e-4, atol=1e-5)
        assert np.abs(products(plain)[path] - product).max() > 0.1
    toy.assert_close(found.head, plain.head)


@pytest.mark.parametrize("align", ["alternate", "a", "b"])
@pytest.mark.parametrize("round", [1, 2])
def test_the_factor_whose_turn_it_is_comes_close_to_where_it_started(align, round):
    """A in odd rounds, B in even ones; with W = I what is mixed is what was turned."""
    start, trained = toy.blocks(spread=0.3), toy.blocks(spread=0.3, key=5)
    found, state, _ = mixed(aligned(gossip(), HARD, "temporal", align), trained, jnp.eye(6), round, start=start)
    by_a = round % 2 == 1 if align == "alternate" else align == "a"

    def distance(x, reference):
        return sum(np.square(x[path] - reference[path]).sum((1, 2)) for path in x)

    turned_by = {"a": distance(found.a, start.a), "b": distance(found.b, start.b)}
    other = mixed(aligned(gossip(), HARD, "temporal", "b" if by_a else "a"), trained, jnp.eye(6), round, start=start)[0]
    best, rest = ("a", "b") if by_a else ("b", "a")
    assert (turned_by[best] <= distance(getattr(trained, best), getattr(start, best)) + 1e-5).all()
    assert (turned_by[best] < distance(getattr(other, best), getattr(start, best)) - 1e-4).any()
    assert (turned_by[rest] > distance(getattr(other, rest), getattr(start, rest)) + 1e-4).any()
    toy.assert_equal(state[0], found)  # what it returns is the next round's reference


@pytest.mark.parametrize("reference", ["temporal", "neighbourhood", "random"])
def test_nothing_is_turned_in_round_zero_or_where_one_factor_stays_at_home(reference):
    start, trained = toy.blocks(spread=0.3), toy.blocks(spread=0.3, key=5)
    mixer = aligned(gossip(), HARD, reference)
    for round, shared in ((0, ALL), (1, PerBlock(True, False, True)), (2, PerBlock(False, True, False))):
        found, _, info = mixed(mixer, trained, round=round, shared=shared, start=start)
        plain, _, cost = mixed(gossip(), trained, round=round, shared=shared)
        toy.assert_equal(found, plain)
        assert info == cost


def test_a_neighbourhood_reference_is_one_more_factor_on_the_wire():
    """The average of what the neighbours had at the round's start; what is asked for is paid for."""
    start, trained = toy.blocks(spread=0.3), toy.blocks(spread=0.3, key=5)
    for round, extra in ((1, BYTES_A), (2, BYTES_B)):
        found, _, info = mixed(aligned(gossip(), 0.5, "neighbourhood"), trained, round=round, start=start)
        average, _, _ = mixed(gossip(), start)
        expected, _, cost = mixed(aligned(gossip(), 0.5, "temporal"), trained, round=round, start=average)
        toy.assert_close(found, expected)
        assert cost == {"messages": 12, "bytes": 12 * (BYTES_A + BYTES_B + BYTES_HEAD)}
        assert info == {"messages": 24, "bytes": cost["bytes"] + 12 * extra}


@pytest.mark.parametrize("reference", ["temporal", "neighbourhood", "pairwise", "random"])
def test_a_gauge_common_to_all_clients_stays_what_it_was(reference):
    """Factors and references turned alike give a result that is turned alike. Random turns are of the draw alone."""
    start, trained = toy.blocks(spread=0.3), toy.blocks(spread=0.3, key=5)
    common = {path: jnp.broadcast_to(haar(3), (CLIENTS, RANK, RANK)) for path in toy.BASE}
    mixer = aligned(gossip(), 0.5, reference)
    plain, _, _ = mixed(mixer, trained, start=start)
    found, _, _ = mixed(mixer, turned(trained, common), start=turned(start, common))
    same = jax.tree.map(lambda x, y: np.allclose(x, y, rtol=1e-4, atol=1e-5), found, turned(plain, common))
    assert all(jax.tree.leaves(same)) == (reference != "random")


def test_pairwise_hard_alignment_is_blind_to_every_clients_own_gauge():
    """R_ij becomes Q_j^T R_ij Q_i, so products do not change; under plain gossip they do (P18)."""
    blocks = toy.blocks(spread=0.3)
    for mixer, blind in ((aligned(gossip(), HARD, "pairwise"), True), (gossip(), False)):
        plain, found = (products(mixed(mixer, x)[0]) for x in (blocks, turned(blocks, gauges())))
        same = [np.allclose(plain[path], found[path], rtol=1e-4, atol=1e-5) for path in plain]
        assert all(same) if blind else not any(same)


def test_pairwise_mixing_is_the_sum_over_neighbours_that_a_loop_computes():
    blocks, weights = toy.blocks(spread=0.3), np.asarray(RING)
    found, _, info = mixed(aligned(gossip(), 0.5, "pairwise", "b"), blocks)
    for path in blocks.a:
        a, b = blocks.a[path], blocks.b[path]
        for i in range(CLIENTS):
            new_a, new_b = np.array(a[i]), np.array(b[i])
            for j in set(range(CLIENTS)) - {i}:
                r = np.asarray(rotation(b[j].T, b[i].T, 0.5))
                new_a += weights[i, j] * (r.T @ a[j] - a[i])
                new_b += weights[i, j] * (b[j] @ r - b[i])
            np.testing.assert_allclose(found.a[path][i], new_a, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(found.b[path][i], new_b, rtol=1e-5, atol=1e-5)
    assert info == {"messages": 12, "bytes": 12 * (BYTES_A + BYTES_B + BYTES_HEAD)}


def test_pairwise_mixing_keeps_at_home_what_is_not_shared():
    blocks = toy.blocks(spread=0.3)
    found, _, info = mixed(aligned(gossip(), 0.5, "pairwise"), blocks, shared=PerBlock(True, False, False))
    plain, _, _ = mixed(gossip(), blocks)
    toy.assert_equal((found.b, found.head), (blocks.b, blocks.head))
    toy.assert_close(found.a, plain.a)
    assert info["bytes"] == 12 * BYTES_A


def test_what_cannot_be_asked_for_is_answered_in_one_clear_line():
    with pytest.raises(ValueError, match=r"`softness` must be at least 0, got -0.1"):
        aligned(gossip(), -0.1)
    with pytest.raises(ValueError, match=r"takes no `inner` but gossip.*name `aligned` as the last wrapper"):
        aligned(packet_loss(gossip(), 0.1), 0.5, "pairwise")
    with pytest.raises(ValueError, match="`inner`"):
        build("fedrot_lora:reference=pairwise+packet_loss:0.1")
    assert build("dec_lora+packet_loss:0.1+aligned:0.5:pairwise").mixer is packet_loss(
        aligned(gossip(), softness=0.5, reference="pairwise"), rate=0.1
    )


# As a method


def ring():
    return Network(lambda key, round: RING, lambda key, round: jnp.ones(CLIENTS))


@cache
def compiled_round(spec, optimizer=toy.ADAMW):
    return jax.jit(make_round(toy.loss, optimizer, build(spec), ring()))


def trained(spec, seed=0, rounds=6, optimizer=toy.ADAMW, blocks=None):
    """Losses by round and the last state, on a ring."""
    start = toy.blocks(key=10 * seed) if blocks is None else blocks
    state = init(jax.random.key(seed), start, build(spec), optimizer)
    state, infos = toy.run(compiled_round(spec, optimizer), state, toy.batches(rounds=rounds, seed=seed))
    return state, infos


def test_fedrot_lora_that_does_not_turn_is_dec_lora():
    plain, _ = trained("dec_lora")
    for reference in ("temporal", "pairwise"):
        toy.assert_close(trained(f"fedrot_lora:0:{reference}")[0].blocks, plain.blocks, rtol=1e-4, atol=1e-5)


def test_random_rotations_ruin_training_and_aligned_ones_do_not():
    """The negative control of the paper: averages of factors in unrelated gauges destroy each other."""
    for seed in range(3):
        plain, soft, random = (
            np.mean([info["loss"] for info in trained(spec, seed, rounds=20)[1][-5:]])
            for spec in ("dec_lora", "fedrot_lora", f"fedrot_lora:{HARD}:random")
        )
        assert random > 1.3 * plain
        assert soft < 1.1 * plain


def test_a_common_rotation_leaves_the_products_of_fedrot_lora_under_sgd_and_one_of_each_client_does_not():
    """P18, through training. A client's own gauge matters, since its reference is in that gauge too."""
    start = toy.blocks(spread=0.3)
    common = {path: jnp.broadcast_to(haar(3), (CLIENTS, RANK, RANK)) for path in toy.BASE}

    def outcome(blocks):
        state, _ = trained("fedrot_lora", rounds=4, optimizer=toy.SGD, blocks=blocks)
        return np.stack(list(products(state.blocks).values()))

    plain = outcome(start)
    np.testing.assert_allclose(outcome(turned(start, common)), plain, rtol=1e-4, atol=1e-5)
    assert np.abs(outcome(turned(start, gauges())) - plain).max() > 0.05


def test_conlora_is_ffa_lora_but_for_the_head_which_stays_personal():
    """P6. Where the head is frozen they are one method."""
    con, con_info = trained("conlora")
    ffa, ffa_info = trained("ffa_lora")
    toy.assert_equal(con.blocks.a, toy.blocks().a)
    con_heads, ffa_heads = (np.asarray(state.blocks.head["bias"]) for state in (con, ffa))
    assert con_heads.std(0).mean() > 2 * ffa_heads.std(0).mean()
    assert con_info[-1]["bytes"] == 12 * BYTES_B == ffa_info[-1]["bytes"] - 12 * BYTES_HEAD
    assert con_info[-1]["cross_term"] == 0
    headless = toy.blocks(head=False)
    toy.assert_equal(*(trained(spec, rounds=2, blocks=headless)[0] for spec in ("conlora", "ffa_lora")))
