"""RoLoRA: one factor at a time, and only the one that was trained is sent.

Chen et al., "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA", NeurIPS 2025, arXiv 2502.01755.
With a server the resting factor is the same at every client, so each average is exact. On a sparse graph it is not, and
the resting factor, which is neither trained nor mixed, stays different at every client.

Departures: the paper has a server and switches every round; this is its gossip port, with any period. B goes first;
implementations of the paper disagree on which factor does.
"""

from jaxdfl.methods.schedules import alternate
from jaxdfl.mixing import gossip
from jaxdfl.protocol import Method


def rolora(period: int = 1) -> Method:
    """The factors take turns of `period` rounds; the one that trains is the one that gossips."""
    return Method(trains=alternate(period), shares=alternate(period), mixer=gossip())
