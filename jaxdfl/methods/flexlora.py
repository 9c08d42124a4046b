"""FlexLoRA: a server averages the products B A, and sends back the factors of their truncated SVD.

Bai, Chen, Qian, Yao, Li, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
Resources", NeurIPS 2024, arXiv 2402.11505.
B A <- the best approximation of rank r of (1/m) sum_j B_j A_j, the same for every client.

Departures: all clients have the same rank and equal weight (the paper's point is clients of different ranks; it weighs
by data size). The server is the complete graph with weights 1/m. The split of the singular values is reconstructed:
half to each factor; the public re-implementation that could be read leaves them out of A, which cannot be meant.
The factors are rotated towards the clients' mean factors (see `jaxdfl.mixing.product`); `decaf` on the complete graph
is the same method and has these choices as settings.
"""

from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing import everyone, product
from jaxdfl.protocol import Method, Mixer


def flexlora(*, inner: Mixer = product()) -> Method:
    """Both factors train; the products are averaged over all clients and truncated in every round."""
    return Method(trains=both_factors, shares=both_factors, mixer=everyone(inner))
