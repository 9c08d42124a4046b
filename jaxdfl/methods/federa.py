"""FeDeRA: adapters start from the leading singular directions of the frozen weights; then Dec-LoRA.

Yan, Yang, Tang, Shi, "FeDeRA: Efficient Fine-tuning of Language Models in Federated Learning Leveraging Weight
Decomposition", 2024, arXiv 2404.18848.
W0 / scale = U S V^T; B = U_r S_r^(1/2), A = S_r^(1/2) V_r^T, and what stays frozen is W0 - scale B A, so that the first
function is the pretrained one. (W0 / scale is factored, so that scale B A are W0's own leading directions, in full.)

Departures: only the abstract could be read: the balanced split and the frozen difference are reconstructed. The paper
averages the factors at a server; here they gossip, and a complete graph gives the average. The frozen difference is W0
with -B A of the start merged beside it; LoRA dropout, where there is any, also acts on the input of that.
B is not 0 at the start, so A learns from the first step on, and weight decay pulls the model away from the pretrained
one rather than towards it.
"""

from functools import cache

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing import gossip
from jaxdfl.protocol import Base, Exchange, Info, Method, Mixer, PerBlock, RoundKey, State
from jaxdfl.trees import stack


def federa(*, inner: Mixer = gossip()) -> Method:
    """Both factors train and gossip in every round, from the singular vectors of W0 / scale.

    Starting raises ValueError where `base` lacks W0 / scale of an adapted layer.
    """
    return Method(both_factors, both_factors, remembering_the_start(inner), merged=_less_the_start, start=_start)


def leading_directions(
    weight: Float[Array, "d_out d_in"], rank: int
) -> tuple[Float[Array, "rank d_in"], Float[Array, "d_out rank"]]:
    """A and B, balanced, whose product is the best approximation of `weight` of that rank."""
    u, s, vt = jnp.linalg.svd(weight, full_matrices=False)
    root = jnp.sqrt(s[:rank])
    return root[:, None] * vt[:rank], u[:, :rank] * root


def _start(key: RoundKey, blocks: PerBlock, base: Base) -> PerBlock:
    missing = [path for path in blocks.a if path not in base]
    if missing:
        raise ValueError(
            f"federa starts from the frozen weights, and `base` lacks those of {missing[0]!r} "
            f"({len(missing)} missing in all): pass init(..., base=W0 / scale by path)."
        )
    a, b = dict(blocks.a), dict(blocks.b)
    for path, first in blocks.a.items():
        clients, rank = first.shape[:2]
        factors = jax.tree.map(lambda x, dtype=first.dtype: x.astype(dtype), leading_directions(base[path], rank))
        a[path], b[path] = stack(factors, clients)
    return PerBlock(a, b, blocks.head)


@cache
def remembering_the_start(inner: Mixer) -> Mixer:
    """`inner`, with the first factors kept beside its state."""

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        first, within = state
        blocks, within, info = inner.mix(exchange, blocks, within)
        return blocks, (first, within), info

    return Mixer(init=lambda blocks: (blocks._replace(head={}), inner.init(blocks)), mix=mix)


def _less_the_start(state: State) -> PerBlock:
    """Factors of minus the first product."""
    first, _ = state
    return first._replace(b=jax.tree.map(jnp.negative, first.b))
