"""Which parts of a spec may not stand to the left of which: orders that would run, but mean nothing or count wrongly.

A spec's parts stand from the method to the wire, so a method stands to the left of every wrapper. The rules go by name,
whatever the settings.
"""

from itertools import combinations
from typing import NamedTuple

PRODUCTS = ("decaf", "flexlora", "sum_product", "fedsvd", "lora_fair")  # mix products, or correct B by them
SUMS = (  # send, or remember, more than factors
    *("gradient_tracking", "local_gradient_tracking", "extra", "nids", "exact_diffusion", "d2", "flex_atc"),
    *("quasi_global_momentum", "push_sum", "relay_sgd"),
)
TRIGGERS = ("event_triggered", "ef_hc", "random_gossip")
COMPRESSORS = ("quantized", "top_k", "concentrated")
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


def refusal(method: str, wrappers: tuple[str, ...]) -> str | None:
    """Why these names, the wrappers from left to right, can't be composed; None where they can."""
    for left, right in combinations((method, *wrappers), 2):
        for rule in RULES:
            if left in rule.left and right in rule.right:
                return f"`{left}` can't stand to the left of `{right}`: {rule.why.format(left=left, right=right)}."
    return None


def require_sense(method: str, wrappers: tuple[str, ...]) -> None:
    """For `build`, before it composes.

    Raises:
        ValueError: a rule refuses the composition; see `refusal`.
    """
    if message := refusal(method, wrappers):
        raise ValueError(message)
