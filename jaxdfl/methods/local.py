"""Local fine-tuning: every client trains both factors on its own data and talks to nobody.

The anchor below which no federated method should fall. Not from a paper.
"""

from jaxdfl.methods.schedules import both_factors, nothing
from jaxdfl.mixing import gossip
from jaxdfl.protocol import Method


def local() -> Method:
    """Both factors train, nothing is shared."""
    return Method(trains=both_factors, shares=nothing, mixer=gossip())
