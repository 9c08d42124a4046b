"""The domain-adaptive objective's parts in closed form, two heads on a model, and a federation of two domains."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdfl.data.examples import Examples
from jaxdfl.methods import build
from jaxdfl.models import EncoderConfig, adapt, random_model
from jaxdfl.objectives import Domains, domain_adaptive, entropy, gradient_reversal, linear, mmd, rbf, two_heads
from jaxdfl.objectives.domain_adaptive import pseudo_label_loss
from jaxdfl.protocol import Network, PerBlock
from jaxdfl.simulate.rounds import init, make_round
from jaxdfl.trees import stack

OFF = {"consistency": 0.0, "clustering": 0.0, "scattering": 0.0, "discrepancy": 0.0}
SHIFT = jnp.array([3.0, 0.0])  # of the target domain: along x, so that only y still tells the classes apart


class Points(NamedTuple):
    x: Any  # [points, 2]
    labels: Any


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def features(frozen, blocks, examples, key):
    """Linear; the strong view jitters the points."""
    x = examples.x if key is None else examples.x + 0.2 * jax.random.normal(key, examples.x.shape)
    return x @ (frozen + blocks.b["layer"] @ blocks.a["layer"]).T


def head(name):
    return lambda frozen, blocks, x: x @ blocks.head[name]


def loss(**weights):
    return domain_adaptive(features, head("first"), head("second"), **weights)


def one_client(seed=0):
    return PerBlock(
        {"layer": normal(seed, 2, 2)}, {"layer": 0.1 * normal(seed + 1, 4, 2)},
        {"first": normal(seed + 2, 4, 2), "second": normal(seed + 3, 4, 2)},
    )  # fmt: skip


def a_batch(seed=0, target=(False, True, False, False, True, False)):
    labels = jnp.array([0, 1, 1, 0, 1, 0])
    return Domains(Points(normal(seed, 6, 2), labels), jnp.array(target), Points(normal(seed + 9, 6, 2) + 1, labels))


FROZEN = normal(50, 4, 2)


def value(weights, batch=None, key=None):
    return loss(**{**OFF, **weights})(FROZEN, one_client(), batch or a_batch(), key)


def test_reversal_is_the_identity_with_a_gradient_turned_and_scaled():
    x = normal(0, 5)
    assert jnp.array_equal(gradient_reversal(x, 0.3), x)
    plain = jax.grad(lambda x: jnp.sin(x).sum())(x)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sin(gradient_reversal(x, 0.3)).sum())(x), -0.3 * plain, rtol=1e-6)


def test_entropy_lies_between_certainty_and_the_uniform_distribution():
    np.testing.assert_allclose(entropy(jnp.zeros((2, 5))), np.log(5), rtol=1e-6)
    np.testing.assert_allclose(entropy(jnp.array([200.0, 0, 0])), 0, atol=1e-6)
    assert ((entropy(normal(0, 50, 4)) > 0) & (entropy(normal(0, 50, 4)) < np.log(4))).all()
    p = np.array([0.7, 0.2, 0.1])
    np.testing.assert_allclose(entropy(jnp.float32(np.log(p) + 3)), -(p * np.log(p)).sum(), rtol=1e-6)


@pytest.mark.parametrize("kernels", [(rbf,), (linear,), (rbf, linear)])
def test_mmd_is_0_between_equal_samples_and_grows_with_a_shift(kernels):
    x = normal(0, 20, 3)
    np.testing.assert_allclose(mmd(x, x[::-1], kernels), 0, atol=1e-6)
    small, large = mmd(x, x + 0.5, kernels), mmd(x, x + 2.0, kernels)
    assert 1e-3 < small < large


def test_linear_mmd_is_the_squared_distance_of_the_means():
    x, y = normal(0, 7, 3), normal(1, 5, 3) + 2
    np.testing.assert_allclose(mmd(x, y, (linear,)), jnp.sum((x.mean(0) - y.mean(0)) ** 2), rtol=1e-5)
    mask = jnp.array([1.0, 0, 1, 0, 0, 0, 1])
    np.testing.assert_allclose(mmd(x, y, of_x=mask), mmd(x[mask > 0], y) + _other_width(x, y, mask), rtol=1e-5)
    assert mmd(x, y, of_x=jnp.zeros(7)) == 0


def _other_width(x, y, mask):
    """The pooled sample sets the RBF's width, points of no weight included: what that changes."""
    pooled, few = jnp.concatenate([x, y]), x[mask > 0]
    width = ((pooled[:, None] - pooled) ** 2).sum(-1).mean()
    each = [jnp.exp(-((a[:, None] - b) ** 2).sum(-1) / width).mean() for a, b in ((few, few), (few, y), (y, y))]
    return each[0] - 2 * each[1] + each[2] - mmd(few, y, (rbf,))


def test_rbf_mmd_of_two_points_is_the_closed_form():
    """Two points at distance d: the mean of ||x - y||^2 over the four pairs is d^2 / 2, so k(x, y) = e^-2."""
    np.testing.assert_allclose(mmd(jnp.zeros((1, 1)), jnp.full((1, 1), 3.0), (rbf,)), 2 - 2 * np.exp(-2), rtol=1e-5)


def test_only_confident_pseudo_labels_count_and_only_the_strong_view_learns():
    weak = jnp.array([[4.0, 0.0], [0.5, 0.0], [0.0, 6.0]])  # the second is 0.62 sure
    strong = normal(0, 3, 2)
    log_p = jax.nn.log_softmax(strong)
    np.testing.assert_allclose(pseudo_label_loss(weak, strong, 0.95), -(log_p[0, 0] + log_p[2, 1]) / 3, rtol=1e-6)
    np.testing.assert_allclose(
        pseudo_label_loss(weak, strong, 0.0), -(log_p[0, 0] + log_p[1, 0] + log_p[2, 1]) / 3, rtol=1e-6
    )
    assert not jax.grad(pseudo_label_loss)(weak, strong, 0.0).any()
    assert not jax.grad(pseudo_label_loss, argnums=1)(weak, strong, 0.95)[1].any()


def test_the_heads_weigh_the_two_domains_three_to_one_and_one_to_three():
    batch, blocks = a_batch(), one_client()
    x = features(FROZEN, blocks, batch.labelled, None)
    first, second = (
        np.asarray(optax.softmax_cross_entropy_with_integer_labels(x @ blocks.head[name], batch.labelled.labels))
        for name in ("first", "second")
    )
    target = np.asarray(batch.target)
    expected = 0.75 * first[~target].mean() + 0.25 * first[target].mean()
    expected += 0.25 * second[~target].mean() + 0.75 * second[target].mean()
    np.testing.assert_allclose(value({}), expected, rtol=1e-5)


@pytest.mark.parametrize("name", OFF)
def test_a_weight_of_0_drops_its_term_and_terms_are_linear_in_their_weights(name):
    weights = dict.fromkeys(OFF, 0.5) | {"threshold": 0.5}
    without, once, twice = (value(weights | {name: scale}) for scale in (0.0, 1.0, 2.0))
    assert abs(once - without) > 1e-3
    np.testing.assert_allclose(twice - once, once - without, rtol=1e-3, atol=1e-5)
    elsewhere = {other: 0.0 for other in OFF if other != name} | {"threshold": 0.5}
    np.testing.assert_allclose(value(elsewhere | {name: 1.0}) - value({}), once - without, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("name", "played"), [("clustering", "second"), ("scattering", "first")])
def test_encoder_and_head_play_the_entropy_in_opposite_directions(name, played):
    """The head's step is that of plain descent on the term; the encoder's is turned round; the other head rests."""
    batch, blocks = a_batch(target=[False] * 6), one_client()
    points = batch.unlabelled if name == "clustering" else batch.labelled
    sign = -1 if name == "clustering" else 1

    def plain(blocks):
        return sign * entropy(features(FROZEN, blocks, points, None) @ blocks.head[played]).mean()

    def term(blocks):
        return loss(**OFF | {name: 1.0})(FROZEN, blocks, batch, None) - loss(**OFF)(FROZEN, blocks, batch, None)

    found, expected = jax.grad(term)(blocks), jax.grad(plain)(blocks)
    np.testing.assert_allclose(found.head[played], expected.head[played], atol=1e-5)
    for x, y in zip(jax.tree.leaves((found.a, found.b)), jax.tree.leaves((expected.a, expected.b)), strict=True):
        np.testing.assert_allclose(x, -y, atol=1e-5)
    (other,) = {"first", "second"} - {played}
    np.testing.assert_allclose(found.head[other], 0, atol=1e-5)


def test_a_client_without_one_domain_drops_the_terms_that_need_it():
    for target in ([False] * 6, [True] * 6):
        everything = loss()(FROZEN, one_client(), a_batch(target=target), jax.random.key(0))
        assert jnp.isfinite(everything)
    no_source = a_batch(target=[True] * 6)
    for name in ("scattering", "discrepancy"):
        assert value({name: 1.0}, no_source) == value({}, no_source)


@pytest.mark.parametrize("name", ["own", "threshold"])
def test_weights_that_are_no_shares_are_refused(name):
    with pytest.raises(ValueError, match=rf"`{name}` must lie in \[0, 1\], got 1.5"):
        loss(**{name: 1.5})


@cache
def small_classifier():
    config = EncoderConfig("bert", vocabulary=20, positions=8, types=2, width=8, layers=1, heads=2, intermediate=16)
    model = random_model(config, 3, jax.random.key(0))
    return adapt(model, jax.random.key(1), rank=2, dropout=0.5, train_head=True)


def sentences(count=4):
    ids = jax.random.randint(jax.random.key(2), (count, 6), 1, 20)
    return Examples(ids, jnp.zeros_like(ids), jnp.full(count, 6), jnp.arange(count) % 3)


def test_two_heads_on_an_encoder_read_the_same_features_and_the_first_is_its_own():
    classifier = small_classifier()
    two, examples = two_heads(classifier, jax.random.key(3)), sentences()
    for key in (None, jax.random.key(4)):  # with dropout too
        x = two.features(classifier.frozen, two.blocks, examples, key)
        expected = classifier.logits(classifier.frozen, classifier.blocks, examples, key)
        assert x.shape == (4, 8)
        np.testing.assert_allclose(two.first(classifier.frozen, two.blocks, x), expected, atol=1e-6)
    first, second = (head(classifier.frozen, two.blocks, x) for head in (two.first, two.second))
    assert not np.allclose(first, second, atol=1e-3)
    found = two.logits(classifier.frozen, two.blocks, examples, jax.random.key(4))
    np.testing.assert_allclose(found, (first + second) / 2, atol=1e-6)


def test_the_objective_trains_factors_and_both_heads_of_an_encoder():
    classifier = small_classifier()
    two, examples = two_heads(classifier, jax.random.key(3)), sentences()
    objective = domain_adaptive(two.features, two.first, two.second)
    batch = Domains(examples, jnp.array([True, False, False, True]), examples)
    gradient = jax.grad(lambda blocks: objective(classifier.frozen, blocks, batch, jax.random.key(5)))(two.blocks)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves((gradient.b, gradient.head)))


def test_two_heads_need_a_head_that_trains():
    frozen_head = small_classifier()._replace(blocks=small_classifier().blocks._replace(head={}))
    with pytest.raises(ValueError, match="adapt it with train_head=True"):
        two_heads(frozen_head, jax.random.key(0))


def source_only(frozen, blocks, batch, key):
    """The same heads on the labelled source alone."""
    x = features(frozen, blocks, batch.labelled, key)
    logits = (x @ blocks.head["first"] + x @ blocks.head["second"]) / 2
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labelled.labels).mean()


def points(key, count, shift):
    """Two classes around (-1.5, -1) and (1.5, 1)."""
    of_labels, of_noise = jax.random.split(key)
    labels = jax.random.bernoulli(of_labels, 0.5, (count,)).astype(jnp.int32)
    centres = jnp.array([[-1.5, -1.0], [1.5, 1.0]])[labels]
    return Points(centres + 0.5 * jax.random.normal(of_noise, (count, 2)) + shift, labels)


@cache
def target_accuracy(objective, clients=4, rounds=40, seeds=4):
    """Dec-LoRA on a ring, labels of the source domain only: mean accuracy on the target domain, [seeds]."""
    weights = (jnp.eye(clients) + jnp.roll(jnp.eye(clients), 1, 0) + jnp.roll(jnp.eye(clients), -1, 0)) / 3
    network = Network(lambda key, t: weights, lambda key, t: jnp.ones(clients))
    method, optimizer = build("dec_lora"), optax.adam(0.02)
    step = make_round(objective, optimizer, method, network)

    def of_seed(key):
        keys = jax.random.split(key, 8)
        frozen, a = jax.random.normal(keys[0], (4, 2)), 0.5 * jax.random.normal(keys[1], (2, 2))
        heads = {
            name: 0.1 * jax.random.normal(k, (4, 2)) for name, k in zip(("first", "second"), keys[2:4], strict=True)
        }
        blocks = PerBlock({"layer": a}, {"layer": jnp.zeros((4, 2))}, heads)
        held = (clients, 64)
        labelled, unlabelled = (
            jax.vmap(lambda k, shift=shift: points(k, 64, shift))(jax.random.split(k, clients))
            for k, shift in ((keys[4], 0 * SHIFT), (keys[5], SHIFT))
        )
        everything = Domains(labelled, jnp.zeros(held, bool), unlabelled)

        def one(state, key):
            rows = jax.random.randint(key, (clients, 5, 16), 0, 64)
            return step(frozen, state, jax.tree.map(lambda x: jax.vmap(lambda own, i: own[i])(x, rows), everything))

        state = init(keys[6], stack(blocks, clients), method, optimizer)
        state, _ = jax.lax.scan(one, state, jax.random.split(keys[6], rounds))
        test = points(keys[7], 1000, SHIFT)

        def accuracy(blocks):
            x = features(frozen, blocks, test, None)
            return jnp.mean((x @ (blocks.head["first"] + blocks.head["second"])).argmax(-1) == test.labels)

        return jax.vmap(accuracy)(state.blocks).mean()

    return np.asarray(jax.jit(jax.vmap(of_seed))(jax.random.split(jax.random.key(0), seeds)))


def test_a_federation_with_unlabelled_target_points_beats_one_that_sees_the_source_alone():
    """The shift takes a source classifier's boundary through one class; y alone separates to 0.977 (two sigma)."""
    adapted, plain = target_accuracy(loss()), target_accuracy(source_only)
    assert (adapted > plain + 0.1).all(), (adapted, plain)
    assert adapted.mean() > 0.9, adapted
