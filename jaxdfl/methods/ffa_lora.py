"""FFA-LoRA: A stays at its common random start, only B is trained and sent, so averaging is exact.

Sun, Li, Li, Ding, "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv 2403.12313.
mean_i(B_i A) = (mean_i B_i) A: the cross term is zero.

Departures: the paper has a server; this is its gossip port (the same rule over the network's graph), as used for a
baseline by the TAD-LoRA and ADF-LoRA papers. The paper trains with SGD; the optimizer here is the experiment's choice.
"""

from jaxdfl.methods.schedules import only_b
from jaxdfl.mixing import gossip
from jaxdfl.protocol import Method


def ffa_lora() -> Method:
    """B trains and gossips in every round; A never changes."""
    return Method(trains=only_b, shares=only_b, mixer=gossip())
