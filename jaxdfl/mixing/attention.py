"""Neighbours whose adapters point the same way weigh more (wrapper): graph attention on the clients' adapters.

After the intra-domain graph attention of FGRR ("foreground-aware graph relational reasoning" for domain-adaptive object
detection, arXiv 2206.02355, IEEE TPAMI), of which only summaries could be read, and which has nothing to do with
federated learning. The transfer is ours throughout: attention coefficients exp(similarity / temperature) on the links
of a network, times the network's own weights, scaled to the row and column sums that those weights had. Attention alone
would be row-stochastic and move the mean of the clients.
"""

from functools import cache

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdfl.protocol import Exchange, Info, Mixer, PerBlock, State
from jaxdfl.trees import wide

ITERATIONS = (
    100  # left less than 1e-6 of attended weights on the undirected graphs of `jaxdfl.topology`, 6 to 64 clients
)
LEAST = -50.0  # of an exponent: e^-50 is nothing as a weight, and float32 still holds it


def sinkhorn(
    matrix: Float[Array, "clients clients"], sums: Float[Array, " clients"], iterations: int = ITERATIONS
) -> Float[Array, "clients clients"]:
    """D M D of a symmetric, non-negative M, with D the diagonal that gives its rows (and columns) the sums `sums`.

    It exists where some symmetric matrix with the same zeros has these sums. For sums of one it is the doubly
    stochastic scaling of Sinkhorn and Knopp, here with passes that keep M symmetric (Knight, Ruiz, Ucar, "A Symmetry
    Preserving Algorithm for Matrix Scaling", 2014): each divides rows and columns by the roots of their sums at once.
    That shrinks the error by (1 - lambda) / 2 for every eigenvalue lambda of the result, so slowly mixing networks
    (lambda near 1) are easy, whereas dividing rows and columns in turn shrinks it by lambda^2 only. What the passes
    leave goes to the diagonal: the sums are right to rounding, and nothing appears off the diagonal where M has zeros.
    """

    def divide(_: Array | int, scaled: Array) -> Array:
        root = jnp.sqrt(sums / jnp.maximum(scaled.sum(1), jnp.finfo(scaled.dtype).tiny))  # 0 for a row of zeros
        return scaled * (root[:, None] * root)

    scaled = jax.lax.fori_loop(0, iterations, divide, matrix)
    return scaled + jnp.diag(sums - scaled.sum(1))


def similarity(blocks: PerBlock, shared: PerBlock) -> Float[Array, "clients clients"]:
    """Cosine between the clients' adapters, all targets' products B A side by side; 0 against an adapter of zeros.

    <B_i A_i, B_j A_j> is the sum of the entries of (B_i^T B_j) * (A_i A_j^T), so no product is formed, and the gauge
    (A, B) -> (Q^-1 A, B Q) does not matter. Where only one factor is shared, that factor alone is compared, since a
    neighbour does not know the other; the head is not compared.
    """
    inner = jnp.zeros((len(jax.tree.leaves(blocks)[0]),) * 2)
    for path, a in blocks.a.items():
        of_a = _gram(jnp.swapaxes(a, 1, 2), shared.a)
        of_b = _gram(blocks.b[path], shared.b)
        inner += jnp.einsum("ijrs,ijrs->ij", of_a, of_b, precision="highest")
    size = jnp.sqrt(jnp.maximum(jnp.diag(inner), 0))  # a square near 0 may round to less
    cosine = inner / jnp.maximum(size[:, None] * size, jnp.finfo(inner.dtype).tiny)
    return jnp.clip(cosine, -1, 1)


def _gram(
    factor: Float[Array, "clients d rank"], shared: Bool[Array, ""] | bool
) -> Float[Array, "clients clients rank rank"]:
    """F_i^T F_j for all pairs; the identity where the factor is not shared."""
    factor = wide(factor)
    pairs = jnp.einsum("idr,jds->ijrs", factor, factor, precision="highest")
    return jnp.where(shared, pairs, jnp.eye(factor.shape[-1]))


@cache
def attention(inner: Mixer, temperature: float) -> Mixer:
    """`inner` with weights D (W_ij exp(s_ij / temperature)) D, s the cosine of the adapters and D from `sinkhorn`.

    That is for symmetric W. Of any other only the symmetric part min(W_ij, W_ji) is treated so and the rest is left as
    it is, so that row and column sums are kept whatever W is: there is no choice among one-way links that would keep
    the mean. Symmetric weights stay symmetric, the support stays, an isolated client keeps its weight of one. W has to
    be non-negative. A high temperature approaches W, and `inf` is `inner`; a low one lets clients listen to themselves
    and to those most like them.

    Adapters are compared as they are sent, so a receiver knows the similarities and no message is added. The scaling is
    an idealisation: clients would have to run it together, a few numbers to and fro in every pass, which are not
    counted. Where a method sends more than blocks (trackers, say), each is compared for itself.

    Raises:
        ValueError: `temperature` is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive, got {temperature}; inf switches attention off.")

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        closeness = (similarity(blocks, exchange.shared).astype(exchange.weights.dtype) - 1) / temperature
        mutual = jnp.minimum(exchange.weights, exchange.weights.T)
        attended = sinkhorn(mutual * jnp.exp(jnp.maximum(closeness, LEAST)), mutual.sum(1))
        return inner.mix(exchange._replace(weights=exchange.weights - mutual + attended), blocks, state)

    return inner if temperature == float("inf") else Mixer(inner.init, mix)
