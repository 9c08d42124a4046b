"""Sparse-and-orthogonal LoRA: a client trains a sparse B against a fixed A_i of its own, and experts are kept apart.

Yang, Wang, Huan, Chen, Quek, Yin, "Wireless federated multi-task LLM fine-tuning via sparse-and-orthogonal LoRA", 2026,
arXiv 2602.20492 (title as far as our sources give it). Clients may have different tasks. Reconstructed: only the
abstract and a critical note could be read. They say: A is fixed, random and Gaussian, so A_i A_j^T is only about zero;
B is sparse with a budget for each layer; clients form clusters; a latent code of a task routes inputs to experts.

    B_i <- S(B_i) after local training;   bank_i <- (B_j of the neighbours j in i's cluster);   B_i is not averaged
    W_i = W0 + s sum_j g_ij B_j A_j       with orthogonal A_i, <B_i A_i, B_j A_j> = tr(A_j A_i^T B_i^T B_j) = 0

Ours, since it cannot be told: S keeps the entries of largest magnitude, in every round anew (the paper derives the
layers' budgets from the spectrum of task-average inputs; `budget` offers two other rules). `block` makes the A_i of a
cluster exactly orthogonal; `gaussian` is the paper's but for normalised rows. Clusters are given, not chosen by
communication cost and task collision. g_ij are the mixing weights; routing by input is `jaxdfl.simulate.experts`.

Departures: A_i follows from the run's seed and the client's number, so nobody sends it (the note says it is exchanged
once, 4 rank d_in bytes a link and layer). A head, which the paper's language models do not need, is personal, as the
tasks are. With `stacked` the neighbours' experts are part of the model in training too.
"""

from functools import cache
from typing import Literal
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdfl.methods.schedules import b_alone, only_b
from jaxdfl.mixing import gossip
from jaxdfl.mixing.expert_bank import Clusters, expert_bank, members, stacked
from jaxdfl.protocol import Base, Exchange, Info, Method, Mixer, PerBlock, RoundKey, State
from jaxdfl.trees import bytes_per_client, keep

Orthogonality = Literal["block", "gaussian"]
Budget = Literal["even", "energy"]
INDEX_BYTES = 4  # of one entry's place


def sparse_orthogonal_lora(
    density: float = 0.1,
    orthogonality: Orthogonality = "block",
    clusters: Clusters = 1,
    budget: Budget = "even",
    inference: Literal["own", "stacked"] = "own",
    *,
    inner: Mixer = gossip(),
) -> Method:
    """B and the head train, B is sent sparse. The mixer's state holds the experts that each client has heard.

    Args:
        density: share of B's entries that stay, over all layers; at least one of each layer's is counted.
        orthogonality: `block` takes all A_i of a cluster from one QR, and needs d_in >= cluster size * rank; `gaussian`
            normalises the rows of Gaussian matrices, A_i A_j^T of about d_in^-1/2. Rows have norm one in both.
        clusters: clients of one cluster exchange and others don't: how many, of neighbouring clients, or the cluster of
            each client.
        budget: `even` keeps the same share in every layer; `energy` lets the entries of all layers compete for the same
            total, which keeps as much of sum ||B A||^2 as that total can (of orthonormal rows, ||B A|| = ||B||).
        inference: the model of a client is its `own` expert, or all that it has heard, `stacked` by their weights.
        inner: what the experts are sent through.

    Raises:
        ValueError: `density` is outside (0, 1], or `clusters` below 1. When the first factors are drawn: `clusters`
            does not fit the clients, or `block` the width.
    """
    if not 0 < density <= 1:
        raise ValueError(f"`density` must lie in (0, 1], got {density}.")
    if isinstance(clusters, int) and clusters < 1:
        raise ValueError(f"`clusters` must be at least 1, got {clusters}.")
    return Method(
        trains=only_b,
        shares=b_alone,
        mixer=sparsified(expert_bank(inner, clusters), density, budget),
        merged=stacked if inference == "stacked" else None,
        start=own_subspaces(orthogonality, clusters),
    )


@cache
def own_subspaces(orthogonality: Orthogonality, clusters: Clusters):
    """`Method.start`: an A_i for each client by number; B and the head as they are."""

    def start(key: RoundKey, blocks: PerBlock, base: Base) -> PerBlock:
        def draw(path: str, a: Array) -> Float[Array, "clients rank d_in"]:
            drawn = jax.random.normal(jax.random.fold_in(key, crc32(path.encode())), a.shape, jnp.float32)
            if orthogonality == "gaussian":
                return (drawn / jnp.linalg.norm(drawn, axis=-1, keepdims=True)).astype(a.dtype)
            clients, rank, d_in = a.shape
            for row in np.unique(members(clients, clusters), axis=0):
                own = row[row >= 0]
                if len(own) * rank > d_in:
                    raise ValueError(
                        f"`orthogonality` block needs d_in >= clients of a cluster * rank, got {d_in} < {len(own)} * "
                        f"{rank} for {path}; take gaussian, more clusters or a lower rank."
                    )
                columns = jnp.linalg.qr(drawn[own].reshape(-1, d_in).T)[0]  # [d_in, cluster * rank]
                drawn = drawn.at[own].set(columns.T.reshape(-1, rank, d_in))
            return drawn.astype(a.dtype)

        return blocks._replace(a={path: draw(path, a) for path, a in blocks.a.items()})

    return start


@cache
def sparsified(inner: Mixer, density: float, budget: Budget) -> Mixer:
    """B <- S(B) before `inner`, and for good; sent as values and int32 places, or in full where that is shorter.

    Never more is paid than a payload that is set outside (rows of a lower rank, say).
    """

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        sizes = {path: b[0].size for path, b in blocks.b.items()}
        kept = {path: max(1, round(density * size)) for path, size in sizes.items()}
        flat = {path: b.reshape(b.shape[0], -1) for path, b in blocks.b.items()}
        if budget == "even":
            sparse = {path: largest(x, kept[path]) for path, x in flat.items()}
        else:
            joined = largest(jnp.concatenate(list(flat.values()), axis=1), sum(kept.values()))
            cuts = np.cumsum(list(sizes.values()))[:-1]
            sparse = dict(zip(flat, jnp.split(joined, cuts, axis=1), strict=True))
        sparse = {path: x.reshape(blocks.b[path].shape).astype(blocks.b[path].dtype) for path, x in sparse.items()}
        values = bytes_per_client({path: x[:, : kept[path]] for path, x in flat.items()})
        message = min(values + INDEX_BYTES * sum(kept.values()), bytes_per_client(flat))
        if exchange.payload is not None:
            message = jnp.minimum(message, exchange.payload.b)
        payload = PerBlock(0, message, 0)
        sparse_blocks = blocks._replace(b=keep(exchange.shared.b, sparse, blocks.b))
        return inner.mix(exchange._replace(payload=payload), sparse_blocks, state)

    return Mixer(inner.init, mix)


def largest(x: Float[Array, "clients entries"], count: int) -> Float[Array, "clients entries"]:
    """Each row's `count` entries of largest magnitude (of equal ones the first), the others zero."""
    _, places = jax.lax.top_k(jnp.abs(x), count)
    rows = jnp.arange(x.shape[0])[:, None]
    return jnp.zeros_like(x).at[rows, places].set(x[rows, places])
