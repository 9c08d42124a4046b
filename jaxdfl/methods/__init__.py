"""Methods and wrappers by name. These two tables are the only registries; a new one is a file and a line here.

One paper, one file. What is orthogonal to a method (triggers, channels, stragglers, compression) is a wrapper, and
goes with any method: `tad_lora:5+event_triggered:0.1+packet_loss:0.2`.

Order: the wrappers stand in the order in which a message meets them, from the method to the wire. The leftmost decides
first: there, a client that is not triggered stays silent, and what it does send may then be lost. In code that is
`event_triggered(packet_loss(gossip(), 0.2), 0.1)`. A method that mixes in a way of its own (gradient tracking, say)
sends its messages through all of them. Wrappers of a whole method (stragglers, ranks) act before all others; `ranks`
stands inside the other such, wherever the spec names it, so that what they remember is truncated. Orders that would run
but mean nothing are refused: see `jaxdfl.methods.orders`.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxdfl.methods.adf_lora import adf_lora
from jaxdfl.methods.aggregation_broadcast import product_sum, sum_product
from jaxdfl.methods.centralized import centralized
from jaxdfl.methods.choco import choco
from jaxdfl.methods.conlora import conlora
from jaxdfl.methods.d2 import d2
from jaxdfl.methods.dec_lora import dec_lora
from jaxdfl.methods.decaf import decaf
from jaxdfl.methods.exact_diffusion import exact_diffusion
from jaxdfl.methods.extra import extra
from jaxdfl.methods.fedavg_lora import fedavg_lora
from jaxdfl.methods.federa import federa
from jaxdfl.methods.fedex_lora import fedex_lora
from jaxdfl.methods.fedrot_lora import fedrot_lora
from jaxdfl.methods.fedsa_lora import fedsa_lora
from jaxdfl.methods.fedsvd import fedsvd
from jaxdfl.methods.ffa_lora import ffa_lora
from jaxdfl.methods.flex_atc import flex_atc
from jaxdfl.methods.flexlora import flexlora
from jaxdfl.methods.flora import flora
from jaxdfl.methods.gradient_tracking import gradient_tracking
from jaxdfl.methods.local import local
from jaxdfl.methods.local_gradient_tracking import local_gradient_tracking
from jaxdfl.methods.lora_fair import lora_fair
from jaxdfl.methods.nids import nids
from jaxdfl.methods.orders import require_sense
from jaxdfl.methods.push_sum import push_sum
from jaxdfl.methods.quasi_global_momentum import quasi_global_momentum
from jaxdfl.methods.ranks import ranks
from jaxdfl.methods.relay_sgd import relay_sgd, require_tree
from jaxdfl.methods.rolora import rolora
from jaxdfl.methods.sparse_orthogonal_lora import sparse_orthogonal_lora
from jaxdfl.methods.specs import Part, completed, read_part, wraps
from jaxdfl.methods.tad_lora import tad_lora
from jaxdfl.mixing import packet_loss, repeated
from jaxdfl.mixing.air import over_the_air
from jaxdfl.mixing.aligned import aligned
from jaxdfl.mixing.attention import attention
from jaxdfl.mixing.compressed import quantized, top_k
from jaxdfl.mixing.concentrated import concentrated
from jaxdfl.mixing.ef_hc import ef_hc, random_gossip
from jaxdfl.mixing.links import rayleigh
from jaxdfl.mixing.noise import noisy
from jaxdfl.mixing.renormalised import renormalised
from jaxdfl.mixing.salf import salf
from jaxdfl.mixing.triggered import event_triggered
from jaxdfl.mixing.work_weighted import work_weighted
from jaxdfl.protocol import Method, Mixer

METHODS: dict[str, Callable[..., Method]] = {
    # anchors
    "local": local,
    "centralized": centralized,
    "fedavg_lora": fedavg_lora,
    # which factor trains, and which is sent
    "dec_lora": dec_lora,
    "ffa_lora": ffa_lora,
    "conlora": conlora,
    "rolora": rolora,
    "fedsa_lora": fedsa_lora,
    "adf_lora": adf_lora,
    "tad_lora": tad_lora,
    # products, alignment, residuals, other starts
    "fedrot_lora": fedrot_lora,
    "decaf": decaf,
    "flexlora": flexlora,
    "sum_product": sum_product,
    "product_sum": product_sum,
    "fedsvd": fedsvd,
    "lora_fair": lora_fair,
    "flora": flora,
    "fedex_lora": fedex_lora,
    "federa": federa,
    "sparse_orthogonal_lora": sparse_orthogonal_lora,
    # optimisers that remove the bias of plain gossip
    "gradient_tracking": gradient_tracking,
    "local_gradient_tracking": local_gradient_tracking,
    "extra": extra,
    "nids": nids,
    "exact_diffusion": exact_diffusion,
    "d2": d2,
    "flex_atc": flex_atc,
    "quasi_global_momentum": quasi_global_momentum,
    "push_sum": push_sum,
    "relay_sgd": relay_sgd,
    "choco": choco,
}

WRAPPERS: dict[str, Callable[..., Any]] = {  # (inner: Mixer, ...) -> Mixer, or (method: Method, ...) -> Method
    # who speaks, and what about
    "event_triggered": event_triggered,
    "random_gossip": random_gossip,
    "ef_hc": ef_hc,
    "concentrated": concentrated,
    # how it is coded
    "quantized": quantized,
    "top_k": top_k,
    # what the channel makes of it
    "packet_loss": packet_loss,
    "rayleigh": rayleigh,
    "noisy": noisy,
    "over_the_air": over_the_air,
    "repeated": repeated,
    # what the receiver makes of it
    "aligned": aligned,
    "attention": attention,
    "work_weighted": work_weighted,
    "renormalised": renormalised,
    # of a whole method: what its clients can do
    "salf": salf,
    "ranks": ranks,
}

POOLED = frozenset({"centralized"})  # run with one client that holds everybody's examples
DEMANDS = {"relay_sgd": require_tree}  # of a network's adjacency; a ValueError says what the method cannot use


class Spec(NamedTuple):
    """A method as asked for, with its wrappers in the order in which a message meets them."""

    name: str
    settings: dict[str, Any]
    wrappers: tuple[Part, ...]


def parse(spec: str) -> Spec:
    """`tad_lora:5+packet_loss:0.2` as names and settings (see `jaxdfl.methods.specs`).

    Raises:
        ValueError: an unknown name, or a setting that does not exist, is missing or is not of its type.
    """
    first, *rest = spec.split("+")
    method = read_part(first, METHODS, "method")
    return Spec(*method, tuple(read_part(part, WRAPPERS, "wrapper") for part in rest))


def parts_of(asked: Spec) -> list[Part]:
    """The method and its wrappers, each with all that it takes, defaults included."""
    named = (Part(asked.name, asked.settings), *asked.wrappers)
    return [completed(part, (METHODS | WRAPPERS)[part.name]) for part in named]


def build(spec: str, **world: Any) -> Method:
    """The method that `spec` names.

    `world` holds what is known of the run (`rho` of the network, `learning_rate`, `local_steps`); a method takes from
    it the keyword-only arguments that its constructor names.

    Raises:
        ValueError: see `parse`; or a setting out of its range, or an order that makes no sense.
    """
    name, settings, wrappers = asked = parse(spec)
    require_sense(parts_of(asked))
    on_links = [part for part in wrappers if wraps(WRAPPERS[part.name]) == "inner"]
    around = [part for part in wrappers if wraps(WRAPPERS[part.name]) == "method"]

    def wrapped(mixer: Mixer) -> Mixer:
        for part in reversed(on_links):
            mixer = WRAPPERS[part.name](mixer, **part.settings)
        return mixer

    make = METHODS[name]
    known = inspect.signature(make).parameters
    given = {key: value for key, value in world.items() if key in known and value is not None}
    if "inner" in known:
        method = make(**settings, **given, inner=wrapped(known["inner"].default))
    else:
        method = make(**settings, **given)
        method = method._replace(mixer=wrapped(method.mixer))
    for part in sorted(reversed(around), key=lambda part: part.name != "ranks"):
        method = WRAPPERS[part.name](method, **part.settings)
    return method
