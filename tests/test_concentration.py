"""Concentration indices in closed form, the probe against a loop, and what clients keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxdfl.concentration import (
    arbitrate,
    coefficient_of_variation,
    example_concentration,
    gini,
    kurtosis,
    module_norms,
    sort_examples,
)
from jaxdfl.protocol import PerBlock

INDICES = (gini, kurtosis, coefficient_of_variation)
every_index = pytest.mark.parametrize("index", INDICES, ids=lambda index: index.__name__)


@pytest.mark.parametrize("n", [1, 2, 7, 49])
def test_of_equal_values_gini_and_variation_are_0_and_kurtosis_1(n):
    for value in (0.0, 0.1, 3e10):
        values = jnp.full(n, value)
        np.testing.assert_allclose([gini(values), coefficient_of_variation(values)], 0, atol=1e-6)
        assert kurtosis(values) == 1


@pytest.mark.parametrize("n", [2, 7, 48])
def test_of_a_single_module_that_holds_everything_the_closed_forms_hold(n):
    """A Bernoulli variable of p = 1/n has kurtosis (1 - 3 p q) / (p q), and standard deviation by mean sqrt(q / p)."""
    values, p = jnp.zeros(n).at[n // 2].set(5.0), 1 / n
    q = 1 - p
    np.testing.assert_allclose(gini(values), (n - 1) / n, rtol=1e-6)
    np.testing.assert_allclose(kurtosis(values), (1 - 3 * p * q) / (p * q), rtol=1e-5)
    np.testing.assert_allclose(coefficient_of_variation(values), np.sqrt(q / p), rtol=1e-6)


def test_gini_is_the_mean_absolute_difference_by_twice_the_mean():
    values = np.random.default_rng(0).exponential(size=13)
    expected = np.abs(values[:, None] - values).mean() / (2 * values.mean())
    np.testing.assert_allclose(gini(jnp.float32(values)), expected, rtol=1e-5)


@every_index
def test_an_index_knows_neither_scale_nor_order(index):
    values = jnp.float32(np.random.default_rng(1).exponential(size=12))
    for scale in (1e-30, 1e-3, 1e30):
        np.testing.assert_allclose(index(values * scale), index(values), rtol=1e-5)
    np.testing.assert_allclose(index(values[::-1]), index(values), rtol=1e-5)


@every_index
def test_an_index_is_traced_and_mapped(index):
    rows = jnp.float32(np.random.default_rng(2).exponential(size=(4, 9)))
    np.testing.assert_allclose(jax.jit(jax.vmap(index))(rows), [index(row) for row in rows], rtol=1e-5)


def test_module_norms_are_those_of_each_factor_by_path_and_leave_the_head_out():
    one = jax.tree.map(lambda x: x[0], toy.blocks(spread=1.0))
    expected = [np.linalg.norm(factors[path]) for factors in (one.a, one.b) for path in sorted(factors)]
    np.testing.assert_allclose(module_norms(one), expected, rtol=1e-6)


@pytest.mark.parametrize("chunk", [2, 5, 16])
def test_every_example_is_scored_by_its_own_gradient(chunk):
    one = jax.tree.map(lambda x: x[0], toy.blocks(spread=0.5))
    examples = jax.tree.map(lambda x: x[0, 0, :, None], toy.batches(steps=5, noise=1.0))  # five batches of one
    examples = jax.tree.map(lambda x: x[:, 0], examples)

    def loss(frozen, blocks, batch, key):
        assert key is None
        return toy.loss(frozen, blocks, jax.tree.map(lambda x: x[0], batch), key)

    found = example_concentration(loss, toy.FROZEN, one, examples, chunk=chunk)
    for number, score in enumerate(found):
        alone = jax.tree.map(lambda x, number=number: x[number], examples)
        gradient = jax.grad(lambda blocks, alone=alone: toy.loss(toy.FROZEN, blocks, alone, None))(one)
        np.testing.assert_allclose(score, gini(module_norms(gradient)), rtol=1e-4)


def test_an_example_that_needs_one_module_scores_above_one_that_needs_all():
    one = jax.tree.map(lambda x: x[0], toy.blocks(spread=0.5))
    products = {path: toy.FROZEN["scale"] * one.b[path] @ one.a[path] + one.head["bias"][:, None] for path in one.a}
    off = jnp.ones((toy.D_OUT, toy.D_IN))
    both = {path: product + off for path, product in products.items()}
    single = both | {"layer/query": products["layer/query"] + 1e-4 * off}
    examples = jax.tree.map(lambda *x: jnp.stack(x), both, single)

    def loss(frozen, blocks, batch, key):
        return toy.loss(frozen, blocks, jax.tree.map(lambda x: x[0], batch), key)

    diffuse, concentrated = example_concentration(loss, toy.FROZEN, one, examples)
    assert concentrated > diffuse + 0.2


def test_the_share_with_the_highest_scores_is_concentrated_and_nobody_is_lost():
    scores = np.array([0.3, 0.9, 0.1, 0.9, 0.5])
    assert [list(part) for part in sort_examples(scores, 0.4)] == [[1, 3], [0, 2, 4]]
    assert [list(part) for part in sort_examples(scores, 0.2)] == [[1], [0, 2, 3, 4]]  # of equals the earlier
    assert [len(part) for part in sort_examples(scores, 0.0)] == [0, 5]
    assert [len(part) for part in sort_examples(scores, 1.0)] == [5, 0]


def test_each_client_keeps_one_side_of_its_own_examples():
    partition = [np.array([0, 3, 5, 7]), np.array([1, 2])]
    scores = np.array([0.1, 0.2, 0.3, 0.9, 0.0, 0.8, 0.0, 0.5])
    assert [list(part) for part in arbitrate(partition, scores, "concentrated", 0.5)] == [[3, 5], [2]]
    assert [list(part) for part in arbitrate(partition, scores, "diffuse", 0.5)] == [[0, 7], [1]]
    assert arbitrate(partition, scores, "all", 0.5) is partition


@pytest.mark.parametrize(
    ("scores", "share", "match"),
    [
        (np.zeros(3), 1.5, r"`share` must lie in \[0, 1\], got 1.5"),
        (np.array([0, np.nan, 0]), 0.5, "`scores` must be finite, got nan"),
        (np.zeros(3), 0.1, r"`share` 0.1 leaves client 0 none of its 2 examples as concentrated"),
    ],
)
def test_what_cannot_be_split_is_refused_in_one_line(scores, share, match):
    with pytest.raises(ValueError, match=match) as raised:
        arbitrate([np.array([0, 1]), np.array([2])], scores, "concentrated", share)
    assert "\n" not in str(raised.value)


def test_norms_take_a_gradient_without_a_head():
    one = jax.tree.map(lambda x: x[0], toy.blocks(head=False))
    assert module_norms(PerBlock(one.a, one.b, {})).shape == (4,)
