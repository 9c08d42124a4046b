"""Tokenized examples as arrays, the forms in which text lives on the device: one a row, or packed."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int


class Examples(NamedTuple):
    """Sentences (or pairs) padded on the right to one length; leading axes are free ([examples], [batch], ...)."""

    ids: Int[Array, "... length"]  # int32 token ids; padding holds the tokenizer's pad id
    types: Int[Array, "... length"]  # int8 segment: 0 first sentence, 1 second (all 0 for RoBERTa)
    lengths: Int[Array, "..."]  # int32 number of real tokens; position k is padding where k >= lengths
    labels: Int[Array, "..."]  # int32 class


class Rows(NamedTuple):
    """Sentences one behind the other in rows of one length, each to be read as if it were alone."""

    ids: Int[Array, "... rows length"]
    types: Int[Array, "... rows length"]
    positions: Int[Array, "... rows length"]  # int32, of a token in its own sentence
    sentence: Int[Array, "... rows length"]  # int32 number of the token's sentence in its row; -1 for padding
    firsts: Int[Array, "... rows sentences"]  # int32 place of each sentence's first token in its row; 0 for none
    labels: Int[Array, "... slots"]  # int32 class of each sentence, row by row (slots = rows * sentences); -1 for none


def one_a_row(examples: Examples) -> Rows:
    """Every example in a row of its own, as it is padded; `examples` has one leading axis."""
    places = jnp.broadcast_to(jnp.arange(examples.ids.shape[-1]), examples.ids.shape)
    sentence = jnp.where(places < examples.lengths[:, None], 0, -1)
    firsts = jnp.zeros((len(examples.lengths), 1), jnp.int32)
    return Rows(examples.ids, examples.types, places, sentence, firsts, examples.labels)
