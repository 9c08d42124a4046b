"""Clients turn their factors to a common gauge before they mix (wrapper), as in FedRot-LoRA.

(A, B) and (R^T A, B R) with R orthogonal are the same weights B A, but averages of factors are not the same for both.
So R is chosen to bring one factor close to a reference (orthogonal Procrustes), and the product stays as it is.
Source, and what was read of it: see `jaxdfl.methods.fedrot_lora`. The references are ports of ours to a network that
has no server, and so no global reference.

What has no gauge is passed on as it is: the head, and a factor whose partner is not shared. Whatever else comes as A
and B is turned like factors, which breaks the sums of methods that send trackers or corrected models: specs of these
are refused (`jaxdfl.methods.orders`).
"""

from functools import cache
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdfl.factorizations import det, orthogonal, svd
from jaxdfl.mixing.gossip import gossip, paid
from jaxdfl.mixing.weighted import weighted
from jaxdfl.protocol import Exchange, Info, Mixer, PerBlock, RoundKey, State
from jaxdfl.trees import keep, wide

Reference = Literal["temporal", "neighbourhood", "pairwise", "random"]
Align = Literal["alternate", "a", "b"]
HARD = 1.5  # the official code's default; any softness above 1 is a hard step


def rotation(
    x: Float[Array, "*#batch rank width"], reference: Float[Array, "*#batch rank width"], softness: float = HARD
) -> Float[Array, "*batch rank rank"]:
    """The orthogonal R for which R^T x is closest to the reference (hard), or a part of the way there (soft).

    With U S V^T = svd(x reference^T), the hard step is R = U V^T, reflections included. The soft one makes det R = 1 by
    flipping the least direction of V, and takes the polar factor of (1 - softness) I + softness R, which turns every
    plane of angle theta by atan2(softness sin theta, 1 - softness + softness cos theta); undefined at softness 1/2 and
    theta = pi. Where x or the reference is 0 there is nothing to align, and R = I.
    """
    correlation = jnp.einsum("...rd,...sd->...rs", wide(x), wide(reference), precision="highest")
    left, _, right = svd(correlation)
    turn = jnp.matmul(left, right, precision="highest")
    if softness <= 1:
        sign = jnp.sign(det(turn))[..., None]
        right = right.at[..., -1, :].multiply(sign)
        turn = jnp.matmul(left, right, precision="highest")
    identity = jnp.eye(turn.shape[-1], dtype=turn.dtype)
    if softness < 1:
        left, _, right = svd((1 - softness) * identity + softness * turn)
        turn = jnp.matmul(left, right, precision="highest")
    return jnp.where(jnp.any(correlation != 0, axis=(-2, -1), keepdims=True), turn, identity)


def turned(blocks: PerBlock, turns: dict[str, Float[Array, "clients rank rank"]]) -> PerBlock:
    """A <- R^T A and B <- B R for the targets in `turns`; the products B A are unchanged."""

    def turn(equation: str, x: Array, rotation: Array) -> Array:
        return jnp.einsum(equation, wide(x), rotation, precision="highest").astype(x.dtype)

    return blocks._replace(
        a=blocks.a | {path: turn("mrd,mrs->msd", blocks.a[path], r) for path, r in turns.items()},
        b=blocks.b | {path: turn("mor,mrs->mos", blocks.b[path], r) for path, r in turns.items()},
    )


@cache
def aligned(
    inner: Mixer, softness: float = 0.5, reference: Reference = "temporal", align: Align = "alternate"
) -> Mixer:
    """Every client turns its factors towards a reference, target by target, and then mixes them by `inner`.

    Args:
        softness: lambda: 0 leaves the factors, 1 turns all the way within the rotations, above 1 within the rotations
            and reflections (hard).
        reference: `temporal` is the client's factors as this mixer last returned them, those at the round's start if no
            wrapper stands outside; under plain gossip, its last mixed neighbourhood average. Nothing extra is sent.
            `neighbourhood` is the weighted average of the neighbours' (and its own) factors at the round's start, by a
            further exchange of the factor that is aligned, paid for.
            `pairwise` has none: each receiver turns every neighbour's factors to its own, x_i <- sum_j W_ij R_ij x_j.
            The whole step then is indifferent to gauges, but does not keep the mean of the factors.
            `random` is the client's factors turned at random (Haar), from draws by client: a negative control.
        align: the factor that is brought close to its reference; `alternate` is A in odd rounds and B in even ones.

    Round 0 mixes without turning, since B = 0 is no reference.

    Raises:
        ValueError: `softness` is negative, or `pairwise` has an `inner` other than gossip.
    """
    if not softness >= 0:
        raise ValueError(f"`softness` must be at least 0, got {softness}.")
    if reference == "pairwise":
        if inner is not gossip():
            raise ValueError(
                "`reference` pairwise mixes by itself and takes no `inner` but gossip(): name `aligned` as the last "
                "wrapper, nearest to the wire, or take another reference."
            )
        return _pairwise(softness, align)

    def init(blocks: PerBlock) -> State:
        asking = inner.init(blocks) if reference == "neighbourhood" else ()
        return blocks, inner.init(blocks), asking

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        target, within, asking = state
        own, key = jax.random.split(exchange.key)
        asked: Info = {}
        by_a, gauged = _by_a(exchange, align), _gauged(exchange)
        if reference == "neighbourhood":
            wanted = PerBlock(a=by_a & gauged, b=~by_a & gauged, head=jnp.bool_(False))
            target, asking, asked = inner.mix(exchange._replace(key=own, shared=wanted), target, asking)
        elif reference == "random":
            target = turned(blocks, _haar(own, blocks))
        turns = {
            path: _turn(by_a, (blocks.a[path], blocks.b[path]), (target.a[path], target.b[path]), softness)
            for path in _pairs(blocks)
        }
        blocks = keep(gauged, turned(blocks, turns), blocks)
        blocks, within, info = inner.mix(exchange._replace(key=key), blocks, within)
        return blocks, (blocks, within, asking), info | {name: info[name] + count for name, count in asked.items()}

    return Mixer(init=init, mix=mix)


@cache
def _pairwise(softness: float, align: Align) -> Mixer:
    """x_i <- sum_j W_ij R_ij x_j, with R_ij turning client j's factors towards those of client i, and R_ii = I."""

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        clients = exchange.weights.shape[0]
        by_a, others = _by_a(exchange, align), ~jnp.eye(clients, dtype=bool)
        a, b = dict(weighted(exchange.weights, blocks.a)), dict(weighted(exchange.weights, blocks.b))
        for path in _pairs(blocks):
            x, y = wide(blocks.a[path]), wide(blocks.b[path])
            # [receiver, sender, rank, rank]
            turns = _turn(by_a, (x[None], y[None]), (x[:, None], y[:, None]), softness)
            identity = jnp.eye(turns.shape[-1], dtype=turns.dtype)
            turns = jnp.where((others & _gauged(exchange))[..., None, None], turns, identity)
            turns *= exchange.weights[..., None, None]
            a[path] = jnp.einsum("ijrs,jrd->isd", turns, x, precision="highest").astype(a[path].dtype)
            b[path] = jnp.einsum("ijrs,jor->ios", turns, y, precision="highest").astype(b[path].dtype)
        mixed = PerBlock(a, b, weighted(exchange.weights, blocks.head))
        return PerBlock(*map(keep, exchange.shared, mixed, blocks)), state, paid(exchange, blocks)

    return Mixer(init=lambda blocks: (), mix=mix)


def _by_a(exchange: Exchange, align: Align) -> Bool[Array, ""]:
    """Whether it is A that is brought close to its reference in this round."""
    return jnp.asarray(exchange.round) % 2 == 1 if align == "alternate" else jnp.bool_(align == "a")


def _gauged(exchange: Exchange) -> Bool[Array, ""]:
    """Whether factors may be turned: both must be on the wire, since a block that is not shared must not move."""
    return jnp.asarray(exchange.shared.a) & exchange.shared.b & (exchange.round > 0)


def _pairs(blocks: PerBlock) -> list[str]:
    """The targets that have both factors."""
    return [path for path in blocks.a if path in blocks.b]


def _turn(
    by_a: Bool[Array, ""], factors: tuple[Array, Array], reference: tuple[Array, Array], softness: float
) -> Array:
    """The rotation by A or by B, for factors (A, B) of one target with equal leading axes."""
    (a, b), (a_reference, b_reference) = factors, reference
    return jax.lax.cond(
        by_a,
        lambda: rotation(a, a_reference, softness),
        lambda: rotation(jnp.swapaxes(b, -1, -2), jnp.swapaxes(b_reference, -1, -2), softness),
    )


def _haar(key: RoundKey, blocks: PerBlock) -> dict[str, Float[Array, "clients rank rank"]]:
    """A rotation or reflection for every target and client, uniform over O(rank)."""
    pairs = _pairs(blocks)
    return {
        path: orthogonal(k, *blocks.a[path].shape[:2])
        for path, k in zip(pairs, jax.random.split(key, max(1, len(pairs))), strict=False)
    }
