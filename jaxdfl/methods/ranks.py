"""Clients of different ranks (wrapper of a whole method).

Cho, Liu, Xu, Fahrezi, Joshi, "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", 2024,
arXiv 2401.06432 (HetLoRA) pads factors of lower rank with zeros, averages, and truncates the result to each client's
own rank. Written from general knowledge of the paper, not from its equations. Rows of high index are averaged with
zeros here; the wrapper `renormalised` averages them over those who hold them.

All clients live in arrays of the full rank; of client i, of rank r_i, the rows of A and columns of B past the first r_i
are zero. They stay so by themselves: a zero row of A meets a zero column of B, so the gradient of both is exactly zero.

Departures: HetLoRA weighs clients by the norm of their products and prunes its ranks; neither is here. The ranks follow
the clients' index, and the LoRA scale is one for all. Where a method starts from factors of its own and merges the rest
of W0 elsewhere, what is truncated is lost; where its mixer remembers what it returned, it remembers it untruncated.
Mixed products lose their least singular values in the gauge "svd" alone (`decaf:balanced:svd`); specs with another are
refused.
"""

from collections.abc import Callable
from functools import cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxdfl.protocol import Base, Exchange, Info, Method, Mixer, PerBlock, RoundKey, State
from jaxdfl.trees import bytes_per_client


def ranks(method: Method, lowest: int) -> Method:
    """`method` with ranks spread evenly over its clients, from `lowest` to the rank of the blocks.

    A client sends, and pays for, the rows of its own rank. The full rank as the lowest is the method as it was.

    Raises:
        ValueError: `lowest` is below 1; or, where the blocks are known (`start`, `init`), above their rank.
    """
    if lowest < 1:
        raise ValueError(f"`lowest` must be at least 1, got {lowest}.")
    return method._replace(
        start=_started(method.start, lowest),
        mixer=_truncating(method.mixer, lowest),
        correction=_corrected(method.correction, lowest),
    )


@cache
def _started(start: Callable | None, lowest: int) -> Callable[[RoundKey, PerBlock, Base], PerBlock]:
    def truncated_start(key: RoundKey, blocks: PerBlock, base: Base) -> PerBlock:
        return truncate(blocks if start is None else start(key, blocks, base), lowest)

    return truncated_start


@cache
def _corrected(correction: Callable | None, lowest: int) -> Callable[[State], PerBlock] | None:
    """Without the rows that a client does not hold, which would move them off zero."""
    return None if correction is None else lambda state: truncate(correction(state), lowest)


@cache
def _truncating(inner: Mixer, lowest: int) -> Mixer:
    def init(blocks: PerBlock) -> State:
        return inner.init(truncate(blocks, lowest))

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        full = exchange.payload or PerBlock(*map(bytes_per_client, blocks))
        share = _share_sent(blocks, lowest)
        payload = PerBlock(full.a * share.a, full.b * share.b, full.head)
        blocks, state, info = inner.mix(exchange._replace(payload=payload), blocks, state)
        return truncate(blocks, lowest), state, info

    return Mixer(init=init, mix=mix)


def own_ranks(clients: int, lowest: int, rank: int) -> Int[np.ndarray, " clients"]:
    """`lowest` for the first client to `rank` for the last, evenly.

    Raises:
        ValueError: `lowest` is above `rank`.
    """
    if lowest > rank:
        raise ValueError(f"`lowest` must be at most the blocks' rank {rank}, got {lowest}.")
    return np.linspace(lowest, rank, clients).round().astype(int)


def truncate(blocks: PerBlock, lowest: int) -> PerBlock:
    """Zero in every row of A and column of B that its client does not hold."""
    held = {path: _held(a, lowest) for path, a in blocks.a.items()}
    return blocks._replace(
        a={path: jnp.where(held[path][:, :, None], a, 0) for path, a in blocks.a.items()},
        b={path: jnp.where(held[path][:, None, :], b, 0) for path, b in blocks.b.items()},
    )


def _held(a: Array, lowest: int) -> Bool[np.ndarray, "clients rank"]:
    clients, rank, _ = a.shape
    return np.arange(rank) < own_ranks(clients, lowest, rank)[:, None]


def _share_sent(blocks: PerBlock, lowest: int) -> PerBlock:
    """Of the bytes of a whole block, by client: [clients] for A and for B."""

    def share(block: dict[str, Array]) -> Array:
        total = bytes_per_client(block)
        sent = sum(_held(blocks.a[path], lowest).mean(1) * bytes_per_client(x) for path, x in block.items())
        return jnp.asarray(sent / total, jnp.float32)

    return PerBlock(share(blocks.a), share(blocks.b), 1.0)
