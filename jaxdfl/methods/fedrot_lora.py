"""FedRot-LoRA: before averaging, each client turns its factors towards a reference; its product B A stays as it is.

Zhang, Kim, Cha, Vikalo, "FedRot-LoRA: Mitigating Rotational Misalignment in Federated LoRA", ICML 2026, arXiv
2602.23638.
R = argmin ||R^T A_i - A_ref|| in odd rounds, argmin ||B_i R - B_ref|| in even ones, R orthogonal; then the polar factor
of (1 - lambda) I + lambda R, and A_i <- R^T A_i, B_i <- B_i R. The factors of clients that differ in gauge alone are
then averaged without a cross term.

Departures: the paper has a server, whose last average is the reference. This is a gossip port of ours: by default the
reference is the client's own factors at the round's start, which on the complete graph is the paper's, and on other
graphs follows the client (other references: see `jaxdfl.mixing.aligned`). The steps follow the official code; of the
paper itself only notes were read. Soft steps of 0.4 to 0.6 are reported best; 0.5 is the default of a third party.
Clients have equal weight. The ablation that rescales factors instead of turning them is left out.
"""

from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing import gossip
from jaxdfl.mixing.aligned import Align, Reference, aligned
from jaxdfl.protocol import Method, Mixer


def fedrot_lora(
    softness: float = 0.5,
    reference: Reference = "temporal",
    align: Align = "alternate",
    *,
    inner: Mixer = gossip(),
) -> Method:
    """Both factors train, are turned and gossip in every round; the settings are those of `aligned`."""
    return Method(trains=both_factors, shares=both_factors, mixer=aligned(inner, softness, reference, align))
