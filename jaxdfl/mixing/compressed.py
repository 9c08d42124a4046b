"""Compressed messages (wrappers): neighbours keep copies of each other, and what is sent moves the copies.

Koloskova, Stich, Jaggi, "Decentralized Stochastic Optimization and Gossip Algorithms with Compressed Communication",
2019, arXiv 1902.00340 (CHOCO). With xh_j the copy that everybody keeps of client j, Q the compressor, gamma the `step`:

    xh_j <- xh_j + Q(x_j - xh_j)         what is sent is Q(...) alone
    x_i  <- x_i + gamma sum_j w_ij (xh_j - xh_i)

The second line cannot move the mean where W is doubly stochastic, whatever Q does; and Q is fed with what it left out
before. Without `feedback`, gossip of Q(x_j), where each client hears itself as it is, with the weight that this wrapper
is handed (specs in which something inside changes it are refused): a Q that is biased then moves the mean.

Departures: copies start from the clients' blocks where these are all equal (nobody has to be told the common start),
else from 0 as in the paper. A client that sends to nobody in a round leaves its copy as it is. On a graph that changes,
or where a message is lost, copies stay in step all the same: who was out of reach catches up at no cost.

Whatever stands inside sends each block once in a round; `repeated` goes outside (`repeated:2+top_k:0.1`). So do
triggers, since a copy must not advance while its client is silent (`event_triggered:0.1+top_k:0.1`).
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxdfl.mixing.gossip import by_block
from jaxdfl.protocol import Exchange, Info, Mixer, PerBlock, RoundKey, State
from jaxdfl.trees import Tree, along, bytes_per_client, keep, wide


class Compressor(NamedTuple):
    """What arrives in place of a leaf [clients, ...], each client's slice for itself, and what a slice costs."""

    compress: Callable[[RoundKey, Array], Array]
    size: Callable[[Array], float]  # bytes of one client's slice


@cache
def quantized(inner: Mixer, bits: int, step: float = 1.0, feedback: bool = True) -> Mixer:
    """Entries are sent in `bits` bits, on an even grid between plus and minus each slice's largest magnitude.

    Rounding goes to the nearest point with feedback, where it never makes an entry's error larger than the entry, and
    without feedback up or down at random, so that its expectation is the entry. 32 bits switch the wrapper off.
    On rings and complete graphs a `step` of 1 converges from 3 bits on; 2 bits need 0.5 or less (measured on normally
    distributed entries).

    Raises:
        ValueError: `bits` is outside 2..32, or `step` outside (0, 1].
    """
    if not 2 <= bits <= 32:
        raise ValueError(f"`bits` must lie in 2..32, got {bits}; 1 bit holds no sign and 0.")
    return inner if bits == 32 and step == 1 else compressed(inner, grid(bits, dithered=not feedback), step, feedback)


@cache
def top_k(inner: Mixer, fraction: float, step: float | None = None, feedback: bool = True) -> Mixer:
    """The largest entries of each slice are sent, by magnitude, each with its place; `fraction` of them, at least one.

    `step` None is `fraction`: the share of the squared norm that top-k is sure to keep, to which the paper's step is
    proportional. Twice that still converged on normally distributed entries, on rings and complete graphs, and four
    times did not. A `fraction` of 1 with that step switches the wrapper off.

    Raises:
        ValueError: `fraction` or `step` is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"`fraction` must lie above 0 and at most at 1, got {fraction}.")
    step = fraction if step is None else step
    return inner if fraction == step == 1 else compressed(inner, largest(fraction), step, feedback)


@cache
def compressed(inner: Mixer, compressor: Compressor, step: float, feedback: bool = True) -> Mixer:
    """`inner` on the copies, which compressed messages move.

    A message is paid as `compressor` says, never more than the block itself. Where a wrapper outside has set a payload
    (a part of a block, say), it shrinks in the same proportion. That is not what two compressors around each other
    would cost: use one.

    Raises:
        ValueError: `step` is outside (0, 1].
    """
    if not 0 < step <= 1:
        raise ValueError(f"`step` must lie above 0 and at most at 1, got {step}.")

    def init(blocks: PerBlock) -> State:
        return (jax.tree.map(_common, blocks) if feedback else ()), inner.init(blocks)

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        copies, inner_state = state
        draw, key = jax.random.split(exchange.key)
        before = copies if feedback else jax.tree.map(jnp.zeros_like, blocks)
        moves = _squeezed(draw, compressor, jax.tree.map(lambda x, copy: wide(x) - wide(copy), blocks, before))
        if feedback:
            moves = PerBlock(*map(_of_senders, by_block(exchange.links), moves))
        sent = jax.tree.map(lambda copy, move: (wide(copy) + move).astype(copy.dtype), before, moves)

        exchange = exchange._replace(key=key, payload=_payload(compressor, exchange.payload, blocks))
        heard, inner_state, info = inner.mix(exchange, sent, inner_state)

        def leaf(x: Array, sent: Array, heard: Array) -> Array:
            own = wide(sent)
            if not feedback:  # the client's own share of what it heard is x itself
                own = wide(x) + along(jnp.diag(exchange.weights), x) * (own - wide(x))
            return (wide(x) + step * (wide(heard) - own)).astype(x.dtype)

        mixed = PerBlock(*map(keep, exchange.shared, jax.tree.map(leaf, blocks, sent, heard), blocks))
        copies = PerBlock(*map(keep, exchange.shared, sent, copies)) if feedback else ()
        return mixed, (copies, inner_state), info

    return Mixer(init=init, mix=mix)


@cache
def grid(bits: int, dithered: bool) -> Compressor:
    """Whole multiples of (largest magnitude) / (2^(bits - 1) - 1); `dithered`: up or down at random, without bias."""
    levels = 2 ** (bits - 1) - 1

    def compress(key: RoundKey, x: Array) -> Array:
        largest = jnp.max(jnp.abs(x), axis=range(1, x.ndim), keepdims=True)
        scaled = jnp.where(largest > 0, x / largest, 0) * levels
        whole = jnp.floor(scaled + jax.random.uniform(key, x.shape, jnp.float32)) if dithered else jnp.round(scaled)
        return whole * (largest / levels)

    return Compressor(compress, size=lambda x: x[0].size * bits / 8 + 4)  # 4 bytes: the largest magnitude


@cache
def largest(fraction: float) -> Compressor:
    """The `fraction` of the entries that are largest in magnitude (at least one), exact; the others are 0."""

    def count(x: Array) -> int:
        return max(1, round(fraction * x[0].size))

    def compress(key: RoundKey, x: Array) -> Array:
        flat = x.reshape(x.shape[0], -1)
        _, places = jax.lax.top_k(jnp.abs(flat), count(x))
        rows = jnp.arange(x.shape[0])[:, None]
        return jnp.zeros_like(flat).at[rows, places].set(flat[rows, places]).reshape(x.shape)

    return Compressor(compress, size=lambda x: count(x) * (x.dtype.itemsize + 4))  # 4 bytes: the place


def _squeezed(key: RoundKey, compressor: Compressor, blocks: PerBlock) -> PerBlock:
    """Every leaf through the compressor, with a key of its own."""
    leaves, tree = jax.tree.flatten(blocks)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(tree, list(map(compressor.compress, keys, leaves)))


def _of_senders(links: Bool[Array, "clients clients"], moves: Tree) -> Tree:
    """The moves of those who send to anybody; 0 for the others."""
    return jax.tree.map(lambda move: along(links.any(0), move) * move, moves)


def _common(x: Array) -> Array:
    """x where it is the same for all clients, else zeros: what everybody knows before the first message."""
    return jnp.where((x == x[0]).all(), x, 0)


def _payload(compressor: Compressor, payload: PerBlock | None, blocks: PerBlock) -> PerBlock:
    """Bytes of one client's compressed message, by block."""
    full = PerBlock(*map(bytes_per_client, blocks))
    packed = [sum(map(compressor.size, jax.tree.leaves(block))) for block in blocks]
    shares = [min(1, small / max(whole, 1)) for small, whole in zip(packed, full, strict=True)]
    return PerBlock(*(each * share for each, share in zip(payload or full, shares, strict=True)))
