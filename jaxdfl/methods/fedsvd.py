"""FedSVD: B alone trains; after averaging, B A is factored anew so that the rows of A are orthonormal.

Lee, Park, Lee, Wagner, Seong, Bocklet, Lee, Hwang, "FedSVD: Adaptive Orthogonalization for Private Federated Learning
with LoRA", NeurIPS 2025, arXiv 2505.12805.
B A = U S V^T, then A <- V^T and B <- U S: the product is kept, and A A^T = I bounds the gradient of B by that of B A.

Departures: only the abstract was read, and a public re-implementation. The paper has a server, where all A are equal
and only B goes up. On a sparse graph the clients' A differ after the first factorization, and a B says nothing without
its own A: so both factors are sent here, products are averaged over the neighbours, and rank r is kept of them. Where
all A agree, as on the complete graph, nothing is truncated and this is the server's method, at twice the bytes of its
messages. The factorization is done in every round. Differential privacy, which the paper is about, is not part of it.

With one A for all, (1/m) sum_j B_j A has the rows of A: the subspace that A spans never moves on the complete graph,
and SGD on B follows FFA-LoRA with an orthonormal A to rounding. Coordinate-wise optimizers (Adam) tell them apart, and
sparse graphs do. With `gauge = "aligned"` even A stays where it is, once orthonormal.
"""

from jaxdfl.methods.schedules import both_factors, only_b
from jaxdfl.mixing import product
from jaxdfl.mixing.product import Gauge
from jaxdfl.protocol import Method


def fedsvd(gauge: Gauge = "svd") -> Method:
    """B and the head train; products are averaged and factored into A = V^T, B = U S in every round.

    Args:
        gauge: the singular directions themselves, as in the paper, or the orthonormal A nearest to the gossiped one.
    """
    return Method(trains=only_b, shares=both_factors, mixer=product("b_carries", gauge))
