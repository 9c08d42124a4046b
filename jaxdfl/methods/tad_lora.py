"""TAD-LoRA: train one factor at a time, T rounds each, and mix both every round; the sparser the graph, the longer T.

Wang, Li, Zhou, Li, Liu, "Stabilizing Decentralized Federated Fine-Tuning via Topology-Aware Alternating LoRA", 2026,
arXiv 2602.00451. The mixing of the resting factor lets its disagreement contract while it is not being driven apart,
which holds down the cross term (1/m) sum_i (B_i - B)(A_i - A).

Departures: only the abstract and the start of the paper could be read; the algorithm follows secondary sources that
agree. Which factor goes first is not known: B does here. T* ~ 1/sqrt(1 - rho) is the paper's scaling as secondary
sources give it; its constant is ours (see `jaxdfl.topology.spectrum.recommended_period`).
"""

from jaxdfl.methods.schedules import alternate, both_factors
from jaxdfl.mixing import gossip
from jaxdfl.protocol import Method
from jaxdfl.topology.spectrum import recommended_period


def tad_lora(period: int | None = None, *, rho: float | None = None) -> Method:
    """The factors take turns of `period` rounds to train; both gossip in every round.

    Args:
        period: T, in rounds. When it is not given, T follows from `rho`.
        rho: the network's expected contraction lambda_max(E[W^T W] - J), in [0, 1).

    Raises:
        ValueError: neither is given, `period` is below 1, or `rho` is outside [0, 1).
    """
    if period is None:
        if rho is None:
            raise ValueError("tad_lora needs `period`, or `rho` of the network to choose it; neither was given.")
        period = recommended_period(rho)
    return Method(trains=alternate(period), shares=both_factors, mixer=gossip())
