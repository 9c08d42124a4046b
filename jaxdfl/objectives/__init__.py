"""Local objectives beyond the cross-entropy: what ONE client minimises, as the engine's loss."""

from jaxdfl.objectives.discrepancy import entropy, gradient_reversal, linear, mmd, rbf
from jaxdfl.objectives.domain_adaptive import Domains, domain_adaptive
from jaxdfl.objectives.two_heads import TwoHeads, two_heads

__all__ = [
    "Domains",
    "TwoHeads",
    "domain_adaptive",
    "entropy",
    "gradient_reversal",
    "linear",
    "mmd",
    "rbf",
    "two_heads",
]
