"""One round: every client trains on its own batches, then the network mixes. Clients are a leading axis throughout."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from jaxdfl.diagnostics import diagnose, disagreement, mean_drift, product_disagreement
from jaxdfl.protocol import Base, Exchange, Info, Method, Network, PerBlock, Round
from jaxdfl.simulate.clients import ALL, Share, over_clients
from jaxdfl.simulate.moments import rotated
from jaxdfl.simulate.training import Client, Loss, Trained, beside, make_train
from jaxdfl.trees import keep, stack

StepScale = Callable[[Round], ArrayLike]  # factor on every update of a round
Moments = Literal["kept", "reset_each_round", "reset_at_switch", "rotated"]
START = 2**32 - 1  # folded into a run's key for the first factors; rounds count from 0 and stay below


class SimState(NamedTuple):
    """All that one run carries from round to round; a pytree of arrays, so that saving it is saving the run."""

    blocks: PerBlock  # [clients, ...]
    opt: PerBlock  # of optax states; one per block, so that a resting block's moments rest too
    mixer: Any  # the mixer's own state
    round: Int[Array, ""]  # rounds completed
    key: Key[Array, ""]  # of the whole run; round t uses what `round_keys` makes of it


class RoundKeys(NamedTuple):
    """One key for each thing that is random in a round. Split before the method is consulted, so that every method
    meets the same graphs, stragglers and dropout."""

    network: Key[Array, ""]
    work: Key[Array, ""]
    train: Key[Array, ""]  # client i's own is fold_in(train, i), whatever the number of clients
    mix: Key[Array, ""]


def round_keys(key: Key[Array, ""], round: Round) -> RoundKeys:
    """The keys of round `round` of the run with key `key`."""
    return RoundKeys(*jax.random.split(jax.random.fold_in(key, round), 4))


class Conditions(NamedTuple):
    """What one round is like for one run: all in which the runs of an ablation differ, as data."""

    weights: Float[Array, "clients clients"]
    work: Float[Array, " clients"]
    trains: PerBlock  # of booleans, as all below
    rested: PerBlock  # what trains now, and did not in the round before
    shares: PerBlock
    scale: Float[Array, ""]  # factor on every update


class Stages(NamedTuple):
    """A round in three parts. The first and the last are of one run, the middle one of one of its clients.

    Where devices share the clients, blocks, moments, batches and what was trained are those of the device's own.
    """

    hand_out: Callable[[SimState, Any, Conditions], Client]  # (state, batches [clients, steps, ...], .) -> stacked
    train: Callable[[Any, Client], Trained]  # (frozen, one client)
    mix: Callable[[SimState, Trained, Conditions], tuple[SimState, Info]]  # the state before, and what was trained


def init(
    key: Key[Array, ""],
    blocks: PerBlock,
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    base: Base | None = None,
) -> SimState:
    """The state before the first round. `blocks` are stacked, [clients, ...]; a method may start from others.

    `base` holds W0 / scale by target path, [d_out, d_in], for methods whose first factors depend on it.

    Raises:
        ValueError: the leaves of `blocks` disagree on the number of clients, or there are none.
    """
    counts = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(blocks)}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"every leaf of `blocks` must lead with the same clients axis, got lengths {sorted(counts)}.")
    if method.start is not None:
        blocks = method.start(jax.random.fold_in(key, START), blocks, {} if base is None else base)
    return SimState(blocks, _fresh(optimizer, blocks), method.mixer.init(blocks), jnp.int32(0), key)


def adapters(method: Method, state: SimState) -> PerBlock:
    """The clients' blocks as the model sees them: those that train, and what the method has merged beside them."""
    return state.blocks if method.merged is None else beside(state.blocks, method.merged(state.mixer))


def measure(method: Method, state: SimState) -> Info:
    """The diagnostics of a state: of the blocks that train and are mixed, but for the products, which are whole."""
    info = diagnose(state.blocks)
    if method.merged is not None:
        info["disagreement_product"] = product_disagreement(adapters(method, state))
    return info


def make_stages(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    method: Method,
    *,
    moments: Moments = "kept",
    clip: float | None = None,
    share: Share = ALL,
) -> Stages:
    """The stages of `method`'s round, whose schedules are left to the conditions. Arguments as of `make_round`.

    Mixers see all clients, wherever they lie: the blocks, and they alone, are gathered once for mixing and diagnostics.
    """

    def moments_at_start(rested: PerBlock, state: SimState) -> PerBlock:
        if moments in ("kept", "rotated"):
            return state.opt
        fresh = _fresh(optimizer, state.blocks)
        return fresh if moments == "reset_each_round" else PerBlock(*map(keep, rested, fresh, state.opt))

    def hand_out(state: SimState, batches: Any, at: Conditions) -> Client:
        held, steps = jax.tree.leaves(batches)[0].shape[:2]
        keys, numbers = round_keys(state.key, state.round), share.own(jnp.arange(len(at.work)))
        trains, scale = stack((at.trains, at.scale), held)
        return Client(
            blocks=state.blocks,
            opt=moments_at_start(at.rested, state),
            batches=batches,
            correction=None if method.correction is None else share.own(method.correction(state.mixer)),
            merged=None if method.merged is None else share.own(method.merged(state.mixer)),
            trains=trains,
            scale=scale,
            steps=jnp.floor(share.own(at.work) * steps + 1e-4).astype(jnp.int32),  # 1e-4: a third of 3 steps is one
            key=jax.vmap(partial(jax.random.fold_in, keys.train))(numbers),
        )

    def mix(state: SimState, trained: Trained, at: Conditions) -> tuple[SimState, Info]:
        keys, sent = round_keys(state.key, state.round), share.whole(trained.blocks)
        losses, steps = share.whole((trained.loss, trained.steps))
        links = (at.weights != 0) & ~jnp.eye(len(at.weights), dtype=bool)
        exchange = Exchange(keys.mix, state.round, at.weights, links, at.work, at.shares)
        blocks, mixer, counts = method.mixer.mix(exchange, sent, state.mixer)
        own = share.own(blocks)
        opt = rotated(trained.opt, trained.blocks, own) if moments == "rotated" else trained.opt
        after = SimState(own, opt, mixer, state.round + 1, state.key)
        info = {
            "loss": losses.sum() / jnp.maximum(steps.sum(), 1),
            **measure(method, after._replace(blocks=blocks)),
            "contraction": _squared_disagreement(blocks) / _squared_disagreement(sent),
            "mean_drift": mean_drift(sent, blocks),
            **counts,
        }
        return after, info

    return Stages(hand_out, make_train(loss, optimizer, method, clip), mix)


def make_round(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    method: Method,
    network: Network,
    *,
    chunk: int | None = None,
    moments: Moments = "kept",
    clip: float | None = None,
    step_scale: StepScale | None = None,
) -> Callable[[Any, SimState, Any], tuple[SimState, Info]]:
    """The round of `method` on `network`: (frozen, state, batches) -> (state, info), ready for jit and scan.

    Args:
        loss: of one client, one batch: (frozen, blocks, batch, key) -> scalar.
        optimizer: any optax transformation; each block has a state of its own.
        chunk: clients trained at a time; None trains all at once. Changes memory and speed, not the result.
        moments: whether the optimizer's moments are kept from round to round, start afresh in each round, start afresh
            for a block that takes up training again, or are kept and turned with the factors that mixing turns.
        clip: largest global norm of one client's gradient over the blocks that train; None does not clip.
        step_scale: factor on every update of a round: a learning-rate schedule by round.

    Leaves of `batches` are [clients, steps, ...]. `info` holds `loss` (mean over all steps taken, penalty included),
    the diagnostics of the mixed blocks, `contraction` (mean squared disagreement of the factors after mixing over that
    before; NaN where there was none), `mean_drift` (of `jaxdfl.diagnostics`, over mixing) and the mixer's counts
    (`messages`, `bytes`).
    """
    stages = make_stages(loss, optimizer, method, moments=moments, clip=clip)

    def conditions(key: Array, round: Array) -> Conditions:
        keys, trains = round_keys(key, round), method.trains(round)
        rested = (jnp.asarray(on) & ~jnp.asarray(was) for on, was in zip(trains, method.trains(round - 1), strict=True))
        return Conditions(
            weights=network.weights(keys.network, round),
            work=network.work(keys.work, round),
            trains=trains,
            rested=PerBlock(*rested),
            shares=method.shares(round),
            scale=jnp.asarray(1 if step_scale is None else step_scale(round), float),
        )

    def run_round(frozen: Any, state: SimState, batches: Any) -> tuple[SimState, Info]:
        at = conditions(state.key, state.round)
        trained = over_clients(stages.train, chunk)(frozen, stages.hand_out(state, batches, at))
        return stages.mix(state, trained, at)

    return run_round


def _fresh(optimizer: optax.GradientTransformation, blocks: PerBlock) -> PerBlock:
    """The optimizer's first states, [clients, ...], one per block (also for a block without leaves)."""
    clients = jax.tree.leaves(blocks)[0].shape[0]
    return PerBlock(*(jax.vmap(optimizer.init, axis_size=clients)(block) for block in blocks))


def _squared_disagreement(blocks: PerBlock) -> Float[Array, ""]:
    return disagreement((blocks.a, blocks.b)) ** 2
