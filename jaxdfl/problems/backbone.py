"""A pretrained encoder with its tokenizer, as the text problems take it: loaded once, adapted for each seed."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jaxdfl.data.examples import Examples
from jaxdfl.models.classifier import Classifier, adapt
from jaxdfl.models.pretrained import load, redrawn
from jaxdfl.models.sources import demo_weights, locate
from jaxdfl.problems import seed_keys
from jaxdfl.settings import Settings

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")  # with none of them, transformers knows no word
CPU_TOKENS = 1024  # at once: a larger product runs out of cache (measured, design section 5)
ACCELERATOR_TOKENS = 65536  # at once: ten clients of 32 x 128 tokens of RoBERTa-large are 41k, and 44 GB by arithmetic
EVAL_BATCH = 64  # examples of one client at once, at most


class Backbone(NamedTuple):
    """A model that each seed gives a head and factors of its own."""

    classifier: Callable[[int], Classifier]  # of a seed. They differ in values alone, and share what no seed changes
    tokenizer: PreTrainedTokenizerBase
    name: str
    vocabulary: int
    identity: dict[str, Any]  # for the manifest


class Portions(NamedTuple):
    """How much is computed at a time."""

    clients: int  # that train, at most
    eval_batch: int
    eval_clients: int


def backbone(settings: Settings, classes: int, *, train_head: bool) -> Backbone:
    """The model that the settings name, from the first seed on.

    Raises:
        ValueError, OSError: what is wrong with weights, tokenizer, targets or rank, in one line.
    """
    source = demo_weights() if settings.weights == "demo" else settings.weights
    on_cpu = jax.default_backend() == "cpu"
    dtype = jnp.dtype(settings.dtype if settings.dtype != "auto" else "float32" if on_cpu else "bfloat16")

    model, weights = load(source, classes, seed_keys(settings.seeds[0]).head, dtype)

    @cache
    def classifier(seed: int) -> Classifier:
        return adapt(
            redrawn(model, weights.initialised, seed_keys(seed).head), seed_keys(seed).factors, rank=settings.rank,
            alpha=settings.alpha, dropout=settings.lora_dropout, targets=settings.targets, train_head=train_head,
            # Elsewhere products of float32 take fewer bits (TF32, bfloat16), which would round small updates off a
            # merged kernel; and a kernel for each client is much memory.
            merged=None if on_cpu else False,
        )  # fmt: skip

    tokenizer = _load_tokenizer(locate(source)[0])
    identity = {**weights._asdict(), "dtype": dtype.name}
    return Backbone(classifier, tokenizer, weights.name, model.config.vocabulary, identity)


def require_fit(backbone: Backbone, seed: int, examples: Examples) -> None:
    """Refuses sentences that the model cannot take.

    Raises:
        ValueError: a token outside the vocabulary, or sentences longer than the model's positions.
    """
    largest = examples.ids.max()
    if largest >= backbone.vocabulary:
        raise ValueError(
            f"the tokenizer of {backbone.name} gives token {largest}, but the model has {backbone.vocabulary}; "
            "take weights and tokenizer from the same model."
        )
    found = backbone.classifier(seed)
    jax.eval_shape(found.logits, found.frozen, found.blocks, jax.tree.map(lambda x: x[:1], examples), None)


def portions(settings: Settings, train: Examples, validation: Examples) -> Portions:
    """What the device can hold at once, by tokens; `client_chunk` overrides it."""
    tokens = CPU_TOKENS if jax.default_backend() == "cpu" else ACCELERATOR_TOKENS
    length, eval_length = train.ids.shape[1], validation.ids.shape[1]
    eval_batch = max(1, min(EVAL_BATCH, tokens // eval_length, len(validation.labels)))
    return Portions(
        clients=max(1, tokens // (settings.batch_size * length)),
        eval_batch=eval_batch,
        eval_clients=settings.client_chunk or max(1, tokens // (eval_batch * eval_length)),
    )


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(f"{folder.name}: no tokenizer; copy one of {', '.join(TOKENIZER_FILES)} from the same model.")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # its readers raise errors of three libraries, the plain `Exception` among them
        raise ValueError(f"{folder.name}: the tokenizer cannot be read ({error}); copy its files again.") from error
