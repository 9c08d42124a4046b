"""The contract: what a client trains, the network it lives in, and how clients combine.

A decentralised method is three small answers, and `Method` holds just those:

* `trains`: which blocks get optimizer steps in a round;
* `shares`: which blocks are sent to the neighbours afterwards;
* `mixer`:  what a client makes of what it hears.

The rest of `Method` is for papers that need more: a term of the loss, a correction of the gradients, first factors of
their own, or weights merged into the frozen ones. Everything else (the loss, the optimizer, the graph, the data) is
given to the engine from outside, so any method runs on any network with any model. A complete method:

    def tad_lora(period):
        return Method(trains=alternate(period), shares=both_factors, mixer=gossip())
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, Key

Round = Int[Array, ""] | int
RoundKey = Key[Array, ""]
State = Any  # a mixer's own carried pytree; () where there is none
Base = Mapping[str, Float[Array, "d_out d_in"]]  # by target path: W0 / scale, the frozen weight in units of B A
Info = dict[str, Array]  # named counts (never fractions), added up over the round


class PerBlock(NamedTuple):
    """One thing for each block a client may train: blocks, masks and optimizer states alike."""

    a: Any  # LoRA A by target path: [clients, rank, d_in]
    b: Any  # LoRA B by target path: [clients, d_out, rank]; weight used is W0 + scale * B_i A_i
    head: Any  # classification head (a pytree, {} where there is none)


Schedule = Callable[[Round], PerBlock]  # of booleans (traced): which blocks train, or are shared, in this round


class Network(NamedTuple):
    """The world the clients live in. Both are pure, so every method sees the same graphs for the same seed.

    Either may be a `jax.tree_util.Partial`: networks that differ in the arrays it binds alone share compiled programs.
    """

    weights: Callable[[RoundKey, Round], Float[Array, "clients clients"]]  # row i: what client i makes of each message
    work: Callable[[RoundKey, Round], Float[Array, " clients"]]  # share of its local steps each client finishes


class Exchange(NamedTuple):
    """One communication step, as a mixer sees it; wrappers pass on an altered copy."""

    key: RoundKey
    round: Round
    weights: Float[Array, "clients clients"]
    links: Bool[Array, "clients clients"] | PerBlock  # [i, j]: j sends to i; what is paid for. Apart from `weights`,
    # since a lost message is paid for and not used, and a silent client's cached copy is used and not paid for. A
    # PerBlock of such arrays where blocks are sent apart
    work: Float[Array, " clients"]
    shared: PerBlock  # of booleans
    payload: PerBlock | None = None  # bytes of one client's message, by block: a number, or [clients] where senders
    # differ; None: every entry of the block in its own dtype


class Mixer(NamedTuple):
    """How clients combine; the counterpart of an optax transformation. Wrappers take a mixer and return one."""

    init: Callable[[PerBlock], State]  # stacked blocks -> what the mixer carries from round to round
    mix: Callable[[Exchange, PerBlock, State], tuple[PerBlock, State, Info]]
    keeps_mean: bool = False  # claims that doubly stochastic weights leave the clients' mean where it was; is checked


class Method(NamedTuple):
    """A decentralised fine-tuning method, in full."""

    trains: Schedule
    shares: Schedule
    mixer: Mixer
    penalty: Callable[[PerBlock], Float[Array, ""]] | None = None  # added to one client's loss
    correction: Callable[[State], PerBlock] | None = None  # stacked; added to the gradients, from the mixer's state
    merged: Callable[[State], PerBlock] | None = None  # stacked, from the mixer's state: factors of any rank whose
    # product is part of the model beside the trained one, as if merged into W0; they don't train. `head` is {}
    start: Callable[[RoundKey, PerBlock, Base], PerBlock] | None = None  # from the common first blocks, stacked, to
    # those that this method's clients start from; `Base` maps a target path to W0 / scale, [d_out, d_in]
