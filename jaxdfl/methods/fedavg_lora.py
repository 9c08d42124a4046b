"""FedAvg of LoRA factors, known as FedIT.

Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning", 2023, arXiv 2305.05644.
Every client trains A and B; a server averages A and B apart, and sends the averages back.

Departures: clients have equal weight (the paper weighs by data size; partitions here are equal unless a skew is asked
for), and the server is the complete graph with weights 1/m, which computes the same average. The network's own graph
is not used.
"""

from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing import everyone, gossip
from jaxdfl.protocol import Method, Mixer


def fedavg_lora(*, inner: Mixer = gossip()) -> Method:
    """Both factors train and are averaged over all clients in every round."""
    return Method(trains=both_factors, shares=both_factors, mixer=everyone(inner))
