"""Two domains with the same labels: learn the target from the source's labels and the target's bare sentences.

`domains:SOURCE:TARGET`, with the objective of `jaxdfl.objectives.domain_adaptive` (ASDA, arXiv 2112.06161) at every
client. Each client holds labelled source examples, unlabelled target examples, and `SHOTS` labelled target examples of
each class; both domains are spread over the clients by the same partition. The score is accuracy on the target's
validation split, of the mean of both heads, which are trained.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdfl.data import partition
from jaxdfl.data.examples import Examples
from jaxdfl.data.partition import Partition
from jaxdfl.data.tasks import TASKS
from jaxdfl.objectives import Domains, domain_adaptive, two_heads
from jaxdfl.objectives.two_heads import TwoHeads
from jaxdfl.problems import Problem, Seeded, seed_keys
from jaxdfl.problems.backbone import backbone, portions, require_fit
from jaxdfl.problems.scoring import scoring
from jaxdfl.problems.text import coded, identity, read
from jaxdfl.settings import Settings

SHOTS = 3  # labelled target examples of each class at each client, as in ASDA's benchmarks
EVERY = 4  # one labelled example in four is of the target domain


def problem(settings: Settings) -> Problem:
    """The problem `settings.task`.

    Raises:
        ValueError, OSError: no such tasks, tasks with other labels, a setting that this problem cannot have, or what
            the text problem refuses.
    """
    names = _tasks(settings)
    classes = len(TASKS[names[1]].labels)
    texts = [read(settings, name, "train") for name in names]
    held_out = read(settings, names[1], "validation")
    parts = {
        seed: [partition.build(settings.partition, each.labels, classes, settings.clients, seed) for each in texts]
        for seed in settings.seeds
    }

    model = backbone(settings, classes, train_head=True)
    train = coded(model.tokenizer, texts, (0, classes, 2 * classes), settings.max_length)
    validation = coded(model.tokenizer, [held_out], (0, classes), settings.max_length)
    for split in (train, validation):
        require_fit(model, settings.seeds[0], split.examples)
    sentences = train.examples._replace(labels=train.examples.labels % classes)
    of_source, of_target = (np.asarray(each.labels) for each in texts)
    rows = {seed: _rows(source, target, of_target, len(of_source), seed) for seed, (source, target) in parts.items()}
    first_row = dict(zip(rows, np.cumsum([0, *(len(each.target) for each in rows.values())]).tolist(), strict=False))

    def heads(seed: int) -> TwoHeads:
        return two_heads(model.classifier(seed), jax.random.fold_in(seed_keys(seed).head, 1))

    def seeded(seed: int) -> Seeded:
        found = model.classifier(seed)
        own = [part + first_row[seed] for part in rows[seed].parts]
        return Seeded(found.frozen, heads(seed).blocks, found.base(found.frozen), own)

    first, at_once = heads(settings.seeds[0]), portions(settings, sentences, validation.examples, packed=False)
    target, labelled, unlabelled = (
        np.concatenate([getattr(each, name) for each in rows.values()]) for name in ("target", "labelled", "unlabelled")
    )
    pairs = Domains(_take(sentences, labelled), jnp.asarray(target), _take(sentences, unlabelled))
    pairs = jax.device_put(pairs)
    return Problem(
        loss=domain_adaptive(first.features, first.first, first.second),
        examples=pairs,
        seeded=seeded,
        scores=scoring(
            first.logits, pairs.labelled, validation.examples, (0, classes), "accuracy", at_once, settings.eval_clients
        ),
        chunk=max(1, at_once.clients // 3),  # three passes of the encoder a step: labelled, weak and strong
        model=model.identity,
        data=identity(settings, [names[1]], train, validation),
        partitions={seed: partition.describe(both[0], of_source).tolist() for seed, both in parts.items()},
    )


def _tasks(settings: Settings) -> tuple[str, str]:
    names = settings.task.split(":")[1:]
    if len(names) != 2 or any(name not in TASKS for name in names):
        raise ValueError(
            f"`--task` must read domains:SOURCE:TARGET with two of {', '.join(TASKS)}, got {settings.task!r}."
        )
    source, target = names
    if TASKS[source].labels != TASKS[target].labels:
        raise ValueError(
            f"`--task` {settings.task}: both must have the same labels, got {', '.join(TASKS[source].labels)} and "
            f"{', '.join(TASKS[target].labels)}."
        )
    if TASKS[source].loss or TASKS[target].loss:
        raise ValueError(f"`--task` {settings.task}: its objective is ASDA's; leave out the tasks' own loss.")
    if settings.head != "trained":
        raise ValueError(f"`--head` must be trained for {settings.task}: its two heads play against the encoder.")
    if not settings.lora_dropout:
        raise ValueError(f"`--lora-dropout` must be above 0 for {settings.task}: it makes the strong view; try 0.1.")
    return source, target


class _Rows(NamedTuple):
    """Rows of one seed: which are of the target, their two sentences as indices, and each client's rows."""

    target: np.ndarray
    labelled: np.ndarray
    unlabelled: np.ndarray
    parts: Partition


def _rows(source: Partition, target: Partition, labels: np.ndarray, offset: int, seed: int) -> _Rows:
    """A row for each of a client's source examples, and one of its shots for every `EVERY` - 1 of them.

    Indices are into the source's sentences, of which there are `offset`, then the target's, whose `labels` these are.
    """
    draw = np.random.default_rng(seed)
    flags, labelled, unlabelled, parts = [], [], [], []
    first = 0
    for own, other in zip(source, target, strict=True):
        shots = np.concatenate([other[labels[other] == label][:SHOTS] for label in np.unique(labels)])
        extra = np.resize(shots, len(own) // (EVERY - 1))
        count = len(own) + len(extra)
        flags.append(np.arange(count) >= len(own))
        labelled.append(np.concatenate([own, extra + offset]))
        unlabelled.append(np.resize(draw.permutation(other), count) + offset)
        parts.append(np.arange(first, first + count))
        first += count
    return _Rows(np.concatenate(flags), np.concatenate(labelled), np.concatenate(unlabelled), parts)


def _take(examples: Examples, indices: np.ndarray) -> Examples:
    return jax.tree.map(lambda x: x[indices], examples)
