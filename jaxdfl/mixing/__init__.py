"""How clients combine: plain gossip, and wrappers that take a mixer and return one."""

from jaxdfl.mixing.gossip import everyone, gossip, repeated
from jaxdfl.mixing.links import packet_loss

__all__ = ["everyone", "gossip", "packet_loss", "repeated"]
