"""How far the clients are apart, and what averaging factors instead of products costs; pure, on stacked blocks.

Every disagreement is a root mean square distance over clients and over all adapted weights together,
sqrt((1/m) sum_i ||X_i - X||_F^2) with X the clients' mean: the root of the consensus error Xi of the papers. The
LoRA scale alpha/rank is left out.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.tree import leaves
from jax.tree import map as tree_map
from jaxtyping import Array, Float

from jaxdfl.protocol import Info, PerBlock
from jaxdfl.trees import Tree, centred, client_mean, squared_distances, squared_norm, stack, wide


def disagreement(tree: Tree) -> Float[Array, ""]:
    """sqrt((1/m) sum_i ||x_i - mean x||^2) over all leaves [clients, ...]; 0 for an empty tree."""
    return jnp.sqrt(jnp.mean(squared_distances(tree)))


def cross_terms(blocks: PerBlock) -> dict[str, Float[Array, "d_out d_in"]]:
    """C = (1/m) sum_i B_i A_i - B A = (1/m) sum_i (B_i - B)(A_i - A), by target path; B and A are the clients' means.

    What averaging the factors adds to the average of the products. The second form is used: the first would lose C
    in the rounding of two large matrices where the clients nearly agree.
    """

    return {path: _cross(blocks.a[path], blocks.b[path]) for path in blocks.a}


def cross_term(blocks: PerBlock) -> Float[Array, ""]:
    """||C||_F over all targets. At most disagreement(A) * disagreement(B), by Cauchy-Schwarz."""
    return jnp.sqrt(squared_norm(cross_terms(blocks)))


def product_disagreement(blocks: PerBlock) -> Float[Array, ""]:
    """sqrt((1/m) sum_i ||B_i A_i - (1/m) sum_j B_j A_j||_F^2) over all targets, from thin factors alone.

    A client's distance is D_i = (B_i - B) A_i + B (A_i - A) - C, with C the cross term. Let B = Q R with orthonormal Q.
    Within the range of Q,

        Q^T D_i = Q^T (B_i - B) A_i + R (A_i - A) - Q^T C   [rank, d_in]

    is taken as it stands, and beyond it D_i is (B_i - B)' A_i - C', where ' is less the part within. The mean over
    clients of (B_i - B)' A_i is C', so those squares are the mean of ||(B_i - B)' A_i||^2 = <(B_i - B)'^T (B_i - B)',
    A_i A_i^T>, less ||C'||^2. No product is [d_out, d_in] for each client, which would take 20 times the operations.

    Nothing is lost where the clients nearly agree, nor where their products do and their factors, which span the same
    space, do not (a turn Q_i of the factors): large terms meet within the range of Q only, before they are squared.
    """
    squares = [_squared_product_disagreement(blocks.a[path], blocks.b[path]) for path in blocks.a]
    return jnp.sqrt(sum(squares, jnp.float32(0)))


def mean_drift(before: PerBlock, after: PerBlock) -> Float[Array, ""]:
    """||mean x' - mean x|| / sqrt((1/m) sum_i ||x_i||^2) over all blocks: what mixing did to the clients' mean.

    Doubly stochastic weights leave rounding alone, about 1e-7; 0 where all blocks are zero.
    """
    moved = squared_norm(tree_map(lambda x, y: wide(y).mean(0) - wide(x).mean(0), before, after))
    size = sum((jnp.sum(jnp.square(wide(x))) / len(x) for x in leaves(before)), jnp.float32(0))
    return jnp.sqrt(moved / jnp.where(size > 0, size, 1.0))


def diagnose(blocks: PerBlock) -> Info:
    """Every diagnostic of one state, under the names of a metrics row."""
    return {
        "disagreement_a": disagreement(blocks.a),
        "disagreement_b": disagreement(blocks.b),
        "disagreement_product": product_disagreement(blocks),
        "disagreement_head": disagreement(blocks.head),
        "cross_term": cross_term(blocks),
    }


def average(blocks: PerBlock) -> PerBlock:
    """The averaged adapter, as the one client of a federation of one: mean A, mean B, mean head."""
    return stack(client_mean(blocks), 1)


def average_product(blocks: PerBlock) -> PerBlock:
    """The adapter whose product is the exact mean of the clients' products, as the one client of a federation of one.

    The factors are stacked along the rank, as FLoRA does (Wang et al., 2024, arXiv 2409.05976): A = [A_1; ...; A_m],
    B = [B_1, ..., B_m] / m, so that B A = (1/m) sum_i B_i A_i. Its rank is m times the clients' rank; where a whole
    matrix is smaller than that, one factor is the mean product itself and the other the identity.
    """
    both = {path: _mean_product(a, blocks.b[path]) for path, a in blocks.a.items()}
    a, b = ({path: factors[place][None] for path, factors in both.items()} for place in (0, 1))
    return PerBlock(a, b, average(blocks).head)


def _mean_product(a: Float[Array, "m rank d_in"], b: Float[Array, "m d_out rank"]) -> tuple[Array, Array]:
    """A and B with B A = (1/m) sum_i B_i A_i, of rank m * rank, or of full rank where that is less."""
    clients, rank, d_in = a.shape
    d_out = b.shape[1]
    if clients * rank <= min(d_in, d_out):
        return a.reshape(-1, d_in), jnp.moveaxis(b, 0, 1).reshape(d_out, -1) / clients
    product = jnp.einsum("mor,mri->oi", b, a, precision="highest") / clients
    return (jnp.eye(d_in, dtype=a.dtype), product) if d_in <= d_out else (product, jnp.eye(d_out, dtype=b.dtype))


def _cross(a: Float[Array, "m rank d_in"], b: Float[Array, "m d_out rank"]) -> Float[Array, "d_out d_in"]:
    """(1/m) sum_i (B_i - B)(A_i - A) of one target, at full precision (accelerators take fewer bits by default)."""
    return jnp.einsum("mor,mri->oi", centred(b), centred(a), precision="highest") / a.shape[0]


def _qr(x: Float[Array, "d_out rank"]) -> tuple[Float[Array, "d_out rank"], Float[Array, "rank rank"]]:
    """Q and R with x = Q R; columns of Q are orthonormal, or zero where a column of x adds no direction.

    Gram-Schmidt, twice, of all clients at a time; by LAPACK they would go one by one (`jaxdfl.factorizations`).
    """
    product = partial(jnp.matmul, precision="highest")

    def add(column: Array, q: Array) -> Array:
        v = x[:, column]
        for least in (0.0, 0.5):  # the second time, what is left of rounding alone loses most of its length
            v = v - product(q, product(q.T, v))
            size = jnp.linalg.norm(v)
            v = jnp.where(size > least, v / jnp.where(size > 0, size, 1.0), 0.0)
        return q.at[:, column].set(v)

    q = jax.lax.fori_loop(0, x.shape[1], add, jnp.zeros_like(x))
    return q, product(q.T, x)


def _squared_product_disagreement(a: Float[Array, "m rank d_in"], b: Float[Array, "m d_out rank"]) -> Float[Array, ""]:
    """(1/m) sum_i ||D_i||_F^2 of one target, as `product_disagreement` says."""
    product = partial(jnp.einsum, precision="highest")
    a, a_apart, b_apart, cross = wide(a), centred(a), centred(b), _cross(a, b)
    q, r = _qr(wide(b).mean(0))
    b_within, cross_within = product("ok,mor->mkr", q, b_apart), product("ok,oi->ki", q, cross)
    b_beyond, cross_beyond = (
        b_apart - product("ok,mkr->mor", q, b_within),
        cross - product("ok,ki->oi", q, cross_within),
    )
    within = product("mkr,mri->mki", b_within, a) + product("kr,mri->mki", r, a_apart) - cross_within
    of_b, of_a = product("mor,mos->mrs", b_beyond, b_beyond), product("mri,msi->mrs", a, a)
    beyond = jnp.sum(of_b * of_a) / len(a) - squared_norm(cross_beyond)
    return squared_norm(within) / len(a) + jnp.maximum(beyond, 0.0)
