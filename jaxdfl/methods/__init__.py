"""Methods: one paper, one file. `METHODS` is the only registry; a new method is a file and a line here."""

import inspect
from collections.abc import Callable

from jaxdfl.methods.adf_lora import adf_lora
from jaxdfl.methods.centralized import centralized
from jaxdfl.methods.dec_lora import dec_lora
from jaxdfl.methods.fedavg_lora import fedavg_lora
from jaxdfl.methods.fedsa_lora import fedsa_lora
from jaxdfl.methods.ffa_lora import ffa_lora
from jaxdfl.methods.local import local
from jaxdfl.methods.rolora import rolora
from jaxdfl.methods.tad_lora import tad_lora
from jaxdfl.protocol import Method
from jaxdfl.spelling import did_you_mean

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

POOLED = frozenset({"centralized"})  # run with one client that holds everybody's examples


def parse(spec: str) -> tuple[str, dict[str, int]]:
    """`tad_lora:5` -> ("tad_lora", {"period": 5}); the value after the colon is the method's first setting.

    Raises:
        ValueError: unknown method (the known are listed, the closest first), a setting where the method takes none,
            or a setting that is no whole number of at least 1.
    """
    name, _, value = spec.partition(":")
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}.{did_you_mean(name, METHODS)} Known: {', '.join(METHODS)}.")
    if ":" not in spec:
        return name, {}
    settings = list(inspect.signature(METHODS[name]).parameters)
    if not settings:
        raise ValueError(f"method {name!r} takes no setting, got {spec!r}.")
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"method {spec!r}: `{settings[0]}` must be a whole number of at least 1, got {value!r}.")
    return name, {settings[0]: int(value)}


def build(spec: str, *, rho: float | None = None) -> Method:
    """The method that `spec` names, on a network with contraction `rho` for methods that choose a setting by it."""
    name, settings = parse(spec)
    if rho is not None and "rho" in inspect.signature(METHODS[name]).parameters:
        return METHODS[name](**settings, rho=rho)
    return METHODS[name](**settings)
