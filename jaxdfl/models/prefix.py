"""The frozen layers below the first adapter, computed once for each example rather than in every step.

What a token looks like above those layers never changes, so the whole lower model is a table with a row for each token
of each example, and a token's id is its row there. Nothing else changes: the rest of the model, the engine and the
results (to rounding) are those of the whole model.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxdfl.data.examples import Examples, Rows
from jaxdfl.data.packing import Room, pack_split
from jaxdfl.models.encoder import EncoderClassifier
from jaxdfl.models.layers import Embedding
from jaxdfl.models.paths import put_together, take_apart


class Below(nnx.Module):
    """What stands in the place of a layer whose output is in the table."""


class Remembered(nnx.Module):
    """Hidden states by token, in the place of the embeddings."""

    def __init__(self, table: Float[Array, "tokens width"]):
        self.tokens = Embedding(table.shape[0], table.shape[1], table.dtype)
        self.tokens.table[...] = table

    def __call__(self, rows: Rows) -> Float[Array, "rows length width"]:
        return self.tokens(rows.ids)


def remember(
    model: EncoderClassifier, first: int, splits: Sequence[Examples], room: Room
) -> tuple[Float[Array, "tokens width"], list[Examples]]:
    """The hidden states below layer `first` of all examples, and the examples with their tokens' rows there as ids.

    `splits` are one or more sets, leaves [examples, ...]; `room` has room for their longest.
    """
    structure, arrays = take_apart(model)

    @jax.jit
    def lower(arrays: dict[str, Array], groups: Rows) -> Float[Array, "groups rows length width"]:
        whole = put_together(structure, arrays)
        return jax.lax.map(lambda rows: whole.encoder.below(first, whole.embeddings(rows), rows), groups)

    tables, renamed, start = [], [], 0
    for examples in splits:
        groups, begins = pack_split(examples, room)
        tables.append(lower(arrays, groups))
        tables[-1] = tables[-1].reshape(-1, tables[-1].shape[-1])
        ids = start + begins[:, None] + np.minimum(np.arange(examples.ids.shape[1]), examples.lengths[:, None] - 1)
        renamed.append(examples._replace(ids=ids.astype(np.int32)))
        start += len(tables[-1])
    return jnp.concatenate(tables), renamed


def above(model: EncoderClassifier, first: int, table: Float[Array, "tokens width"]) -> EncoderClassifier:
    """The model from layer `first` on, for examples whose ids are rows of `table`. Layers keep their paths."""
    upper: Any = nnx.clone(model)
    upper.embeddings = Remembered(table)
    upper.encoder.first = first
    for number in range(first):
        upper.encoder.layers[number] = Below()
    return upper
