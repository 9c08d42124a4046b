"""Decentralised optimisers on quadratics that disagree, in float64, against the centralised optimum and numpy loops.

Client i holds f_i(x) = 1/2 (x - c_i)^T H_i (x - c_i), with x spread over A, B and a head: all that these methods do is
linear in the blocks, so that the blocks may be a vector in disguise.
"""

from functools import cache, wraps

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from jaxdfl.methods import build
from jaxdfl.methods.push_sum import column_stochastic
from jaxdfl.mixing import gossip
from jaxdfl.protocol import Exchange, Network, PerBlock
from jaxdfl.simulate.rounds import init, make_round

M, DIM, ETA, PROX = 8, 7, 0.3, 0.05
NEIGHBOURS = np.roll(np.eye(M), 1, 0) + np.roll(np.eye(M), -1, 0)
RING, SLOW_RING = (np.eye(M) + NEIGHBOURS) / 3, np.eye(M) / 2 + NEIGHBOURS / 4  # smallest eigenvalues -1/3 and 0
LAZY = (np.eye(M) + RING) / 2
ALL = PerBlock(True, True, True)
ROUNDS = 400  # the slowest that exchanges in every round, tracking, is within 1e-8 after 270
EXACT = {  # weights, rounds
    "gradient_tracking": (RING, ROUNDS),
    "local_gradient_tracking": (RING, ROUNDS),
    "extra": (RING, ROUNDS),
    "nids": (RING, ROUNDS),
    "exact_diffusion": (RING, ROUNDS),
    "d2": (SLOW_RING, ROUNDS),
    "flex_atc:1": (RING, ROUNDS),
    "flex_atc:0.3": (RING, 1000),
    "flex_atc:0.1": (RING, 8000),
}
CORRECTED = ("gradient_tracking", "local_gradient_tracking", "extra", "nids", "exact_diffusion", "d2", "flex_atc:0.5")
OPTIMISERS = (*CORRECTED, "nids:0.01", "flex_atc:0.5:0.01", "quasi_global_momentum", "push_sum", "relay_sgd")


def curvatures():
    draw = np.random.default_rng(0)
    turns = np.linalg.qr(draw.normal(size=(M, DIM, DIM)))[0]
    return turns @ (draw.uniform(0.5, 1.5, (M, DIM, 1)) * turns.transpose(0, 2, 1))  # eigenvalues in [0.5, 1.5]


H, CENTRES, START = curvatures(), *np.random.default_rng(1).normal(size=(2, M, DIM))
OPTIMUM = np.linalg.solve(H.sum(0), np.einsum("mij,mj->i", H, CENTRES))


def gradients(x):
    return np.einsum("mij,mj->mi", H, x - CENTRES)


def in_blocks(x):
    """[clients, 7] as A [clients, 1, 3], B [clients, 2, 1] and a head [clients, 2], in float64 if that is enabled."""
    x = jnp.asarray(x)
    return PerBlock({"w": x[:, None, :3]}, {"w": x[:, 3:5, None]}, {"bias": x[:, 5:]})


def flat(blocks):
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(blocks)], axis=1)


def shrunk(x):
    return np.sign(x) * np.maximum(np.abs(x) - PROX, 0)


def loss(frozen, blocks, batch, key):
    apart = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(blocks)]) - batch["centre"]
    return apart @ batch["curvature"] @ apart / 2


@cache
def compiled_run(spec, rounds, steps):
    method, optimizer = build(spec, learning_rate=ETA / steps, local_steps=steps), optax.sgd(ETA / steps)

    @jax.jit
    def every_round(weights):
        network = Network(lambda key, t: weights, lambda key, t: jnp.ones(M))
        batches = {"curvature": jnp.asarray(H), "centre": jnp.asarray(CENTRES)}
        batches = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], steps, 1), batches)
        one_round = make_round(loss, optimizer, method, network)

        def step(state, _):
            state, _ = one_round(None, state, batches)
            return state, flat(state.blocks)

        state = init(jax.random.key(0), in_blocks(START), method, optimizer)
        return jax.lax.scan(step, state, None, rounds)[1]

    return every_round


def run(spec, weights=RING, rounds=ROUNDS, steps=1):
    """The blocks [rounds, clients, 7] after every round of the engine with SGD, in float64."""
    with jax.enable_x64(True):
        x = compiled_run(spec, rounds, steps)(jnp.asarray(weights))
        assert x.dtype == jnp.float64
        return np.asarray(x)


# What they converge to


@pytest.mark.parametrize("spec", EXACT)
def test_corrected_methods_reach_the_centralised_optimum(spec):
    """P11."""
    assert np.abs(run(spec, *EXACT[spec])[-1] - OPTIMUM).max() < 1e-8


@pytest.mark.parametrize("spec", ["dec_lora", "quasi_global_momentum:0.5", "push_sum"])
def test_methods_that_do_not_correct_stop_short_of_it(spec):
    x = run(spec)
    assert np.abs(x[-1] - x[-2]).max() < 1e-8  # they have converged
    assert np.abs(x[-1] - OPTIMUM).max() > 1e-2


def test_local_gradient_tracking_is_exact_with_four_local_steps_and_dec_lora_is_not_even_on_a_complete_graph():
    assert np.abs(run("local_gradient_tracking", steps=4)[-1] - OPTIMUM).max() < 1e-8
    assert np.abs(run("dec_lora", np.full((M, M), 1 / M), steps=4)[-1] - OPTIMUM).max() > 1e-3


@pytest.mark.parametrize(("spec", "rounds"), [("nids", ROUNDS), ("flex_atc:0.3", 1000), ("flex_atc:0.1", 8000)])
def test_the_proximal_methods_reach_the_centralised_lasso(spec, rounds):
    x = np.zeros(DIM)
    for _ in range(500):  # proximal gradient steps of the mean loss
        x = shrunk(x - ETA * np.einsum("mij,mj->i", H, x - CENTRES) / M)
    assert (x == 0).any()
    assert (x != 0).any()
    assert np.abs(run(f"{spec}:prox={PROX}", RING, rounds)[-1] - x).max() < 1e-8


@pytest.mark.parametrize("spec", ["dec_lora", "gradient_tracking", "d2", "quasi_global_momentum:0"])
def test_with_complete_averaging_and_one_local_step_everybody_does_centralised_sgd(spec):
    found, x = run(spec, np.full((M, M), 1 / M)), START
    for t in range(8):
        x = np.tile((x - ETA * gradients(x)).mean(0), (M, 1))
        np.testing.assert_allclose(found[t], x, atol=1e-12)


# The published recursions, as numpy loops


def textbook(name, weights, rounds):
    """The usual recursions, in the blocks of the last two rounds."""
    x, lazy, tracker = [START], (np.eye(M) + weights) / 2, gradients(START)
    for t in range(rounds):
        now = x[-1]
        step = -ETA * gradients(now)
        since = now - x[-2] + step + ETA * gradients(x[-2]) if t else step  # X - X_last + S - S_last
        match name:
            case "gradient_tracking":
                x.append(weights @ (now - ETA * tracker))
                tracker = weights @ tracker + gradients(x[-1]) - gradients(now)
            case "extra":
                x.append(since + weights @ now + (x[-2] - lazy @ x[-2] if t else 0))
            case "nids":
                x.append(lazy @ (now + since) if t else now + since)
            case "exact_diffusion":
                x.append(lazy @ (now + since))
            case "d2":
                x.append(weights @ (now + since))
    return np.stack(x[1:])


@pytest.mark.parametrize("name", ["gradient_tracking", "extra", "nids", "exact_diffusion", "d2"])
def test_displacements_give_the_published_recursion(name):
    weights, _ = EXACT[name]
    np.testing.assert_allclose(run(name, weights)[:12], textbook(name, weights, 12), atol=1e-12)


def test_nids_with_a_proximal_step_is_the_published_recursion():
    found = run(f"nids:prox={PROX}")
    z, before, now = START - ETA * gradients(START), START, shrunk(START - ETA * gradients(START))
    np.testing.assert_allclose(found[0], now, atol=1e-12)
    for t in range(1, 12):
        z = z - now + LAZY @ (2 * now - before - ETA * gradients(now) + ETA * gradients(before))
        before, now = now, shrunk(z)
        np.testing.assert_allclose(found[t], now, atol=1e-12)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("flex_atc:1", "exact_diffusion"),
        ("local_gradient_tracking", "gradient_tracking"),  # with one local step
        ("quasi_global_momentum:0", "dec_lora"),
        ("push_sum", "dec_lora"),  # on doubly stochastic weights
    ],
)
def test_special_cases_are_each_other(one, other):
    np.testing.assert_allclose(run(one), run(other), atol=1e-13)


# Laws of a single exchange, on graphs that change


def exchange(t, weights, shared=ALL):
    weights = jnp.asarray(weights)
    links = (weights != 0) & ~jnp.eye(len(weights), dtype=bool)
    return Exchange(
        jax.random.fold_in(jax.random.key(0), t), t, weights, links, jnp.ones(len(weights)),
        PerBlock(*map(jnp.asarray, shared)),
    )  # fmt: skip


def random_weights(t):
    upper = np.triu(np.random.default_rng(t).random((M, M)) < 0.4, 1)
    return np.asarray(toy.metropolis(jnp.asarray(upper | upper.T, float)))


@cache
def compiled(spec):
    mixer = build(spec, learning_rate=ETA, local_steps=1).mixer
    return mixer.init, jax.jit(mixer.mix)


def exchanges(spec, weights, shared=ALL, step=lambda t: 0.1 * np.random.default_rng(t).normal(size=(M, DIM))):
    """(blocks at the start, after training, and mixed; state; info) of each round, for training from outside.

    To be used in float64. `weights` are those of each round.
    """
    start, mix = compiled(spec)
    x = in_blocks(START)
    state = start(x)
    for t, each in enumerate(weights):
        trained = jax.tree.map(jnp.add, x, in_blocks(step(t)))
        mixed, state, info = mix(exchange(t, each, shared), trained, state)
        yield x, trained, mixed, state, info
        x = mixed


def in_float64(test):
    """A decorator: the whole test with 64-bit types enabled."""

    @wraps(test)
    def wrapped(*args, **kwargs):
        with jax.enable_x64(True):
            test(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("spec", CORRECTED)
@in_float64
def test_corrections_sum_to_zero_so_the_mean_moves_by_the_mean_step_alone(spec):
    correction = None
    for _, trained, mixed, state, _ in exchanges(spec, map(random_weights, range(8))):
        np.testing.assert_allclose(flat(mixed).mean(0), flat(trained).mean(0), atol=1e-13)
        correction = flat(state.total if spec == "extra" else state.correction)
        np.testing.assert_allclose(correction.mean(0), 0, atol=1e-13)
    assert np.abs(correction).max() > 0.01


@in_float64
def test_the_tracker_has_the_mean_of_the_gradients():
    """P11, with -S for the gradient: the tracker is -(S + D)."""
    correction = 0
    for start, trained, _, state, _ in exchanges("gradient_tracking", map(random_weights, range(8))):
        gradient = flat(start) - flat(trained)
        tracker = gradient - correction
        np.testing.assert_allclose(tracker.mean(0), gradient.mean(0), atol=1e-13)
        correction = flat(state.correction)
    assert np.abs(tracker - gradient).max() > 0.01  # and it is not the gradient itself


@pytest.mark.parametrize("spec", OPTIMISERS)
@in_float64
def test_a_block_that_is_not_shared_stays_bit_for_bit(spec):
    for shared, size in ((PerBlock(True, False, True), 3 + 2), (PerBlock(False, True, False), 2)):
        for _, trained, mixed, _, info in exchanges(spec, [RING] * 3, shared):
            for sent, new, old in zip(shared, mixed, trained, strict=True):
                assert sent or all(map(np.array_equal, jax.tree.leaves(new), jax.tree.leaves(old)))
            assert info["bytes"] == info["messages"] * 8 * size


@pytest.mark.parametrize(("name", "diverges"), [("d2", True), ("exact_diffusion", False)])
@in_float64
def test_d2_diverges_where_an_eigenvalue_is_below_minus_a_third_and_exact_diffusion_does_not(name, diverges):
    weights = np.kron(np.eye(4), [[0.3, 0.7], [0.7, 0.3]])  # four pairs; eigenvalues 1 and -0.4
    *_, last = exchanges(name, [weights] * 60, step=lambda t: np.zeros((M, DIM)))
    apart = np.abs(flat(last[2])[::2] - flat(last[2])[1::2]).max()
    assert apart > 1e3 if diverges else apart < 1e-3


@pytest.mark.parametrize(("damped", "length"), [("true", 1), ("false", 1 / (1 - 0.8))])
@in_float64
def test_the_step_of_quasi_global_momentum_settles_at_a_known_length(damped, length):
    *_, last = exchanges(f"quasi_global_momentum:0.8:{damped}", [RING] * 250, step=lambda t: np.ones((M, DIM)))
    start, _, mixed, *_ = last
    np.testing.assert_allclose(flat(mixed) - flat(start), length, rtol=1e-3)  # the start is forgotten as 0.96^t


# Links that lose messages


@pytest.mark.parametrize("seed", range(3))
@in_float64
def test_push_sums_weights_are_column_stochastic_whatever_it_is_given(seed):
    draw = np.random.default_rng(seed)
    found = column_stochastic(jnp.asarray(draw.random((6, 6)) * (draw.random((6, 6)) < 0.5)))
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-14)
    assert (found > -1e-14).all()


@in_float64
def test_push_sum_agrees_on_the_true_mean_where_gossip_drifts_when_links_fail_one_way():
    """P14."""
    still = {"weights": [RING] * 150, "step": lambda t: np.zeros((M, DIM))}
    *_, (_, _, pushed, state, _) = exchanges("push_sum+packet_loss:0.3", **still)
    np.testing.assert_allclose(flat(pushed), np.tile(START.mean(0), (M, 1)), atol=1e-6)
    np.testing.assert_allclose([mass.sum() for mass in state.mass], M, rtol=1e-12)
    *_, (_, _, gossiped, _, _) = exchanges("dec_lora+packet_loss:0.3", **still)
    assert np.ptp(flat(gossiped), axis=0).max() < 1e-6  # agreed, but not on the mean
    assert np.abs(flat(gossiped) - START.mean(0)).max() > 1e-2


# What they cost, by hand: a ring of 8 has 16 directed links, and a client's blocks are 7 floats


@pytest.mark.parametrize(
    ("spec", "messages"),
    [("gradient_tracking", [32, 32]), ("local_gradient_tracking", [32, 32]), ("extra", [16, 16]), ("nids", [0, 16]),
     ("exact_diffusion", [16, 16]), ("d2", [16, 16]), ("flex_atc:1", [16, 16]), ("quasi_global_momentum", [16, 16]),
     ("push_sum", [16, 16]), ("relay_sgd", [16, 16]), ("gradient_tracking+repeated:2", [64, 64])],
)  # fmt: skip
@in_float64
def test_messages_and_bytes_of_the_first_rounds_are_the_hand_count(spec, messages):
    infos = [info for *_, info in exchanges(spec, [RING] * 2)]
    assert [info["messages"] for info in infos] == messages
    assert [info["bytes"] for info in infos] == [56 * each for each in messages]


@in_float64
def test_a_skipped_round_costs_nothing_and_is_skipped_by_all():
    infos = [info for *_, info in exchanges("flex_atc:0.3+packet_loss:0.5", [RING] * 200)]
    spoke = [info for info in infos if info["messages"] > 0]
    assert all(info["messages"] == 16 and info["bytes"] == 16 * 56 for info in spoke)
    assert all(info["bytes"] == info["lost"] == 0 for info in infos if info["messages"] == 0)
    assert 40 < len(spoke) < 80  # 60, give or take three standard deviations


@pytest.mark.parametrize("name", ["gradient_tracking", "extra", "nids", "exact_diffusion", "d2", "flex_atc"])
def test_equal_methods_share_a_mixer_so_that_runs_share_a_program(name):
    assert build(name).mixer is build(name).mixer
    assert build(name).mixer is not gossip()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("flex_atc:0", r"`probability` must lie in \(0, 1\], got 0.0"),
        ("flex_atc:0.5:-1", "`prox` must be at least 0, got -1.0"),
        ("nids:nan", "`prox` must be at least 0, got nan"),
        ("quasi_global_momentum:1", r"`momentum` must lie in \[0, 1\), got 1.0"),
        ("local_gradient_tracking", "needs the run's `learning_rate`, above 0, got None"),
    ],
)
def test_a_setting_out_of_range_is_answered_in_one_clear_line(spec, message):
    with pytest.raises(ValueError, match=message) as error:
        build(spec)
    assert "\n" not in str(error.value)
