"""Which examples every client trains on in every step, as one array of indices known before the rounds are run."""

import jax
import numpy as np
from jaxtyping import Array, Int32, Key
from numpy.random import Philox, SeedSequence

from jaxdfl.data.partition import Partition

DRAWS_PER_COUNT = 4  # 64-bit numbers that Philox makes at each value of its counter


def plan(
    key: Key[Array, ""], partition: Partition, rounds: range, steps: int, batch_size: int
) -> Int32[np.ndarray, "rounds clients steps batch"]:
    """Example indices for a stretch of rounds, counted from round 0 of the run.

    Each client walks through its own examples epoch by epoch, each epoch in a fresh order and without replacement; a
    batch may span two epochs or more. The order is a pure function of the key, the client's place in the partition
    and the epoch. So rounds 10 to 19 come out the same alone or after 0 to 9, and a client's order does not depend on
    how many others there are.

    Raises:
        ValueError: a client has no examples, a count is below 1, or `rounds` skips or starts below 0.
    """
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if rounds.step != 1 or rounds.start < 0:
        raise ValueError(f"`rounds` must go up one by one from 0 or later, got {rounds}.")
    for client, examples in enumerate(partition):
        if not len(examples):
            raise ValueError(f"`partition` gives client {client} no examples; each needs one at least.")

    words = [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()]
    per_round = steps * batch_size
    start, stop = rounds.start * per_round, (rounds.start + len(rounds)) * per_round
    indices = np.empty((len(partition), stop - start), np.int32)
    for client, examples in enumerate(partition):
        indices[client] = examples[_walk(SeedSequence(words, spawn_key=(client,)), len(examples), start, stop)]
    return indices.reshape(len(partition), len(rounds), steps, batch_size).swapaxes(0, 1)


def _walk(seed: SeedSequence, count: int, start: int, stop: int) -> Int32[np.ndarray, " positions"]:
    """Positions `start` to `stop` of an endless walk through permutations of `count` items.

    Epoch e orders the items by the random numbers of its own stretch of one Philox stream, which can jump there at
    once: nothing before `start` is computed, and all epochs of a tiny client come from one sort.
    """
    first, last = start // count, -(-stop // count)
    width = -(-count // DRAWS_PER_COUNT) * DRAWS_PER_COUNT  # draws per epoch, in whole counts
    generator = Philox(seed).advance(first * width // DRAWS_PER_COUNT)
    draws = generator.random_raw((last - first) * width).reshape(last - first, width)[:, :count]
    order = np.argsort(draws, axis=1, kind="stable").astype(np.int32).ravel()
    return order[start - first * count : stop - first * count]
