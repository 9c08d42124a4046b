"""Laws that the papers state or imply, on a bilinear toy and on a small BERT, all through the compiled engine.

Numbered as in the project's notes. Each method is run once per network and shared by the tests; on one federation
all gossiping methods run in one compiled program, so two runs that should agree differ by nothing but their data.
"""

from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from jax.flatten_util import ravel_pytree

from jaxdfl.data.examples import Examples
from jaxdfl.methods import METHODS, build
from jaxdfl.methods.schedules import nothing, only_a
from jaxdfl.models import EncoderConfig, random_model
from jaxdfl.models.classifier import adapt, cross_entropy
from jaxdfl.protocol import Network, PerBlock
from jaxdfl.simulate.rounds import init, make_round, round_keys
from jaxdfl.simulate.run import make_advance, simulate
from jaxdfl.trees import stack

ROUNDS, STEPS, M = 6, 3, toy.CLIENTS
LEARNING_RATE, DECAY = 0.02, 0.1  # of toy.ADAMW
OPTIMIZERS = {"adamw": toy.ADAMW, "sgd": toy.SGD}
everywhere = pytest.mark.parametrize("where", ["toy", "bert"])


class Federation(NamedTuple):
    """Clients with data of their own, as `simulate` takes them."""

    loss: Any
    frozen: Any
    blocks: PerBlock  # stacked
    examples: Any
    plan: np.ndarray  # [rounds, clients, steps] or [rounds, clients, steps, batch]


def toy_federation():
    examples = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), toy.batches(rounds=ROUNDS, steps=STEPS))
    plan = np.arange(ROUNDS * M * STEPS, dtype=np.int32).reshape(ROUNDS, M, STEPS)
    return Federation(toy.loss, toy.FROZEN, toy.blocks(), examples, plan)


def bert_federation():
    """Client i reads words of its own and prefers one class; the head is trained as well."""
    config = EncoderConfig(
        "bert", vocabulary=40, positions=8, types=2, width=16, layers=2, heads=2, intermediate=16, initializer_range=0.3
    )
    model = random_model(config, 3, jax.random.key(0))
    classifier = adapt(model, jax.random.key(1), rank=2, alpha=4.0, train_head=True)
    draw, per_client = np.random.default_rng(0), 12
    owner = np.repeat(np.arange(M), per_client)
    count = len(owner)
    labels = np.where(draw.random(count) < 0.7, owner % 3, draw.integers(0, 3, count))
    ids = 4 + (owner[:, None] * 5 + draw.integers(0, 12, (count, 8))) % 36
    examples = Examples(
        jnp.int32(ids), jnp.zeros(ids.shape, jnp.int8), jnp.int32(draw.integers(3, 9, count)), jnp.int32(labels)
    )
    plan = draw.integers(0, per_client, (ROUNDS, M, STEPS, 4)) + np.arange(M)[:, None, None] * per_client
    return Federation(
        cross_entropy(classifier), classifier.frozen, stack(classifier.blocks, M), examples, np.int32(plan)
    )


@cache
def federation(where):
    return {"toy": toy_federation, "bert": bert_federation}[where]()


@cache
def advance(where, optimizer):
    return make_advance(federation(where).loss, OPTIMIZERS[optimizer])


@cache
def network(world):
    """Random links on a sparse graph, a fixed ring, everybody with everybody, nobody with anybody."""
    ring = jnp.float32(np.roll(np.eye(M), 1, 0) + np.roll(np.eye(M), -1, 0))
    graphs = {"ring": toy.metropolis(ring), "complete": jnp.full((M, M), 1 / M), "isolated": jnp.eye(M)}
    if world == "sparse":
        return toy.random_network(0.3)
    return Network(lambda key, round: graphs[world], lambda key, round: jnp.ones(M))


def run(where, method, world, optimizer="adamw", blocks=None, state=None):
    """States after 0, 1, ... rounds and the infos of all rounds."""
    here, states, infos = federation(where), [], []
    if state is None:
        state = init(jax.random.key(0), blocks or here.blocks, method, OPTIMIZERS[optimizer])

    def stop(at):
        states.append(jax.tree.map(jnp.copy, at.state))
        infos.append(at.infos)

    simulate(
        advance(where, optimizer), method, network(world), here.frozen, jax.tree.map(jnp.copy, state), here.examples,
        lambda these: here.plan[these.start : these.stop], rounds=ROUNDS, every=1, stop=stop,
    )  # fmt: skip
    return states, {name: np.concatenate([info[name] for info in infos[1:]]) for name in infos[1]}


@cache
def trajectory(where, spec, world="sparse"):
    return run(where, build(spec), world)


def blocks_of(states):
    return [state.blocks for state in states]


def drawn_weights(state, world="sparse"):
    """The weights of the round that follows `state`."""
    key = round_keys(state.key, state.round).network
    return np.asarray(network(world).weights(key, state.round), np.float64)


def double(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def mean_product(blocks):
    """(1/m) sum_i B_i A_i over all targets, as one vector in float64."""
    blocks = double(blocks)
    return np.concatenate([(blocks.b[path] @ blocks.a[path]).mean(0).ravel() for path in blocks.a])


def product_of_means(blocks):
    blocks = double(blocks)
    return np.concatenate([(blocks.b[path].mean(0) @ blocks.a[path].mean(0)).ravel() for path in blocks.a])


def cross_term(blocks):
    """By its definition, mean of products less product of means."""
    return mean_product(blocks) - product_of_means(blocks)


def apart(left, right):
    """Largest distance of two trees, entry by entry, over the largest entry."""
    pairs = [(np.asarray(x), np.asarray(y)) for x, y in zip(*map(jax.tree.leaves, (left, right)), strict=True)]
    return max(np.abs(x - y).max() for x, y in pairs) / max(np.abs(x).max() for x, _ in pairs)


# P6, P19: what rests is left alone


@everywhere
@pytest.mark.parametrize("world", ["sparse", "ring"])
def test_ffa_lora_keeps_a_bit_for_bit_and_has_no_cross_term(where, world):
    states, info = trajectory(where, "ffa_lora", world)
    for state in states:
        toy.assert_equal(state.blocks.a, states[0].blocks.a)
        assert np.linalg.norm(cross_term(state.blocks)) <= 1e-14 * np.linalg.norm(mean_product(state.blocks))
    assert (info["disagreement_b"] > 1e-3).all()  # the clients do differ
    assert not info["cross_term"].any()
    assert not info["disagreement_a"].any()


@everywhere
def test_a_resting_block_and_its_adam_moments_stay_bit_for_bit_under_weight_decay(where):
    """P19, and 1.8: gossip does not touch the resting factor of RoLoRA, so nothing at all may move it."""
    states, _ = trajectory(where, "rolora")
    for t, (before, after) in enumerate(pairwise(states)):
        active, resting = ("b", "a") if t % 2 == 0 else ("a", "b")
        toy.assert_equal(getattr(after.blocks, resting), getattr(before.blocks, resting))
        toy.assert_equal(getattr(after.opt, resting), getattr(before.opt, resting))
        for part in ("blocks", "opt"):
            pair = (getattr(getattr(state, part), active) for state in (before, after))
            assert all((x != y).any() for x, y in zip(*map(jax.tree.leaves, pair), strict=True))


@everywhere
def test_a_resting_factor_of_tad_lora_is_mixed_and_nothing_else(where):
    """P3: A <- W A exactly, so its disagreement cannot grow while it rests."""
    states, info = trajectory(where, "tad_lora:2")
    for t, (before, after) in enumerate(pairwise(states)):
        resting = "a" if t % 4 < 2 else "b"
        old, new, weights = getattr(before.blocks, resting), getattr(after.blocks, resting), drawn_weights(before)
        for path in old:
            mixed = np.einsum("ij,j...->i...", weights, np.asarray(old[path], np.float64))
            np.testing.assert_allclose(new[path], mixed, rtol=1e-5, atol=1e-6)
        if t:
            now, earlier = info[f"disagreement_{resting}"][t], info[f"disagreement_{resting}"][t - 1]
            assert now <= earlier * (1 + 1e-5) + 1e-6


@everywhere
def test_training_a_first_wastes_the_phase_since_b_is_zero(where):
    """P21: the gradient of A is B^T G = 0, so weight decay is all that happens to A."""
    method = build("dec_lora")._replace(trains=only_a)
    first, *_, last = run(where, method, "isolated")[0]
    adam = last.opt.a[0]
    assert all(not np.any(moment) for moment in jax.tree.leaves((adam.mu, adam.nu)))
    decayed = jax.tree.map(lambda x: x * (1 - LEARNING_RATE * DECAY) ** (ROUNDS * STEPS), first.blocks.a)
    toy.assert_close(last.blocks.a, decayed)
    toy.assert_equal(last.blocks.b, first.blocks.b)


# P4, P5: methods that are one another in a limit


@everywhere
@pytest.mark.parametrize("world", ["sparse", "ring", "complete"])
def test_alternating_methods_that_never_switch_are_ffa_lora(where, world):
    """P5. RoLoRA to the bit; TAD-LoRA to rounding, since it averages copies of A that are equal."""
    ffa, tad, rolora = (
        blocks_of(trajectory(where, spec, world)[0]) for spec in ("ffa_lora", f"tad_lora:{ROUNDS}", f"rolora:{ROUNDS}")
    )
    toy.assert_equal(rolora, ffa)
    assert apart(tad, ffa) < 1e-5
    assert apart(blocks_of(trajectory(where, f"tad_lora:{ROUNDS - 1}", world)[0]), ffa) > 1e-3


@everywhere
def test_tad_lora_with_period_one_is_rolora_on_the_complete_graph_alone(where):
    """P4, and the cross term vanishes after every round there."""
    states, info = trajectory(where, "tad_lora:1", "complete")
    assert apart(blocks_of(states), blocks_of(trajectory(where, "rolora:1", "complete")[0])) < 1e-5
    assert (info["cross_term"] < 1e-6).all()
    sparse = [blocks_of(trajectory(where, spec)[0]) for spec in ("tad_lora:1", "rolora:1")]
    assert apart(*sparse) > 1e-3


@everywhere
def test_adf_lora_is_tad_lora_with_the_same_period_on_the_same_graph(where):
    toy.assert_equal(trajectory(where, "adf_lora:2")[0], trajectory(where, "tad_lora:2")[0])


@everywhere
@pytest.mark.parametrize("spec", ["dec_lora", "ffa_lora", "tad_lora:2", "fedsa_lora"])
def test_without_links_a_method_is_local_training_on_its_schedule(where, spec):
    """P20: p = 0 gives W = I, and mixing with I is exact."""
    alone = build(spec)._replace(shares=nothing)
    toy.assert_equal(trajectory(where, spec, "isolated")[0], run(where, alone, "sparse")[0])


def toy_gradient(blocks, batch):
    """Of the toy's loss, by hand."""
    a, b, head = {}, {}, 0.0
    for path, target in batch.items():
        error = 2 * (2.0 * blocks.b[path] @ blocks.a[path] + blocks.head["bias"][:, None] - target) / target.size
        a[path], b[path], head = 2.0 * blocks.b[path].T @ error, 2.0 * error @ blocks.a[path].T, head + error.sum(1)
    return PerBlock(a, b, {"bias": head})


def bert_gradient():
    here = federation("bert")
    return jax.jit(lambda blocks, batch: jax.grad(here.loss, argnums=1)(here.frozen, blocks, batch, None))


def fedavg_by_the_book(here, gradient):
    """AdamW (Loshchilov and Hutter, 2019) and FedAvg in numpy and float64: a loop over rounds, clients and steps."""
    clients = [double(jax.tree.map(lambda x, i=i: x[i], here.blocks)) for i in range(M)]
    zeros = jax.tree.map(np.zeros_like, clients[0])
    moments = [(zeros, zeros)] * M
    for t in range(ROUNDS):
        for i in range(M):
            for step in range(STEPS):
                count = t * STEPS + step + 1
                batch = jax.tree.map(lambda x, at=here.plan[t, i, step]: np.asarray(x)[at], here.examples)
                g = double(gradient(clients[i], batch))
                mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[i][0], g)
                nu = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, moments[i][1], g)
                moments[i] = mu, nu

                def step_of(x, m, v, count=count):
                    adam = m / (1 - 0.9**count) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
                    return x - LEARNING_RATE * (adam + DECAY * x)

                clients[i] = jax.tree.map(step_of, clients[i], mu, nu)
        clients = [jax.tree.map(lambda *x: np.mean(x, axis=0), *clients)] * M
    return clients[0]


@everywhere
def test_dec_lora_on_the_complete_graph_is_fedavg_of_factors(where):
    """P4, against the registered FedAvg (on a sparse graph, which it ignores) and against a loop in numpy."""
    dec_lora = trajectory(where, "dec_lora", "complete")[0]
    assert apart(blocks_of(dec_lora), blocks_of(trajectory(where, "fedavg_lora", "sparse")[0])) < 1e-5
    expected = fedavg_by_the_book(federation(where), toy_gradient if where == "toy" else bert_gradient())
    for i in range(M):
        assert apart(jax.tree.map(lambda x, i=i: x[i], dec_lora[-1].blocks), expected) < 1e-4


# P2, P7, P10: means and the cross term


@everywhere
@pytest.mark.parametrize("spec", ["dec_lora", "tad_lora:1", "fedsa_lora"])
def test_the_cross_term_is_what_it_says_and_is_bounded_by_the_disagreements(where, spec):
    """P7: (1/m) sum dB dA = mean(BA) - mean(B) mean(A), and at most sqrt(Xi_A Xi_B)."""
    states, info = trajectory(where, spec)
    expected = [np.linalg.norm(cross_term(blocks)) for blocks in blocks_of(states[1:])]
    assert max(expected) > 1e-4
    np.testing.assert_allclose(info["cross_term"], expected, rtol=1e-4, atol=1e-7)
    assert (info["cross_term"] <= info["disagreement_a"] * info["disagreement_b"] * (1 + 1e-5)).all()


@everywhere
@pytest.mark.parametrize("world", ["sparse", "ring", "complete"])
def test_mixing_moves_the_mean_product_by_the_change_of_the_cross_term(where, world):
    """Dec-LoRA keeps mean A and mean B but not the mean of B A; on the complete graph it loses all of C."""
    local = run(where, build("local"), world)[0]
    mixed = run(where, build("dec_lora"), world, state=local[-2])[0][-1].blocks
    unmixed = local[-1].blocks  # the same training, without the mixing of the last round
    for new, old in zip(jax.tree.leaves(double(mixed)), jax.tree.leaves(double(unmixed)), strict=True):
        np.testing.assert_allclose(new.mean(0), old.mean(0), rtol=1e-6, atol=1e-6 * np.abs(old).max())
    drift, lost = mean_product(mixed) - mean_product(unmixed), cross_term(mixed) - cross_term(unmixed)
    size = np.linalg.norm(cross_term(unmixed))
    assert np.linalg.norm(drift) > 0.05 * size > 1e-4
    assert np.linalg.norm(drift - lost) < 1e-4 * size
    if world == "complete":
        assert np.linalg.norm(drift + cross_term(unmixed)) < 1e-4 * size


# P18: the gauge


def turned(blocks, rotations):
    """(A_i, B_i) -> (Q_i^T A_i, B_i Q_i): other factors of the same products. `rotations` is [clients, rank, rank]."""
    return blocks._replace(
        a={path: jnp.einsum("msr,msi->mri", rotations, a) for path, a in blocks.a.items()},
        b={path: jnp.einsum("mor,mrs->mos", b, rotations) for path, b in blocks.b.items()},
    )


def products(blocks):
    return {path: blocks.b[path] @ blocks.a[path] for path in blocks.a}


@everywhere
def test_a_common_rotation_of_the_factors_changes_nothing_under_sgd(where):
    """Nor do rotations of each client's own, until the clients mix. Adam sees coordinates, so under it both matter."""
    angle = np.random.default_rng(0).uniform(0.5, 2.5, M)
    own = jnp.float32(np.stack([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1))
    common = stack(own[0], M)
    start = jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), federation(where).blocks
    )
    toy.assert_close(products(turned(start, own)), products(start), rtol=1e-5, atol=1e-5)

    def outcome(blocks, world, optimizer):
        method = build("dec_lora")
        return products(run(where, method, world, optimizer, blocks)[0][-1].blocks)

    def moved(rotations, world, optimizer):
        return apart(outcome(start, world, optimizer), outcome(turned(start, rotations), world, optimizer))

    assert moved(common, "ring", "sgd") < 1e-5
    assert moved(own, "isolated", "sgd") < 1e-5
    assert moved(own, "ring", "sgd") > 1e-2
    assert moved(common, "ring", "adamw") > 1e-2


# The order of the methods, by consensus alone


def noise(frozen, blocks, batch, key):
    """A loss whose gradient is standard normal noise in every entry: training that only drives clients apart."""
    flat, _ = ravel_pytree(blocks)
    return flat @ jax.random.normal(key, flat.shape)


def test_mixing_the_resting_factor_holds_the_cross_term_below_rolora_and_joint_training():
    """The consensus toy of the notes (1.4): ten clients, unit noise in what trains, mean ||C|| over 60 rounds.

    TAD < RoLoRA < joint for every probability and seed; longer periods help where the graph contracts fast.
    """
    rounds, optimizer, clients = 60, optax.sgd(1.0), 10
    walk = make_advance(noise, optimizer)
    first = toy.blocks(clients=clients, head=False)
    examples = {"unread": jnp.zeros(1)}

    def mean_cross_term(method, p, seed):
        stops = []
        simulate(
            walk, method, worlds[p], None, init(jax.random.key(seed), first, method, optimizer), examples,
            lambda these: np.zeros((len(these), clients, 1), np.int32), rounds=rounds, every=rounds, stop=stops.append,
        )  # fmt: skip
        return stops[-1].infos["cross_term"].mean()

    worlds = {p: toy.random_network(p, clients) for p in (0.5, 0.1)}
    specs = ("tad_lora:5", "tad_lora:1", "rolora:1", "dec_lora")
    for p in worlds:
        found = np.array([[mean_cross_term(build(spec), p, seed) for spec in specs] for seed in range(3)])
        assert (found[:, 1] < found[:, 2]).all()
        assert (found[:, 2] < found[:, 3]).all()
        ratio = found.mean(0)[2] / found.mean(0)[1]
        assert 1.3 < ratio < 2.3  # notes: 1.86 at p = 0.5 and 1.57 at p = 0.1
        if p == 0.5:
            assert (found[:, 0] < 0.6 * found[:, 1]).all()  # notes: 0.29 against 0.79


# What becomes of the moments


@pytest.mark.parametrize(
    ("moments", "steps_remembered"),
    [  # steps that Adam has counted for A, B and the head after each of six rounds; B trains in rounds 0, 1, 4, 5
        ("kept", ([0, 0, 3, 6, 6, 6], [3, 6, 6, 6, 9, 12], [3, 6, 9, 12, 15, 18])),
        ("reset_each_round", ([0, 0, 3, 3, 0, 0], [3, 3, 0, 0, 3, 3], [3, 3, 3, 3, 3, 3])),
        ("reset_at_switch", ([0, 0, 3, 6, 6, 6], [3, 6, 6, 6, 3, 6], [3, 6, 9, 12, 15, 18])),
    ],
)
def test_moments_are_kept_or_start_afresh_as_the_setting_says(moments, steps_remembered):
    method = METHODS["tad_lora"](period=2)
    step = jax.jit(make_round(toy.loss, toy.ADAMW, method, network("ring"), moments=moments))
    state, found = toy.start(method), []
    for t in range(6):
        state, _ = step(toy.FROZEN, state, jax.tree.map(lambda x, t=t: x[t], toy.batches(rounds=6)))
        adam = [block[0] for block in state.opt]
        found.append([int(block.count[0]) for block in adam])
        for block in adam:
            assert np.unique(block.count).size == 1
            assert all(np.any(x) == bool(block.count[0]) for x in jax.tree.leaves(block.mu))
    np.testing.assert_array_equal(np.transpose(found), steps_remembered)
