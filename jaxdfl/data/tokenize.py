"""Texts to token arrays, once per run, by a `transformers` tokenizer."""

from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Array
from transformers import PreTrainedTokenizerBase

from jaxdfl.data.examples import Examples
from jaxdfl.data.tasks import Texts

LENGTH_MULTIPLE = 8  # lengths that fill vector units, and few distinct ones to compile for


class Encoded(NamedTuple):
    """Examples ready for a model, and what was lost on the way."""

    examples: Examples  # numpy arrays [examples, length]: ids int32, types int8; [examples]: lengths, labels int32
    truncated: int  # how many examples were cut to `max_length`


def encode(tokenizer: PreTrainedTokenizerBase, texts: Texts, max_length: int) -> Encoded:
    """Every text (or pair) with its special tokens, padded on the right to one length.

    That length is the longest example's, rounded up to a multiple of 8, at most `max_length` (in tokens). Padding is
    done here, so neither the tokenizer's padding side nor padding or truncation stored in its files matters. Longer
    examples are cut as the tokenizer does, a pair at the longer of its two texts. Types are 0 without the tokenizer's.

    Raises:
        ValueError: the tokenizer has no padding token, or `max_length` has no room for a text.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError("`tokenizer` has no padding token; set tokenizer.pad_token = tokenizer.eos_token.")
    room = max_length - tokenizer.num_special_tokens_to_add(pair=texts.second is not None)
    if room < 1:
        raise ValueError(f"`max_length` must be at least {max_length - room + 1} for this tokenizer, got {max_length}.")

    def tokens(rows: list[int], **options) -> dict[str, list[list[int]]]:
        second = None if texts.second is None else [texts.second[row] for row in rows]
        first = [texts.first[row] for row in rows]
        return dict(tokenizer(first, second, padding=False, return_attention_mask=False, verbose=False, **options))

    rows = list(range(len(texts.first)))
    found = tokens(rows, truncation=False)
    long = [row for row in rows if len(found["input_ids"][row]) > max_length]
    if long:
        for name, cut in tokens(long, truncation=True, max_length=max_length).items():
            for row, values in zip(long, cut, strict=True):
                found[name][row] = values

    lengths = np.array([len(ids) for ids in found["input_ids"]], np.int32)
    length = min(-(-lengths.max() // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, max_length)
    ids = np.full((len(rows), length), tokenizer.pad_token_id, np.int32)
    types = np.zeros((len(rows), length), np.int8)
    real = np.arange(length) < lengths[:, None]  # [examples, length]
    ids[real] = np.concatenate(found["input_ids"])
    if "token_type_ids" in found:
        types[real] = np.concatenate(found["token_type_ids"])
    # `Examples` is typed for arrays on the device; these are the same arrays on their way there.
    return Encoded(Examples(*(cast(Array, array) for array in (ids, types, lengths, texts.labels))), len(long))
