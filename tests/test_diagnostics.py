"""Diagnostics against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxdfl.diagnostics import (
    _qr,
    average,
    average_product,
    cross_term,
    cross_terms,
    diagnose,
    disagreement,
    mean_drift,
    product_disagreement,
)
from jaxdfl.protocol import PerBlock

BLOCKS = toy.blocks(spread=0.5)


def double(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def products(blocks):
    blocks = double(blocks)
    return {path: blocks.b[path] @ blocks.a[path] for path in blocks.a}


def spread_of(tree):
    """sqrt((1/m) sum_i ||x_i - mean||^2), from the definition."""
    return np.sqrt(sum(((x - x.mean(0)) ** 2).sum() / len(x) for x in jax.tree.leaves(double(tree))))


def test_every_diagnostic_is_its_formula():
    mean = average(BLOCKS)
    c = {path: product.mean(0) - products(mean)[path][0] for path, product in products(BLOCKS).items()}
    expected = {
        "disagreement_a": spread_of(BLOCKS.a),
        "disagreement_b": spread_of(BLOCKS.b),
        "disagreement_product": spread_of(products(BLOCKS)),
        "disagreement_head": spread_of(BLOCKS.head),
        "cross_term": np.sqrt(sum((x**2).sum() for x in c.values())),
    }
    found = jax.jit(diagnose)(BLOCKS)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)
    for path, matrix in cross_terms(BLOCKS).items():
        np.testing.assert_allclose(matrix, c[path], atol=1e-6)


def test_clients_that_are_equal_agree_and_have_no_cross_term():
    equal = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), BLOCKS)
    found = diagnose(equal)
    assert (
        found.pop("disagreement_product") < 1e-5
    )  # rounding; all else is exact, although the mean of equal numbers is not
    assert not any(found.values())
    assert disagreement({}) == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_cross_term_is_bounded_by_the_disagreements_of_the_factors(seed):
    blocks = toy.blocks(key=seed, spread=1.0)
    assert cross_term(blocks) <= disagreement(blocks.a) * disagreement(blocks.b)


def test_the_bound_is_reached_by_two_clients_of_rank_one():
    """dA_1 = -dA_2 and dB_1 = -dB_2, so C = dB dA and ||dB dA|| = ||dB|| ||dA||: no smaller bound would do."""
    draw = np.random.default_rng(0)
    a, b = jnp.float32(draw.normal(size=(2, 1, 7))), jnp.float32(draw.normal(size=(2, 5, 1)))
    blocks = PerBlock({"w": a}, {"w": b}, {})
    np.testing.assert_allclose(cross_term(blocks), disagreement(a) * disagreement(b), rtol=1e-5)


def test_a_small_cross_term_of_large_factors_is_not_lost_in_rounding():
    """Clients 1e-3 apart around factors of order one: mean(BA) - mean(B) mean(A) in float32 is wrong by per cents."""
    centre, offsets = toy.blocks(spread=1.0, clients=1), toy.blocks(key=9, spread=1.0)
    blocks = jax.tree.map(lambda c, o: c + 1e-3 * o, centre, offsets)

    def by_definition(blocks):
        gaps = [
            (b @ a).mean(0) - b.mean(0) @ a.mean(0) for a, b in zip(blocks.a.values(), blocks.b.values(), strict=True)
        ]
        return np.sqrt(sum((gap**2).sum() for gap in gaps))

    exact = by_definition(double(blocks))
    np.testing.assert_allclose(cross_term(blocks), exact, rtol=1e-3)
    assert abs(by_definition(jax.tree.map(np.asarray, blocks)) / exact - 1) > 1e-2


def test_disagreement_of_products_does_not_see_a_clients_choice_of_factors():
    """(Q_i^-1 A_i, B_i Q_i) is the same client; the disagreement of its factors is another."""
    rotations = jnp.stack([jnp.linalg.qr(jax.random.normal(jax.random.key(i), (2, 2)))[0] for i in range(toy.CLIENTS)])
    turned = PerBlock(
        {path: jnp.einsum("msr,msi->mri", rotations, a) for path, a in BLOCKS.a.items()},
        {path: jnp.einsum("mor,mrs->mos", b, rotations) for path, b in BLOCKS.b.items()},
        BLOCKS.head,
    )
    np.testing.assert_allclose(product_disagreement(turned), product_disagreement(BLOCKS), rtol=1e-5)
    assert abs(disagreement(turned.a) / disagreement(BLOCKS.a) - 1) > 0.01


def test_a_small_disagreement_of_large_products_is_not_lost_in_rounding():
    """Clients apart by 1e-6 of their products: products subtracted from one another in float32 miss it by 2e-4."""
    near = toy.blocks(spread=0.0)
    draw = np.random.default_rng(0)
    a, b = (
        {
            path: jnp.float32(1000 + draw.normal(size=x.shape[1:]) + 2**-9 * draw.normal(size=x.shape))
            for path, x in block.items()
        }
        for block in (near.a, near.b)
    )
    blocks = PerBlock(a, b, {})
    np.testing.assert_allclose(product_disagreement(blocks), spread_of(products(blocks)), rtol=1e-5)


def test_equal_products_of_turned_factors_agree_to_rounding():
    """Grams of (B_i - B, B) and (A_i, A_i - A) would leave the root of the rounding: 3e-4 of the difference."""
    one = toy.blocks(spread=1.0, clients=1)
    turns = jnp.stack([jnp.linalg.qr(jax.random.normal(jax.random.key(i), (2, 2)))[0] for i in range(toy.CLIENTS)])
    turned = PerBlock(
        {path: jnp.einsum("mrs,si->mri", turns, a[0]) for path, a in one.a.items()},
        {path: jnp.einsum("or,msr->mos", b[0], turns) for path, b in one.b.items()},
        {},
    )
    assert disagreement(turned.b) > 1
    assert product_disagreement(turned) < 1e-6 * disagreement(turned.b)


@pytest.mark.parametrize(("d_out", "rank"), [(3, 4), (4, 4), (1, 1)])
def test_disagreement_of_products_bears_a_rank_that_fills_the_layer(d_out, rank):
    draw = np.random.default_rng(0)
    a, b = (jnp.float32(draw.normal(size=shape)) for shape in ((6, rank, 5), (6, d_out, rank)))
    blocks = PerBlock({"w": a}, {"w": b}, {})
    np.testing.assert_allclose(product_disagreement(blocks), spread_of(products(blocks)), rtol=1e-5)
    first = blocks._replace(b={"w": jnp.zeros_like(b)})  # B as it starts
    assert product_disagreement(first) == 0


def test_no_product_is_formed_for_each_client():
    blocks = PerBlock({"w": jnp.zeros((50, 2, 301))}, {"w": jnp.zeros((50, 307, 2))}, {})
    assert "50x307x301" not in jax.jit(diagnose).lower(blocks).as_text()


def test_the_average_is_one_client_with_the_mean_of_every_block():
    for mean, leaf in zip(jax.tree.leaves(average(BLOCKS)), jax.tree.leaves(BLOCKS), strict=True):
        assert mean.shape == (1, *leaf.shape[1:])
        np.testing.assert_allclose(mean[0], np.mean(leaf, axis=0), rtol=1e-5, atol=1e-7)


def test_the_average_product_has_exactly_the_mean_of_the_products():
    """As one client of m times the rank; the product of the average differs from it by the cross term."""
    few = jax.tree.map(lambda x: x[:2], BLOCKS)
    one = average_product(few)
    for path, product in products(few).items():
        assert one.a[path].shape == (1, 2 * toy.RANK, toy.D_IN)
        assert one.b[path].shape == (1, toy.D_OUT, 2 * toy.RANK)
        np.testing.assert_allclose(products(one)[path][0], product.mean(0), atol=1e-6)
    toy.assert_equal(one.head, average(few).head)
    gap = sum(((x - products(average(few))[path]) ** 2).sum() for path, x in products(one).items())
    np.testing.assert_allclose(np.sqrt(gap), cross_term(few), rtol=1e-4)


def test_the_mean_drifts_by_what_mixing_moves_it_relative_to_the_blocks():
    moved = jax.tree.map(lambda x: x + 0.5, BLOCKS)
    entries = sum(x[0].size for x in jax.tree.leaves(BLOCKS))
    size = np.sqrt(sum((x**2).sum() / len(x) for x in jax.tree.leaves(double(BLOCKS))))
    np.testing.assert_allclose(mean_drift(BLOCKS, moved), 0.5 * np.sqrt(entries) / size, rtol=1e-5)
    zero = jax.tree.map(jnp.zeros_like, BLOCKS)
    assert mean_drift(zero, zero) == 0


def test_the_exact_average_is_no_larger_than_a_matrix():
    """Thirty clients of rank 2 on [5, 7]: stacked, the rank would be 60."""
    many = toy.blocks(clients=30, spread=0.5)
    found, wanted = average_product(many), products(many)
    for path, product in wanted.items():
        assert found.a[path].shape[1] == found.b[path].shape[2] == min(product.shape[1:])
        np.testing.assert_allclose(found.b[path][0] @ found.a[path][0], product.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 8), (16, 4), (3, 8)])
@pytest.mark.parametrize("kind", ["random", "zero", "repeated", "ill-conditioned"])
def test_the_factorisation_is_exact_and_orthonormal_whatever_it_is_given(shape, kind):
    x = jax.random.normal(jax.random.key(0), shape)
    x = {"random": x, "zero": 0 * x, "repeated": jnp.repeat(x[:, :1], shape[1], axis=1)}.get(
        kind, x * 10.0 ** -jnp.arange(shape[1])
    )
    q, r = jax.jit(_qr)(x)
    np.testing.assert_allclose(q @ r, x, rtol=0, atol=1e-6 * float(jnp.linalg.norm(x)))
    gram = np.asarray(q.T @ q)
    np.testing.assert_allclose(gram, np.diag(np.round(np.diag(gram))), atol=1e-6)  # a column is of length 1 or 0


def test_no_diagnostic_calls_lapack_which_can_wait_for_itself_in_a_program_for_several_runs():
    def program(function, *given):
        return jax.jit(jax.vmap(function)).lower(*given).as_text()

    runs = jax.tree.map(lambda x: jnp.stack([x, x]), BLOCKS)
    assert "lapack" not in program(diagnose, runs)
    assert "lapack" in program(jnp.linalg.qr, jnp.ones((2, 8, 4))) or jax.default_backend() != "cpu"
