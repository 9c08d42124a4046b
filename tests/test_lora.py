"""Adapters: where they go, what they start from, and the weight that they make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdfl.lora import _stable_hash, effective_kernel, find_targets, init_factors

PATHS = ["encoder/layers/0/attention/query", "encoder/layers/0/attention/value", "encoder/layers/1/attention/query"]


def test_the_first_product_is_zero_and_a_is_kaiming_uniform():
    """Uniform on +-1/sqrt(d_in), whose standard deviation is 1/sqrt(3 d_in)."""
    a, b = init_factors(jax.random.key(0), {"wide": (400, 50)}, rank=50)
    assert a["wide"].shape == (50, 400)
    assert b["wide"].shape == (50, 50)
    assert not b["wide"].any()
    bound = 400**-0.5
    assert 0.999 * bound < jnp.abs(a["wide"]).max() <= bound
    np.testing.assert_allclose(a["wide"].std(), bound / 3**0.5, rtol=0.01)  # 20000 draws: 0.3 % is one deviation
    np.testing.assert_allclose(a["wide"].mean(), 0, atol=4 * bound / 3**0.5 / 20000**0.5)


def test_each_target_has_draws_of_its_own_that_no_other_target_moves():
    some = init_factors(jax.random.key(3), dict.fromkeys(PATHS[:1], (8, 6)), 2)[0]
    more = init_factors(jax.random.key(3), dict.fromkeys(reversed(PATHS), (8, 6)), 2)[0]
    np.testing.assert_array_equal(some[PATHS[0]], more[PATHS[0]])
    assert len({np.asarray(a).tobytes() for a in more.values()}) == len(PATHS)


@pytest.mark.parametrize(("text", "digest"), [("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968)])
def test_draws_follow_the_published_fnv_1a_hash_of_a_path(text, digest):
    """So they are the same in every process, on every machine."""
    assert _stable_hash(text) == digest


@pytest.mark.parametrize(
    ("rank", "message"),
    [(0, r"1\.\.8 for wide \(8 -> 9\), got 0"), (6, r"1\.\.5 for narrow \(8 -> 5\), got 6"), (-1, "got -1")],
)
def test_an_impossible_rank_is_refused_with_the_layer_it_does_not_fit(rank, message):
    with pytest.raises(ValueError, match="`rank` must lie in .*" + message):
        init_factors(jax.random.key(0), {"wide": (8, 9), "narrow": (8, 5)}, rank)


def test_the_effective_kernel_is_the_transposed_product_added_once_at_its_scale():
    """x (W0 + s (B A)^T) = x W0 + s (x A^T) B^T, for a layer that is not square."""
    draw = np.random.default_rng(0)
    x, kernel, a, b = (draw.normal(size=shape).astype(np.float32) for shape in ((3, 7), (7, 5), (2, 7), (5, 2)))
    expected = x @ kernel + 0.25 * (x @ a.T) @ b.T
    np.testing.assert_allclose(x @ effective_kernel(*map(jnp.asarray, (kernel, a, b)), 0.25), expected, rtol=1e-4)


def test_the_effective_kernel_keeps_the_dtype_of_the_kernel():
    kernel = effective_kernel(jnp.ones((7, 5), jnp.bfloat16), jnp.ones((2, 7)), jnp.ones((5, 2)), 1.0)
    assert kernel.dtype == jnp.bfloat16
    assert (kernel == 3).all()


def test_targets_are_found_once_each_and_in_the_order_of_the_model():
    assert find_targets(PATHS, ["value", "query"]) == PATHS
    assert find_targets(PATHS, ["query", "attention/query"]) == [PATHS[0], PATHS[2]]
    assert find_targets(PATHS, [r"layers/1/.*query$"]) == [PATHS[2]]


def test_a_target_that_matches_nothing_is_answered_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"'q_proj'; layers are called \['query', 'value'\]"):
        find_targets(PATHS, ["query", "q_proj"])
