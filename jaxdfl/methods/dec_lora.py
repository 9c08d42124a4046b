"""Dec-LoRA: local steps on both factors, then factor-wise gossip. The baseline called "LoRA" by the TAD-LoRA paper.

Ghiasvand, Alizadeh, Pedarsani, "Decentralized Low-Rank Fine-Tuning of Large Language Models", 2025, arXiv 2501.15361:
A_i <- sum_j q_ij A_j and B_i <- sum_j q_ij B_j after K local steps, Q symmetric and doubly stochastic.

Departures: none known in the algorithm. The paper's Q is fixed (ring, or Erdos-Renyi with the Laplacian rule); here the
network decides. Its optimizer, alpha and target modules are not stated in the sources we could read.
"""

from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing import gossip
from jaxdfl.protocol import Method


def dec_lora() -> Method:
    """Both factors train and gossip in every round."""
    return Method(trains=both_factors, shares=both_factors, mixer=gossip())
