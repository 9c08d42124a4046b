import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_models import CONFIGS, batch, tiny_model, with_random_b
from transformers import AutoConfig

from jaxdfl.lora import effective_kernel
from jaxdfl.models import EncoderConfig, adapt, cross_entropy, random_model
from jaxdfl.models.layers import Adapter
from jaxdfl.models.paths import put_together, take_apart
from jaxdfl.protocol import PerBlock

KEY = jax.random.key(0)
QUERY = "encoder/layers/0/attention/query"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def shallow():
    return tiny_model(layers=1)  # for gradients, which take long to compile


@pytest.fixture(scope="module")
def examples():
    return batch(CONFIGS["bert"])


def test_fresh_adapters_change_nothing_and_leave_the_model_alone(model, examples):
    before = model(examples)
    classifier = adapt(model, KEY)
    logits = classifier.logits(classifier.frozen, classifier.blocks, examples, None)
    np.testing.assert_allclose(logits, before, atol=1e-6)
    assert model.encoder.layers[0].attention.query.adapter is None


def test_an_adapter_equals_a_hand_merged_kernel(model, examples):
    classifier = adapt(model, KEY, rank=4, alpha=8.0)
    blocks = with_random_b(classifier.blocks)
    structure, arrays = take_apart(model)
    for path in blocks.a:
        arrays[f"{path}/kernel"] = effective_kernel(arrays[f"{path}/kernel"], blocks.a[path], blocks.b[path], 2.0)
    expected = put_together(structure, arrays)(examples)
    assert np.abs(expected - model(examples)).max() > 1e-3
    logits = classifier.logits(classifier.frozen, blocks, examples, None)
    np.testing.assert_allclose(logits, expected, atol=1e-6)


@pytest.mark.parametrize("pattern", ["query", "feed_forward", "pooler", "classifier"])
def test_any_linear_layer_can_be_adapted(model, examples, pattern):
    classifier = adapt(model, KEY, rank=2, targets=[pattern])
    assert classifier.blocks.a
    assert all(pattern in path for path in classifier.blocks.a)
    logits = classifier.logits(classifier.frozen, with_random_b(classifier.blocks), examples, None)
    assert np.abs(logits - model(examples)).max() > 1e-4


def test_shapes_are_those_of_the_contract(model):
    blocks = adapt(model, KEY, rank=5, targets=["feed_forward/intermediate"]).blocks
    path = "encoder/layers/1/feed_forward/intermediate"
    assert blocks.a[path].shape == (5, 16)
    assert blocks.b[path].shape == (24, 5)


@pytest.mark.parametrize(("model_type", "head"), [("bert", {"classifier"}), ("roberta", {"classifier", "pooler"})])
def test_the_trained_head_is_what_the_checkpoint_calls_classifier(model_type, head):
    model = tiny_model(model_type)
    frozen, trained = (adapt(model, KEY, train_head=flag) for flag in (False, True))
    assert frozen.blocks.head == {}
    assert {path.split("/")[0] for path in trained.blocks.head} == head
    assert frozen.frozen.keys() == trained.frozen.keys() | trained.blocks.head.keys()
    examples = batch(model.config)
    for classifier in (frozen, trained):
        logits = classifier.logits(classifier.frozen, classifier.blocks, examples, None)
        np.testing.assert_allclose(logits, model(examples), atol=1e-6)


def test_dropout_follows_the_key_and_acts_in_training_only(model, examples):
    classifier = adapt(model, KEY, dropout=0.5)
    blocks = with_random_b(classifier.blocks)
    one, same, other, evaluation = (
        classifier.logits(classifier.frozen, blocks, examples, key)
        for key in (jax.random.key(1), jax.random.key(1), jax.random.key(2), None)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-4
    assert np.abs(one - evaluation).max() > 1e-4
    plain = adapt(model, KEY)
    np.testing.assert_allclose(evaluation, plain.logits(plain.frozen, blocks, examples, jax.random.key(1)), atol=1e-6)


def test_dropout_keeps_the_mean_of_the_adapters_term(model):
    classifier = adapt(model, KEY, dropout=0.25)
    a, b = (x[QUERY] for x in with_random_b(classifier.blocks)[:2])
    adapter = Adapter(a, b, scale=2.0, dropout=0.25, salt=1)
    x = jnp.ones((4000, 16))
    dropped = adapter(x, jax.random.key(3))
    spread = dropped.std(0) / 4000**0.5  # standard error of the mean
    assert (np.abs(dropped.mean(0) - adapter(x[:1])[0]) < 5 * spread).all()


def test_layers_drop_independently():
    a, b = jnp.ones((1, 16)), jnp.ones((1, 1))
    x = jnp.ones((64, 16))
    one, other = (Adapter(a, b, scale=1.0, dropout=0.5, salt=s)(x, KEY) for s in (1, 2))
    assert np.abs(np.corrcoef(one[:, 0], other[:, 0])[0, 1]) < 0.5


def test_gradient_of_a_is_zero_while_b_is_zero_and_only_blocks_get_one(shallow, examples):
    classifier = adapt(shallow, KEY, train_head=True)
    grads = jax.jit(jax.grad(cross_entropy(classifier), argnums=1))(
        classifier.frozen, classifier.blocks, examples, None
    )
    assert isinstance(grads, PerBlock)
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(grads.a))
    assert all(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(grads.b) + jax.tree.leaves(grads.head))


def test_factors_of_another_rank_keep_the_scale(model, examples):
    classifier = adapt(model, KEY, rank=2, alpha=6.0)
    clients = [with_random_b(classifier.blocks, seed) for seed in (1, 2, 3)]
    # mean of B_i A_i, exactly, as one adapter of rank 3 * 2
    stacked = PerBlock(
        {path: jnp.concatenate([c.a[path] for c in clients]) for path in classifier.blocks.a},
        {path: jnp.concatenate([c.b[path] for c in clients], 1) / 3 for path in classifier.blocks.b},
        {},
    )
    structure, arrays = take_apart(model)
    for path in stacked.a:
        kernels = [effective_kernel(arrays[f"{path}/kernel"], c.a[path], c.b[path], 3.0) for c in clients]
        arrays[f"{path}/kernel"] = sum(kernels) / 3
    expected = put_together(structure, arrays)(examples)
    np.testing.assert_allclose(classifier.logits(classifier.frozen, stacked, examples, None), expected, atol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_vmap_over_clients_equals_a_loop(shallow, dropout):
    classifier = adapt(shallow, KEY, train_head=True, dropout=dropout)
    clients = [with_random_b(classifier.blocks, seed) for seed in (1, 2, 3)]
    batches = [batch(shallow.config, seed=seed) for seed in (1, 2, 3)]
    keys = jax.random.split(jax.random.key(5), 3)
    stacked, batched = (jax.tree.map(lambda *xs: jnp.stack(xs), *trees) for trees in (clients, batches))
    grad = jax.jit(jax.value_and_grad(cross_entropy(classifier), argnums=1))
    together = jax.jit(jax.vmap(grad, in_axes=(None, 0, 0, 0)))(classifier.frozen, stacked, batched, keys)
    for i in range(3):
        alone = grad(classifier.frozen, clients[i], batches[i], keys[i])
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, atol=2e-6), together, alone)


def test_frozen_weights_are_arguments_and_not_constants_of_the_program(model, examples):
    classifier = adapt(model, KEY)
    jaxpr = jax.make_jaxpr(classifier.logits)(classifier.frozen, classifier.blocks, examples, None)
    assert max((np.size(x) for x in jaxpr.consts), default=0) < 2


def test_loss_is_the_mean_cross_entropy(model, examples):
    classifier = adapt(model, KEY)
    logits = classifier.logits(classifier.frozen, classifier.blocks, examples, None)
    expected = -jax.nn.log_softmax(logits)[jnp.arange(4), examples.labels].mean()
    loss = cross_entropy(classifier)(classifier.frozen, classifier.blocks, examples, None)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_the_loss_does_not_hold_the_weights_of_the_classifier_it_was_made_of():
    """It lives as long as the compiled program, which serves other seeds with other weights."""
    classifier = adapt(tiny_model(layers=1), KEY)
    alive, loss = weakref.ref(classifier.frozen["pooler/kernel"]), cross_entropy(classifier)
    del classifier
    gc.collect()
    assert alive() is None
    assert callable(loss)


def test_training_adapters_alone_lowers_the_loss(shallow, examples):
    classifier = adapt(shallow, KEY, rank=4, dropout=0.1)
    loss = cross_entropy(classifier)
    optimizer = optax.adam(0.03)

    @jax.jit
    def step(blocks, state, key):
        grads = jax.grad(loss, argnums=1)(classifier.frozen, blocks, examples, key)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(blocks, updates), state

    blocks, state = classifier.blocks, optimizer.init(classifier.blocks)
    for key in jax.random.split(KEY, 30):
        blocks, state = step(blocks, state, key)
    before, after = (loss(classifier.frozen, b, examples, None) for b in (classifier.blocks, blocks))
    assert after < 0.9 * before


def test_bfloat16_backbone_keeps_float32_factors_and_small_updates(examples):
    model = tiny_model(dtype=jnp.bfloat16, layers=1)
    classifier = adapt(model, KEY)
    assert {x.dtype for x in jax.tree.leaves(classifier.blocks)} == {jnp.dtype("float32")}
    structure, _ = take_apart(tiny_model(layers=1))
    exact = adapt(put_together(structure, {k: v.astype(jnp.float32) for k, v in take_apart(model)[1].items()}), KEY)
    small = jax.tree.map(lambda x: 1e-4 * x, with_random_b(classifier.blocks).b)
    blocks = classifier.blocks._replace(b=small)
    layer = "encoder/layers/0/attention/query/kernel"
    lost = effective_kernel(classifier.frozen[layer], blocks.a[QUERY], blocks.b[QUERY], 2.0) == classifier.frozen[layer]
    assert lost.mean() > 0.5  # what merging would do in bfloat16, and why it is not the default there
    grads, reference = (
        jax.jit(jax.grad(cross_entropy(c), argnums=1))(c.frozen, blocks, examples, None).b[QUERY]
        for c in (classifier, exact)
    )
    assert grads.dtype == jnp.float32
    np.testing.assert_allclose(grads, reference, atol=0.1 * np.abs(reference).max())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.0}, "`dropout` must lie in \\[0, 1\\), got 1.0"),
        ({"rank": 17}, "`rank` must lie in 1..16"),
        ({"targets": ["q_proj"]}, "q_proj.*'query'"),
    ],
)
def test_impossible_adapters_are_refused(model, settings, message):
    with pytest.raises(ValueError, match=message):
        adapt(model, KEY, **settings)


def test_roberta_large_has_the_papers_numbers_of_parameters():
    settings = AutoConfig.for_model(
        "roberta",
        vocab_size=50265,
        max_position_embeddings=514,
        type_vocab_size=1,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    )
    config = EncoderConfig.from_transformers(settings)

    def arrays(key):  # only traced: nothing of this size is allocated
        classifier = adapt(random_model(config, 2, key), key)
        return classifier.frozen, classifier.blocks

    frozen, blocks = (sum(x.size for x in jax.tree.leaves(tree)) for tree in jax.eval_shape(arrays, jax.random.key(0)))
    assert frozen == 355_361_794
    assert blocks == 786_432
