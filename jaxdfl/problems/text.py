"""Sentences and pairs from real tasks (or generated ones), learned by a frozen encoder with adapters."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from numpy.typing import ArrayLike
from transformers import PreTrainedTokenizerBase

from jaxdfl.data import partition, tasks
from jaxdfl.data.examples import Examples
from jaxdfl.data.multitask import Offsets, by_task, offsets_of, union, within_task
from jaxdfl.data.packing import Room, place
from jaxdfl.data.partition import Partition
from jaxdfl.data.tasks import TASKS, ExampleLoss, Texts
from jaxdfl.data.tokenize import encode
from jaxdfl.models.classifier import CROSS_ENTROPY, Classifier, cross_entropy
from jaxdfl.models.packed import packed_cross_entropy
from jaxdfl.problems import Problem, Seeded
from jaxdfl.problems.backbone import backbone, portions, require_fit, with_prefix_remembered
from jaxdfl.problems.scoring import scoring, tasks_of_clients
from jaxdfl.settings import Settings


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
    texts = [[read(settings, name, split) for name in names] for split in ("train", "validation")]
    labels = np.concatenate([each.labels + first for each, first in zip(texts[0], offsets[:-1], strict=True)])
    parts = {seed: _parts(settings, texts[0], labels, offsets, seed) for seed in settings.seeds}
    each = _loss(names)

    model = backbone(settings, offsets[-1], train_head=settings.head == "trained")
    train, validation = (coded(model.tokenizer, each, offsets, settings.max_length) for each in texts)
    for split in (train, validation):
        require_fit(model, settings.seeds[0], split.examples)

    model, *both = with_prefix_remembered(model, settings, train.examples, validation.examples)
    train, validation = (split._replace(examples=each) for split, each in zip((train, validation), both, strict=True))

    def classifier(seed: int) -> Classifier:
        found = model.classifier(seed)
        return found if len(names) == 1 else found._replace(logits=within_task(found.logits, offsets))

    def seeded(seed: int) -> Seeded:
        found = classifier(seed)
        return Seeded(found.frozen, found.blocks, found.base(found.frozen), parts[seed])

    first = classifier(settings.seeds[0])
    at_once = portions(settings, train.examples, validation.examples, packed=settings.packing)
    examples = jax.device_put(train.examples)
    metric = TASKS[names[0]].metric if len(names) == 1 else None
    return Problem(
        loss=packed_cross_entropy(first.logits, at_once.room, each) if settings.packing else cross_entropy(first, each),
        examples=examples,
        seeded=seeded,
        scores=scoring(first.logits, examples, validation.examples, offsets, metric, at_once, settings.eval_clients),
        chunk=at_once.clients,
        model=model.identity,
        data={**identity(settings, names, train, validation), **_note(each)},
        groups=partial(_groups, train.examples.lengths, at_once.room) if settings.packing else None,
        partitions={seed: partition.describe(each, labels).tolist() for seed, each in parts.items()},
    )


def read(settings: Settings, name: str, split: str) -> Texts:
    """One split of one task, as much of it as the settings ask for.

    Beside other tasks, one that needs no files (generated, or from a package) need not be in the data folder.
    """
    limit = settings.train_examples if split == "train" else settings.eval_examples
    folder = settings.data_dir
    if folder and name != settings.task and TASKS[name].glue is None and not (Path(folder) / name).exists():
        folder = None
    return tasks.load(name, split, data_dir=folder, limit=limit)


def coded(tokenizer: PreTrainedTokenizerBase, texts: list[Texts], offsets: Offsets, max_length: int) -> Split:
    """The texts of all tasks as one split, padded to one length."""
    each = [encode(tokenizer, of_task, max_length) for of_task in texts]
    padding = cast(int, tokenizer.pad_token_id)  # `encode` has seen to it
    examples = union([of_task.examples for of_task in each], offsets, padding)
    return Split(texts, examples, sum(of_task.truncated for of_task in each))


def identity(settings: Settings, names: list[str], train: Split, validation: Split) -> dict[str, Any]:
    """What the manifest says of the data."""

    def of_split(split: Split) -> dict[str, Any]:
        return {
            "source": ", ".join(dict.fromkeys(texts.source for texts in split.texts)),
            "examples": len(split.examples.labels),
            "sha256": split.texts[0].sha256 if len(split.texts) == 1 else [texts.sha256 for texts in split.texts],
            "truncated": split.truncated,
        }

    of_train, of_validation = of_split(train), of_split(validation)
    labels = [label for name in names for label in TASKS[name].labels]
    classes = [len(TASKS[name].labels) for name in names]
    own = [classes[task] for task in tasks_of_clients(settings.clients, offsets_of(classes))]
    return {
        "task": settings.task,
        "classes": len(labels),
        "chance": float(np.mean([1 / each for each in own])),  # of a client on its own task
        "labels": labels,
        "source": of_train.pop("source"),
        "train": of_train,
        "validation": of_validation,
        "length": train.examples.ids.shape[1],
    }


def _groups(lengths: ArrayLike, room: Room, parts: Partition, batch_size: int) -> float:
    """How many groups a batch takes, on average over a few drawn as clients would."""
    draw = np.random.default_rng(0)
    batches = [draw.choice(part, batch_size) for part in parts[:8] for _ in range(8)]
    rows = jax.jit(jax.vmap(lambda each: place(each, room).rows))(np.asarray(lengths)[np.stack(batches)])
    return float(np.mean(np.ceil(np.asarray(rows) / room.rows)))


def _loss(names: list[str]) -> ExampleLoss:
    own = {name: TASKS[name].loss for name in names if TASKS[name].loss is not None}
    if own and len(names) > 1:  # the columns that an example does not see would enter it
        raise ValueError(f"`--task`: {next(iter(own))} has a loss of its own; run it alone.")
    return own.get(names[0]) or CROSS_ENTROPY


def _note(each: ExampleLoss) -> dict[str, str]:
    """What must be said beside figures made with another loss than the cross-entropy."""
    return {} if each is CROSS_ENTROPY else {"note": f"Trained by a loss of its own: {getattr(each, '__name__', each)}"}


def _parts(settings: Settings, texts: list[Texts], labels: np.ndarray, offsets: Offsets, seed: int) -> Partition:
    if settings.partition == "own" and len(texts) == 1:
        return _held(settings, texts[0])
    if len(offsets) == 2:
        return partition.build(settings.partition, labels, offsets[-1], settings.clients, seed)
    return by_task(labels, offsets, tasks_of_clients(settings.clients, offsets), seed, settings.partition)


def _held(settings: Settings, texts: Texts) -> Partition:
    """Every client's own examples."""
    if texts.holders is None:
        raise ValueError(
            f"`--partition` own: nobody holds the examples of {settings.task} yet; take paper, dirichlet:ALPHA or "
            "another, or hand over each client's own (`jaxdfl.data.own`)."
        )
    parts = partition.by_group(texts.holders)
    if len(parts) != settings.clients:
        raise ValueError(
            f"`--clients` must be {len(parts)}, got {settings.clients}: so many hold the examples of {settings.task}"
            f"{' that --train-examples leaves' if settings.train_examples else ''}."
        )
    return parts
