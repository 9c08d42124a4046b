"""Statistics over seeds: means with intervals, and methods compared within each seed.

All methods share a seed's graphs, batches and heads, so the difference within a seed says more than the difference of
means. A value that is not finite (a run that diverged) makes everything that holds it NaN: no mean hides it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student

Number = float | int
CONFIDENCE = 0.95
ROUNDING = 1e-5  # of a score: what float32 can make of two orders of the same sums


class Interval(NamedTuple):
    """A mean over seeds with its 95 % confidence interval (Student's t).

    The ends are NaN for one seed, and everything is where there is none or where one of them diverged.
    """

    mean: float
    low: float
    high: float
    seeds: int


class Signs(NamedTuple):
    """How often one method beat another, seed by seed."""

    wins: int
    losses: int
    ties: int
    p: float  # two-sided exact sign test without the ties: as lopsided a count or more, if either were as likely


def interval(values: Sequence[Number]) -> Interval:
    """Mean and confidence interval of independent values."""
    count = len(values)
    if count == 0 or not np.all(np.isfinite(values)):
        return Interval(math.nan, math.nan, math.nan, count)
    mean = float(np.mean(values))
    if count == 1:
        return Interval(mean, math.nan, math.nan, count)
    half = float(student.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half, count)


def differences(one: Mapping[int, Number], other: Mapping[int, Number]) -> list[Number]:
    """one - other in every seed that both have, 0 where that is rounding; both are by seed."""
    pairs = [(value, other[seed]) for seed, value in one.items() if seed in other]
    return [0.0 if abs(a - b) < ROUNDING * max(abs(a), abs(b)) else a - b for a, b in pairs]


def signs(found: Sequence[Number], *, larger_is_better: bool = True) -> Signs:
    """Wins, losses and ties from differences; one that is not finite counts as a loss."""
    better = [value if larger_is_better else -value for value in found]
    wins, ties = sum(value > 0 for value in better), sum(value == 0 for value in better)
    losses = len(better) - wins - ties
    decided = wins + losses
    return Signs(wins, losses, ties, float(binomtest(wins, decided).pvalue) if decided else 1.0)
