"""How a graph becomes mixing weights: adjacency [clients, clients] -> W [clients, clients], doubly stochastic.

Row i of W is what client i makes of each message, x_i <- sum_j W_ij x_j. Doubly stochastic weights keep the mean of
the clients. Every rule but `uniform` can be traced, so it serves a new random graph in each round (`jit`, `vmap`),
and gives an isolated client weight 1 on itself.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float
from numpy.typing import ArrayLike

Graph = Bool[Array | np.ndarray, "clients clients"]
Rule = Callable[[Graph], Float[Array, "clients clients"]]

TOLERANCE = 1e-6  # on sums and symmetry: above float32 rounding, below what would visibly move a mean


def metropolis_hastings(adjacency: Graph) -> Float[Array, "clients clients"]:
    """W_ij = 1 / (1 + max(d_i, d_j)) on links, the rest on the diagonal. Exactly J on a complete graph.

    Raises:
        ValueError: a concrete `adjacency` is not symmetric.
    """
    _require_undirected(adjacency)
    share = 1 / (1 + adjacency.sum(1, dtype=float))  # [clients]
    links = jnp.where(adjacency, jnp.minimum(share[:, None], share), 0)
    # The rest, 1 - sum_j W_ij, written as a sum of non-negative terms so that nothing cancels.
    spare = jnp.where(adjacency, share[:, None] - links, 0).sum(1)
    return links + jnp.diag(share + spare)


def laplacian(adjacency: Graph) -> Float[Array, "clients clients"]:
    """W = I - 2 L / (3 lambda_max(L)), L = D - A: the rule of Dec-LoRA (arXiv 2501.15361) on Erdos-Renyi graphs.

    Its eigenvalues lie in [1/3, 1]. A graph without links gives I.

    Raises:
        ValueError: a concrete `adjacency` is not symmetric.
    """
    _require_undirected(adjacency)
    links = jnp.asarray(adjacency, float)
    operator = jnp.diag(links.sum(1)) - links
    largest = jnp.where(links.any(), jnp.linalg.eigvalsh(operator)[-1], jnp.inf)
    return jnp.eye(len(links)) - 2 * operator / (3 * largest)


def max_degree(adjacency: Graph) -> Float[Array, "clients clients"]:
    """W_ij = 1 / (1 + max_k d_k) on links, the rest on the diagonal: one weight for the whole network.

    Raises:
        ValueError: a concrete `adjacency` is not symmetric.
    """
    _require_undirected(adjacency)
    links = jnp.asarray(adjacency, float)
    degree = links.sum(1)
    return (links + jnp.diag(1 + degree.max() - degree)) / (1 + degree.max())


def uniform(adjacency: Graph) -> Float[Array, "clients clients"]:
    """W_ij = 1 / (1 + d) on links and on the diagonal, for graphs (also directed) in which all degrees are d.

    Raises:
        ValueError: degrees differ, so that rows could not be averages while columns sum to one; or the adjacency is
            traced, so that nobody can tell.
    """
    if isinstance(adjacency, Tracer):
        raise ValueError("`uniform` weights need a fixed graph, got a traced one; use `metropolis_hastings` for it.")
    hears, heard = np.sum(adjacency, 1), np.sum(adjacency, 0)
    if (hears != hears[0]).any() or (heard != hears[0]).any():
        low, high = min(hears.min(), heard.min()), max(hears.max(), heard.max())
        raise ValueError(
            f"`adjacency` must be regular for `uniform` weights, got degrees {low} to {high}; use another rule."
        )
    return (jnp.asarray(adjacency, float) + jnp.eye(len(adjacency))) / (1 + hears[0])


RULES: dict[str, Rule] = {
    "metropolis_hastings": metropolis_hastings,
    "laplacian": laplacian,
    "max_degree": max_degree,
    "uniform": uniform,
}


def validate(
    matrix: ArrayLike, *, symmetric: bool = False, name: str = "weights"
) -> Float[np.ndarray, "*rounds clients clients"]:
    """The matrix [clients, clients], or stack [rounds, clients, clients], as float32 on the host, if it may mix.

    Raises:
        ValueError: not real, not square, not finite, negative somewhere, a row or column that does not sum to one, or
            not symmetric where `symmetric` claims it. The message says where and by how much; `name` opens it.
    """
    raw = np.asarray(matrix)
    if not any(jnp.issubdtype(raw.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise ValueError(f"`{name}` must hold real numbers, got {raw.dtype}.")
    values = raw.astype(np.float64)
    if values.ndim not in (2, 3) or values.shape[-1] != values.shape[-2] or values.size == 0:
        raise ValueError(
            f"`{name}` must have shape [clients, clients] or [rounds, clients, clients], got {list(values.shape)}."
        )
    for round, weights in enumerate(values.reshape(-1, *values.shape[-2:])):
        where = f"`{name}`" + (f" in round {round}" if values.ndim == 3 else "")
        fault = _fault(weights, symmetric)
        if fault:
            raise ValueError(f"{where} {fault}.")
    return values.astype(jnp.result_type(float))


def _fault(weights: Float[np.ndarray, "clients clients"], symmetric: bool) -> str | None:
    """What keeps one matrix from mixing, or None."""
    for passes, demand in ((np.isfinite(weights), "finite"), (weights >= 0, "non-negative")):
        if not passes.all():
            i, j = np.argwhere(~passes)[0]
            return f"must be {demand}, got {weights[i, j]} in row {i}, column {j}"
    row, row_error = _worst_sum(weights.sum(1))
    column, column_error = _worst_sum(weights.sum(0))
    if abs(row_error) > TOLERANCE and abs(column_error) > TOLERANCE:
        return (
            f"must be doubly stochastic, but row {row} sums to one {row_error:+.3g} "
            f"and column {column} to one {column_error:+.3g}"
        )
    if abs(row_error) > TOLERANCE:
        return (
            f"is column-stochastic only: row {row} sums to one {row_error:+.3g}, so equal clients would not stay "
            "equal; build it with a rule of `topology.weights`"
        )
    if abs(column_error) > TOLERANCE:
        return (
            f"is row-stochastic only: column {column} sums to one {column_error:+.3g}, so mixing would move the mean "
            "of the clients; do not normalise rows, build it with a rule of `topology.weights`"
        )
    gap = np.abs(weights - weights.T)
    if symmetric and gap.max() > TOLERANCE:
        i, j = np.unravel_index(gap.argmax(), gap.shape)
        return f"must be symmetric, but entries ({i}, {j}) and ({j}, {i}) differ by {gap.max():.3g}"
    return None


def _worst_sum(sums: Float[np.ndarray, " clients"]) -> tuple[int, float]:
    """The line whose sum is furthest from one, and its signed error."""
    worst = int(np.abs(sums - 1).argmax())
    return worst, float(sums[worst] - 1)


def _require_undirected(adjacency: Graph) -> None:
    """Raises ValueError for a concrete adjacency with a one-way link; a traced one is taken on trust."""
    if isinstance(adjacency, Tracer):
        return
    one_way = np.argwhere(np.asarray(adjacency) & ~np.asarray(adjacency).T)
    if len(one_way):
        i, j = one_way[0]
        raise ValueError(
            f"`adjacency` must be symmetric for this rule, but {j} sends to {i} and not back; "
            "symmetrise it, or use `uniform` if all degrees are equal."
        )
