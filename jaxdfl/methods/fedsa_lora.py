"""FedSA-LoRA: both factors train, only A is sent; B and the head stay personal.

Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR 2025, arXiv 2410.01463.

Departures: the paper has a server; this is its gossip port. The models are personal, so the accuracy to read is that of
the clients; that of the averaged adapter means little.
"""

from jaxdfl.methods.schedules import both_factors, only_a
from jaxdfl.mixing import gossip
from jaxdfl.protocol import Method


def fedsa_lora() -> Method:
    """A, B and the head train; A alone gossips."""
    return Method(trains=both_factors, shares=only_a, mixer=gossip())
