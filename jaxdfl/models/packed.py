"""The cross-entropy of packed sentences: group by group, as many groups as the batch needs.

The mean over a batch is a sum over groups, so its gradient is too. Each group's gradient is taken inside the loop over
groups: no activation outlives its group, and the loop may end when the batch does, which reverse-mode differentiation
through a loop could not follow. The result equals that of padded sentences to rounding; LoRA dropout draws for each
group, so there it is equal in distribution.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdfl.data.examples import Examples, Rows
from jaxdfl.data.packing import Room, pack
from jaxdfl.data.tasks import ExampleLoss
from jaxdfl.models.classifier import CROSS_ENTROPY, Logits, Loss
from jaxdfl.protocol import PerBlock


def packed_cross_entropy(logits: Logits, room: Room, each: ExampleLoss = CROSS_ENTROPY) -> Loss:
    """The mean cross-entropy over a batch, in nats, or of the loss `each`: `cross_entropy` without the padding."""

    def of_group(blocks: PerBlock, frozen: Any, rows: Rows, key: Key[Array, ""] | None) -> Float[Array, ""]:
        values = each(logits(frozen, blocks, rows, key), jnp.maximum(rows.labels, 0))
        return jnp.sum(jnp.where(rows.labels >= 0, values, 0))

    def over_groups(function: Any, groups: Rows, used: Int[Array, ""], key: Key[Array, ""] | None, zero: Any) -> Any:
        def add(group: Array, total: Any) -> Any:
            rows = jax.tree.map(lambda x: x[group], groups)
            value = function(rows, None if key is None else jax.random.fold_in(key, group))
            return jax.tree.map(jnp.add, total, value)

        return jax.lax.fori_loop(0, used, add, zero)

    @jax.custom_vjp
    def total(blocks: PerBlock, frozen: Any, groups: Rows, used: Array, key: Array | None) -> Float[Array, ""]:
        return over_groups(lambda rows, key: of_group(blocks, frozen, rows, key), groups, used, key, jnp.zeros(()))

    def forward(blocks: PerBlock, frozen: Any, groups: Rows, used: Array, key: Array | None) -> tuple[Array, PerBlock]:
        zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, blocks)
        return over_groups(
            lambda rows, key: jax.value_and_grad(of_group)(blocks, frozen, rows, key), groups, used, key, zero
        )

    def backward(gradient: PerBlock, above: Array) -> tuple:
        return jax.tree.map(lambda g: above * g, gradient), None, None, None, None

    total.defvjp(forward, backward)

    def loss(frozen: Any, blocks: PerBlock, examples: Examples, key: Key[Array, ""] | None = None) -> Float[Array, ""]:
        groups, used = pack(examples, room)
        return total(blocks, frozen, groups, used, key) / len(examples.labels)

    return loss
