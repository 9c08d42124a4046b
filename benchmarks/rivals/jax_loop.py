"""JAX as one would write it: a jitted step for one client, a Python loop over clients. jaxdfl's model, not its engine.

Every batch has the task's full length: each other length would be one more program to compile.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import operations, workload
from benchmarks.worker import Result, Turn
from jaxdfl.data.examples import Examples
from jaxdfl.models import adapt, cross_entropy
from jaxdfl.models import load as load_model


def run(folder: Path, turn: Turn) -> Result:
    """Losses stay on the device until the round has ended, so that steps are queued."""
    work = workload.load(folder)
    model, _ = load_model(work.weights, len(work.head["bias"]), jax.random.key(0), work.dtype)
    classifier = adapt(model, jax.random.key(0), rank=work.rank, alpha=work.alpha)
    head = {"classifier/kernel": work.head["weight"].T, "classifier/bias": work.head["bias"]}
    frozen = {**classifier.frozen, **jax.tree.map(jnp.asarray, head)}
    loss_of, optimizer = cross_entropy(classifier), optax.adamw(work.rate, weight_decay=0.0)

    @jax.jit
    def step(frozen: Any, blocks: Any, state: Any, batch: Examples) -> tuple[Any, Any, jax.Array]:
        loss, gradients = jax.value_and_grad(loss_of, argnums=1)(frozen, blocks, batch, None)
        updates, state = optimizer.update(gradients, state, blocks)
        return optax.apply_updates(blocks, updates), state, loss

    @jax.jit
    def mix(weights: jax.Array, clients: list[Any]) -> list[Any]:
        stacked = jax.tree.map(lambda *each: jnp.tensordot(weights, jnp.stack(each), 1), *clients)
        return [jax.tree.map(lambda x: x[i], stacked) for i in range(len(clients))]  # noqa: B023

    first = classifier.blocks._replace(a=jax.tree.map(jnp.asarray, work.a), b=jax.tree.map(jnp.asarray, work.b))
    clients = [first] * work.clients
    states = [optimizer.init(first)] * work.clients
    losses = []
    for round in range(work.rounds):
        turn()
        steps = []
        for client in range(work.clients):
            for at in range(work.steps):
                batch = Examples(*(x[round, client, at] for x in (work.ids, work.types, work.lengths, work.labels)))
                clients[client], states[client], loss = step(frozen, clients[client], states[client], batch)
                steps.append(loss)
        clients = jax.block_until_ready(mix(work.mixing[round], clients))
        losses.append(float(np.mean(steps)))
    turn()

    shape = operations.Shape.of(work.model["shape"], len(work.head["bias"]))
    executed = [
        operations.of_round(shape, work.padded(t, "full"), work.ids.shape[3], work.rank, only_read=True)
        for t in range(work.rounds)
    ]
    return Result(losses, executed, {"jax_devices": jax.device_count()})
