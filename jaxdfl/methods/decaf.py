"""DeCAF: neighbours agree on products B A, and a truncated SVD brings them back to the adapter's rank.

Saadati, Jiang, Waite, Ganguly, Balu, Hegde, Sarkar, "DeCAF: Decentralized Consensus-And-Factorization for Low-Rank
Adaptation of Foundation Models", 2025, arXiv 2505.21382.
P_i = sum_j W_ij B_j A_j, then B_i A_i = the best approximation of P_i of rank r: no cross term, at the price of what
the truncation leaves out, sum_{k > r} sigma_k(P_i)^2. DLoRA of the same paper is `dec_lora`, DLoRA-FA is `ffa_lora`.

Departures: the body of the paper could not be read; the rule is reconstructed from its abstract and from reviews. How
the singular values are split between A and B is not known (half to each here, see `split`), nor is what is done with
the freedom to rotate the factors (`gauge`), nor at B = 0, where the factors gossip here. In the paper a step is
consensus, then training; a round here is training, then consensus: the same cycle, read half a round later. The
optimizer's moments are kept through the factorization unless the experiment resets them. See `jaxdfl.mixing.product`.
"""

from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing import product
from jaxdfl.mixing.product import Gauge, Split
from jaxdfl.protocol import Method


def decaf(split: Split = "balanced", gauge: Gauge = "aligned") -> Method:
    """Both factors train; their products are averaged over the neighbours and truncated in every round.

    Args:
        split: which factor gets the singular values: half each, all to B, or all to A.
        gauge: factors nearest to the gossiped ones, or the singular directions themselves.
    """
    return Method(trains=both_factors, shares=both_factors, mixer=product(split, gauge))
