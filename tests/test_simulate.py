"""Whole runs: where they stop, how they go on, what they leave alone; and the evaluation between."""

from functools import cache
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxdfl.data.examples import Examples
from jaxdfl.methods import build
from jaxdfl.models import EncoderConfig, random_model
from jaxdfl.models.classifier import adapt, cross_entropy
from jaxdfl.protocol import PerBlock
from jaxdfl.simulate.evaluate import in_batches, make_evaluate
from jaxdfl.simulate.rounds import init
from jaxdfl.simulate.run import make_advance, simulate
from jaxdfl.trees import stack

ROUNDS = 8
METHOD = build("tad_lora:3")
NETWORK = toy.random_network()
EXAMPLES = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), toy.batches(rounds=ROUNDS))
INDICES = np.arange(ROUNDS * toy.CLIENTS * 3, dtype=np.int32).reshape(ROUNDS, toy.CLIENTS, 3)
advance = cache(lambda: make_advance(toy.loss, toy.ADAMW))


class Saved(NamedTuple):
    """What a checkpoint keeps: numbers without a device or a key type."""

    round: int
    infos: dict
    leaves: list


def save(at):
    plain = at.state._replace(key=jax.random.key_data(at.state.key))
    return Saved(at.round, at.infos, [np.array(x) for x in jax.tree.leaves(plain)])


def restore(saved):
    tree = jax.tree.structure(toy.start(METHOD))
    state = jax.tree.unflatten(tree, map(jnp.asarray, saved.leaves))
    return state._replace(key=jax.random.wrap_key_data(state.key))


def run(state, every, asked=None):
    """The state at the end and what was saved at every stop."""
    saved = []

    def plan(these):
        if asked is not None:
            asked.append(these)
        return INDICES[these.start : these.stop]

    final = simulate(
        advance(), METHOD, NETWORK, toy.FROZEN, state, EXAMPLES, plan,
        rounds=ROUNDS, every=every, stop=lambda at: saved.append(save(at)),
    )  # fmt: skip
    return final, saved


@cache
def straight():
    return run(toy.start(METHOD), every=3)


def test_a_run_stops_at_the_start_at_every_multiple_and_at_the_end():
    final, saved = straight()
    assert [stop.round for stop in saved] == [0, 3, 6, 8]
    assert saved[0].infos == {}
    assert [len(stop.infos["loss"]) for stop in saved[1:]] == [3, 3, 2]
    assert int(final.round) == ROUNDS


@pytest.mark.parametrize("index", range(4))
def test_a_run_goes_on_from_any_stop_bit_for_bit(index):
    """The state alone decides: graphs, phase and moments included."""
    final, saved = straight()
    asked = []
    resumed, later = run(restore(saved[index]), every=3, asked=asked)
    toy.assert_equal(resumed, final)
    assert [stop.round for stop in later] == [stop.round for stop in saved[index:]]
    for stop, first_time in zip(later[1:], saved[index + 1 :], strict=True):
        toy.assert_equal(stop.infos, first_time.infos)
    assert asked == [range(a.round, b.round) for a, b in pairwise(later)]


@pytest.mark.parametrize("every", [1, 8, 100])
def test_how_often_a_run_stops_does_not_change_its_numbers(every):
    final, saved = run(toy.start(METHOD), every)
    toy.assert_close(final, straight()[0])
    assert [stop.round for stop in saved] == (list(range(ROUNDS + 1)) if every == 1 else [0, ROUNDS])
    for name in ("loss", "cross_term", "messages", "contraction"):
        these, those = (np.concatenate([stop.infos[name] for stop in run[1:]]) for run in (saved, straight()[1]))
        np.testing.assert_allclose(these, those, rtol=1e-3, atol=1e-7)


def test_a_run_resumed_off_the_beat_finds_it_again():
    _, saved = straight()
    final, later = run(restore(saved[1]), every=4)
    assert [stop.round for stop in later] == [3, 4, 8]
    toy.assert_close(final, straight()[0])


def test_a_run_leaves_the_state_it_starts_from_as_it_was_and_every_stop_holds_one_of_its_own():
    state, stops = toy.start(METHOD), []
    kept = jax.tree.map(np.array, state.blocks)
    simulate(
        advance(), METHOD, NETWORK, toy.FROZEN, state, EXAMPLES, lambda these: INDICES[these.start : these.stop],
        rounds=ROUNDS, every=3, stop=stops.append,
    )  # fmt: skip
    toy.assert_equal(state.blocks, kept)
    assert [int(stop.state.round) for stop in stops] == [0, 3, 6, 8]
    for stop, saved in zip(stops, straight()[1], strict=True):
        toy.assert_equal(save(stop).leaves, saved.leaves)


def test_lora_dropout_follows_the_seed():
    """A real adapter with dropout: the same seed gives the same bits, another seed others."""
    config = EncoderConfig(
        "bert", vocabulary=20, positions=4, types=2, width=8, layers=1, heads=2, intermediate=8, initializer_range=0.3
    )
    model = random_model(config, 2, jax.random.key(0))
    classifier = adapt(model, jax.random.key(1), rank=2, dropout=0.3, targets=("query",))
    ids = np.random.default_rng(0).integers(0, 20, (8, 4)).astype(np.int32)
    labels = jnp.arange(8, dtype=jnp.int32) % 2
    examples = Examples(jnp.asarray(ids), jnp.zeros((8, 4), jnp.int8), jnp.full(8, 4, jnp.int32), labels)
    method, clients = build("dec_lora"), 3
    network, dropped = toy.complete_network(clients), make_advance(cross_entropy(classifier), toy.ADAMW)

    def outcome(seed):
        state = init(jax.random.key(seed), stack(classifier.blocks, clients), method, toy.ADAMW)
        return simulate(
            dropped, method, network, classifier.frozen, state, examples,
            lambda these: np.tile(np.arange(4, dtype=np.int32), (len(these), clients, 2, 1)),
            rounds=2, every=2, stop=lambda at: None,
        ).blocks  # fmt: skip

    first, again, other = map(outcome, (0, 0, 1))
    toy.assert_equal(first, again)
    assert any((x != y).any() for x, y in zip(*map(jax.tree.leaves, (first, other)), strict=True))


class Points(NamedTuple):
    x: np.ndarray
    labels: np.ndarray


def linear(frozen, blocks, batch, key):
    assert key is None
    return batch.x @ frozen + blocks.head["bias"]


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 32])
def test_evaluation_counts_every_example_once_however_it_is_batched(batch_size, chunk):
    """Ten examples, three classes: the last batch is filled up (or the only one), and the filling is not counted."""
    draw = np.random.default_rng(0)
    points = Points(draw.normal(size=(10, 4)).astype(np.float32), draw.integers(0, 3, 10).astype(np.int32))
    frozen, bias = jnp.float32(draw.normal(size=(4, 3))), jnp.float32(draw.normal(size=(3, 3)))
    blocks = PerBlock({}, {}, {"bias": bias})
    batches = in_batches(points, batch_size)
    assert batches.x.shape == (-(-10 // batch_size), batch_size, 4)
    found = make_evaluate(linear, 3, chunk=chunk)(frozen, blocks, batches)
    expected = np.zeros((3, 3, 3), int)
    for client in range(3):
        predicted = np.argmax(points.x @ np.asarray(frozen) + np.asarray(bias[client]), axis=1)
        np.add.at(expected[client], (points.labels, predicted), 1)
    np.testing.assert_array_equal(found, expected)
    assert (found.sum((1, 2)) == 10).all()


def test_a_client_that_diverged_has_no_counts_rather_than_a_guessers():
    points = Points(np.ones((5, 4), np.float32), np.zeros(5, np.int32))
    bias = jnp.array([[0.0, 0.0, 0.0], [jnp.nan, 0.0, 0.0]])
    counts = make_evaluate(linear, 3)(jnp.zeros((4, 3)), PerBlock({}, {}, {"bias": bias}), in_batches(points, 2))
    assert counts.sum((1, 2)).tolist() == [5, 0]


def test_a_mixer_may_begin_with_the_blocks_themselves_and_the_key_stays_the_callers():
    """A client may cache its own blocks: the program is given buffers of their own, and takes those alone."""
    key, mixer = jax.random.key(0), METHOD.mixer._replace(init=lambda blocks: blocks)
    method = METHOD._replace(mixer=mixer)
    state = init(key, toy.blocks(), method, toy.ADAMW)
    simulate(
        advance(), method, NETWORK, toy.FROZEN, state, EXAMPLES, lambda these: INDICES[these.start : these.stop],
        rounds=ROUNDS, every=ROUNDS, stop=lambda at: None,
    )  # fmt: skip
    assert not key.is_deleted()
