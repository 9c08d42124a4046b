"""Statistics over seeds against their formulas."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxdfl.statistics import Signs, differences, interval, signs


def test_the_interval_is_students():
    values = [0.3, 0.5, 0.4, 0.9]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert interval(values) == pytest.approx((np.mean(values), low, high, 4))


def test_the_interval_covers_the_mean_in_95_of_100_draws():
    draw = np.random.default_rng(0)
    covered = [found.low < 1 < found.high for found in (interval(draw.normal(1, 2, 3).tolist()) for _ in range(2000))]
    assert np.mean(covered) == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 2000))


def test_one_seed_has_no_interval_and_a_diverged_one_no_mean():
    assert interval([2.0])[0] == 2
    assert math.isnan(interval([2.0]).low)
    assert math.isnan(interval([2.0, math.nan]).mean)
    assert interval([]).seeds == 0


def test_differences_are_of_the_seeds_that_both_have():
    assert differences({0: 3.0, 1: 5.0, 2: 1.0}, {2: 0.5, 0: 1.0}) == [2.0, 0.5]


def test_what_is_rounding_is_no_difference_but_what_is_not_finite_is_one():
    """The first two are errors of one run and its like, which differ in the order of float32 sums."""
    one = {0: 0.07322339713573456, 1: 0.07752596586942673, 2: 0.0, 3: 1e-9, 4: math.inf}
    other = {0: 0.07322344183921814, 1: 0.07752595096826553, 2: 0.0, 3: 0.0, 4: 1.0}
    assert differences(one, other) == [0, 0, 0, 1e-9, math.inf]
    assert math.isnan(differences({0: math.nan}, {0: 1.0})[0])


def test_the_sign_test_counts_and_is_exact():
    assert signs([1.0, 2.0, 0.5, 3.0, 0.1]) == Signs(5, 0, 0, 2 / 2**5)
    assert signs([1.0, -1.0, 0.0]) == Signs(1, 1, 1, 1.0)
    assert signs([-1.0, -2.0, 4.0], larger_is_better=False)[:3] == (2, 1, 0)
    assert signs([]) == Signs(0, 0, 0, 1.0)
    assert signs([math.nan, 1.0])[:3] == (1, 1, 0)
