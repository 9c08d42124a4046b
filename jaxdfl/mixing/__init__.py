"""How clients combine: plain gossip, and wrappers that take a mixer and return one."""

from jaxdfl.mixing.air import over_the_air
from jaxdfl.mixing.aligned import aligned
from jaxdfl.mixing.attention import attention
from jaxdfl.mixing.compressed import quantized, top_k
from jaxdfl.mixing.concentrated import concentrated
from jaxdfl.mixing.ef_hc import ef_hc, random_gossip
from jaxdfl.mixing.gossip import everyone, gossip, repeated
from jaxdfl.mixing.links import packet_loss, rayleigh
from jaxdfl.mixing.noise import noisy
from jaxdfl.mixing.product import product
from jaxdfl.mixing.renormalised import renormalised
from jaxdfl.mixing.salf import salf
from jaxdfl.mixing.triggered import event_triggered
from jaxdfl.mixing.work_weighted import work_weighted

__all__ = [
    "aligned",
    "attention",
    "concentrated",
    "ef_hc",
    "event_triggered",
    "everyone",
    "gossip",
    "noisy",
    "over_the_air",
    "packet_loss",
    "product",
    "quantized",
    "random_gossip",
    "rayleigh",
    "renormalised",
    "repeated",
    "salf",
    "top_k",
    "work_weighted",
]
