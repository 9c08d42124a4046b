"""How clients combine: plain gossip, and wrappers that take a mixer and return one."""

from jaxdfl.mixing.gossip import everyone, gossip

__all__ = ["everyone", "gossip"]
