"""CHOCO-SGD on LoRA factors: Dec-LoRA whose clients send the largest entries of how far they moved, and nothing else.

Koloskova, Stich, Jaggi, "Decentralized Stochastic Optimization and Gossip Algorithms with Compressed Communication",
2019, arXiv 1902.00340. After the local steps, with xh_j everybody's copy of client j and Q top-k:
xh_j <- xh_j + Q(x_j - xh_j), then x_i <- x_i + gamma sum_j w_ij (xh_j - xh_i). The mean stays for any Q.

The equations are those of the authors' code (epfml/ChocoSGD). With one SGD step a round this is the paper's algorithm
on the vector of both factors; its rates do not carry over, since the loss is not convex in the factors, and the same
adapters in another gauge (A, B) -> (Q^-1 A, B Q) have other largest entries.

Departures: any optimizer, any number of local steps; top-k within each weight's A and B (and the head's tensors) apart,
so that every block moves; for copies, their start and changing graphs see `jaxdfl.mixing.compressed`.
"""

from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing import gossip, top_k
from jaxdfl.protocol import Method, Mixer


def choco(fraction: float = 0.1, step: float | None = None, *, inner: Mixer = gossip()) -> Method:
    """Both factors train and gossip in every round, by copies that compressed messages move.

    Args:
        fraction: share of the entries of each leaf that is sent.
        step: gamma, the consensus step; None is `fraction`, which converges at every fraction tried.
    """
    return Method(trains=both_factors, shares=both_factors, mixer=top_k(inner, fraction, step))
