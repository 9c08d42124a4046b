"""Generated inference pairs whose labels are known by construction: an embedded stand-in for MNLI.

The sentences come from `grammar`. Neither sentence alone says anything about the label. This holds exactly, through
the ring from which every pair comes. Take two facts that cannot both hold, a and a' (the dog is wet, the dog is dry),
and two on another matter, b and b' (hungry, full). Write each as a premise and as a weaker or reworded hypothesis.
Along the ring a, b, a', b' each premise then meets its own hypothesis (entailment), the next one (neutral) and the
opposite one (contradiction); so every premise and every hypothesis is seen equally often with each label.

Train and validation share all words and differ in their subjects (a dog near the river, Anna and Ben).
"""

import hashlib
import random
from typing import NamedTuple

from jaxdfl.data.grammar import FAMILIES, Contraries

LABELS = ("entailment", "neutral", "contradiction")  # MNLI's order
SIZES = {"train": 24_000, "validation": 2_400}  # examples of the task in `tasks.TASKS`


class Pair(NamedTuple):
    """A premise, a hypothesis, and how they relate."""

    premise: str
    hypothesis: str
    label: int  # index into LABELS


def generate(count: int, seed: int = 0, split: str = "train") -> list[Pair]:
    """`count` distinct pairs in random order, the labels balanced to within one.

    The same arguments give the same pairs on every platform. A pair of `train` is never one of `validation`, whatever
    the two seeds. Pairs come in whole rings of 12 (all but the last), so a sample as a whole is free of leaks.

    Raises:
        ValueError: `split` is unknown, `count` is below 1, or the grammar runs out of new pairs.
    """
    if split not in SIZES:
        raise ValueError(f"`split` must be one of {', '.join(SIZES)}, got {split!r}.")
    if count < 1:
        raise ValueError(f"`count` must be at least 1, got {count}.")
    rng = random.Random(f"natural_logic {split} {seed}")
    pairs: dict[Pair, None] = {}  # a set that keeps its order
    fruitless = 0
    while len(pairs) < count:
        subject, first, second = rng.choice(FAMILIES)(rng)
        found = dict.fromkeys(ring(first, second))
        if _held_out(subject) == (split == "validation") and pairs.keys().isdisjoint(found):
            pairs |= found
            fruitless = 0
        elif (fruitless := fruitless + 1) > 10_000:
            raise ValueError(f"`count` must be at most about {len(pairs)} for {split}, got {count}.")
    chosen = list(pairs)[:count]
    rng.shuffle(chosen)
    return chosen


def ring(first: Contraries, second: Contraries) -> list[Pair]:
    """The 12 pairs of two independent contraries: every premise and every hypothesis once with every label."""
    facts = (first[0], second[0], first[1], second[1])
    return [
        Pair(fact.premise, facts[(place + label) % 4].hypothesis, label)  # own: 0, next: 1, opposite: 2
        for place, fact in enumerate(facts)
        for label in range(len(LABELS))
    ]


def _held_out(subject: str) -> bool:
    """Whether a subject belongs to validation: about one in six. Every premise tells its subject."""
    return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big") % 6 == 0
