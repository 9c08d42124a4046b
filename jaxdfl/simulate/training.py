"""Local training: what one client does in a round on its own. No clients axis here."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxdfl.protocol import Method, PerBlock
from jaxdfl.trees import keep

Loss = Callable[[Any, PerBlock, Any, Key[Array, ""]], Float[Array, ""]]  # (frozen, one client's blocks, batch, key)


class Client(NamedTuple):
    """What one client's local training takes; stacked, what a round hands to all of them."""

    blocks: PerBlock
    opt: PerBlock
    batches: Any  # leaves [steps, ...]
    correction: PerBlock | None
    merged: PerBlock | None
    trains: PerBlock  # of booleans
    scale: Float[Array, "*clients"]  # factor on every update
    steps: Int[Array, "*clients"]  # how many of its local steps it finishes
    key: Key[Array, "*clients"]


class Trained(NamedTuple):
    """What local training leaves; stacked, what the network mixes."""

    blocks: PerBlock
    opt: PerBlock
    loss: Float[Array, "*clients"]  # sum over the steps taken
    steps: Int[Array, "*clients"]


def make_train(
    loss: Loss, optimizer: optax.GradientTransformation, method: Method, clip: float | None
) -> Callable[[Any, Client], Trained]:
    """(frozen, client) -> what its local steps make of it. Of the method, only penalty and merging are used."""

    def objective(blocks: PerBlock, merged: PerBlock | None, frozen: Any, batch: Any, key: Array) -> Array:
        value = loss(frozen, blocks if merged is None else beside(blocks, merged), batch, key)
        return value if method.penalty is None else value + method.penalty(blocks)

    def train(frozen: Any, client: Client) -> Trained:
        def update(on, block, gradient, state):
            updates, new_state = optimizer.update(gradient, state, block)
            new_block = optax.apply_updates(block, jax.tree.map(lambda u: u * client.scale, updates))
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
                gradients = _clipped(gradients, client.trains, clip)
            trained = map(update, client.trains, blocks, gradients, opt)
            blocks, opt = map(PerBlock._make, zip(*trained, strict=True))
            done = index < client.steps
            return keep(done, (blocks, opt), carry), jnp.where(done, value, 0.0)

        steps = jax.tree.leaves(client.batches)[0].shape[0]
        (blocks, opt), values = jax.lax.scan(step, (client.blocks, client.opt), (client.batches, jnp.arange(steps)))
        return Trained(blocks, opt, values.sum(), client.steps)

    return train


def beside(blocks: PerBlock, merged: PerBlock) -> PerBlock:
    """Both products at once, B A + B' A', as factors stacked along the rank; of one client or of all."""
    return PerBlock(
        a={path: jnp.concatenate([a, merged.a[path]], axis=-2) for path, a in blocks.a.items()},
        b={path: jnp.concatenate([b, merged.b[path]], axis=-1) for path, b in blocks.b.items()},
        head=blocks.head,
    )


def _clipped(gradients: PerBlock, trains: PerBlock, largest: float) -> PerBlock:
    """The gradients, scaled down where the global norm of those that train is above `largest`."""
    active = [keep(on, g, jax.tree.map(jnp.zeros_like, g)) for on, g in zip(trains, gradients, strict=True)]
    shrink = jnp.minimum(1.0, largest / jnp.maximum(optax.global_norm(active), 1e-12))
    return jax.tree.map(lambda g: g * shrink, gradients)
