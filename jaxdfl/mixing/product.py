"""Mixing of products: every client keeps the best rank-r factors of its neighbours' weighted mean product.

P_i = sum_j W_ij B_j A_j is what averaging adapters ought to give; averaging their factors gives it only where all A (or
all B) agree. P_i has r times as many directions as it has senders, so the best approximation of rank r is kept
(Eckart and Young, 1936). The mean of the P_i is the mean of the products where W is doubly stochastic; what the
truncations leave out is lost from it, and counted.

No dense product is formed. With thin QR factorizations [B_1 ... B_m] = Q_B R_B and [A_1; ...; A_m]^T = Q_A R_A, found
once for all receivers, P_i = Q_B (R_B D_i R_A^T) Q_A^T with D_i = diag(W_i1 1_r, ..., W_im 1_r), so the singular values
of P_i are those of a core whose sides are at most m r.

Factors of a product are free up to (A, B) -> (Q^-1 A, B Q), and three choices are left:

* `split`, where the singular values go: half to each factor, all to B (the rows of A are then orthonormal), or to A;
* `gauge`, the orthogonal Q: "aligned" takes the factors nearest to what plain gossip would have made of them, so that
  clients go on speaking of the same rank-one terms, factors can be compared and averaged, and the optimizer's moments
  keep most of their meaning. "svd" takes the singular directions in order, each with A's largest entry positive, as a
  server that calls an SVD would send them; the moments then mean nothing (`moments = "reset_each_round"` drops them);
* where P_i = 0, as before the first step with B = 0, the factors gossip: an SVD would leave A at zero in a balanced
  split, and both gradients at zero for ever. For the same reason a P_i of exact rank below r starves the missing
  directions in a balanced split; `b_carries` keeps them alive.

Wrappers that change the weights (lost messages) or hand on other values (cached copies) act on P_i as they should.
Those that return x_i + mixed_i - sent_i (difference triggers, compressed gossip) were made for linear mixing: their
sums are sums of factors, a first-order approximation of the product that needs the aligned gauge to mean anything;
with the gauge "svd", specs of such are refused (`jaxdfl.methods.orders`).
"""

from functools import cache
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdfl.factorizations import qr, svd
from jaxdfl.mixing.aligned import rotation
from jaxdfl.mixing.gossip import gossip
from jaxdfl.protocol import Exchange, Info, Mixer, PerBlock, State
from jaxdfl.trees import keep, wide

Split = Literal["balanced", "b_carries", "a_carries"]
Gauge = Literal["aligned", "svd"]
Factors = tuple[Float[Array, "*clients rank d_in"], Float[Array, "*clients d_out rank"]]  # A and B

B_POWER = {"balanced": 0.5, "b_carries": 1.0, "a_carries": 0.0}  # B = U S^power, A = S^(1 - power) V^T


class Truncated(NamedTuple):
    """U S V^T, the best approximation of rank r of each receiver's product, and what it leaves out."""

    u: Float[Array, "receivers d_out rank"]
    s: Float[Array, "receivers rank"]  # largest first
    vt: Float[Array, "receivers rank d_in"]
    tail: Float[Array, " receivers"]  # squared Frobenius distance from the product


def truncated_products(
    weights: Float[Array, "receivers clients"],
    a: Float[Array, "clients rank d_in"],
    b: Float[Array, "clients d_out rank"],
) -> Truncated:
    """The truncated SVD of sum_j W_ij B_j A_j for every receiver i, in the factors' dtype; one core at a time."""
    rank = a.shape[1]
    q_a, r_a = qr(a.reshape(-1, a.shape[-1]).T)  # [d_in, k], [k, clients * rank]
    q_b, r_b = qr(jnp.moveaxis(b, 0, 1).reshape(b.shape[1], -1))

    def one(row: Float[Array, " clients"]) -> Truncated:
        core = jnp.matmul(r_b * jnp.repeat(row, rank), r_a.T, precision="highest")
        u, s, vt = svd(core)
        u = jnp.matmul(q_b, u[:, :rank], precision="highest")
        vt = jnp.matmul(vt[:rank], q_a.T, precision="highest")
        return Truncated(u, s[:rank], vt, jnp.sum(jnp.square(s[rank:])))

    return jax.lax.map(one, weights.astype(a.dtype))


def nearest_gauge(
    a: Float[Array, "*clients rank d_in"],
    b: Float[Array, "*clients d_out rank"],
    to_a: Float[Array, "*clients rank d_in"],
    to_b: Float[Array, "*clients d_out rank"],
) -> Factors:
    """Q^T A and B Q with the orthogonal Q that brings both factors together nearest to the given ones."""

    def beside(a: Array, b: Array) -> Array:
        return jnp.concatenate([a, jnp.swapaxes(b, -1, -2)], axis=-1)  # both are turned from the left: [A, B^T]

    q = rotation(beside(a, b), beside(to_a, to_b))
    return jnp.matmul(jnp.swapaxes(q, -1, -2), a, precision="highest"), jnp.matmul(b, q, precision="highest")


def signed(a: Float[Array, "clients rank d_in"], b: Float[Array, "clients d_out rank"]) -> Factors:
    """Each rank-one term with the sign that makes the largest entry of its row of A positive."""
    largest = jnp.take_along_axis(a, jnp.argmax(jnp.abs(a), axis=-1, keepdims=True), axis=-1)  # [clients, rank, 1]
    sign = jnp.where(largest < 0, -1, 1).astype(a.dtype)
    return sign * a, b * jnp.swapaxes(sign, -1, -2)


@cache
def product(split: Split = "balanced", gauge: Gauge = "aligned") -> Mixer:
    """B_i A_i <- the best rank-r approximation of sum_j W_ij B_j A_j; the head gossips.

    A message is both factors, as in gossip. Where only one factor is shared in a round, the other one's products are
    not there to be averaged: the shared factor gossips, which is exact where the clients agree on the other.
    `truncated` in the info is sum_i ||P_i - B_i A_i||_F^2 over clients and targets, without the LoRA scale.

    Raises:
        ValueError: an unknown `split` or `gauge`.
    """
    if split not in B_POWER:
        raise ValueError(f"`split` must be one of {', '.join(B_POWER)}, got {split!r}.")
    if gauge not in ("aligned", "svd"):
        raise ValueError(f"`gauge` must be one of aligned, svd, got {gauge!r}.")
    power = B_POWER[split]

    def mix_target(weights: Array, own: Factors, gossiped: Factors) -> tuple[Factors, Float[Array, ""]]:
        found = truncated_products(weights, *map(wide, own))
        to = tuple(map(wide, gossiped))
        a, b = found.s[:, :, None] ** (1 - power) * found.vt, found.u * found.s[:, None, :] ** power
        a, b = nearest_gauge(a, b, *to) if gauge == "aligned" else signed(a, b)
        something = found.s[:, :1, None] > 0  # [receivers, 1, 1]
        mixed = (jnp.where(something, new, plain) for new, plain in zip((a, b), to, strict=True))
        a, b = (new.astype(old.dtype) for new, old in zip(mixed, own, strict=True))
        return (a, b), jnp.sum(found.tail, dtype=jnp.float32)

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        mixed, state, info = gossip().mix(exchange, blocks, state)
        both = exchange.shared.a & exchange.shared.b
        a, b, truncated = {}, {}, jnp.float32(0)
        for path in blocks.a:
            own, gossiped = (blocks.a[path], blocks.b[path]), (mixed.a[path], mixed.b[path])
            (a[path], b[path]), tail = mix_target(exchange.weights, own, gossiped)
            truncated += tail
        a, b = keep(both, (a, b), (mixed.a, mixed.b))
        return PerBlock(a, b, mixed.head), state, info | {"truncated": jnp.where(both, truncated, 0)}

    return Mixer(init=lambda blocks: (), mix=mix)
