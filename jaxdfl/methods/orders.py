"""Which parts of a spec may not stand to the left of which: orders that would run, but mean nothing or count wrongly.

A spec's parts stand from the method to the wire, so a method stands to the left of every wrapper. The rules go by name
(`top_k`, whatever its settings) or by a setting as well (`top_k:feedback=false`).
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from jaxdfl.methods.specs import Part

PRODUCTS = ("decaf", "flexlora", "sum_product", "fedsvd", "lora_fair")  # mix products, or correct B by them
SUMS = (  # send, or remember, more than factors
    *("gradient_tracking", "local_gradient_tracking", "extra", "nids", "exact_diffusion", "d2", "flex_atc"),
    *("quasi_global_momentum", "push_sum", "relay_sgd"),
)
TRIGGERS = ("event_triggered", "ef_hc", "random_gossip")
COMPRESSORS = ("quantized", "top_k", "concentrated")
DIFFERENCES = (*COMPRESSORS, "event_triggered")  # return x_i + mixed_i - sent_i
OWN_SHARE = ("quantized:feedback=false", "top_k:feedback=false", "event_triggered:form=replacement")  # add w_ii x_i
WEIGHERS = ("packet_loss", "rayleigh", "over_the_air", "attention", "work_weighted", "renormalised")
BY_VALUE = (  # treat a message by the values in it
    *("attention", "event_triggered", "ef_hc", "concentrated", "noisy", "over_the_air", "aligned", "quantized"),
    "top_k",
)


class Rule(NamedTuple):
    """None of `left` may stand to the left of any of `right`."""

    left: tuple[str, ...]
    right: tuple[str, ...]
    why: str  # and the remedy; {left} and {right} are the two that met


RULES = (
    Rule(
        ("renormalised",),
        BY_VALUE,
        "what `{right}` does depends on the values sent, so the weights it gives to who holds a row are not those of "
        "the row; put renormalised to the right of {right}",
    ),
    Rule(
        PRODUCTS,
        ("renormalised",),
        "`renormalised` averages rows of factors, and this method mixes or corrects products; leave it out",
    ),
    Rule(
        COMPRESSORS,
        TRIGGERS,
        "copies advance though the trigger stays silent, and one payload is paid for many; put the trigger to the left "
        "of {left}",
    ),
    Rule(
        ("choco",),
        TRIGGERS,
        "its compressor stands outside the trigger, so copies advance though the trigger stays silent; use "
        "dec_lora+{right}:...+top_k:...",
    ),
    Rule(
        ("event_triggered", "concentrated"),
        ("repeated",),
        "later hops would forward what nobody paid for; repeated must stand to the left of {left}",
    ),
    Rule(
        SUMS,
        ("aligned",),
        "the method sends sums over rounds or clients, which turned factors no longer fit; use dec_lora+aligned:... or "
        "leave aligned out",
    ),
    Rule(
        (*DIFFERENCES, "choco"),
        ("aligned",),
        "what comes back is turned and what was sent is not, so their difference is no factor; put aligned to the left "
        "of {left} (for choco: dec_lora+aligned:...+top_k:...)",
    ),
    Rule(
        ("decaf:gauge=svd", "fedsvd:gauge=svd"),
        DIFFERENCES,
        "what comes back are singular directions and what was sent is not, so their difference is no factor; use "
        "gauge=aligned",
    ),
    Rule(
        OWN_SHARE,
        WEIGHERS,
        "there a client hears itself as it is, with the weight that it is handed, and {right} gives it another; leave "
        "that setting of {left} at its default",
    ),
    Rule(
        ("event_triggered:form=replacement",),
        ("random_gossip", "ef_hc", *COMPRESSORS),
        "there a client hears itself as it is, with the weight that it is handed, and {right} changes what it hears of "
        "itself; leave that setting of {left} at its default",
    ),
    Rule(
        ("decaf:gauge=aligned", "fedsvd:gauge=aligned", "flexlora", "sum_product"),
        ("ranks",),
        "rows of factors would be cut off, and in this gauge the last are not the least; use decaf:balanced:svd+ranks "
        "(on `complete`, it is flexlora)",
    ),
    Rule(
        ("flora",),
        COMPRESSORS,
        "the dense product would be compressed, whose size is not what is paid; leave {right} out, or compress "
        "another method",
    ),
    Rule(
        SUMS,
        ("ranks",),
        "the method remembers blocks that are not truncated, and would bring back rows that a client does not hold; "
        "use dec_lora+ranks:... or leave ranks out",
    ),
)


def refusal(parts: Sequence[Part]) -> str | None:
    """Why these, the method and its wrappers from left to right, can't be composed; None where they can.

    Their settings are complete: each part has all that it takes.
    """
    for left, right in combinations(parts, 2):
        for rule in RULES:
            here = next((each for each in rule.left if _is(left, each)), None)
            if here and any(_is(right, each) for each in rule.right):
                why = rule.why.format(left=left.name, right=right.name)
                return f"`{here}` can't stand to the left of `{right.name}`: {why}."
    return None


def require_sense(parts: Sequence[Part]) -> None:
    """For `build`, before it composes.

    Raises:
        ValueError: a rule refuses the composition; see `refusal`.
    """
    if message := refusal(parts):
        raise ValueError(message)


def _is(part: Part, named: str) -> bool:
    """Whether the part is the one named, and has the setting, if one is named too."""
    name, _, setting = named.partition(":")
    key, _, value = setting.partition("=")
    return part.name == name and (not setting or str(part.settings[key]).lower() == value)
