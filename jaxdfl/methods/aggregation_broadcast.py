"""Sum-Product and Product-Sum: the two ways in which a server can make one adapter of many.

X. Chen, S. Chen, Tavallaie, Tran, Xiang, Zomaya, "Convergence Analysis of Aggregation-Broadcast in LoRA-enabled
Distributed Fine-Tuning", 2025, arXiv 2508.01348.
Sum-Product broadcasts the factors (P, Q) of rank r that minimise sum_j ||P Q - B_j A_j||_F^2: the truncated SVD of the
mean product. Product-Sum broadcasts those that minimise sum_j ||P - B_j||_F^2 + ||Q - A_j||_F^2: the mean factors.

Departures: reconstructed from a reading of the paper by others. That the two are these minimisers is an identity
(both sums are m times the squared distance from a mean, plus a constant), not a quotation. They are the aggregations of
`flexlora` and of `fedavg_lora`, under the names of the paper that compares them; the server is the complete graph with
weights 1/m. The rotation of Sum-Product's factors is ours (see `jaxdfl.mixing.product`).
"""

from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing import everyone, gossip, product
from jaxdfl.protocol import Method, Mixer


def sum_product(*, inner: Mixer = product()) -> Method:
    """Both factors train; every client gets the best rank-r factors of the mean product."""
    return Method(trains=both_factors, shares=both_factors, mixer=everyone(inner))


def product_sum(*, inner: Mixer = gossip()) -> Method:
    """Both factors train; every client gets the mean A and the mean B."""
    return Method(trains=both_factors, shares=both_factors, mixer=everyone(inner))
