"""Sentences and pairs from real tasks (or generated ones), learned by a frozen encoder with adapters."""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jaxdfl.data import partition, tasks
from jaxdfl.data.examples import Examples
from jaxdfl.data.multitask import Offsets, by_task, offsets_of, union, within_task
from jaxdfl.data.partition import Partition
from jaxdfl.data.tasks import TASKS, Texts
from jaxdfl.data.tokenize import encode
from jaxdfl.models.classifier import Classifier, adapt, cross_entropy
from jaxdfl.models.encoder import EncoderClassifier
from jaxdfl.models.pretrained import Weights, load
from jaxdfl.models.sources import demo_weights, locate
from jaxdfl.problems import Problem, Seeded, seed_keys
from jaxdfl.problems.scoring import scoring, tasks_of_clients
from jaxdfl.settings import Settings
from jaxdfl.simulate.evaluate import in_batches

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")  # with none of them, transformers knows no word
CPU_TOKENS = 1024  # at once: a larger product runs out of cache (measured, design section 5)
ACCELERATOR_TOKENS = 65536  # at once: ten clients of 32 x 128 tokens of RoBERTa-large are 41k, and 44 GB by arithmetic
EVAL_BATCH = 64  # examples of one client at once, at most


class Split(NamedTuple):
    """One split of all tasks."""

    texts: list[Texts]
    examples: Examples  # numpy, of all tasks one after the other
    truncated: int


def problem(settings: Settings) -> Problem:
    """The task `settings.task`, or several (`rotten_tomatoes+natural_logic`), the cheap things loaded first.

    Of several tasks, client i holds examples of one, number i mod the number of tasks; each task has its own rows of
    the head (see `jaxdfl.data.multitask`).

    Raises:
        ValueError, OSError: what is wrong with data, partition, weights or tokenizer, in one line.
    """
    names = settings.task.split("+")
    offsets = offsets_of([len(TASKS[name].labels) for name in names])
    train, validation = ([_texts(settings, name, split) for name in names] for split in ("train", "validation"))
    labels = np.concatenate([texts.labels + first for texts, first in zip(train, offsets[:-1], strict=True)])
    parts = {seed: _parts(settings, labels, offsets, seed) for seed in settings.seeds}

    source = demo_weights() if settings.weights == "demo" else settings.weights
    on_cpu = jax.default_backend() == "cpu"
    dtype = jnp.dtype(settings.dtype if settings.dtype != "auto" else "float32" if on_cpu else "bfloat16")

    @lru_cache(maxsize=1)  # one seed's weights are held at a time
    def loaded(seed: int) -> tuple[EncoderClassifier, Weights]:
        return load(source, offsets[-1], seed_keys(seed).head, dtype)

    model, weights = loaded(settings.seeds[0])
    tokenizer = _load_tokenizer(locate(source)[0])
    splits = [_encode(tokenizer, texts, offsets, settings.max_length) for texts in (train, validation)]
    largest = max(split.examples.ids.max() for split in splits)
    if largest >= model.config.vocabulary:
        raise ValueError(
            f"the tokenizer of {weights.name} gives token {largest}, but the model has {model.config.vocabulary}; "
            "take weights and tokenizer from the same model."
        )

    @lru_cache(maxsize=1)
    def classifier(seed: int) -> Classifier:
        found = adapt(
            loaded(seed)[0], seed_keys(seed).factors, rank=settings.rank, alpha=settings.alpha,
            dropout=settings.lora_dropout, targets=settings.targets, train_head=settings.head == "trained",
            # Elsewhere products of float32 take fewer bits (TF32, bfloat16), which would round small updates off a
            # merged kernel; and a kernel for each client is much memory.
            merged=None if on_cpu else False,
        )  # fmt: skip
        return found if len(names) == 1 else found._replace(logits=within_task(found.logits, offsets))

    def seeded(seed: int) -> Seeded:
        found = classifier(seed)
        return Seeded(found.frozen, found.blocks, found.base(found.frozen), parts[seed])

    first = classifier(settings.seeds[0])  # the others differ from it in values alone
    for split in splits:  # refuses sentences too long for the model
        one = jax.tree.map(lambda x: x[:1], split.examples)
        jax.eval_shape(first.logits, first.frozen, first.blocks, one, None)

    tokens = CPU_TOKENS if on_cpu else ACCELERATOR_TOKENS
    length, eval_length = (split.examples.ids.shape[1] for split in splits)
    eval_batch = max(1, min(EVAL_BATCH, tokens // eval_length, len(splits[1].examples.labels)))
    eval_chunk = settings.client_chunk or max(1, tokens // (eval_batch * eval_length))
    examples, batches = jax.device_put((splits[0].examples, in_batches(splits[1].examples, eval_batch)))
    metric = TASKS[names[0]].metric if len(names) == 1 else None
    return Problem(
        loss=cross_entropy(first),
        examples=examples,
        seeded=seeded,
        scores=scoring(first.logits, examples, batches, offsets, metric, eval_chunk),
        chunk=_chunk(settings.clients, tokens // (settings.batch_size * length)),
        model={**weights._asdict(), "dtype": dtype.name},
        data=_identity(settings, names, splits),
        partitions={seed: partition.describe(each, labels).tolist() for seed, each in parts.items()},
    )


def _texts(settings: Settings, name: str, split: str) -> Texts:
    limit = settings.train_examples if split == "train" else settings.eval_examples
    return tasks.load(name, split, data_dir=settings.data_dir, limit=limit)


def _parts(settings: Settings, labels: np.ndarray, offsets: Offsets, seed: int) -> Partition:
    if len(offsets) == 2:
        return partition.build(settings.partition, labels, offsets[-1], settings.clients, seed)
    return by_task(labels, offsets, tasks_of_clients(settings.clients, offsets), seed, settings.partition)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[Texts], offsets: Offsets, max_length: int) -> Split:
    coded = [encode(tokenizer, each, max_length) for each in texts]
    padding = cast(int, tokenizer.pad_token_id)  # `encode` has seen to it
    examples = union([each.examples for each in coded], offsets, padding)
    return Split(texts, examples, sum(each.truncated for each in coded))


def _chunk(clients: int, fit: int) -> int:
    """Clients trained at a time: no more than `fit`, but at least 1, in chunks as equal as can be."""
    chunks = math.ceil(clients / max(1, fit))
    return math.ceil(clients / chunks)


def _identity(settings: Settings, names: list[str], splits: list[Split]) -> dict[str, Any]:
    def of_split(split: Split) -> dict[str, Any]:
        return {
            "source": ", ".join(dict.fromkeys(texts.source for texts in split.texts)),
            "examples": len(split.examples.labels),
            "sha256": split.texts[0].sha256 if len(names) == 1 else [texts.sha256 for texts in split.texts],
            "truncated": split.truncated,
        }

    train, validation = map(of_split, splits)
    labels = [label for name in names for label in TASKS[name].labels]
    classes = [len(TASKS[name].labels) for name in names]
    own = [classes[task] for task in tasks_of_clients(settings.clients, offsets_of(classes))]
    return {
        "task": settings.task,
        "classes": len(labels),
        "chance": float(np.mean([1 / each for each in own])),  # of a client on its own task
        "labels": labels,
        "source": train.pop("source"),
        "train": train,
        "validation": validation,
        "length": splits[0].examples.ids.shape[1],
    }


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(f"{folder.name}: no tokenizer; copy one of {', '.join(TOKENIZER_FILES)} from the same model.")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # its readers raise errors of three libraries, the plain `Exception` among them
        raise ValueError(f"{folder.name}: the tokenizer cannot be read ({error}); copy its files again.") from error
