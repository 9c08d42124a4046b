"""ConLoRA: decentralised LoRA with one A, common to all and frozen; only B is gossiped.

Known by its code, LuYuPromax/DFL-LORA; the paper could not be read. Its stated motive: LoRA amplifies the consensus
error, and a frozen A amplifies it less. B_i A_i - B A = (B_i - B) A + B (A_i - A) + (B_i - B)(A_i - A), of which only
the first term is left where the A_i are equal (the identity is ours).

The head, where it is trained, starts from a common one and then stays local: only LoRA's parameters are gossiped. With
a frozen head this is the gossip port of FFA-LoRA.

Departures: the code copies client 0's A and last layers to all before training, and gossips once; here all clients
start from the same blocks anyway. It also gossips the equal A, which changes nothing and is not sent here. It adapts
DistilBERT with one Adam for all rounds, a local epoch each; model, optimizer and steps are the experiment's choice.
"""

from jaxdfl.methods.schedules import b_alone, only_b
from jaxdfl.mixing import gossip
from jaxdfl.protocol import Method


def conlora() -> Method:
    """B and the head train; B alone gossips."""
    return Method(trains=only_b, shares=b_alone, mixer=gossip())
