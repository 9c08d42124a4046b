"""Packed sentences, and layers computed once, against the same sentences padded and the whole model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_models import batch, tiny_model, with_random_b

from jaxdfl.data.packing import Room, pack
from jaxdfl.models import adapt, cross_entropy
from jaxdfl.models.packed import packed_cross_entropy
from jaxdfl.models.prefix import above, remember

KEY = jax.random.key(0)
LENGTHS = (12, 3, 7, 1, 5, 2, 9)
ROOMS = [Room(12, 1, 4), Room(12, 3, 2), Room(24, 2, 7)]


@pytest.fixture(scope="module", params=["bert", "roberta"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def examples(model):
    return batch(model.config, LENGTHS)


@pytest.mark.parametrize("room", ROOMS)
def test_packed_logits_are_those_of_each_sentence_alone(model, examples, room):
    rows, _ = pack(examples, room)
    logits = jax.vmap(model)(rows).reshape(-1, 3)
    slots = np.asarray(rows.labels).ravel() >= 0
    expected = np.asarray(model(examples))
    found = np.asarray(logits)[slots]
    order = [np.abs(expected - each).sum(1).argmin() for each in found]
    assert sorted(order) == list(range(len(LENGTHS)))
    np.testing.assert_allclose(found, expected[order], atol=2e-6)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("room", ROOMS)
def test_packed_loss_and_gradients_equal_those_of_padded_sentences(model, examples, room):
    classifier = adapt(model, KEY, train_head=True)
    blocks = with_random_b(classifier.blocks)
    padded, packed = (
        jax.jit(jax.value_and_grad(loss, argnums=1))(classifier.frozen, blocks, examples, None)
        for loss in (cross_entropy(classifier), packed_cross_entropy(classifier.logits, room))
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), packed, padded)
    value = packed_cross_entropy(classifier.logits, room)(classifier.frozen, blocks, examples, None)
    np.testing.assert_allclose(value, padded[0], rtol=1e-6)  # without a gradient, too


def focal(logits, labels):
    hit = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
    return -((1 - jnp.exp(hit)) ** 2) * hit


def test_a_loss_of_ones_own_is_the_same_packed_and_padded_and_has_its_own_gradients(model, examples):
    classifier = adapt(model, KEY, train_head=True)
    blocks = with_random_b(classifier.blocks)
    losses = cross_entropy(classifier, focal), packed_cross_entropy(classifier.logits, ROOMS[1], focal)
    padded, packed = (
        jax.jit(jax.value_and_grad(loss, argnums=1))(classifier.frozen, blocks, examples, None) for loss in losses
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), packed, padded)
    each = focal(classifier.logits(classifier.frozen, blocks, examples, None), examples.labels)
    np.testing.assert_allclose(packed[0], each.mean(), rtol=1e-5)
    assert packed[0] < cross_entropy(classifier)(classifier.frozen, blocks, examples, None)  # focal is below it


def test_clients_under_vmap_may_need_different_numbers_of_groups(model):
    classifier = adapt(model, KEY)
    loss = packed_cross_entropy(classifier.logits, ROOMS[0])
    clients = [with_random_b(classifier.blocks, seed) for seed in (1, 2, 3)]
    batches = [batch(model.config, lengths) for lengths in ((12, 12, 12), (1, 2, 3), (6, 6, 4))]
    grad = jax.value_and_grad(loss, argnums=1)
    stacked, batched = (jax.tree.map(lambda *xs: jnp.stack(xs), *trees) for trees in (clients, batches))
    together = jax.jit(jax.vmap(grad, in_axes=(None, 0, 0, None)))(classifier.frozen, stacked, batched, None)
    for place, (blocks, examples) in enumerate(zip(clients, batches, strict=True)):
        alone = grad(classifier.frozen, blocks, examples, None)
        jax.tree.map(lambda x, y, i=place: np.testing.assert_allclose(x[i], y, rtol=2e-5, atol=2e-6), together, alone)


def test_the_gradient_follows_what_is_done_to_the_loss(model, examples):
    classifier = adapt(model, KEY)
    loss, blocks = packed_cross_entropy(classifier.logits, ROOMS[0]), with_random_b(classifier.blocks)
    once, thrice = (
        jax.grad(lambda b, by=by: by * loss(classifier.frozen, b, examples, None) + optax.global_norm(b.b))(blocks)
        for by in (1.0, 3.0)
    )
    penalty = jax.grad(lambda b: optax.global_norm(b.b))(blocks)
    jax.tree.map(
        lambda x, y, p: np.testing.assert_allclose(y - p, 3 * (x - p), rtol=1e-4, atol=1e-5), once, thrice, penalty
    )


def test_packed_dropout_follows_the_key_and_keeps_the_mean(model, examples):
    classifier = adapt(model, KEY, dropout=0.3)
    loss = jax.jit(packed_cross_entropy(classifier.logits, ROOMS[0]))
    blocks = jax.tree.map(lambda x: 0.3 * x, with_random_b(classifier.blocks))  # small, so the loss is nearly linear
    one, same, other = (loss(classifier.frozen, blocks, examples, jax.random.key(seed)) for seed in (1, 1, 2))
    assert one == same != other
    drawn = np.array([loss(classifier.frozen, blocks, examples, key) for key in jax.random.split(KEY, 200)])
    dry = loss(classifier.frozen, blocks, examples, None)
    assert abs(drawn.mean() - dry) < 4 * drawn.std() / 200**0.5 + 1e-3 * abs(dry)  # 1e-3: it is not quite linear


def test_recomputed_activations_change_nothing(model, examples):
    results = []
    for remat in (False, True):
        classifier = adapt(model, KEY, remat=remat)
        grad = jax.jit(jax.value_and_grad(cross_entropy(classifier), argnums=1))
        results.append(grad(classifier.frozen, with_random_b(classifier.blocks), examples, None))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), *results)


def test_layers_computed_once_equal_layers_computed_in_every_step(model, examples):
    """The factors, too, are those that the whole model's layers would get."""
    whole = adapt(model, KEY, first_layer=1)
    assert all("layers/1/" in path for path in whole.blocks.a)
    table, (renamed,) = remember(model, 1, [jax.tree.map(np.asarray, examples)], ROOMS[0])
    upper = adapt(above(model, 1, table), KEY, first_layer=1)
    jax.tree.map(np.testing.assert_array_equal, upper.blocks, whole.blocks)
    assert not any(path.startswith(("encoder/layers/0", "embeddings/word")) for path in upper.frozen)
    blocks = with_random_b(whole.blocks)
    for loss in (cross_entropy, lambda classifier: packed_cross_entropy(classifier.logits, ROOMS[0])):
        results = [
            jax.value_and_grad(loss(classifier), argnums=1)(classifier.frozen, blocks, texts, None)
            for classifier, texts in ((whole, examples), (upper, jax.tree.map(jnp.asarray, renamed)))
        ]
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), *results)


def test_nothing_is_differentiated_below_the_first_adapter(model, examples):
    """Counted in products of the compiled gradient: those of the lower layer run forward only."""

    def flops(first):
        classifier = adapt(model, KEY, first_layer=first)
        grad = jax.jit(jax.grad(cross_entropy(classifier), argnums=1))
        return grad.lower(classifier.frozen, classifier.blocks, examples, None).compile().cost_analysis()["flops"]

    assert flops(1) < 0.75 * flops(0)


def test_adapters_above_the_last_layer_are_refused(model):
    with pytest.raises(ValueError, match="from number `first_layer` \\(2\\) on"):
        adapt(model, KEY, first_layer=2)
