"""Who hears whom, with what weight, and how fast agreement spreads. `build("erdos_renyi:0.1", 10)` is the way in."""

from jaxdfl.topology.catalogue import TOPOLOGIES, Topology, build
from jaxdfl.topology.spectrum import Spectrum, recommended_period, spectrum
from jaxdfl.topology.weights import RULES, validate

__all__ = ["RULES", "TOPOLOGIES", "Spectrum", "Topology", "build", "recommended_period", "spectrum", "validate"]
