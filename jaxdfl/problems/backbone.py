"""A pretrained encoder with its tokenizer, as the text problems take it: loaded once, adapted for each seed."""

from collections.abc import Callable, Sequence
from functools import cache
from math import ceil, log2
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jaxdfl import peft
from jaxdfl.data.examples import Examples
from jaxdfl.data.packing import Room, room_for
from jaxdfl.models.classifier import Classifier, adapt
from jaxdfl.models.encoder import EncoderClassifier
from jaxdfl.models.prefix import above, remember
from jaxdfl.models.pretrained import load, redrawn
from jaxdfl.models.short_attention import LONGEST
from jaxdfl.models.sources import demo_weights, locate
from jaxdfl.problems import seed_keys
from jaxdfl.settings import Settings, adapted_layers

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")  # with none of them, transformers knows no word
CPU_TOKENS = 128  # at once: what the widest layer makes of more leaves a core's cache (experiments/LOG.md)
ACCELERATOR_TOKENS = 65536  # at once: ten clients of 32 x 128 tokens of RoBERTa-large are 41k, and 44 GB by arithmetic
ACCELERATOR_GROUP = 2048  # tokens of one client at once; a quarter of its batch where that is less, to end when it ends
REMEMBERED_BYTES = 4 * 2**30


class Backbone(NamedTuple):
    """A model that each seed gives a head and factors of its own."""

    classifier: Callable[[int], Classifier]  # of a seed. They differ in values alone, and share what no seed changes
    tokenizer: PreTrainedTokenizerBase
    name: str
    vocabulary: int
    identity: dict[str, Any]  # for the manifest
    token_bytes: int | None  # of a token's hidden state below the first adapter; None where no layer lies there
    remembering: Callable[[Sequence[Examples], Room], tuple[Any, list[Examples]]]  # see `jaxdfl.models.prefix`


class Portions(NamedTuple):
    """How much is computed at a time."""

    room: Room  # for sentences of one client
    eval_room: Room
    clients: int  # that train, at most
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

    def adapted(part: Callable[[EncoderClassifier], EncoderClassifier]) -> Callable[[int], Classifier]:
        parted = part(model)

        @cache
        def of_seed(seed: int) -> Classifier:
            drawn = adapt(
                redrawn(parted, weights.initialised, seed_keys(seed).head), seed_keys(seed).factors,
                rank=settings.rank, alpha=settings.alpha, dropout=settings.lora_dropout, targets=settings.targets,
                first_layer=first, train_head=train_head, remat=settings.remat,
            )  # fmt: skip
            return _started(settings, drawn, model.config.model_type)

        return of_seed

    def remembering(splits: Sequence[Examples], room: Room) -> tuple[Backbone, list[Examples]]:
        table, renamed = remember(model, first, splits, room)
        remembers = {**identity, "remembered_bytes": table.nbytes}
        return found._replace(classifier=adapted(lambda whole: above(whole, first, table)), identity=remembers), renamed

    first = _first_layer(settings, model.config.layers)
    tokenizer = _load_tokenizer(locate(source)[0])
    identity = {**weights._asdict(), "dtype": dtype.name, "adapted_layers": [first, model.config.layers - 1]}
    if settings.init_adapter is not None:
        identity["init_adapter"] = peft.identity(Path(settings.init_adapter).expanduser())
    token_bytes = model.config.width * dtype.itemsize if first else None
    found = Backbone(
        adapted(lambda whole: whole),
        tokenizer,
        weights.name,
        model.config.vocabulary,
        identity,
        token_bytes,
        remembering,
    )
    return found


def _started(settings: Settings, drawn: Classifier, model_type: str) -> Classifier:
    """The classifier at the adapter that the settings start from, where they name one."""
    if settings.init_adapter is None:
        return drawn
    like, scale = peft.whole(drawn, model_type), settings.alpha / settings.rank
    adapter = peft.read(Path(settings.init_adapter).expanduser(), like, model_type=model_type, scale=scale)
    return peft.started_from(drawn, adapter)


def _first_layer(settings: Settings, layers: int) -> int:
    """The lowest encoder layer with adapters."""
    count = adapted_layers(settings)
    if count is not None and count > layers:
        raise ValueError(
            f"`--adapt-layers` {settings.adapt_layers}: the model has {layers} layers; take at most those."
        )
    return layers - (count or layers)


def with_prefix_remembered(
    backbone: Backbone, settings: Settings, train: Examples, validation: Examples
) -> tuple[Backbone, Examples, Examples]:
    """The three as they are, or such that the frozen layers below the first adapter are computed here and never again.

    They are left where there is no such layer, where the table would be too large, and where experts are chosen by the
    words of a sentence (`jaxdfl.simulate.experts`).
    """
    tokens = int(train.lengths.sum() + validation.lengths.sum())
    experts = any("sparse_orthogonal_lora" in method for method in settings.methods)
    if backbone.token_bytes is None or tokens * backbone.token_bytes > REMEMBERED_BYTES or experts:
        return backbone, train, validation
    room = room_for(train.lengths, max(each.ids.shape[1] for each in (train, validation)), CPU_TOKENS)
    found, (train, validation) = backbone.remembering((train, validation), room)
    return found, train, validation


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


def portions(settings: Settings, train: Examples, validation: Examples, *, packed: bool) -> Portions:
    """What is computed at a time, by tokens, where training packs its sentences or pads them.

    `client_chunk` overrides how many clients.
    """
    on_cpu = jax.default_backend() == "cpu"
    batch = settings.batch_size * float(np.mean(train.lengths))  # tokens in one step of one client
    at_once, group = (CPU_TOKENS, CPU_TOKENS) if on_cpu else (ACCELERATOR_TOKENS, min(ACCELERATOR_GROUP, batch / 4))
    longest = [each.ids.shape[1] for each in (train, validation)]
    if not on_cpu:  # rows that a kernel for short ones takes
        longest = [max(LONGEST, 2 ** ceil(log2(length))) for length in longest]
    room, eval_room = (
        room_for(each.lengths, length, int(group)) for each, length in zip((train, validation), longest, strict=True)
    )
    step = min(batch, room.rows * room.length) if packed else settings.batch_size * train.ids.shape[1]
    return Portions(
        room=room,
        eval_room=eval_room,
        clients=max(1, int(at_once / step)),
        eval_clients=settings.client_chunk or max(1, at_once // (eval_room.rows * eval_room.length)),
    )


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(f"{folder.name}: no tokenizer; copy one of {', '.join(TOKENIZER_FILES)} from the same model.")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # its readers raise errors of three libraries, the plain `Exception` among them
        raise ValueError(f"{folder.name}: the tokenizer cannot be read ({error}); copy its files again.") from error
