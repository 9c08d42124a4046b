"""How concentrated a gradient is over a model's modules, and which examples a client keeps on that ground.

"Consolidation or adaptation? Disentangling SFT and RL data via gradient concentration" (PRISM), 2026, arXiv 2601.07224,
probes a model with each agent trajectory and sends those with concentrated gradients to reinforcement learning, those
with diffuse ones to supervised fine-tuning. Only its abstract could be read: it names Gini, kurtosis and coefficient of
variation. Reconstructed, and ours: what a module is (a LoRA factor of one target), the norm (Frobenius), the probe (the
first adapters, without dropout) and the split by a share of the examples rather than by a threshold. Transferred: there
is no reinforcement learning here, so a client of a federation trains on one side of its own examples, or on both.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64

from jaxdfl.data.partition import Partition
from jaxdfl.protocol import PerBlock
from jaxdfl.trees import centred, squared_norm

Index = Callable[[Float[Array, " modules"]], Float[Array, ""]]
Keep = Literal["all", "diffuse", "concentrated"]


class Split(NamedTuple):
    """Two sets of examples, as sorted indices."""

    concentrated: Int64[np.ndarray, "_"]
    diffuse: Int64[np.ndarray, "_"]


def gini(values: Float[Array, " modules"]) -> Float[Array, ""]:
    """sum_k (2k - n - 1) v_(k) / (n sum v), of non-negative values v_(1) <= ... <= v_(n).

    0 where all are equal (all zero too), (n - 1)/n where one holds everything; unchanged by scale.
    """
    shares = jnp.sort(_scaled(values))
    count = len(shares)
    ranks = 2 * jnp.arange(1, count + 1) - count - 1
    return ranks @ shares / (count * jnp.where(shares[-1] > 0, shares.sum(), 1))


def kurtosis(values: Float[Array, " modules"]) -> Float[Array, ""]:
    """E (v - Ev)^4 / (E (v - Ev)^2)^2, so 3 for a normal distribution; 1, the least there is, where all are equal."""
    apart = jnp.square(_scaled(centred(values)))
    variance = apart.mean()
    return jnp.where(variance > 0, jnp.square(apart).mean() / jnp.where(variance > 0, variance, 1) ** 2, 1)


def coefficient_of_variation(values: Float[Array, " modules"]) -> Float[Array, ""]:
    """Standard deviation (over n, not n - 1) by mean, of non-negative values; 0 where all are zero."""
    scaled = _scaled(values)
    mean = scaled.mean()
    return jnp.sqrt(jnp.square(centred(scaled)).mean()) / jnp.where(mean > 0, mean, 1)


def module_norms(gradient: PerBlock) -> Float[Array, " modules"]:
    """Frobenius norms of one client's LoRA gradients: A by target, then B by target; the head is no module.

    Not free of the gauge (A, B) -> (Q^-1 A, B Q) unless Q is orthogonal. While B is zero, as at the start, A has no
    gradient: half of the modules are then 0, which moves every example's Gini g to (1 + g)/2 and no example's rank.
    """
    return jnp.stack([jnp.sqrt(squared_norm(leaf)) for leaf in jax.tree.leaves((gradient.a, gradient.b))])


def example_concentration(
    loss: Callable[..., Float[Array, ""]],
    frozen: Any,
    blocks: PerBlock,
    examples: Any,
    index: Index = gini,
    *,
    chunk: int = 16,
) -> Float[Array, " examples"]:
    """The index of the `module_norms` of each example's own gradient, at ONE client's blocks.

    `loss(frozen, blocks, batch, None)` is called with batches of one; leaves of `examples` are [examples, ...].
    Gradients of `chunk` examples are held at a time.
    """

    def of_one(example: Any) -> Array:
        batch = jax.tree.map(lambda x: x[None], example)
        return index(module_norms(jax.grad(lambda trained: loss(frozen, trained, batch, None))(blocks)))

    return jax.lax.map(of_one, jax.tree.map(jnp.asarray, examples), batch_size=chunk)


def sort_examples(scores: Float[np.ndarray, " examples"], share: float) -> Split:
    """The `share` of the examples with the highest scores, to the nearest number (of equals the earlier), and the rest.

    Raises:
        ValueError: `share` is outside [0, 1], or a score is not finite.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"`share` must lie in [0, 1], got {share}.")
    if not np.isfinite(scores).all():
        raise ValueError(f"`scores` must be finite, got {scores[~np.isfinite(scores)][0]}; probe another model.")
    order = np.argsort(-scores, kind="stable").astype(np.int64)
    count = int(np.floor(share * len(scores) + 0.5))
    return Split(np.sort(order[:count]), np.sort(order[count:]))


def arbitrate(partition: Partition, scores: Float[np.ndarray, " examples"], keep: Keep, share: float) -> Partition:
    """Each client keeps the concentrated `share` of its own examples, or the diffuse rest; `all` keeps everything.

    `scores` are of all examples that `partition` picks from. Clients are split one by one, so a client's amount falls
    in the same proportion as everybody's. For a curriculum take one side in earlier rounds and the other in later ones:
    `jaxdfl.data.batches.plan` is asked for stretches of rounds, and orders a client's examples anew in each epoch, so
    an order within a partition would mean nothing.

    Raises:
        ValueError: see `sort_examples`; or a client is left without examples.
    """
    if keep == "all":
        return partition
    kept = [part[getattr(sort_examples(scores[part], share), keep)] for part in partition]
    for client, part in enumerate(kept):
        if not len(part):
            raise ValueError(
                f"`share` {share} leaves client {client} none of its {len(partition[client])} examples as {keep}; "
                "move it, or keep `all`."
            )
    return kept


def _scaled(values: Float[Array, " modules"]) -> Float[Array, " modules"]:
    """By the largest size among them, so that powers neither overflow nor vanish; zeros stay zeros."""
    largest = jnp.abs(values).max()
    return values / jnp.where(largest > 0, largest, 1)
