"""Methods that merge weights beside the factors: FLoRA, FedEx-LoRA and FeDeRA. Nothing here is square."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxdfl.diagnostics import product_disagreement
from jaxdfl.methods import build
from jaxdfl.methods.federa import leading_directions
from jaxdfl.protocol import Exchange, Network, PerBlock
from jaxdfl.simulate.rounds import adapters, init, make_round

CLIENTS = toy.CLIENTS
RING = toy.metropolis(jnp.float32(np.roll(np.eye(6), 1, 0) + np.roll(np.eye(6), -1, 0)))
COMPLETE = jnp.full((6, 6), 1 / 6)
BYTES_A, BYTES_B, BYTES_HEAD = 4 * 2 * (2 * 7), 4 * 2 * (5 * 2), 4 * 5
BYTES_DENSE = 4 * 2 * (5 * 7)
TRAINED = toy.blocks(spread=0.5, key=3)


@cache
def compiled_mix(spec):
    return jax.jit(build(spec).mixer.mix)


def mixed(spec, blocks, state, weights=RING, round=0):
    links = (weights != 0) & ~jnp.eye(CLIENTS, dtype=bool)
    exchange = Exchange(
        jax.random.key(round), round, weights, links, jnp.ones(CLIENTS), PerBlock(*[jnp.bool_(True)] * 3)
    )
    return compiled_mix(spec)(exchange, blocks, state)


def whole(spec, blocks, state):
    """B_i A_i with what is merged beside it, in float64: {path: [clients, d_out, d_in]}."""
    merged = build(spec).merged(state)
    seen = {}
    for path in blocks.a:
        a, b, merged_a, merged_b = (np.asarray(x[path], np.float64) for x in (blocks.a, blocks.b, merged.a, merged.b))
        seen[path] = b @ a + merged_b @ merged_a
    return seen


def gossiped(weights, values):
    return {path: np.einsum("ij,jab->iab", np.asarray(weights, np.float64), x) for path, x in values.items()}


def assert_close(left, right):
    for path in left:
        np.testing.assert_allclose(left[path], right[path], rtol=1e-5, atol=2e-6)


def run(spec, rounds=2, weights=RING, seed=0):
    method = build(spec)
    network = Network(lambda key, round: weights, lambda key, round: jnp.ones(CLIENTS))
    step = jax.jit(make_round(toy.loss, toy.ADAMW, method, network))
    state = init(jax.random.key(seed), toy.blocks(), method, toy.ADAMW, base=toy.BASE)
    return method, *toy.run(step, state, toy.batches(rounds=rounds))


# FedEx-LoRA


def test_fedex_on_the_complete_graph_gives_the_mean_of_the_clients_functions():
    """base + residual + mean B mean A = base + mean(B A); the factors are the plain means, the residual is common."""
    state = build("fedex_lora").mixer.init(TRAINED)
    blocks, state, _ = mixed("fedex_lora", TRAINED, state, COMPLETE)
    exact = {path: (TRAINED.b[path] @ TRAINED.a[path]).mean(0) for path in TRAINED.a}
    found = whole("fedex_lora", blocks, state)
    for path in found:
        assert np.abs(blocks.b[path][0] @ blocks.a[path][0] - exact[path]).max() > 0.1  # what factors alone would give
        np.testing.assert_allclose(found[path], np.broadcast_to(exact[path], found[path].shape), rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(blocks.a[path][2], TRAINED.a[path].mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state[0][path], np.broadcast_to(state[0][path][0], state[0][path].shape), atol=1e-6)
    np.testing.assert_allclose(blocks.head["bias"][4], TRAINED.head["bias"].mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", ["fedex_lora", "fedex_lora+packet_loss:0.5"])
def test_whole_products_of_fedex_gossip_as_vectors_do_on_any_graph(spec):
    """So their mean is kept, where links do not fail. A second round starts from residuals that differ."""
    before, state = TRAINED, build(spec).mixer.init(TRAINED)
    for round in range(2):
        old = whole(spec, before, state)
        blocks, state, _ = mixed(spec, before, state, round=round)
        new = whole(spec, blocks, state)
        if spec == "fedex_lora":
            assert_close(new, gossiped(RING, old))
            assert_close({path: x.mean(0) for path, x in new.items()}, {path: x.mean(0) for path, x in old.items()})
        else:  # each client's is some average of its neighbourhood's
            for path, x in old.items():
                assert np.abs(new[path] - gossiped(RING, old)[path]).max() > 0.05
                assert (x.min(0) - 1e-5 <= new[path]).all()
                assert (new[path] <= x.max(0) + 1e-5).all()
        before = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), blocks)
    assert max(np.abs(x - x[0]).max() for x in state[0].values()) > 0.01


def test_fedex_pays_for_a_dense_residual_in_the_same_message():
    _, _, info = mixed("fedex_lora", TRAINED, build("fedex_lora").mixer.init(TRAINED))
    assert info == {"messages": 12, "bytes": 12 * (BYTES_A + BYTES_B + BYTES_HEAD + BYTES_DENSE)}


# FLoRA


def test_flora_gives_the_mean_of_the_clients_functions_and_fresh_factors():
    """On any network, since it has a server: base + residual = base + mean(B A), and B = 0. Twice over."""
    before, state, drawn = TRAINED, build("flora").mixer.init(TRAINED), []
    for round in range(2):
        exact = {path: x.mean(0, keepdims=True) for path, x in whole("flora", before, state).items()}
        blocks, state, info = mixed("flora", before, state, round=round)
        found = whole("flora", blocks, state)
        assert_close(found, {path: np.broadcast_to(exact[path], x.shape) for path, x in found.items()})
        assert not any(np.any(x) for x in blocks.b.values())
        for path, a in blocks.a.items():
            assert (a == a[0]).all()
            assert 0.2 < np.abs(a).max() * np.sqrt(toy.D_IN) <= 1  # uniform on +-1/sqrt(d_in)
            assert (a[0] != before.a[path]).all()
        assert info == {"messages": 30, "bytes": 30 * (BYTES_A + BYTES_B + BYTES_HEAD)}
        np.testing.assert_allclose(blocks.head["bias"][1], before.head["bias"].mean(0), rtol=1e-5, atol=1e-6)
        drawn.append(blocks.a)
        before = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), blocks)
    assert all((drawn[0][path] != drawn[1][path]).all() for path in drawn[0])


def test_flora_learns_on_in_its_fresh_factors():
    """A's first gradient is zero again (P21) and B's is not; what was learned is kept by the residual."""
    method, state, _ = run("flora", rounds=3)
    one = jax.tree.map(lambda x: x[0], adapters(method, state))
    batch = jax.tree.map(lambda x: x[0, 0, 0], toy.batches())
    gradient = jax.grad(toy.loss, argnums=1)(toy.FROZEN, one, batch, None)
    rank = toy.RANK
    assert not any(np.any(g[:rank]) for g in gradient.a.values())
    assert all(np.abs(g[:, :rank]).max() > 1e-3 for g in gradient.b.values())
    assert max(np.abs(r).max() for r in state.mixer[0].values()) > 0.01


# FeDeRA


def test_federa_starts_from_the_best_approximation_of_the_frozen_weights():
    """Eckart and Young: the squared error is the energy of the singular values left out. And the split is balanced."""
    for path, weight in toy.BASE.items():
        a, b = leading_directions(weight, toy.RANK)
        assert (a.shape, b.shape) == ((toy.RANK, toy.D_IN), (toy.D_OUT, toy.RANK))
        values = np.linalg.svd(weight, compute_uv=False)
        np.testing.assert_allclose(np.square(weight - b @ a).sum(), np.square(values[toy.RANK :]).sum(), rtol=1e-5)
        for gram in (a @ a.T, b.T @ b):
            np.testing.assert_allclose(gram, np.diag(values[: toy.RANK]), atol=1e-5)
        state = init(jax.random.key(0), toy.blocks(), build("federa"), toy.SGD, base=toy.BASE)
        for i in range(CLIENTS):
            toy.assert_close((state.blocks.a[path][i], state.blocks.b[path][i]), (a, b))


def test_federa_starts_as_the_pretrained_function_and_keeps_what_it_took_out():
    method = build("federa")
    state = init(jax.random.key(0), toy.blocks(), method, toy.ADAMW, base=toy.BASE)
    for product in whole("federa", state.blocks, state.mixer).values():
        np.testing.assert_allclose(product, 0, atol=1e-6)
    pretrained, batch = toy.blocks(), jax.tree.map(lambda x: x[0, :, 0], toy.batches())
    losses = jax.vmap(lambda blocks, batch: toy.loss(toy.FROZEN, blocks, batch, None))
    toy.assert_close(losses(adapters(method, state), batch), losses(pretrained, batch))
    _, later, infos = run("federa", rounds=3)
    toy.assert_equal(later.mixer[0], state.mixer[0])
    np.testing.assert_allclose(infos[-1]["disagreement_product"], product_disagreement(later.blocks), rtol=1e-4)


def test_federa_without_the_frozen_weights_says_what_it_lacks():
    base = {"layer/query": toy.BASE["layer/query"]}
    with pytest.raises(ValueError, match=r"`base` lacks those of 'layer/value' \(1 missing in all\)"):
        init(jax.random.key(0), toy.blocks(), build("federa"), toy.SGD, base=base)


# All of them


@pytest.mark.parametrize("spec", ["flora", "fedex_lora", "federa"])
def test_runs_of_one_method_share_a_program(spec):
    """The method is a static argument of the compiled run, so its parts must be the same objects every time."""
    assert hash(build(spec)) == hash(build(spec))
    assert build(spec) == build(spec)
    assert build(f"{spec}+packet_loss:0.2") == build(f"{spec}+packet_loss:0.2")
