"""Methods and wrappers by name. These two tables are the only registries; a new one is a file and a line here.

One paper, one file. What is orthogonal to a method (triggers, channels, stragglers, compression) is a wrapper, and
goes with any method: `tad_lora:5+event_triggered:0.1+packet_loss:0.2`.

Order: the wrappers stand in the order in which a message meets them, from the method to the wire. The leftmost decides
first: there, a client that is not triggered stays silent, and what it does send may then be lost. In code that is
`event_triggered(packet_loss(gossip(), 0.2), 0.1)`. A method that mixes in a way of its own (gradient tracking, say)
sends its messages through all of them. Wrappers of a whole method (stragglers, ranks) act before all others.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxdfl.methods.adf_lora import adf_lora
from jaxdfl.methods.centralized import centralized
from jaxdfl.methods.dec_lora import dec_lora
from jaxdfl.methods.fedavg_lora import fedavg_lora
from jaxdfl.methods.fedsa_lora import fedsa_lora
from jaxdfl.methods.ffa_lora import ffa_lora
from jaxdfl.methods.local import local
from jaxdfl.methods.rolora import rolora
from jaxdfl.methods.specs import Part, read_part, wraps
from jaxdfl.methods.tad_lora import tad_lora
from jaxdfl.mixing import gossip, packet_loss, repeated
from jaxdfl.protocol import Method, Mixer

METHODS: dict[str, Callable[..., Method]] = {
    "local": local,
    "centralized": centralized,
    "fedavg_lora": fedavg_lora,
    "dec_lora": dec_lora,
    "ffa_lora": ffa_lora,
    "rolora": rolora,
    "fedsa_lora": fedsa_lora,
    "adf_lora": adf_lora,
    "tad_lora": tad_lora,
}

WRAPPERS: dict[str, Callable[..., Any]] = {  # (inner: Mixer, ...) -> Mixer, or (method: Method, ...) -> Method
    "repeated": repeated,
    "packet_loss": packet_loss,
}

POOLED = frozenset({"centralized"})  # run with one client that holds everybody's examples


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


def build(spec: str, **world: Any) -> Method:
    """The method that `spec` names.

    `world` holds what is known of the run (`rho` of the network, `learning_rate`, `local_steps`); a method takes from
    it the keyword-only arguments that its constructor names.

    Raises:
        ValueError: see `parse`; or a setting out of its range.
    """
    name, settings, wrappers = parse(spec)
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
        method = make(**settings, **given, inner=wrapped(gossip()))
    else:
        method = make(**settings, **given)
        method = method._replace(mixer=wrapped(method.mixer))
    for part in reversed(around):
        method = WRAPPERS[part.name](method, **part.settings)
    return method
