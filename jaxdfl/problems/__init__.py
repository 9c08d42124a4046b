"""What is learned: a loss, examples, and a score, apart from methods and networks. `Problem` is all the engine needs.

`text` fine-tunes an encoder on sentences; `bilinear` is a proving ground where theory can be measured in seconds.
Another problem is one more function of the settings that returns a `Problem`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxdfl.data.partition import Partition
from jaxdfl.metrics import Columns
from jaxdfl.protocol import Base, Method, PerBlock
from jaxdfl.simulate.rounds import Loss, SimState


class Seeded(NamedTuple):
    """What a seed changes."""

    frozen: Any
    blocks: PerBlock  # one client's first blocks
    base: Base  # W0 / scale by target path
    parts: Partition  # example indices by client


class Problem(NamedTuple):
    """What is learned, and how well it was learned."""

    loss: Loss  # of one client, one batch
    examples: Any  # on the device, leaves [examples, ...]
    seeded: Callable[[int], Seeded]  # may be asked for a seed often; what no seed changes is one array in all of them
    scores: Callable[[Seeded, Method, SimState], Columns]  # of a metrics row
    chunk: int | None  # clients that train at a time, at most; None: all
    model: dict[str, Any]  # identities, for the manifest
    data: dict[str, Any]
    partitions: dict[int, Any]
    groups: Callable[[Partition, int], float] | None = (
        None  # of packed rows in a step, on average, by batch size; None:
    )
    # a step is one pass


class SeedKeys(NamedTuple):
    """Everything random in one seed's runs, apart from the partition, which takes the seed itself."""

    head: jax.Array
    factors: jax.Array
    batches: jax.Array
    rounds: jax.Array


def seed_keys(seed: int) -> SeedKeys:
    """The one place where a seed becomes keys."""
    return SeedKeys(*jax.random.split(jax.random.key(seed), 4))
