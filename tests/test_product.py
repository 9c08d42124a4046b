"""Mixing of products: the linear algebra against dense numpy, and the laws of the methods made of it."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxdfl.methods import build
from jaxdfl.methods.lora_fair import likest, nearest
from jaxdfl.mixing import gossip, packet_loss, product
from jaxdfl.mixing.product import B_POWER, nearest_gauge, truncated_products
from jaxdfl.protocol import Exchange, PerBlock
from jaxdfl.simulate.rounds import make_round
from jaxdfl.trees import client_mean, stack

ALL = PerBlock(True, True, True)
COMPLETE = np.full((6, 6), 1 / 6)
RING = np.asarray(toy.metropolis(jnp.roll(jnp.eye(6), 1, 0) + jnp.roll(jnp.eye(6), -1, 0)))
PATH = "layer/query"
every_split = pytest.mark.parametrize("split", B_POWER)
every_gauge = pytest.mark.parametrize("gauge", ["aligned", "svd"])


def factors(clients=5, rank=3, d_in=40, d_out=30, seed=0):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(clients, rank, d_in)), draw.normal(size=(clients, d_out, rank))


def exchange(weights, shared=ALL):
    weights = jnp.float32(weights)
    links = (weights != 0) & ~jnp.eye(len(weights), dtype=bool)
    return Exchange(jax.random.key(0), 0, weights, links, jnp.ones(len(weights)), shared)


@cache
def compiled(mixer):
    return jax.jit(lambda exchange, blocks: mixer.mix(exchange, blocks, ()))


def mixed(mixer, weights, blocks, shared=ALL):
    found, state, info = compiled(mixer)(exchange(weights, PerBlock(*map(jnp.asarray, shared))), blocks)
    assert state == ()
    return found, info


def products(blocks, path=PATH):
    """B_i A_i in float64, [clients, d_out, d_in]."""
    return np.asarray(blocks.b[path], np.float64) @ np.asarray(blocks.a[path], np.float64)


def best(matrix, rank):
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ vt[..., :rank, :]


def random_weights(clients=6, seed=0):
    """A mean of random permutations: doubly stochastic, and not symmetric."""
    draw = np.random.default_rng(seed)
    return np.mean([np.eye(clients)[draw.permutation(clients)] for _ in range(4)], axis=0)


@pytest.mark.parametrize(("d_in", "d_out"), [(40, 30), (7, 30), (40, 5), (4, 3)])  # stacks of 15: thin, wide and both
def test_the_core_has_the_truncated_svd_of_the_dense_product(d_in, d_out):
    """P9, in float64: five clients of rank 3, so that stacks of 15 are both thinner and wider than a side."""
    a, b = factors(d_in=d_in, d_out=d_out)
    weights = random_weights(clients=5)
    dense = np.einsum("ij,jor,jrd->iod", weights, b, a)
    with jax.enable_x64(True):
        u, s, vt, tail = map(np.asarray, truncated_products(jnp.asarray(weights), jnp.asarray(a), jnp.asarray(b)))
    kept = (u * s[:, None, :]) @ vt
    np.testing.assert_allclose(kept, best(dense, 3), atol=1e-12 * np.abs(dense).max())
    np.testing.assert_allclose(s, np.linalg.svd(dense)[1][:, :3], rtol=1e-12)
    np.testing.assert_allclose(tail, np.sum((dense - kept) ** 2, axis=(1, 2)), rtol=1e-10, atol=1e-20)
    np.testing.assert_allclose(tail, np.sum(np.linalg.svd(dense)[1][:, 3:] ** 2, axis=1), rtol=1e-10, atol=1e-20)


def test_a_silent_stranger_of_any_size_leaves_no_trace():
    """A weight of zero is as good as absence, also beside factors a billion times larger."""
    a, b = factors()
    huge_a, huge_b = a.copy(), b.copy()
    huge_a[4], huge_b[4] = 1e9 * a[4], 1e9 * b[4]
    weights = np.array([[0.5, 0.25, 0.25, 0, 0]])
    with jax.enable_x64(True):
        found = [truncated_products(*map(jnp.asarray, (weights, *pair))) for pair in ((a, b), (huge_a, huge_b))]
    for x, y in zip(found[0].s, found[1].s, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


@every_gauge
def test_every_split_makes_the_same_products(gauge):
    blocks = toy.blocks(spread=1.0)
    found = [products(mixed(product(split, gauge), RING, blocks)[0]) for split in B_POWER]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-4, atol=1e-5)


@every_split
@every_gauge
def test_a_split_puts_the_singular_values_where_it_says(split, gauge):
    found, _ = mixed(product(split, gauge), RING, toy.blocks(spread=1.0))
    a, b = np.asarray(found.a[PATH]), np.asarray(found.b[PATH])
    grams = {"a": a @ a.swapaxes(1, 2), "b": b.swapaxes(1, 2) @ b}
    identity = np.broadcast_to(np.eye(toy.RANK), grams["a"].shape)
    if split == "balanced":
        np.testing.assert_allclose(grams["a"], grams["b"], rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_allclose(grams["a" if split == "b_carries" else "b"], identity, atol=1e-5)


def test_the_mean_product_is_kept_by_mixing_and_lost_by_truncation_alone():
    """P10: in units of the tail, which is reported."""
    blocks, weights = toy.blocks(spread=1.0), random_weights()
    before = products(blocks)
    consensus = np.einsum("ij,jod->iod", weights, before)
    np.testing.assert_allclose(consensus.mean(0), before.mean(0), atol=1e-12)

    found, info = mixed(product(), weights, blocks)
    np.testing.assert_allclose(products(found), best(consensus, toy.RANK), rtol=1e-4, atol=1e-5)
    tails = 0
    for path in blocks.a:
        consensus = np.einsum("ij,jod->iod", weights, products(blocks, path))
        tails += np.sum((consensus - products(found, path)) ** 2)
    np.testing.assert_allclose(info["truncated"], tails, rtol=1e-4)
    assert np.abs(products(found).mean(0) - before.mean(0)).max() > 0.01


def test_clients_that_agree_on_a_lose_nothing():
    """P_i = (sum_j W_ij B_j) A has rank r: the products are those of plain gossip."""
    one = toy.blocks(spread=1.0)
    blocks = one._replace(a=stack(client_mean(one.a), 6))
    found, info = mixed(product(), RING, blocks)
    plain, _ = mixed(gossip(), RING, blocks)
    np.testing.assert_allclose(products(found), products(plain), rtol=1e-4, atol=1e-5)
    assert info["truncated"] < 1e-9


@every_split
@every_gauge
def test_before_the_first_step_the_factors_gossip(split, gauge):
    """B = 0: a balanced split of nothing would zero A as well, and no gradient would ever be nonzero again."""
    blocks = toy.blocks()
    blocks = blocks._replace(a=toy.blocks(spread=0.3).a)
    found, info = mixed(product(split, gauge), RING, blocks)
    plain, _ = mixed(gossip(), RING, blocks)
    toy.assert_equal(found, plain)
    assert info["truncated"] == 0


def test_one_client_that_has_not_trained_does_not_spoil_its_neighbours():
    """Its own neighbourhood may still be empty, where a link is down."""
    blocks = toy.blocks(spread=1.0)
    blocks = blocks._replace(b=jax.tree.map(lambda b: b.at[2].set(0), blocks.b))
    weights = RING.copy()
    weights[2] = np.eye(6)[2]
    found, _ = mixed(product(), weights, blocks)
    consensus = np.einsum("ij,jod->iod", weights, products(blocks))
    np.testing.assert_allclose(products(found), best(consensus, toy.RANK), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.a[PATH][2], blocks.a[PATH][2])


def test_the_aligned_gauge_is_the_nearest_there_is():
    """No other rotation of the new factors comes nearer to what they are aligned to; a small one does not either."""
    a, b = factors(clients=2)
    with jax.enable_x64(True):
        found_a, found_b = map(np.asarray, nearest_gauge(*map(jnp.asarray, (a[0], b[0], a[1], b[1]))))
    np.testing.assert_allclose(found_b @ found_a, b[0] @ a[0], atol=1e-12)

    def distance(q):
        return np.sum((q.T @ found_a - a[1]) ** 2) + np.sum((found_b @ q - b[1]) ** 2)

    draw = np.random.default_rng(0)
    for size in (1e-3, 0.1, 10.0):
        for _ in range(20):
            skew = np.triu(size * draw.normal(size=(3, 3)), 1)
            skew -= skew.T
            assert distance(np.eye(3)) < distance(np.linalg.solve(np.eye(3) - skew, np.eye(3) + skew))  # Cayley


@pytest.mark.parametrize(("gauge", "moved"), [("aligned", False), ("svd", True)])
def test_an_isolated_client_that_is_balanced_keeps_its_factors_in_the_aligned_gauge(gauge, moved):
    """Nothing to mix, nothing to factor: optimizer moments and triggers' snapshots stay true."""
    balanced, _ = mixed(product("balanced", gauge="aligned"), np.eye(6), toy.blocks(spread=1.0))
    again, _ = mixed(product("balanced", gauge), np.eye(6), balanced)
    same = np.allclose(again.a[PATH], balanced.a[PATH], rtol=1e-4, atol=1e-5)
    assert same != moved
    np.testing.assert_allclose(products(again), products(balanced), rtol=1e-4, atol=1e-5)


@every_gauge
def test_on_the_complete_graph_all_clients_hold_the_same_factors(gauge):
    """Not only the same product: an averaged adapter is then each client's own."""
    found, _ = mixed(product(gauge=gauge), COMPLETE, toy.blocks(spread=1.0))
    for x in jax.tree.leaves(found):
        np.testing.assert_allclose(x, np.broadcast_to(x[0], x.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["decaf", "flexlora", "sum_product"])
def test_on_the_complete_graph_decaf_is_the_best_approximation_of_the_mean_product_as_flexlora_and_sum_product(name):
    """P4, and Eckart and Young."""
    blocks = toy.blocks(spread=1.0)
    found, _ = mixed(build(name).mixer, COMPLETE, blocks)
    for path in blocks.a:
        expected = np.broadcast_to(best(products(blocks, path).mean(0), toy.RANK), (6, toy.D_OUT, toy.D_IN))
        np.testing.assert_allclose(products(found, path), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["flexlora", "sum_product"])
def test_a_server_asks_everyone_whatever_the_network(name):
    blocks = toy.blocks(spread=1.0)
    on_a_ring, info = mixed(build(name).mixer, RING, blocks)
    toy.assert_close(on_a_ring, mixed(build(name).mixer, COMPLETE, blocks)[0])
    assert info["messages"] == 6 * 5


def test_wrappers_of_a_server_of_products_act_on_its_links():
    """They stand between the server and the wire, not outside of it where their weights would be overwritten."""
    assert build("flexlora+packet_loss:0.2").mixer is build("sum_product+packet_loss:0.2").mixer
    lossy = packet_loss(product(), 1.0)
    found, _ = mixed(build("flexlora+packet_loss:1").mixer, COMPLETE, toy.blocks(spread=1.0))
    alone, _ = mixed(lossy, COMPLETE, toy.blocks(spread=1.0))
    toy.assert_close(found, alone)
    np.testing.assert_allclose(products(found), products(toy.blocks(spread=1.0)), rtol=1e-4, atol=1e-5)


def test_no_broadcast_is_nearer_to_the_clients_products_than_sum_product_nor_to_their_factors_than_product_sum():
    blocks, draw = toy.blocks(spread=1.0), np.random.default_rng(0)
    target_a, target_b = np.asarray(blocks.a[PATH], np.float64), np.asarray(blocks.b[PATH], np.float64)

    def of_products(a, b):
        return np.sum((b @ a - target_b @ target_a) ** 2)

    def of_factors(a, b):
        return np.sum((a - target_a) ** 2) + np.sum((b - target_b) ** 2)

    for name, distance in (("sum_product", of_products), ("product_sum", of_factors)):
        found, _ = mixed(build(name).mixer, COMPLETE, blocks)
        a, b = np.asarray(found.a[PATH][0], np.float64), np.asarray(found.b[PATH][0], np.float64)
        for size in (0.01, 0.1, 1.0):  # below 0.01 float32 rounding of the factors is seen
            for _ in range(30):
                away = distance(a + size * draw.normal(size=a.shape), b + size * draw.normal(size=b.shape))
                assert distance(a, b) < away
    assert of_products(*(client_mean(x) for x in (target_a, target_b))) > of_products(
        *(np.asarray(x[PATH][0], np.float64) for x in mixed(build("sum_product").mixer, COMPLETE, blocks)[0][:2])
    )


@pytest.mark.parametrize("shared", [PerBlock(*map(bool, flags)) for flags in np.ndindex(2, 2, 2)])
def test_a_block_that_is_not_shared_stays_and_a_factor_shared_alone_gossips(shared):
    blocks = toy.blocks(spread=1.0)
    found, _ = mixed(product(), RING, blocks, shared)
    plain, _ = mixed(gossip(), RING, blocks, shared)
    toy.assert_close(found.head, plain.head)
    for sent, new, old, gossiped in zip(shared[:2], found[:2], blocks[:2], plain[:2], strict=True):
        if shared.a and shared.b:
            assert not np.allclose(new[PATH], gossiped[PATH], atol=0.01)
        elif sent:
            toy.assert_close(new, gossiped)
        else:
            toy.assert_equal(new, old)


@pytest.mark.parametrize(("weights", "messages"), [(RING, 12), (COMPLETE, 30), (np.eye(6), 0)])
def test_a_message_is_both_factors_and_the_head(weights, messages):
    """Two layers: A [2, 7] and B [5, 2] of four bytes each, and a bias [5]. Products cost what factors do."""
    _, info = mixed(product(), weights, toy.blocks(spread=1.0))
    assert info["messages"] == messages
    assert info["bytes"] == messages * (4 * 2 * (2 * 7) + 4 * 2 * (5 * 2) + 4 * 5)


def test_bfloat16_factors_are_factored_in_float32_and_rounded_once():
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toy.blocks(spread=1.0))
    found, _ = mixed(product(), RING, halves)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(found))
    full, _ = mixed(product(), RING, jax.tree.map(lambda x: x.astype(jnp.float32), halves))
    toy.assert_close(jax.tree.map(lambda x: x.astype(jnp.float32), found), full, rtol=0.02, atol=0.02)  # 8 bits


@pytest.mark.parametrize(("setting", "message"), [("split=half", "`split` must be one of"), ("gauge=none", "`gauge`")])
def test_an_unknown_split_or_gauge_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        build(f"decaf:{setting}")


def neighbourhood(seed=0):
    """One receiver's means A and B, and P, in float64; the clients differ in both factors."""
    a, b = factors(seed=seed)
    weights = np.random.default_rng(seed).dirichlet(np.ones(len(a)))
    mean_product = np.einsum("j,jor,jrd->od", weights, b, a)
    return np.einsum("j,jrd->rd", weights, a), np.einsum("j,jor->or", weights, b), mean_product


@pytest.mark.parametrize("strength", [1e-6, 0.01, 10.0])
def test_the_correction_of_b_minimises_its_objective(strength):
    mean_a, mean_b, target = neighbourhood()

    def objective(change):
        return np.sum((target - (mean_b + change) @ mean_a) ** 2) + strength * np.sum(change**2)

    with jax.enable_x64(True):
        found = nearest(*map(jnp.asarray, (target @ mean_a.T, mean_a @ mean_a.T, mean_b)), strength)
        found, draw = np.asarray(found), np.random.default_rng(1)
    assert objective(found) < objective(np.zeros_like(found))
    for size in (1e-4, 1e-2, 1.0):
        for _ in range(20):
            assert objective(found) < objective(found + size * draw.normal(size=found.shape))


def test_descent_on_the_cosine_ends_where_least_squares_points():
    """Without a penalty the best (B + D) A for either objective is P on the rows of A, up to a factor."""
    mean_a, mean_b, target = neighbourhood()
    onto = target @ np.linalg.pinv(mean_a) @ mean_a

    def cosine(matrix):
        return np.sum(target * matrix) / (np.linalg.norm(target) * np.linalg.norm(matrix))

    with jax.enable_x64(True):
        given = (target @ mean_a.T, np.linalg.norm(target), mean_a @ mean_a.T, mean_b)
        free, held = (np.asarray(likest(*map(jnp.asarray, given), strength)) for strength in (1e-9, 1e-3))
    assert cosine(mean_b @ mean_a) < 0.96 * cosine(onto)
    np.testing.assert_allclose(cosine((mean_b + free) @ mean_a), cosine(onto), rtol=1e-6)
    assert 0 < np.linalg.norm(held) < np.linalg.norm(free)
    assert cosine(mean_b @ mean_a) < cosine((mean_b + held) @ mean_a)


@pytest.mark.parametrize("objective", ["squared", "cosine"])
def test_lora_fair_is_gossip_under_a_heavy_penalty_and_nearer_to_the_mean_product_under_a_light_one(objective):
    blocks = toy.blocks(spread=1.0)
    plain, _ = mixed(gossip(), RING, blocks)
    heavy, _ = mixed(build(f"lora_fair:1e9:{objective}").mixer, RING, blocks)
    toy.assert_close(heavy, plain)

    light, info = mixed(build(f"lora_fair:0.01:{objective}").mixer, RING, blocks)
    toy.assert_equal((light.a, light.head), (plain.a, plain.head))
    assert info["messages"] == 12
    target = np.einsum("ij,jod->iod", RING, products(blocks))
    if objective == "squared":
        wrong = [np.sum((target - products(each)) ** 2, axis=(1, 2)) for each in (light, plain)]
    else:
        sides = (products(light), products(plain))
        wrong = [-np.sum(target * x, axis=(1, 2)) / np.linalg.norm(x, axis=(1, 2)) for x in sides]
    assert (wrong[0] < wrong[1]).all()


@pytest.mark.parametrize("objective", ["squared", "cosine"])
def test_lora_fair_leaves_clients_that_agree_and_those_that_have_not_trained_alone(objective):
    for blocks in (stack(client_mean(toy.blocks(spread=1.0)), 6), toy.blocks()):
        found, _ = mixed(build(f"lora_fair:objective={objective}").mixer, RING, blocks)
        toy.assert_close(found, blocks, rtol=1e-5, atol=1e-5)


def test_lora_fair_needs_a_strength_above_zero():
    with pytest.raises(ValueError, match="`strength` must be above 0, got 0"):
        build("lora_fair:0")


def test_fedsvd_keeps_the_product_and_makes_the_rows_of_a_orthonormal():
    """On the complete graph from a common A, whatever the B: the server's rule."""
    blocks = toy.blocks(spread=1.0)
    blocks = blocks._replace(a=stack(client_mean(blocks.a), 6))
    found, _ = mixed(build("fedsvd").mixer, COMPLETE, blocks)
    np.testing.assert_allclose(products(found)[0], products(blocks).mean(0), rtol=1e-4, atol=1e-5)
    rows, columns = np.asarray(found.a[PATH]), np.asarray(found.b[PATH])
    np.testing.assert_allclose(rows @ rows.swapaxes(1, 2), np.broadcast_to(np.eye(2), (6, 2, 2)), atol=1e-5)
    gram = columns.swapaxes(1, 2) @ columns  # B = U S: orthogonal columns, largest first
    np.testing.assert_allclose(gram[:, 0, 1], 0, atol=1e-4)
    assert (gram[:, 0, 0] >= gram[:, 1, 1]).all()


@every_gauge
def test_fedsvd_with_a_server_is_ffa_lora_with_an_orthonormal_a_under_sgd(gauge):
    """One A for all: the rows of every mean product are A's. SGD does not see the rotation; Adam would."""
    start = toy.blocks()
    orthonormal = {path: jnp.linalg.qr(a[0].T)[0].T for path, a in start.a.items()}
    start = start._replace(a=stack(orthonormal, 6))

    def after(spec):
        method = build(spec)
        step = jax.jit(make_round(toy.loss, toy.SGD, method, toy.complete_network()))
        state = toy.start(method, toy.SGD)._replace(blocks=start)
        return toy.run(step, state, toy.batches(rounds=6))[0].blocks

    found, plain = after(f"fedsvd:{gauge}"), after("ffa_lora")
    np.testing.assert_allclose(products(found), products(plain), rtol=1e-3, atol=1e-5)
    same = np.allclose(found.a[PATH], orthonormal[PATH], atol=1e-4)
    assert same == (gauge == "aligned")
