"""One round: what each client does on its own, and the settings of `make_round`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from jax.flatten_util import ravel_pytree

from jaxdfl.methods import build
from jaxdfl.methods.schedules import both_factors, nothing, only_b
from jaxdfl.mixing import event_triggered, everyone, gossip, repeated
from jaxdfl.protocol import Method, Mixer, Network, PerBlock
from jaxdfl.simulate.rounds import init, make_round
from jaxdfl.trees import squared_norm

RING = toy.metropolis(jnp.float32(np.roll(np.eye(6), 1, 0) + np.roll(np.eye(6), -1, 0)))
FIRST = toy.blocks(spread=0.3)
STEPS = 3
BATCHES = jax.tree.map(lambda x: x[0], toy.batches(steps=STEPS, noise=0.3))


def fixed(weights=RING, work=None):
    return Network(lambda key, round: weights, lambda key, round: jnp.ones(len(weights)) if work is None else work)


def still(frozen, blocks, batch, key):
    """A loss without a gradient."""
    return 0.0 * squared_norm(blocks)


def noise(frozen, blocks, batch, key):
    """A loss whose gradient is random and follows the key alone."""
    flat, _ = ravel_pytree(blocks)
    return flat @ jax.random.normal(key, flat.shape)


def one_round(
    method, optimizer=toy.ADAMW, loss=toy.loss, network=None, blocks=FIRST, batches=BATCHES, seed=0, **options
):
    state = init(jax.random.key(seed), blocks, method, optimizer)
    return jax.jit(make_round(loss, optimizer, method, network or fixed(), **options))(toy.FROZEN, state, batches)


def moved(state, blocks=FIRST):
    return jax.tree.map(lambda new, old: new - old, state.blocks, blocks)


def test_a_client_takes_its_share_of_the_steps_and_the_loss_counts_those_alone():
    """Against optax on one client at a time. Shares that are no whole number of steps are rounded down."""
    third = jnp.float32(1) - jnp.float32(2 / 3)  # times 3 it rounds to just below 1, and is one step all the same
    work, done = jnp.array([1.0, 2 / 3, third, 0.0, 0.99, 0.5]), [3, 2, 1, 0, 2, 1]
    state, info = one_round(build("local"), network=fixed(work=work))
    assert state.opt.a[0].count.tolist() == state.opt.head[0].count.tolist() == done
    value_and_grad, losses = jax.jit(jax.value_and_grad(toy.loss, argnums=1)), []
    for client, steps in enumerate(done):
        blocks = jax.tree.map(lambda x, i=client: x[i], FIRST)
        opt = toy.ADAMW.init(blocks)
        for step in range(steps):
            batch = jax.tree.map(lambda x, i=client, k=step: x[i, k], BATCHES)
            value, gradient = value_and_grad(toy.FROZEN, blocks, batch, None)
            losses.append(value)
            updates, opt = toy.ADAMW.update(gradient, opt, blocks)
            blocks = optax.apply_updates(blocks, updates)
        toy.assert_close(jax.tree.map(lambda x, i=client: x[i], state.blocks), blocks)
    toy.assert_equal(*(jax.tree.map(lambda x: x[3], blocks) for blocks in (state.blocks, FIRST)))
    np.testing.assert_allclose(info["loss"], np.mean(losses), rtol=1e-5)


def test_a_round_in_which_nobody_works_has_no_loss_and_still_mixes():
    state, info = one_round(build("dec_lora"), network=fixed(work=jnp.zeros(6)))
    assert info["loss"] == 0
    expected = jax.tree.map(lambda x: np.einsum("ij,j...->i...", RING, x), FIRST)
    toy.assert_close(state.blocks, expected)


@pytest.mark.parametrize("times", [0.5, 2.0])
def test_clip_bounds_the_norm_over_the_blocks_that_train_and_leaves_less_alone(times):
    """B and the head train; the gradient of A is there, and does not count. The bound is `times` the median norm."""
    method = Method(only_b, nothing, gossip())
    gradient = jax.vmap(lambda blocks, batch: jax.grad(toy.loss, argnums=1)(toy.FROZEN, blocks, batch, None))(
        FIRST, jax.tree.map(lambda x: x[:, 0], BATCHES)
    )
    norms = np.sqrt(jax.vmap(squared_norm)((gradient.b, gradient.head)))
    clip = float(times * np.median(norms))
    state, _ = one_round(method, optax.sgd(1.0), batches=jax.tree.map(lambda x: x[:, :1], BATCHES), clip=clip)
    shrink = np.minimum(1, clip / norms)
    assert (shrink < 1).any() if times < 1 else (shrink == 1).any()
    expected = jax.tree.map(lambda g: -g * shrink.reshape(-1, *[1] * (g.ndim - 1)), gradient)
    toy.assert_close(moved(state).b, expected.b, rtol=1e-4, atol=1e-5)
    toy.assert_close(moved(state).head, expected.head, rtol=1e-4, atol=1e-5)
    toy.assert_equal(state.blocks.a, FIRST.a)


def test_step_scale_is_a_learning_rate_by_round_weight_decay_included():
    method = build("local")
    halved = jax.jit(make_round(toy.loss, toy.ADAMW, method, fixed(), step_scale=lambda t: jnp.where(t == 0, 0.5, 0.0)))
    first, _ = halved(toy.FROZEN, init(jax.random.key(0), FIRST, method, toy.ADAMW), BATCHES)
    toy.assert_close(first.blocks, one_round(method, optax.adamw(0.01, weight_decay=0.1))[0].blocks)
    second, _ = halved(toy.FROZEN, first, BATCHES)
    toy.assert_equal(second.blocks, first.blocks)
    assert (second.opt.a[0].count == 2 * STEPS).all()  # the moments go on


def test_a_penalty_is_added_to_the_loss_of_each_client():
    def penalty(blocks):
        return 0.3 * squared_norm(blocks.a)

    def both(frozen, blocks, batch, key):
        return toy.loss(frozen, blocks, batch, key) + penalty(blocks)

    state, info = one_round(build("dec_lora")._replace(penalty=penalty))
    expected, expected_info = one_round(build("dec_lora"), loss=both)
    toy.assert_close((state.blocks, info), (expected.blocks, expected_info), rtol=1e-4)


def test_a_correction_comes_from_the_mixers_state_and_moves_only_what_trains():
    """The mixer carries a counter for every entry; the step is against it, in each of the three local steps."""

    def mix(exchange, blocks, state):
        return blocks, jax.tree.map(lambda x: x + 1, state), {}

    counter = Mixer(init=lambda blocks: jax.tree.map(jnp.zeros_like, blocks), mix=mix)
    method = Method(only_b, nothing, counter, correction=lambda state: state)
    step = jax.jit(make_round(still, optax.sgd(1.0), method, fixed()))
    state = init(jax.random.key(0), FIRST, method, optax.sgd(1.0))
    for done, total in ((1, 0), (2, 3), (3, 9)):
        state, _ = step(toy.FROZEN, state, BATCHES)
        assert all((x == done).all() for x in jax.tree.leaves(state.mixer))
        toy.assert_equal(state.blocks.a, FIRST.a)
        for change in jax.tree.leaves((moved(state).b, moved(state).head)):
            np.testing.assert_allclose(change, -total, rtol=1e-5)


def test_a_clients_randomness_follows_its_number_and_the_seed_not_how_many_others_there_are():
    """Nor how many are trained at a time. Steps and clients have noise of their own."""
    fewer, method = jax.tree.map(lambda x: x[:4], FIRST), build("local")
    six, _ = one_round(method, toy.SGD, noise, chunk=5)
    step = jax.jit(make_round(noise, toy.SGD, method, fixed(jnp.eye(4))))
    four, other = (
        step(toy.FROZEN, init(jax.random.key(seed), fewer, method, toy.SGD), jax.tree.map(lambda x: x[:4], BATCHES))[0]
        for seed in (0, 1)
    )
    toy.assert_close(jax.tree.map(lambda x: x[:4], six.blocks), four.blocks)
    assert all((x != y).all() for x, y in zip(*map(jax.tree.leaves, (four.blocks, other.blocks)), strict=True))
    changes = np.concatenate([np.asarray(x).reshape(6, -1) for x in jax.tree.leaves(moved(six))], axis=1)
    assert np.abs(np.corrcoef(changes) - np.eye(6)).max() < 0.4  # 101 entries a client: 0.1 is one deviation
    assert (
        1.5 < changes.std() / 0.05 < 2.0
    )  # three independent steps: sqrt(3), where the same noise thrice would give 3


def test_contraction_is_the_loss_of_squared_disagreement_in_mixing():
    """Measured on a round without training; NaN where the clients agreed beforehand. The head does not count."""
    method = Method(both_factors, both_factors, gossip())
    step = jax.jit(make_round(still, toy.SGD, method, fixed()))

    def square(blocks):
        return sum(((x - x.mean(0)) ** 2).sum() for x in map(np.asarray, jax.tree.leaves((blocks.a, blocks.b))))

    state, info = step(toy.FROZEN, init(jax.random.key(0), FIRST, method, toy.SGD), BATCHES)
    np.testing.assert_allclose(info["contraction"], square(state.blocks) / square(FIRST), rtol=1e-5)
    assert info["messages"] == 12  # a link of the ring is a weight off the diagonal
    equal = jax.tree.map(jnp.ones_like, FIRST)
    _, info = step(toy.FROZEN, init(jax.random.key(0), equal, method, toy.SGD), BATCHES)
    assert np.isnan(info["contraction"])


def test_a_mixer_that_claims_to_keep_the_mean_does_and_weights_that_do_not_are_seen():
    """Rows alone that sum to one move the mean; that is the network's fault, and shows."""
    rows = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(6), size=6), jnp.float32)
    for mixer in (gossip(), repeated(gossip(), 3), everyone(gossip())):
        assert mixer.keeps_mean
        method = Method(both_factors, both_factors, mixer)
        state = init(jax.random.key(0), FIRST, method, toy.SGD)
        _, info = jax.jit(make_round(still, toy.SGD, method, fixed()))(toy.FROZEN, state, BATCHES)
        assert info["mean_drift"] < 1e-6
    assert not event_triggered(gossip(), 0.1).keeps_mean
    method = Method(both_factors, both_factors, gossip())
    network = fixed()._replace(weights=lambda key, round: rows)
    _, info = jax.jit(make_round(still, toy.SGD, method, network))(toy.FROZEN, state, BATCHES)
    assert info["mean_drift"] > 1e-2


@pytest.mark.parametrize(
    ("blocks", "lengths"),
    [
        (PerBlock({"w": jnp.ones((6, 2, 7))}, {"w": jnp.ones((5, 5, 2))}, {}), r"\[5, 6\]"),
        (PerBlock({"w": jnp.ones((6, 2, 7))}, {"w": jnp.ones((6, 5, 2))}, {"bias": jnp.ones(())}), r"\[0, 6\]"),
        (PerBlock({}, {}, {}), r"\[\]"),
        (PerBlock({"w": jnp.ones((0, 2, 7))}, {"w": jnp.ones((0, 5, 2))}, {}), r"\[0\]"),
    ],
)
def test_blocks_that_do_not_lead_with_one_clients_axis_are_refused(blocks, lengths):
    with pytest.raises(ValueError, match="must lead with the same clients axis, got lengths " + lengths):
        init(jax.random.key(0), blocks, build("dec_lora"), toy.SGD)
