"""Clients with different tasks in one run: one pool, one label space, and a head per task that nobody else touches."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models.small_models import CONFIGS, batch, tiny_model

from jaxdfl.data.batches import plan
from jaxdfl.data.multitask import by_task, confusion_by_task, masked, offsets_of, task_of, union, within_task
from jaxdfl.methods import build
from jaxdfl.metrics import accuracy
from jaxdfl.models import adapt, cross_entropy
from jaxdfl.protocol import Network
from jaxdfl.simulate.evaluate import in_batches, make_evaluate
from jaxdfl.simulate.rounds import adapters, init
from jaxdfl.simulate.run import make_advance, simulate
from jaxdfl.trees import stack

OFFSETS = offsets_of([3, 2])
TASKS = (0, 1, 0, 1)  # of four clients
PAD = 0


def sentences(task, count, seed=0, length=8):
    """Task 0: which third of the words is the sentence from; task 1: which half of other words, in shorter texts."""
    classes, first = ((3, 3), (2, 27))[task]
    draw = np.random.default_rng(seed + task)
    labels = draw.integers(0, classes, count)
    words = 8 if task == 0 else 11
    ids = first + labels[:, None] * words + draw.integers(0, words, (count, length))
    found = batch(CONFIGS["bert"], lengths=(length,) * count, length=length)
    return found._replace(ids=np.int32(ids), types=np.zeros(ids.shape, np.int8), labels=np.int32(labels))


@cache
def pool(seed=0):
    return union([sentences(0, 96, seed), sentences(1, 64, seed, length=6)], OFFSETS, PAD)


@cache
def classifier():
    found = adapt(tiny_model(classes=5, layers=1), jax.random.key(1), rank=2, train_head=True)
    return found._replace(logits=within_task(found.logits, OFFSETS))


def test_offsets_give_every_task_columns_of_its_own():
    assert OFFSETS == (0, 3, 5)
    labels = np.array([0, 2, 3, 4, -1])
    np.testing.assert_array_equal(task_of(labels, OFFSETS), [0, 0, 1, 1, 0])
    np.testing.assert_array_equal(task_of(jnp.asarray(labels), OFFSETS), [0, 0, 1, 1, 0])
    np.testing.assert_array_equal(task_of(np.arange(3), offsets_of([3])), [0, 0, 0])
    np.testing.assert_array_equal(task_of(np.arange(6), offsets_of([1, 2, 3])), [0, 1, 1, 2, 2, 2])


def test_the_pool_is_all_examples_in_order_padded_to_one_length():
    first, second = sentences(0, 96), sentences(1, 64, length=6)
    found = pool()
    assert found.ids.shape == (160, 8)
    np.testing.assert_array_equal(found.ids[:96], first.ids)
    np.testing.assert_array_equal(found.ids[96:, :6], second.ids)
    assert (found.ids[96:, 6:] == PAD).all()
    np.testing.assert_array_equal(found.lengths, [8] * 96 + [6] * 64)
    np.testing.assert_array_equal(found.labels, np.concatenate([first.labels, second.labels + 3]))
    assert found.ids.dtype == found.labels.dtype == np.int32
    assert found.types.dtype == np.int8


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ((0, 3), "`offsets` must be one more than the 2 tasks, got 2"),
        ((0, 2, 4), "`offsets` gives task 0 2 classes, got label 2"),
    ],
)
def test_offsets_of_other_tasks_are_refused(offsets, message):
    with pytest.raises(ValueError, match=message):
        union([sentences(0, 96), sentences(1, 64)], offsets, PAD)


def test_masked_cross_entropy_is_that_of_the_tasks_own_columns():
    logits = jax.random.normal(jax.random.key(0), (4, 5))
    labels = jnp.int32([0, 2, 3, 4])
    found = optax.softmax_cross_entropy_with_integer_labels(masked(logits, labels, OFFSETS), labels)
    x = np.asarray(logits, np.float64)
    expected = [
        np.log(np.exp(x[n, own]).sum()) - x[n, label]
        for n, (label, own) in enumerate([(0, slice(0, 3)), (2, slice(0, 3)), (3, slice(3, 5)), (4, slice(3, 5))])
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert jnp.isfinite(masked(logits, labels, OFFSETS)).all()


@jax.jit
def head_gradient(frozen, blocks, examples):
    return jax.grad(cross_entropy(classifier()), argnums=1)(frozen, blocks, examples, None).head


@pytest.mark.parametrize(("task", "own"), [(0, slice(0, 3)), (1, slice(3, 5))])
def test_a_tasks_gradient_touches_no_other_tasks_rows_of_the_head(task, own):
    here = classifier()
    examples = jax.tree.map(lambda x: jnp.asarray(x[task_of(pool().labels, OFFSETS) == task][:6]), pool())
    head = head_gradient(here.frozen, here.blocks, examples)
    others = np.delete(np.arange(5), np.r_[own])
    for name in ("classifier/kernel", "classifier/bias"):
        assert not head[name][..., others].any()
        assert (head[name][..., own] != 0).all()


def test_every_client_gets_examples_of_its_own_task_and_each_example_one_client():
    labels = np.asarray(pool().labels)
    parts = by_task(labels, OFFSETS, TASKS, seed=0)
    for task, part in zip(TASKS, parts, strict=True):
        assert (task_of(labels[part], OFFSETS) == task).all()
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(160))
    assert [len(part) for part in parts] == [48, 32, 48, 32]


def test_labels_within_a_task_can_be_skewed():
    labels = np.asarray(pool().labels)
    parts = by_task(labels, OFFSETS, (0, 0, 0, 1, 1), seed=0, within="shards:1")
    assert [len(np.unique(labels[part])) for part in parts[3:]] <= [2, 2]
    assert min(np.bincount(labels[part], minlength=5).max() / len(part) for part in parts) > 0.8  # shards cut labels
    even = by_task(labels, OFFSETS, (0, 0, 0, 1, 1), seed=0)
    assert max(np.bincount(labels[part], minlength=5).max() / len(part) for part in even) < 0.7


@pytest.mark.parametrize("tasks", [(0, 0), (0, 1, 2)])
def test_a_task_without_clients_or_a_client_without_a_task_is_refused(tasks):
    with pytest.raises(ValueError, match=r"`tasks` must name each of the tasks 0\.\.1 once at least and no other"):
        by_task(np.asarray(pool().labels), OFFSETS, tasks, seed=0)


def test_each_tasks_counts_are_its_square_on_the_diagonal():
    confusion = np.zeros((2, 5, 5), int)
    confusion[0, :3, :3] = [[4, 0, 0], [1, 1, 0], [0, 0, 2]]
    confusion[0, 3:, 3:] = [[1, 3], [0, 4]]
    confusion[1, 3, 3] = 1
    three, two = confusion_by_task(confusion, OFFSETS)
    assert three.shape == (2, 3, 3)
    assert accuracy(three[0]) == 7 / 8
    assert accuracy(two[0]) == 5 / 8
    assert three[1].sum() == 0


# A whole federation

ROUNDS, STEPS = 8, 6
OPTIMIZER = optax.adam(0.02)


@cache
def advance():
    return make_advance(cross_entropy(classifier()), OPTIMIZER)


@pytest.mark.parametrize("spec", ["dec_lora", "sparse_orthogonal_lora:0.3"])
def test_two_tasks_in_one_federation_both_learn(spec):
    """Losses by task of every client on its own task, before and after; and no guess lies outside the task."""
    here, method = classifier(), build(spec)
    parts = by_task(np.asarray(pool().labels), OFFSETS, TASKS, seed=0)
    weights = jnp.full((4, 4), 0.25)
    network = Network(lambda key, t: weights, lambda key, t: jnp.ones(4))
    stops = []

    fresh = in_batches(pool(seed=9), 40)
    evaluate = make_evaluate(here.logits, 5)
    loss = jax.jit(jax.vmap(cross_entropy(here), in_axes=(None, 0, None, None)))
    of_task = [jax.tree.map(lambda x, k=k: x[task_of(pool().labels, OFFSETS) == k], pool()) for k in (0, 1)]

    def stop(at):
        seen = adapters(method, at.state)
        losses = np.array([loss(here.frozen, seen, examples, None) for examples in of_task])  # [tasks, clients]
        stops.append((losses, np.asarray(evaluate(here.frozen, seen, fresh))))

    simulate(
        advance(), method, network, here.frozen,
        init(jax.random.key(0), stack(here.blocks, 4), method, OPTIMIZER), jax.device_put(pool()),
        lambda these: plan(jax.random.key(1), parts, these, STEPS, 8), rounds=ROUNDS, every=ROUNDS, stop=stop,
    )  # fmt: skip
    (before, _), (after, counts) = stops
    for client, task in enumerate(TASKS):
        assert after[task, client] < 0.7 * before[task, client]
        assert accuracy(confusion_by_task(counts, OFFSETS)[task][client]) > 0.6
    assert not counts[:, :3, 3:].any()
    assert not counts[:, 3:, :3].any()
