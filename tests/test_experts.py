"""Routing at inference: gates, codes, and what a routed model equals in its limits, on a toy and on a small BERT."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from models.small_models import CONFIGS, batch, tiny_model, with_random_b

from jaxdfl.methods.sparse_orthogonal_lora import own_subspaces
from jaxdfl.mixing import gossip
from jaxdfl.mixing.expert_bank import expert_bank, side_by_side, stacked
from jaxdfl.models import adapt
from jaxdfl.protocol import Exchange, PerBlock
from jaxdfl.simulate.evaluate import in_batches, make_evaluate
from jaxdfl.simulate.experts import gates, gather, latent_codes, routed, word_means
from jaxdfl.trees import stack

M = 3
CODES = jnp.eye(M)  # of three experts
EVERYBODY = jnp.ones(M, bool)


def bank_of(blocks, weights):
    """What clients know after one exchange."""
    mixer = expert_bank(gossip())
    clients = len(weights)
    links = (weights != 0) & ~jnp.eye(clients, dtype=bool)
    shared = PerBlock(*map(jnp.asarray, (False, True, False)))
    exchange = Exchange(jax.random.key(0), 0, weights, links, jnp.ones(clients), shared)
    return mixer.mix(exchange, blocks, mixer.init(blocks))[1]


@cache
def bert():
    """A classifier, three clients' blocks with B at work, their bank on the complete graph, and sentences."""
    classifier = adapt(tiny_model(layers=1), jax.random.key(1), rank=2, train_head=True)
    one = with_random_b(classifier.blocks)
    blocks = stack(one, M)
    blocks = blocks._replace(b={path: b * jnp.float32([1, -2, 3])[:, None, None] for path, b in blocks.b.items()})
    blocks = own_subspaces("block", 1)(jax.random.key(2), blocks, {})
    return (
        classifier,
        blocks,
        bank_of(blocks, jnp.full((M, M), 1 / M)),
        batch(CONFIGS["bert"], lengths=(12, 7, 1, 9, 5)),
    )


def chosen(frozen, examples):
    """A feature that is the code of the expert whose number the length says."""
    return CODES[examples.lengths % M]


@jax.jit
def logits(frozen, blocks, examples):
    return bert()[0].logits(frozen, blocks, examples, None)


def of_client(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


# Gates


def test_gates_are_the_softmax_of_cosines_whatever_the_features_lengths():
    features = jnp.float32([[5.0, 0, 0], [0.1, 0.1, 0]])
    cosines = np.array([[1, 0, 0], [2**-0.5, 2**-0.5, 0]])
    expected = np.exp(cosines / 0.5) / np.exp(cosines / 0.5).sum(1, keepdims=True)
    np.testing.assert_allclose(gates(features, 7 * CODES, EVERYBODY, 0.5), expected, rtol=1e-6)


def test_a_temperature_of_zero_takes_the_nearest_and_a_high_one_takes_all_alike():
    features = jnp.float32([[0.2, 0.9, 0.1], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(gates(features, CODES, EVERYBODY, 0.0), [[0, 1, 0], [1, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(gates(features, CODES, EVERYBODY, 1e6), np.full((3, 3), 1 / 3), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_experts_that_were_never_heard_get_nothing(temperature):
    found = gates(jnp.float32([[0, 1, 0], [1, 2, 3]]), CODES, jnp.array([True, False, True]), temperature)
    assert not found[:, 1].any()
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)


def test_a_negative_temperature_is_refused():
    with pytest.raises(ValueError, match="`temperature` must be at least 0, got -1"):
        gates(jnp.ones((1, M)), CODES, EVERYBODY, -1.0)


# Features and codes


def test_the_feature_is_the_mean_word_embedding_without_padding():
    classifier, *_, examples = bert()
    table = np.asarray(classifier.frozen["embeddings/word/table"])
    expected = [table[ids[:n]].mean(0) for ids, n in zip(examples.ids, examples.lengths, strict=True)]
    np.testing.assert_allclose(word_means(classifier.frozen, examples), expected, rtol=1e-5, atol=1e-6)


def test_a_code_is_the_mean_feature_of_a_clients_own_examples():
    classifier, *_, examples = bert()
    parts = [np.array([0, 3]), np.array([1, 2, 4])]
    codes = latent_codes(word_means, classifier.frozen, examples, parts, batch_size=2)
    features = np.asarray(word_means(classifier.frozen, examples))
    np.testing.assert_allclose(codes, [features[part].mean(0) for part in parts], rtol=1e-5, atol=1e-6)


def test_inputs_of_two_vocabularies_find_the_experts_that_read_them():
    """Client k has read the words of its own third; new sentences of such words are nearest to its code."""
    classifier, *_ = bert()
    draw = np.random.default_rng(0)

    def sentences(k, count):
        ids = 3 + 15 * k + draw.integers(0, 15, (count, 8))
        some = batch(CONFIGS["bert"], lengths=(8,) * count, length=8)
        return some._replace(ids=jnp.int32(ids), labels=jnp.full(count, k))

    def pool(count):
        return jax.tree.map(lambda *x: jnp.concatenate(x), *(sentences(k, count) for k in range(M)))

    codes = latent_codes(word_means, classifier.frozen, pool(30), np.split(np.arange(3 * 30), M))
    fresh = pool(20)
    found = gates(word_means(classifier.frozen, fresh), codes, EVERYBODY, 0.0)
    assert np.mean(np.argmax(found, 1) == fresh.labels) > 0.9


# The routed model


def toy_logits(frozen, blocks, examples, key=None):
    """x (scale B A)^T + bias, for x [batch, d_in]."""
    path = "layer/query"
    return examples @ (frozen["scale"] * blocks.b[path] @ blocks.a[path]).T + blocks.head["bias"]


@pytest.mark.parametrize("temperature", [0.0, 0.2])
def test_a_routed_model_is_the_gated_sum_of_products_for_every_input_apart(temperature):
    blocks = toy.blocks(clients=M, spread=1.0)
    x = jax.random.normal(jax.random.key(3), (5, toy.D_IN))
    codes = jax.random.normal(jax.random.key(4), (M, toy.D_IN))
    bank = bank_of(blocks, jnp.full((M, M), 1 / M))
    model = routed(toy_logits, lambda frozen, examples: examples, temperature=temperature, at_once=2)
    found = model(toy.FROZEN, of_client(gather(blocks, bank, codes), 1), x)
    weights = np.asarray(gates(x, codes, EVERYBODY, temperature))
    products = np.asarray(blocks.b["layer/query"] @ blocks.a["layer/query"], np.float64)
    for n in range(5):
        kernel = 2.0 * np.einsum("j,jok->ok", weights[n], products)
        np.testing.assert_allclose(found[n], kernel @ x[n] + blocks.head["bias"][1], rtol=1e-4, atol=1e-4)


def test_hard_routing_is_the_one_expert_alone():
    """On BERT, with a client's own head, and inputs that choose different experts in one batch."""
    classifier, blocks, bank, examples = bert()
    experts = of_client(gather(blocks, bank, CODES), 0)
    found = jax.jit(routed(classifier.logits, chosen, temperature=0.0, at_once=2))(classifier.frozen, experts, examples)
    wanted = np.asarray(examples.lengths % M)
    assert len(set(wanted)) == M
    for j in range(M):
        alone = logits(classifier.frozen, of_client(blocks, j)._replace(head=experts.head.head), examples)
        np.testing.assert_allclose(found[wanted == j], alone[wanted == j], rtol=1e-4, atol=1e-5)


def test_uniform_gates_are_the_stacked_model_of_uniform_weights():
    classifier, blocks, bank, examples = bert()
    experts = of_client(gather(blocks, bank, CODES), 2)
    found = jax.jit(routed(classifier.logits, chosen, temperature=1e6))(classifier.frozen, experts, examples)
    own, beside = of_client(blocks, 2), of_client(stacked(bank), 2)
    both = PerBlock(
        {path: jnp.concatenate([a, beside.a[path]]) for path, a in own.a.items()},
        {path: jnp.concatenate([b, beside.b[path]], axis=1) for path, b in own.b.items()},
        own.head,
    )
    together = logits(classifier.frozen, both, examples)
    np.testing.assert_allclose(found, together, rtol=1e-3, atol=1e-4)  # temperature 1e6 is uniform to 1e-6
    assert np.abs(together - logits(classifier.frozen, own, examples)).max() > 1e-2


def test_experts_go_where_blocks_go():
    """The compiled evaluation of all clients at once counts every sentence once."""
    classifier, blocks, bank, examples = bert()
    evaluate = make_evaluate(routed(classifier.logits, chosen, temperature=0.0), 3, chunk=2)
    counts = evaluate(classifier.frozen, gather(blocks, bank, CODES), jax.device_put(in_batches(examples, 4)))
    assert counts.shape == (M, 3, 3)
    assert (counts.sum((1, 2)) == len(examples.labels)).all()


def test_a_client_without_neighbours_routes_to_itself():
    _, blocks, _, _ = bert()
    experts = gather(blocks, bank_of(blocks, jnp.eye(M)), CODES)
    np.testing.assert_array_equal(experts.head.known, np.eye(M, dtype=bool))
    a, b = side_by_side(bank_of(blocks, jnp.eye(M)))
    for path, x in blocks.a.items():
        np.testing.assert_allclose(b[path] @ a[path], blocks.b[path] @ x, rtol=1e-5, atol=1e-6)
