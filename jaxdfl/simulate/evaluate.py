"""Clients on the validation split: confusion counts, in one compiled program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxdfl.protocol import PerBlock
from jaxdfl.simulate.clients import over_clients

Evaluate = Callable[[Any, PerBlock, Any], Int[Array, "clients classes classes"]]


def in_batches(examples: Any, batch_size: int) -> Any:
    """Leaves [examples, ...] -> [batches, batch, ...]; the last batch is filled with copies of the first example
    under the label -1, which no count includes. `examples` has a field `labels`."""
    count = len(examples.labels)
    fill = -count % batch_size
    indices = np.concatenate([np.arange(count), np.zeros(fill, int)])
    filled = jax.tree.map(lambda x: np.asarray(x)[indices], examples)
    filled = filled._replace(labels=np.where(np.arange(count + fill) < count, filled.labels, -1).astype(np.int32))
    return jax.tree.map(lambda x: x.reshape(-1, batch_size, *x.shape[1:]), filled)


def make_evaluate(logits: Callable, classes: int, *, chunk: int | None = None) -> Evaluate:
    """(frozen, stacked blocks, examples in batches) -> confusion counts, true class first.

    `logits(frozen, one client's blocks, one batch, None)` is [batch, classes]. `chunk` clients run at a time. A client
    with a logit that is not finite has diverged: all its counts are 0, so that no score hides it among the guessers.
    """

    def of_client(shared: tuple[Any, Any], blocks: PerBlock) -> Array:
        frozen, batches = shared

        def of_batch(batch: Any) -> tuple[Array, Array]:
            scores = logits(frozen, blocks, batch, None)
            true = jax.nn.one_hot(batch.labels, classes, dtype=jnp.int32)  # all zero for the label -1
            counts = true.T @ jax.nn.one_hot(jnp.argmax(scores, axis=-1), classes, dtype=jnp.int32)
            return counts, jnp.isfinite(scores).all()

        counts, finite = jax.lax.map(of_batch, batches)
        return jnp.where(finite.all(), counts.sum(0), 0)

    @jax.jit
    def evaluate(frozen: Any, blocks: PerBlock, batches: Any) -> Array:
        return over_clients(of_client, chunk)((frozen, batches), blocks)

    return evaluate
