"""Sentences packed into rows, so that hardly any padding is computed: cost is linear in tokens.

A batch of sentences becomes groups of rows. A group is what is computed at a time: small enough to stay in a core's
cache, and as many of them as the batch needs, which is known only when it is there: shapes are fixed, work is not.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from numpy.typing import ArrayLike

from jaxdfl.data.examples import Examples, Rows

AT_ONCE = 4096  # sentences of a split that are packed together: each is tried in every row, so all would be quadratic
SPARE = 1.5  # slots for sentences in a row, over those that a row of mean sentences fills


class Room(NamedTuple):
    """The shape of a group."""

    length: int  # tokens in a row; the longest sentence at least
    rows: int
    sentences: int  # in a row, at most


class Places(NamedTuple):
    """Where each sentence goes."""

    row: Int[Array, " examples"]
    start: Int[Array, " examples"]  # its first token's place in the row
    slot: Int[Array, " examples"]  # its number in the row
    rows: Int[Array, ""]  # that are used; they come first


def room_for(lengths: ArrayLike, length: int, tokens: int) -> Room:
    """Groups of about `tokens` tokens for sentences of such `lengths`, none above `length`."""
    sentences = int(np.ceil(SPARE * length / max(1.0, float(np.mean(np.asarray(lengths))))))
    return Room(length, max(1, tokens // length), max(1, min(sentences, length)))


def place(lengths: Int[Array, " examples"], room: Room) -> Places:
    """First fit, the longest first: each sentence in the first row that has room for it."""
    count = len(lengths)
    order = jnp.argsort(-lengths, stable=True)

    def put(rows: tuple[Array, Array], length: Array) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
        filled, held = rows  # [rows] tokens, sentences
        row = jnp.argmax((filled + length <= room.length) & (held < room.sentences))
        found = row, filled[row], held[row]
        return (filled.at[row].add(length), held.at[row].add(1)), found

    empty = jnp.zeros(count, jnp.int32)
    (_, held), found = jax.lax.scan(put, (empty, empty), lengths[order].astype(jnp.int32))
    row, start, slot = (jnp.zeros(count, jnp.int32).at[order].set(x.astype(jnp.int32)) for x in found)
    return Places(row, start, slot, jnp.sum(held > 0, dtype=jnp.int32))


def pack(examples: Examples, room: Room) -> tuple[Rows, Int[Array, ""]]:
    """The examples as groups, leaves [groups, ...], and how many groups hold any; those come first.

    There are groups enough for the worst case, a row for each example. Leaves of `examples` are [examples, ...].
    """
    places = place(examples.lengths, room)
    return put(examples, places, room), -(-places.rows // room.rows)


def put(examples: Examples, places: Places, room: Room) -> Rows:
    """The examples in their places, leaves [groups, ...]; a row for each example would fit."""
    count, width = examples.ids.shape
    groups = -(-count // room.rows)
    offsets = jnp.arange(width)
    real = offsets < examples.lengths[:, None]  # [examples, width]
    row = jnp.where(real, places.row[:, None], groups * room.rows)  # padding goes out of bounds, and is dropped
    column = places.start[:, None] + offsets

    def spread(values: Array, empty: int = 0) -> Array:
        blank = jnp.full((groups * room.rows, room.length), empty, values.dtype)
        filled = blank.at[row, column].set(jnp.broadcast_to(values, real.shape), mode="drop")
        return filled.reshape(groups, room.rows, room.length)

    def by_slot(values: Array, empty: int) -> Array:
        blank = jnp.full((groups * room.rows, room.sentences), empty, jnp.int32)
        return blank.at[places.row, places.slot].set(values)

    return Rows(
        ids=spread(examples.ids),
        types=spread(examples.types),
        positions=spread(offsets.astype(jnp.int32)),
        sentence=spread(places.slot[:, None], -1),
        firsts=by_slot(places.start, 0).reshape(groups, room.rows, room.sentences),
        labels=by_slot(examples.labels, -1).reshape(groups, room.rows * room.sentences),
    )


def pack_split(examples: Examples, room: Room) -> tuple[Rows, Int[np.ndarray, " examples"]]:
    """A whole split as groups that all hold some, on the host, and where each sentence's first token lies among theirs.

    The time is linear in the examples, and so is the padding (a last row for every `AT_ONCE`).
    """
    groups, begins, done = [], [], 0
    for first in range(0, len(examples.lengths), AT_ONCE):
        part = jax.tree.map(lambda x, first=first: x[first : first + AT_ONCE], examples)
        places, rows = jax.device_get(_placed(part, room))
        used = -(-int(places.rows) // room.rows)
        groups.append(jax.tree.map(lambda x, used=used: x[:used], rows))
        begins.append((done * room.rows + places.row) * room.length + places.start)
        done += used
    return jax.tree.map(lambda *each: np.concatenate(each), *groups), np.concatenate(begins)


@partial(jax.jit, static_argnums=1)
def _placed(examples: Examples, room: Room) -> tuple[Places, Rows]:
    places = place(examples.lengths, room)
    return places, put(examples, places, room)
