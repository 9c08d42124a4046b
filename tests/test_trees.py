"""Operations on stacked pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdfl.trees import bytes_per_client, client_mean, keep, squared_distances, squared_norm, stack

TREE = {"a": jnp.arange(12.0).reshape(3, 4), "deep": [jnp.ones((3, 2, 2)), jnp.arange(3)]}


@pytest.mark.parametrize("mask", [True, False, jnp.asarray(True), jnp.asarray(False)])
def test_keep_chooses_bit_for_bit_and_does_not_blend(mask):
    """Infinities, NaN and minus zero survive on either side, and so do whole numbers (an optimizer's count)."""
    new = {"x": jnp.array([1.0, jnp.inf, -0.0]), "count": jnp.int32(7)}
    old = {"x": jnp.array([jnp.nan, 2.0, 0.0]), "count": jnp.int32(2**31 - 1)}
    kept = jax.jit(keep)(mask, new, old)
    wanted = new if mask else old
    for name in wanted:
        assert kept[name].dtype == wanted[name].dtype
        assert np.asarray(kept[name]).tobytes() == np.asarray(wanted[name]).tobytes()


def test_stacking_gives_every_client_the_same_tree_and_the_mean_takes_it_back():
    stacked = stack(TREE, 5)
    assert jax.tree.map(jnp.shape, stacked) == {"a": (5, 3, 4), "deep": [(5, 3, 2, 2), (5, 3)]}
    assert all((x == x[0]).all() for x in jax.tree.leaves(stacked))
    for mean, leaf in zip(jax.tree.leaves(client_mean(stacked)), jax.tree.leaves(TREE), strict=True):
        np.testing.assert_allclose(mean, leaf, rtol=1e-6)


def test_norms_and_distances_run_over_all_leaves():
    draw = np.random.default_rng(0)
    tree = {"a": draw.normal(size=(4, 2, 3)), "b": [draw.normal(size=(4, 5)), draw.normal(size=4)]}
    flat = np.concatenate([x.reshape(4, -1) for x in jax.tree.leaves(tree)], axis=1)
    tree = jax.tree.map(jnp.float32, tree)
    np.testing.assert_allclose(squared_norm(tree), (flat**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(squared_distances(tree), ((flat - flat.mean(0)) ** 2).sum(1), rtol=1e-5)


def test_an_empty_tree_has_no_norm_no_distance_and_no_bytes():
    assert squared_norm({}) == 0
    assert squared_distances({}) == 0
    assert bytes_per_client({}) == 0


def test_a_norm_of_bfloat16_is_summed_in_float32():
    """1000 ones: bfloat16 would stop counting at 256."""
    total = squared_norm(jnp.ones(1000, jnp.bfloat16))
    assert total.dtype == jnp.float32
    assert total == 1000


def test_bytes_per_client_count_one_client_in_each_dtype():
    tree = {"a": jnp.ones((6, 2, 7)), "half": jnp.ones((6, 5), jnp.bfloat16), "scalar": jnp.ones(6)}
    assert bytes_per_client(tree) == 4 * 14 + 2 * 5 + 4
