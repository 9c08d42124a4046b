"""W X: every client's weighted sum over the clients it hears, at full precision, for ten clients or thousands."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdfl.trees import Tree, wide

MANY_CLIENTS = 256  # from here on a sparse W is worth its neighbour table (benchmarks/mixing.py)
MOST_HEARD = 32  # entries in a row of W, self included; fuller rows are faster as a matrix product
AT_ONCE = 4  # neighbours added in one pass over the parameters


def weighted(weights: Float[Array, "clients clients"], tree: Tree) -> Tree:
    """x_i <- sum_j W_ij x_j for every leaf [clients, ...], in float32 (float64 for such leaves) at full precision, cast
    back to the leaf's dtype.

    A lower precision (bfloat16, or the TF32 that GPUs take for float32 products) would make the rows of W miss
    their sum of one by about 1e-3, so that the mean drifts. Many clients that each hear few are summed neighbour by
    neighbour, which the weights decide as the program runs; the two ways differ by rounding.
    """
    return matrix_product(weights, tree) if len(weights) < MANY_CLIENTS else _as_weights_ask(weights, tree)


@jax.custom_batching.sequential_vmap  # several at once would compute both ways of each
def _as_weights_ask(weights: Float[Array, "clients clients"], tree: Tree) -> Tree:
    most = jnp.count_nonzero(weights, axis=1).max()
    return jax.lax.cond(most <= MOST_HEARD, sum_over_neighbours, matrix_product, weights, tree)


def matrix_product(weights: Float[Array, "clients clients"], tree: Tree) -> Tree:
    """W X, whatever W is."""

    def mix_leaf(x: Array) -> Array:
        mixed = jnp.tensordot(weights.astype(wide(x).dtype), wide(x), axes=1, precision=jax.lax.Precision.HIGHEST)
        return mixed.astype(x.dtype)

    return jax.tree.map(mix_leaf, tree)


def sum_over_neighbours(weights: Float[Array, "clients clients"], tree: Tree) -> Tree:
    """W X for a W with at most `MOST_HEARD` entries in any row; the time grows with the fullest row. What a row has
    beyond `MOST_HEARD` is not seen."""
    counted = jnp.cumsum(weights != 0, axis=1, dtype=jnp.int32)  # so entry k of row i is where counted[i] reaches k
    heard = jax.vmap(partial(jnp.searchsorted, v=jnp.arange(1, MOST_HEARD + 1)))(counted)  # [clients, MOST_HEARD]
    values = jnp.take_along_axis(weights, heard, axis=1, mode="fill", fill_value=0)
    heard = jnp.where(
        heard < len(weights), heard, jnp.arange(len(weights))[:, None]
    )  # past the last entry: 0 of itself
    passes = -(-counted[:, -1].max() // AT_ONCE)

    def mix_leaf(x: Array) -> Array:
        flat = x.reshape(len(x), -1)

        def add(turn: Array, mixed: Array) -> Array:
            for k in range(AT_ONCE):
                value, sender = (
                    jax.lax.dynamic_index_in_dim(of, turn * AT_ONCE + k, 1, False) for of in (values, heard)
                )
                mixed += value[:, None].astype(mixed.dtype) * wide(flat[sender])
            return mixed

        return jax.lax.fori_loop(0, passes, add, jnp.zeros_like(wide(flat))).astype(x.dtype).reshape(x.shape)

    return jax.tree.map(mix_leaf, tree)
