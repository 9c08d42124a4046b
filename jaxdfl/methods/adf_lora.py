"""ADF-LoRA: alternate factors in phases that all clients share, and mix both factors in every round.

Wang et al., "ADF-LoRA: Alternating Low-Rank Aggregation for Decentralized Federated Fine-Tuning", 2025,
arXiv 2511.18291. Switching every T = 5 rounds did best there, on pairwise meetings with probability 0.1.

Departures: only the abstract and the start of the paper could be read; the rest follows secondary sources that agree.
Which factor goes first is not known: B does here. Run it on `pairwise_meetings:0.1` for the paper's network; on any
other it equals TAD-LoRA with the same period.
"""

from jaxdfl.methods.schedules import alternate, both_factors
from jaxdfl.mixing import gossip
from jaxdfl.protocol import Method


def adf_lora(period: int = 5) -> Method:
    """The factors take turns of `period` rounds to train; both gossip in every round."""
    return Method(trains=alternate(period), shares=both_factors, mixer=gossip())
