"""Clients with different tasks in one run: one pool of examples, one space of labels, a head per task.

Task k's classes are the columns from `offsets[k]` to before `offsets[k + 1]` of one head. `within_task` hides all
others from an example: loss, gradients and predictions are those of a head of the task's own, its part of the one.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from jaxdfl.data import partition
from jaxdfl.data.examples import Examples
from jaxdfl.data.partition import Partition

Offsets = tuple[int, ...]  # first column of each task, and behind the last one's; (0, 3, 5): three classes, then two
Logits = Callable[..., Float[Array, "batch classes"]]  # (frozen, blocks, examples, key)


def offsets_of(classes: Sequence[int]) -> Offsets:
    """Where each task's columns begin, from its number of classes, and where the last one's end."""
    return tuple(accumulate(classes, initial=0))


def union(tasks: Sequence[Examples], offsets: Offsets, padding: int) -> Examples:
    """All tasks' examples one after the other, padded to one length with the token `padding`, labels made distinct.

    Leaves are numpy's, [examples, ...]. All must come from one tokenizer.

    Raises:
        ValueError: `offsets` are not those of these tasks.
    """
    if len(offsets) != len(tasks) + 1:
        raise ValueError(f"`offsets` must be one more than the {len(tasks)} tasks, got {len(offsets)}; use offsets_of.")
    for number, (task, (first, end)) in enumerate(zip(tasks, pairwise(offsets), strict=True)):
        if np.min(task.labels) < 0 or np.max(task.labels) >= end - first:
            raise ValueError(f"`offsets` gives task {number} {end - first} classes, got label {np.max(task.labels)}.")
    length = max(task.ids.shape[-1] for task in tasks)

    def moved(task: Examples, first: int) -> Examples:
        room = ((0, 0), (0, length - task.ids.shape[-1]))
        ids = np.pad(task.ids, room, constant_values=padding)
        types = np.pad(task.types, room)
        return task._replace(ids=ids, types=types, labels=task.labels + np.int32(first))

    parts = [moved(task, first) for task, first in zip(tasks, offsets[:-1], strict=True)]
    return jax.tree.map(lambda *columns: np.concatenate(columns), *parts)


def task_of(labels: Any, offsets: Offsets) -> Any:
    """Which task a label of the union belongs to. Works on numpy and jax arrays; -1, which counts nowhere, gives 0."""
    return (labels[..., None] >= np.array(offsets[1:-1])).sum(-1)


def masked(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], offsets: Offsets
) -> Float[Array, "batch classes"]:
    """Logits in which only the columns of an example's own task are left; the others hold the lowest finite number.

    Finite, since a logit that is not finite marks a client that has diverged.
    """
    own = task_of(labels, offsets)[:, None] == task_of(jnp.arange(offsets[-1]), offsets)
    return jnp.where(own, logits, jnp.finfo(logits.dtype).min)


def within_task(logits: Logits, offsets: Offsets) -> Logits:
    """`logits` that know which task an example belongs to (but not its class): for losses and evaluation alike."""

    def of_own_task(frozen: Any, blocks: Any, examples: Any, key: Array | None = None) -> Array:
        return masked(logits(frozen, blocks, examples, key), examples.labels, offsets)

    return of_own_task


def confusion_by_task(confusion: np.ndarray, offsets: Offsets) -> list[np.ndarray]:
    """Each task's own counts, [..., its classes, its classes], from those of the union: what its metric is taken of."""
    return [confusion[..., i:j, i:j] for i, j in pairwise(offsets)]


def by_task(
    labels: Integer[np.ndarray, " examples"], offsets: Offsets, tasks: Sequence[int], seed: int, within: str = "iid"
) -> Partition:
    """Every client gets examples of one task: `tasks[i]` is client i's. `labels` are those of the union.

    A task's examples are shared among its clients as `within` says, a partition by name (`dirichlet:0.5` and so on,
    see `jaxdfl.data.partition.build`).

    Raises:
        ValueError: a client's task does not exist, a task has no client, or the partition within a task is impossible.
    """
    known = range(len(offsets) - 1)
    if set(tasks) != set(known):
        raise ValueError(f"`tasks` must name each of the tasks 0..{known[-1]} once at least and no other, got {tasks}.")
    parts: Partition = [np.empty(0, np.int64)] * len(tasks)
    for task in known:
        examples = np.flatnonzero(task_of(labels, offsets) == task)
        clients = [client for client, its in enumerate(tasks) if its == task]
        classes = offsets[task + 1] - offsets[task]
        own = partition.build(within, labels[examples] - offsets[task], classes, len(clients), seed)
        for client, part in zip(clients, own, strict=True):
            parts[client] = examples[part]
    return parts
