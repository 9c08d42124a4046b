"""Centralised fine-tuning: one client that holds everybody's examples, with as many steps as one client would take.

The anchor above. Not from a paper. As a method it is `local`; what sets it apart is the data, so the experiment gives
a method named in `jaxdfl.methods.POOLED` one client with the union of the clients' examples. It takes rounds x local
steps x batch examples in all, as one client of the others does, not m times as many.
"""

from jaxdfl.methods.local import local
from jaxdfl.protocol import Method


def centralized() -> Method:
    """Both factors train; there is nobody to share with."""
    return local()
