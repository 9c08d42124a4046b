"""Who hears whom, with what weight, and how fast agreement spreads. `build("erdos_renyi:0.1", 10)` is the way in."""

from jaxdfl.topology.catalogue import TOPOLOGIES, Topology, build
from jaxdfl.topology.spectrum import Spectrum, recommended_period, rounds_to_consensus, spectrum
from jaxdfl.topology.weights import RULES, validate
from jaxdfl.topology.work import WORK, build_work

__all__ = [
    "RULES",
    "TOPOLOGIES",
    "WORK",
    "Spectrum",
    "Topology",
    "build",
    "build_work",
    "recommended_period",
    "rounds_to_consensus",
    "spectrum",
    "validate",
]
