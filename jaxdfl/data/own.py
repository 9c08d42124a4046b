"""A task of your own: sentences as each client holds them, in lists, arrays, a data frame or a `datasets.Dataset`.

    TASKS["reviews"] = own(clients, validation, labels=("negative", "positive"))

It is then asked for by name: `--task reviews --partition own --clients N`. With another partition, the examples of all
clients are put together and dealt out anew.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdfl.data.files import Row
from jaxdfl.data.tasks import ExampleLoss, Task, Texts, checked

Table = Any  # whatever gives a column, a sequence of one value for each example, by its name


def own(
    clients: Iterable[Table],
    validation: Table,
    *,
    labels: Sequence[str],
    columns: Sequence[str] = ("text",),
    label: str = "label",
    loss: ExampleLoss | None = None,
) -> Task:
    """The task of telling the labels of such sentences.

    Args:
        clients: a table for each.
        validation: what every client is scored on.
        labels: names of the classes, in the order of their numbers.
        columns: the texts; one, or two for pairs.
        label: the column of the classes, by name or by number from 0.
        loss: of a batch, one value for each example; None: the cross-entropy.

    Raises:
        ValueError: a table without a column or without examples, columns of several lengths, no text or no label
            where one should be (client and row are named), or a loss that does not give a value for each example.
    """
    if isinstance(columns, str) or len(columns) not in (1, 2):
        raise ValueError(f"`columns` must be one name or two in a sequence, such as ('text',), got {columns!r}.")
    if isinstance(labels, str) or len(set(labels)) != len(labels) or len(labels) < 2:
        raise ValueError(f"`labels` must be two names or more, all different, got {labels!r}.")
    if loss is not None:
        _require_one_each(loss, len(labels))

    def texts(tables: Sequence[Sequence[Row]], source: str) -> Texts:
        return checked((row for rows in tables for row in rows), columns, label, labels, source)

    names = (*columns, label)
    held = [list(_rows(table, names, f"client {number}")) for number, table in enumerate(clients)]
    if not held:
        raise ValueError("`clients` is empty; give a table for each client.")
    holders = np.repeat(np.arange(len(held), dtype=np.int32), [len(rows) for rows in held])
    given = {
        "train": texts(held, f"the tables of {len(held)} clients")._replace(holders=holders),
        "validation": texts([list(_rows(validation, names, "validation"))], "a table"),
    }
    return Task(tuple(columns), tuple(labels), "accuracy", given=given, loss=loss)


def _rows(table: Table, names: Sequence[str], place: str) -> Iterator[Row]:
    """The rows of a table, each with its place."""
    known = list(getattr(table, "column_names", None) or getattr(table, "keys", list)())
    if not known:
        kinds = "a dict of lists, a data frame or a datasets.Dataset"
        raise ValueError(f"{place}: a table with columns is wanted, such as {kinds}, got {type(table).__name__}.")
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(
            f"{place}: no column {missing[0]!r}, there is {', '.join(map(str, known))}; name yours by `columns` and "
            "`label`."
        )
    values = {name: _plain(table[name]) for name in names}
    if scalars := [name for name, column in values.items() if not isinstance(column, list)]:
        raise ValueError(f"{place}: column {scalars[0]!r} must hold a value for each example, got one value alone.")
    lengths = {name: len(column) for name, column in values.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{count} in {name!r}" for name, count in lengths.items())
        raise ValueError(f"{place}: columns of several lengths, {counts}; give each example a value in every column.")
    if not lengths[names[0]]:
        raise ValueError(f"{place}: no examples in it; leave it out, or give it some.")
    for number, row in enumerate(zip(*values.values(), strict=True)):
        yield f"{place}, row {number}", dict(zip(names, row, strict=True))


def _plain(column: Any) -> Any:
    """A column as a list of Python's own values; anything else as it is."""
    if hasattr(column, "tolist"):  # NumPy and pandas
        return column.tolist()
    return list(column) if isinstance(column, Iterable) and not isinstance(column, str) else column


def _require_one_each(loss: ExampleLoss, classes: int) -> None:
    """Refuses a mean, which would be taken for the loss of each example."""
    count = 3
    logits, labels = jax.ShapeDtypeStruct((count, classes), jnp.float32), jax.ShapeDtypeStruct((count,), jnp.int32)
    found = jax.eval_shape(loss, logits, labels)
    if getattr(found, "shape", None) != (count,):
        raise ValueError(
            f"`loss` must give one value for each example: shape ({count},) for {count} of them, got "
            f"{getattr(found, 'shape', type(found).__name__)}; leave the mean to jaxdfl."
        )
