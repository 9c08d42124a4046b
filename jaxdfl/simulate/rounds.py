"""One round: every client trains on its own batches, then the network mixes. Clients are a leading axis throughout."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from jaxdfl.diagnostics import diagnose, disagreement, product_disagreement
from jaxdfl.protocol import Base, Exchange, Info, Method, Network, PerBlock, Round
from jaxdfl.simulate.clients import over_clients
from jaxdfl.simulate.moments import rotated
from jaxdfl.trees import keep

Loss = Callable[[Any, PerBlock, Any, Key[Array, ""]], Float[Array, ""]]  # (frozen, one client's blocks, batch, key)
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


class _Client(NamedTuple):
    """What one client's local training takes; stacked, what the round hands to all of them."""

    blocks: PerBlock
    opt: PerBlock
    batches: Any  # leaves [steps, ...]
    correction: PerBlock | None
    merged: PerBlock | None
    steps: Int[Array, ""]  # how many of its local steps it finishes
    key: Key[Array, ""]


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
    Every leaf is a copy of its own, the key's too: a compiled run takes the state's buffers and must not take yours.

    Raises:
        ValueError: the leaves of `blocks` disagree on the number of clients, or there are none.
    """
    counts = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(blocks)}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"every leaf of `blocks` must lead with the same clients axis, got lengths {sorted(counts)}.")
    if method.start is not None:
        blocks = method.start(jax.random.fold_in(key, START), blocks, {} if base is None else base)
    state = SimState(blocks, _fresh(optimizer, blocks), method.mixer.init(blocks), jnp.int32(0), key)
    return jax.tree.map(jnp.array, state)


def adapters(method: Method, state: SimState) -> PerBlock:
    """The clients' blocks as the model sees them: those that train, and what the method has merged beside them."""
    return state.blocks if method.merged is None else _beside(state.blocks, method.merged(state.mixer))


def measure(method: Method, state: SimState) -> Info:
    """The diagnostics of a state: of the blocks that train and are mixed, but for the products, which are whole."""
    info = diagnose(state.blocks)
    if method.merged is not None:
        info["disagreement_product"] = product_disagreement(adapters(method, state))
    return info


def make_round(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    method: Method,
    network: Network,
    *,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    moments: Moments = "kept",
    clip: float | None = None,
    step_scale: Callable[[Round], Float[Array, ""]] | None = None,
) -> Callable[[Any, SimState, Any], tuple[SimState, Info]]:
    """The round of `method` on `network`: (frozen, state, batches) -> (state, info), ready for jit and scan.

    Args:
        loss: of one client, one batch: (frozen, blocks, batch, key) -> scalar.
        optimizer: any optax transformation; each block has a state of its own.
        chunk: clients trained at a time; None trains all at once. Changes memory and speed, not the result.
        mesh: devices that share the clients among them; None leaves all on one.
        moments: whether the optimizer's moments are kept from round to round, start afresh in each round, start afresh
            for a block that takes up training again, or are kept and turned with the factors that mixing turns.
        clip: largest global norm of one client's gradient over the blocks that train; None does not clip.
        step_scale: factor on every update of a round: a learning-rate schedule by round.

    Leaves of `batches` are [clients, steps, ...]. `info` holds `loss` (mean over all steps taken, penalty included),
    the diagnostics of the mixed blocks, `contraction` (mean squared disagreement of the factors after mixing over that
    before; NaN where there was none), and the mixer's counts (`messages`, `bytes`).
    """

    def objective(blocks: PerBlock, merged: PerBlock | None, frozen: Any, batch: Any, key: Array) -> Array:
        value = loss(frozen, blocks if merged is None else _beside(blocks, merged), batch, key)
        return value if method.penalty is None else value + method.penalty(blocks)

    def train_client(frozen: Any, trains: PerBlock, scale: Array, client: _Client) -> tuple[PerBlock, PerBlock, Array]:
        def update(on, block, gradient, state):
            updates, new_state = optimizer.update(gradient, state, block)
            new_block = optax.apply_updates(block, jax.tree.map(lambda u: u * scale, updates))
            return keep(on, (new_block, new_state), (block, state))

        def step(carry, inputs):
            blocks, opt = carry
            batch, index = inputs
            value, gradients = jax.value_and_grad(objective)(
                blocks, client.merged, frozen, batch, jax.random.fold_in(client.key, index)
            )
            if client.correction is not None:
                gradients = jax.tree.map(jnp.add, gradients, client.correction)
            if clip is not None:
                gradients = _clipped(gradients, trains, clip)
            trained = map(update, trains, blocks, gradients, opt)
            blocks, opt = map(PerBlock._make, zip(*trained, strict=True))
            done = index < client.steps
            return keep(done, (blocks, opt), carry), jnp.where(done, value, 0.0)

        steps = jax.tree.leaves(client.batches)[0].shape[0]
        carry, values = jax.lax.scan(step, (client.blocks, client.opt), (client.batches, jnp.arange(steps)))
        return *carry, values.sum()

    def moments_at_start(trains: PerBlock, state: SimState) -> PerBlock:
        if moments in ("kept", "rotated"):
            return state.opt
        fresh = _fresh(optimizer, state.blocks)
        if moments == "reset_each_round":
            return fresh
        before = method.trains(state.round - 1)
        rested = (jnp.asarray(on) & ~jnp.asarray(was) for on, was in zip(trains, before, strict=True))
        return PerBlock(*map(keep, rested, fresh, state.opt))

    def run_round(frozen: Any, state: SimState, batches: Any) -> tuple[SimState, Info]:
        clients, steps = jax.tree.leaves(batches)[0].shape[:2]
        keys = round_keys(state.key, state.round)
        weights, work = network.weights(keys.network, state.round), network.work(keys.work, state.round)
        trains, shared = method.trains(state.round), method.shares(state.round)
        scale = jnp.float32(1) if step_scale is None else step_scale(state.round)
        stacked = _Client(
            blocks=state.blocks,
            opt=moments_at_start(trains, state),
            batches=batches,
            correction=None if method.correction is None else method.correction(state.mixer),
            merged=None if method.merged is None else method.merged(state.mixer),
            steps=jnp.floor(work * steps + 1e-4).astype(jnp.int32),  # 1e-4: a third of 3 steps is one
            key=jax.vmap(partial(jax.random.fold_in, keys.train))(jnp.arange(clients)),
        )
        blocks, opt, losses = over_clients(partial(train_client, frozen, trains, scale), chunk, mesh)(stacked)

        before = _squared_disagreement(blocks)
        links = (weights != 0) & ~jnp.eye(clients, dtype=bool)
        exchange = Exchange(keys.mix, state.round, weights, links, work, shared)
        trained = blocks
        blocks, mixer, counts = method.mixer.mix(exchange, trained, state.mixer)
        if moments == "rotated":
            opt = rotated(opt, trained, blocks)
        after = SimState(blocks, opt, mixer, state.round + 1, state.key)
        info = {
            "loss": losses.sum() / jnp.maximum(stacked.steps.sum(), 1),
            **measure(method, after),
            "contraction": _squared_disagreement(blocks) / before,
            **counts,
        }
        return after, info

    return run_round


def _beside(blocks: PerBlock, merged: PerBlock) -> PerBlock:
    """Both products at once, B A + B' A', as factors stacked along the rank; of one client or of all."""
    return PerBlock(
        a={path: jnp.concatenate([a, merged.a[path]], axis=-2) for path, a in blocks.a.items()},
        b={path: jnp.concatenate([b, merged.b[path]], axis=-1) for path, b in blocks.b.items()},
        head=blocks.head,
    )


def _fresh(optimizer: optax.GradientTransformation, blocks: PerBlock) -> PerBlock:
    """The optimizer's first states, [clients, ...], one per block (also for a block without leaves)."""
    clients = jax.tree.leaves(blocks)[0].shape[0]
    return PerBlock(*(jax.vmap(optimizer.init, axis_size=clients)(block) for block in blocks))


def _clipped(gradients: PerBlock, trains: PerBlock, largest: float) -> PerBlock:
    """The gradients, scaled down where the global norm of those that train is above `largest`."""
    active = [keep(on, g, jax.tree.map(jnp.zeros_like, g)) for on, g in zip(trains, gradients, strict=True)]
    shrink = jnp.minimum(1.0, largest / jnp.maximum(optax.global_norm(active), 1e-12))
    return jax.tree.map(lambda g: g * shrink, gradients)


def _squared_disagreement(blocks: PerBlock) -> Float[Array, ""]:
    return disagreement((blocks.a, blocks.b)) ** 2
