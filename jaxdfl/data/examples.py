"""Tokenized examples as arrays, the form in which text lives on the device."""

from typing import NamedTuple

from jaxtyping import Array, Int


class Examples(NamedTuple):
    """Sentences (or pairs) padded on the right to one length; leading axes are free ([examples], [batch], ...)."""

    ids: Int[Array, "... length"]  # int32 token ids; padding holds the tokenizer's pad id
    types: Int[Array, "... length"]  # int8 segment: 0 first sentence, 1 second (all 0 for RoBERTa)
    lengths: Int[Array, "..."]  # int32 number of real tokens; position k is padding where k >= lengths
    labels: Int[Array, "..."]  # int32 class
