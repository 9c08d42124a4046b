"""Sentences and pairs from real tasks (or generated ones), learned by a frozen encoder with adapters."""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jaxdfl.data import partition, tasks
from jaxdfl.data.tasks import TASKS, Texts
from jaxdfl.data.tokenize import Encoded, encode
from jaxdfl.diagnostics import average, average_product
from jaxdfl.metrics import over_clients as score
from jaxdfl.models.classifier import Classifier, adapt, cross_entropy
from jaxdfl.models.encoder import EncoderClassifier
from jaxdfl.models.pretrained import Weights, load
from jaxdfl.models.sources import demo_weights, locate
from jaxdfl.problems import Problem, Seeded, seed_keys
from jaxdfl.protocol import PerBlock
from jaxdfl.settings import Settings
from jaxdfl.simulate.evaluate import Evaluate, in_batches, make_evaluate

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")  # with none of them, transformers knows no word
CPU_TOKENS = 1024  # at once: a larger product runs out of cache (measured, design section 5)
ACCELERATOR_TOKENS = 65536  # at once: ten clients of 32 x 128 tokens of RoBERTa-large are 41k, and 44 GB by arithmetic
EVAL_BATCH = 64  # examples of one client at once, at most


def problem(settings: Settings) -> Problem:
    """The task `settings.task`, the cheap things loaded first.

    Raises:
        ValueError, OSError: what is wrong with data, partition, weights or tokenizer, in one line.
    """
    task = TASKS[settings.task]
    train = tasks.load(settings.task, "train", data_dir=settings.data_dir, limit=settings.train_examples)
    validation = tasks.load(settings.task, "validation", data_dir=settings.data_dir, limit=settings.eval_examples)
    parts = {
        seed: partition.build(settings.partition, train.labels, len(task.labels), settings.clients, seed)
        for seed in settings.seeds
    }

    source = demo_weights() if settings.weights == "demo" else settings.weights
    on_cpu = jax.default_backend() == "cpu"
    dtype = jnp.dtype(settings.dtype if settings.dtype != "auto" else "float32" if on_cpu else "bfloat16")

    @lru_cache(maxsize=1)  # one seed's weights are held at a time
    def loaded(seed: int) -> tuple[EncoderClassifier, Weights]:
        return load(source, len(task.labels), seed_keys(seed).head, dtype)

    model, weights = loaded(settings.seeds[0])
    tokenizer = _load_tokenizer(locate(source)[0])
    coded = encode(tokenizer, train, settings.max_length), encode(tokenizer, validation, settings.max_length)
    largest = max(split.examples.ids.max() for split in coded)
    if largest >= model.config.vocabulary:
        raise ValueError(
            f"the tokenizer of {weights.name} gives token {largest}, but the model has {model.config.vocabulary}; "
            "take weights and tokenizer from the same model."
        )

    @lru_cache(maxsize=1)
    def classifier(seed: int) -> Classifier:
        return adapt(
            loaded(seed)[0], seed_keys(seed).factors, rank=settings.rank, alpha=settings.alpha,
            dropout=settings.lora_dropout, targets=settings.targets, train_head=settings.head == "trained",
            # Elsewhere products of float32 take fewer bits (TF32, bfloat16), which would round small updates off a
            # merged kernel; and a kernel for each client is much memory.
            merged=None if on_cpu else False,
        )  # fmt: skip

    def seeded(seed: int) -> Seeded:
        found = classifier(seed)
        return Seeded(found.frozen, found.blocks, found.base(found.frozen), parts[seed])

    first = classifier(settings.seeds[0])  # the others differ from it in values alone
    for split in coded:  # refuses sentences too long for the model
        one = jax.tree.map(lambda x: x[:1], split.examples)
        jax.eval_shape(first.logits, first.frozen, first.blocks, one, None)

    tokens = CPU_TOKENS if on_cpu else ACCELERATOR_TOKENS
    length, eval_length = (split.examples.ids.shape[1] for split in coded)
    eval_batch = max(1, min(EVAL_BATCH, tokens // eval_length, len(validation.labels)))
    eval_chunk = settings.client_chunk or max(1, tokens // (eval_batch * eval_length))
    evaluate = make_evaluate(first.logits, len(task.labels), chunk=eval_chunk)
    examples, batches = jax.device_put((coded[0].examples, in_batches(coded[1].examples, eval_batch)))
    metrics = ("accuracy",) if task.metric == "accuracy" else ("accuracy", task.metric)
    labels = np.asarray(train.labels)
    return Problem(
        loss=cross_entropy(first),
        examples=examples,
        seeded=seeded,
        scores=lambda seeded, adapters: _scores(evaluate, seeded.frozen, batches, metrics, adapters),
        chunk=_chunk(settings.clients, tokens // (settings.batch_size * length)),
        model={**weights._asdict(), "dtype": dtype.name},
        data=_identity(settings, train, validation, coded),
        partitions={seed: partition.describe(each, labels).tolist() for seed, each in parts.items()},
    )


def _scores(
    evaluate: Evaluate, frozen: Any, validation: Any, metrics: Sequence[str], adapters: PerBlock
) -> dict[str, float]:
    """Every metric's columns: the clients and the averaged adapter in one call, the averaged product in another."""
    with_average = jax.tree.map(lambda x, mean: jnp.concatenate([x, mean]), adapters, average(adapters))
    counts = np.asarray(evaluate(frozen, with_average, validation))
    product = np.asarray(evaluate(frozen, average_product(adapters), validation))[0]
    columns = [score(metric, counts[:-1], counts[-1], product) for metric in metrics]
    return {name: value for each in columns for name, value in each.items()}


def _chunk(clients: int, fit: int) -> int:
    """Clients trained at a time: no more than `fit`, but at least 1, in chunks as equal as can be."""
    chunks = math.ceil(clients / max(1, fit))
    return math.ceil(clients / chunks)


def _identity(settings: Settings, train: Texts, validation: Texts, coded: tuple[Encoded, Encoded]) -> dict[str, Any]:
    task = TASKS[settings.task]
    return {
        "task": settings.task,
        "classes": len(task.labels),
        "labels": list(task.labels),
        "source": train.source,
        "train": {"examples": len(train.labels), "sha256": train.sha256, "truncated": coded[0].truncated},
        "validation": {
            "source": validation.source,
            "examples": len(validation.labels),
            "sha256": validation.sha256,
            "truncated": coded[1].truncated,
        },
        "length": coded[0].examples.ids.shape[1],
    }


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(f"{folder.name}: no tokenizer; copy one of {', '.join(TOKENIZER_FILES)} from the same model.")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # its readers raise errors of three libraries, the plain `Exception` among them
        raise ValueError(f"{folder.name}: the tokenizer cannot be read ({error}); copy its files again.") from error
