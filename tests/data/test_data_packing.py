import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdfl.data import packing
from jaxdfl.data.examples import Examples
from jaxdfl.data.packing import Room, pack, place, room_for

ROOM = Room(length=12, rows=2, sentences=3)
COUNT = 9


def sentences(lengths, seed=0):
    draw, width = np.random.default_rng(seed), 12
    ids = np.where(np.arange(width) < np.array(lengths)[:, None], draw.integers(1, 99, (len(lengths), width)), 0)
    types = (ids > 50).astype(np.int8)
    return Examples(*map(jnp.asarray, (ids.astype(np.int32), types, np.int32(lengths), draw.integers(0, 5, len(ids)))))


packed = jax.jit(pack, static_argnums=1)
placed = jax.jit(place, static_argnums=1)
some_lengths = st.lists(st.integers(1, 12), min_size=COUNT, max_size=COUNT)


@given(some_lengths)
@settings(max_examples=50, deadline=None)
def test_every_sentence_is_found_again_whole(lengths):
    examples = sentences(lengths)
    rows, used = packed(examples, ROOM)
    flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), rows)
    labels = flat.labels.reshape(-1, ROOM.sentences)
    found = []
    for row in range(len(flat.ids)):
        for slot in range(ROOM.sentences):
            own = flat.sentence[row] == slot
            if labels[row, slot] < 0:
                assert not own.any()
                continue
            assert row < int(used) * ROOM.rows
            assert flat.firsts[row, slot] == np.flatnonzero(own)[0]
            np.testing.assert_array_equal(flat.positions[row][own], np.arange(own.sum()))
            found.append((tuple(flat.ids[row][own]), tuple(flat.types[row][own]), labels[row, slot]))
    wanted = [
        (tuple(np.asarray(ids[:length])), tuple(np.asarray(types[:length])), int(label))
        for ids, types, length, label in zip(*examples, strict=True)
    ]
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize("at_once", [1, 4, COUNT, 99])
def test_a_split_packed_in_parts_holds_every_sentence_where_it_is_said_to_begin(at_once, monkeypatch):
    monkeypatch.setattr(packing, "AT_ONCE", at_once)
    examples = sentences([3, 12, 5, 1, 7, 7, 2, 12, 4])
    rows, begins = packing.pack_split(examples, ROOM)
    tokens = rows.ids.reshape(-1)
    for ids, length, begin in zip(examples.ids, examples.lengths, begins, strict=True):
        np.testing.assert_array_equal(tokens[begin : begin + length], ids[:length])
    assert sorted(rows.labels[rows.labels >= 0]) == sorted(examples.labels)
    assert (rows.labels >= 0).any(1).all()  # no group is empty


@given(some_lengths)
@settings(max_examples=50, deadline=None)
def test_no_row_holds_more_than_it_has_room_for(lengths):
    places = placed(jnp.int32(lengths), ROOM)
    for row in range(COUNT):
        own = np.asarray(places.row) == row
        assert np.sum(np.array(lengths)[own]) <= ROOM.length
        assert own.sum() <= ROOM.sentences
        assert own.any() == (row < int(places.rows))


def test_rows_are_nearly_full():
    """First fit decreasing needs at most 11/9 of the best number of rows and one more (Johnson, 1973)."""
    lengths = np.random.default_rng(1).integers(5, 60, 400)
    places = place(jnp.int32(lengths), Room(128, 1, 128))
    assert int(places.rows) <= 11 / 9 * np.ceil(lengths.sum() / 128) + 1
    assert lengths.sum() / (128 * int(places.rows)) > 0.95


def test_groups_hold_about_as_many_tokens_as_asked_for():
    lengths = np.full(10, 20)
    assert room_for(lengths, 64, 256) == Room(64, 4, 5)  # 64 / 20 sentences, half as many again
    assert room_for(lengths, 512, 256).rows == 1  # a group is a row at least


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_only_as_many_groups_are_used_as_there_are_rows_for(rows):
    _, used = packed(sentences([12] * COUNT), Room(12, rows, 2))
    assert int(used) == -(-COUNT // rows)
    _, used = packed(sentences([1] * COUNT), Room(12, rows, 12))
    assert int(used) == 1
