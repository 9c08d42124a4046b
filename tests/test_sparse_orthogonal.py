"""Sparse-and-orthogonal LoRA: supports, orthogonality, what is sent, who hears whom, and what is made of it."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxdfl.methods import build
from jaxdfl.methods.sparse_orthogonal_lora import largest, own_subspaces, sparse_orthogonal_lora, sparsified
from jaxdfl.mixing import event_triggered, gossip, packet_loss, repeated, top_k
from jaxdfl.mixing.expert_bank import expert_bank, members, stacked
from jaxdfl.protocol import Exchange, PerBlock
from jaxdfl.simulate.rounds import adapters, make_round, round_keys
from jaxdfl.trees import squared_norm

ENTRIES = toy.D_OUT * toy.RANK  # of one layer's B
RING = toy.metropolis(jnp.float32(np.roll(np.eye(6), 1, 0) + np.roll(np.eye(6), -1, 0)))
BLOCKS = toy.blocks(spread=1.0)
MESSAGES = 12  # of a ring of six


def exchanged(mixer, blocks=BLOCKS, weights=RING, state=None):
    """One exchange in which B is shared."""
    links = (weights != 0) & ~jnp.eye(6, dtype=bool)
    shared = PerBlock(*map(jnp.asarray, (False, True, False)))
    exchange = Exchange(jax.random.key(0), 0, weights, links, jnp.ones(6), shared)
    return mixer.mix(exchange, blocks, mixer.init(blocks) if state is None else state)


def sparse(density=0.3, budget="even", clusters=1, inner=None):
    return sparsified(expert_bank(inner or gossip(), clusters), density, budget)


@cache
def trajectory():
    """The stacked method on random links, trained: its states and infos, round by round."""
    method = sparse_orthogonal_lora(0.3, "gaussian", inference="stacked")
    step = jax.jit(make_round(toy.loss, toy.ADAMW, method, toy.random_network(0.3)))
    states, infos = [toy.start(method)], []
    for t in range(8):
        state, info = step(toy.FROZEN, states[-1], jax.tree.map(lambda x, t=t: x[t], toy.batches(rounds=8)))
        states.append(state)
        infos.append(info)
    return states, infos


def drawn_weights(state):
    """The weights of the round that led to `state`."""
    t = state.round - 1
    return np.asarray(toy.random_network(0.3).weights(round_keys(state.key, t).network, t))


# B


@pytest.mark.parametrize("density", [0.1, 0.3, 1.0])
def test_the_support_is_the_budget_exactly_in_every_layer(density):
    blocks, _, _ = exchanged(sparse(density))
    for b in blocks.b.values():
        assert (jnp.sum(b != 0, axis=(1, 2)) == round(density * ENTRIES)).all()


def test_the_support_is_the_budget_after_training_too():
    for state in trajectory()[0][1:]:
        assert all((jnp.sum(b != 0, axis=(1, 2)) == round(0.3 * ENTRIES)).all() for b in state.blocks.b.values())


def test_an_energy_budget_is_met_in_total_and_keeps_what_is_largest_over_all_layers():
    blocks = BLOCKS._replace(b={path: b * (1 + 3 * (path == "layer/value")) for path, b in BLOCKS.b.items()})
    (even, _, of_even), (energy, _, of_energy) = (exchanged(sparse(0.3, each), blocks) for each in ("even", "energy"))
    count = 2 * round(0.3 * ENTRIES)
    entries = {path: np.count_nonzero(b, axis=(1, 2)) for path, b in energy.b.items()}
    np.testing.assert_array_equal(entries["layer/query"] + entries["layer/value"], count)
    assert (entries["layer/value"] > entries["layer/query"]).all()
    assert squared_norm(energy.b) > squared_norm(even.b)
    assert of_even["bytes"] == of_energy["bytes"]

    def in_order(b):
        return np.sort(np.concatenate([np.abs(x).reshape(6, -1) for x in b.values()], axis=1))

    np.testing.assert_array_equal(in_order(energy.b)[:, -count:], in_order(blocks.b)[:, -count:])


def test_of_equal_entries_the_first_are_kept_so_that_ties_cannot_break_the_budget():
    np.testing.assert_array_equal(largest(jnp.float32([[1, -1, 1, 1], [0, 0, 3, 0]]), 2), [[1, -1, 0, 0], [0, 0, 3, 0]])


@pytest.mark.parametrize("inner", [gossip(), repeated(gossip(), 3), packet_loss(gossip(), 0.5), top_k(gossip(), 0.5)])
def test_no_client_changes_another_clients_blocks(inner):
    """Averaging B_i of different A_i means nothing: what a client trains is its own, also under a wrapper."""
    together, _, _ = exchanged(sparse(inner=inner))
    alone, _, _ = exchanged(sparse(), weights=jnp.eye(6))
    toy.assert_equal(together, alone)


# A


def test_a_is_every_clients_own_has_rows_of_norm_one_and_never_changes():
    states, _ = trajectory()
    for path, a in states[0].blocks.a.items():
        np.testing.assert_allclose(np.linalg.norm(a, axis=-1), 1, rtol=1e-5)
        assert len({x.tobytes() for x in np.asarray(a)}) == toy.CLIENTS
        toy.assert_equal(states[-1].blocks.a[path], a)
        toy.assert_equal(states[-1].mixer.a[path], a)


def test_experts_on_block_orthogonal_a_are_orthogonal_whatever_b_is():
    """<B_i A_i, B_j A_j> = tr(B_i^T B_j A_j A_i^T) = 0; with Gaussian A it is only small."""
    clients, rank, d_in, d_out = 5, 3, 40, 8
    b = jax.random.normal(jax.random.key(1), (clients, d_out, rank))
    blocks = PerBlock({"layer": jnp.zeros((clients, rank, d_in))}, {"layer": b}, {})

    def cosines(orthogonality):
        a = own_subspaces(orthogonality, 1)(jax.random.key(0), blocks, {}).a["layer"]
        np.testing.assert_allclose(np.linalg.norm(a, axis=-1), 1, rtol=1e-5)
        products = np.asarray(b @ a).reshape(clients, -1)
        unit = products / np.linalg.norm(products, axis=1, keepdims=True)
        return np.abs(unit @ unit.T - np.eye(clients))

    assert cosines("block").max() < 1e-6
    assert 1e-3 < cosines("gaussian").max() < 0.5


def test_clusters_are_orthogonal_within_and_may_share_dimensions_between_them():
    start = own_subspaces("block", (0, 1, 0, 1, 2, 2))
    a = np.asarray(start(jax.random.key(0), BLOCKS, {}).a["layer/query"])
    gram = np.einsum("iar,jbr->ijab", a, a)
    for i, j in ((0, 2), (1, 3), (4, 5)):
        assert np.abs(gram[i, j]).max() < 1e-6
    assert np.abs(gram[0, 1]).max() > 1e-2


def test_subspaces_that_do_not_fit_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"d_in >= clients of a cluster \* rank, got 7 < 6 \* 2 .*take gaussian"):
        toy.start(sparse_orthogonal_lora())


# What is sent


@pytest.mark.parametrize(
    ("density", "of_b"), [(0.1, 2 * 1 * 8), (0.3, 2 * 3 * 8), (0.5, 2 * 5 * 8), (0.8, 2 * ENTRIES * 4)]
)
def test_bytes_are_values_and_places_of_what_is_kept_and_never_more_than_all_of_b(density, of_b):
    _, _, info = exchanged(sparse(density))
    assert info["messages"] == MESSAGES
    assert info["bytes"] == MESSAGES * of_b


def test_nothing_but_b_is_sent_in_a_run():
    states, infos = trajectory()
    for state, info in zip(states[1:], infos, strict=True):
        links = np.count_nonzero(drawn_weights(state) * (1 - np.eye(6)))
        assert info["messages"] == links
        assert info["bytes"] == links * 2 * 3 * 8


@pytest.mark.parametrize("clusters", [2, (0, 1, 0, 1, 0, 1), (0, 0, 1, 1, 1, 0)])
def test_clusters_never_exchange_with_one_another(clusters):
    cluster = np.array([row[0] for row in members(6, clusters)])
    inside = np.asarray(RING > 0) & (cluster[:, None] == cluster) & ~np.eye(6, dtype=bool)
    mine = cluster == cluster[0]
    changed = BLOCKS._replace(b={path: b.at[~mine].multiply(3) for path, b in BLOCKS.b.items()})
    (_, bank, info), (_, other, _) = (exchanged(sparse(clusters=clusters), blocks) for blocks in (BLOCKS, changed))
    assert info["messages"] == inside.sum()
    toy.assert_equal(*(jax.tree.map(lambda x: x[mine], stacked(each)) for each in (bank, other)))
    for path, experts in bank.experts.items():  # and the others did change
        assert (experts[~mine] != other.experts[path][~mine]).any()


@pytest.mark.parametrize(
    ("clusters", "message"),
    [(7, r"`clusters` must lie in 1\.\.6"), ((0, 1), "`clusters` must name a cluster for each of 6 clients, got 2")],
)
def test_clusters_that_do_not_fit_the_clients_are_refused(clusters, message):
    with pytest.raises(ValueError, match=message):
        members(6, clusters)


@pytest.mark.parametrize("settings", [{"density": 0.0}, {"density": 1.5}, {"clusters": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must"):
        sparse_orthogonal_lora(**settings)


def test_clusters_of_unequal_size_are_filled_up():
    np.testing.assert_array_equal(members(5, 2), [[0, 1, 2], [0, 1, 2], [0, 1, 2], [3, 4, -1], [3, 4, -1]])
    np.testing.assert_array_equal(members(3, (5, 9, 5)), [[0, 2], [1, -1], [0, 2]])


# What a client knows


def stack_by_hand(blocks, weights):
    """sum_j W_ij B_j A_j in float64."""
    blocks = jax.tree.map(lambda x: np.asarray(x, np.float64), blocks)
    return {path: np.einsum("ij,jor,jrk->iok", weights, blocks.b[path], a) for path, a in blocks.a.items()}


@pytest.mark.parametrize("clusters", [1, 2, (0, 0, 1, 1, 1, 0), (0, 1, 1, 1, 1, 1)])
def test_the_stacked_model_is_the_weighted_sum_of_the_experts_products(clusters):
    """On a fixed graph; what does not reach another cluster falls to the client itself."""
    method = sparse_orthogonal_lora(0.3, "gaussian", clusters, inference="stacked")
    blocks, bank, _ = exchanged(method.mixer)
    state = toy.start(method)._replace(blocks=blocks, mixer=bank)
    together = (members(6, clusters)[:, :, None] == np.arange(6)).any(1)
    weights = np.where(together, RING, 0)
    weights += np.diag(1 - weights.sum(1))
    found = adapters(method, state)
    for path, expected in stack_by_hand(blocks, weights).items():
        np.testing.assert_allclose(found.b[path] @ found.a[path], expected, rtol=1e-5, atol=1e-5)


def test_a_client_alone_is_its_own_model_stacked_or_not():
    _, bank, _ = exchanged(sparse(), weights=jnp.eye(6))
    assert not any(b.any() for b in stacked(bank).b.values())


def test_the_bank_remembers_the_last_expert_heard_from_everyone():
    states, _ = trajectory()
    for path, b in states[0].blocks.b.items():
        expected = np.zeros((6, *b.shape), np.float32)
        for state in states[1:]:
            heard = (drawn_weights(state) > 0) | np.eye(6, dtype=bool)
            fresh = np.broadcast_to(state.blocks.b[path], expected.shape)
            expected = np.where(heard[:, :, None, None], fresh, expected)
            np.testing.assert_allclose(state.mixer.experts[path], expected, rtol=1e-6)
            assert (state.mixer.experts[path][np.arange(6), np.arange(6)] == state.blocks.b[path]).all()
        assert not np.allclose(expected, fresh)  # some are old


def test_a_lost_expert_is_not_heard_and_none_is_relayed():
    _, lost, info = exchanged(expert_bank(packet_loss(gossip(), 1.0)))
    np.testing.assert_array_equal(lost.trust > 0, np.eye(6, dtype=bool))
    assert info["messages"] == info["lost"] == MESSAGES
    _, once, _ = exchanged(expert_bank(gossip()))
    _, twice, info = exchanged(expert_bank(repeated(gossip(), 2)))
    assert info["messages"] == 2 * MESSAGES
    np.testing.assert_array_equal(once.trust, RING)
    np.testing.assert_array_equal(twice.trust, RING)
    toy.assert_close(twice.experts, once.experts)


def test_a_silent_client_is_known_by_what_it_last_said():
    mixer = expert_bank(event_triggered(gossip(), 0.5))
    _, bank, info = exchanged(mixer)
    assert info["messages"] == 0  # the first B are known to all
    loud = BLOCKS._replace(b={path: b.at[2].add(5.0).at[3].add(0.1) for path, b in BLOCKS.b.items()})
    _, bank, info = exchanged(mixer, loud, state=bank)
    assert info["messages"] == 2
    for path, b in loud.b.items():
        np.testing.assert_allclose(bank.experts[path][1, 2], b[2], rtol=1e-5)
        np.testing.assert_allclose(bank.experts[path][4, 3], BLOCKS.b[path][3], rtol=1e-5)
        np.testing.assert_array_equal(bank.experts[path][3, 3], b[3])


def test_compression_shrinks_the_message_and_the_expert_arrives_over_time():
    mixer = expert_bank(top_k(gossip(), 0.2))
    _, bank, info = exchanged(mixer)
    assert info["bytes"] < 0.7 * exchanged(expert_bank(gossip()))[2]["bytes"]
    for _ in range(5):
        _, bank, _ = exchanged(mixer, state=bank)
    for path, b in BLOCKS.b.items():
        np.testing.assert_allclose(bank.experts[path][1, 2], b[2], rtol=1e-4, atol=1e-5)


def test_wrappers_go_inside_so_that_they_act_on_experts():
    method = build("sparse_orthogonal_lora:0.3:gaussian:clusters=2+packet_loss:0.2")
    same = sparse_orthogonal_lora(0.3, "gaussian", 2, inner=packet_loss(gossip(), rate=0.2))
    assert method.mixer is same.mixer
    assert method.start is same.start
