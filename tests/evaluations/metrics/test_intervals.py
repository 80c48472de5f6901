"""Intervals over independent sample sets against scipy."""

import numpy as np
import pytest
from scipy import stats

from evaluations.metrics import mean_interval
from evaluations.metrics.intervals import student_t


@pytest.mark.parametrize("freedom", [*range(1, 41), 100, 10_000])
def test_students_t_is_scipys(freedom):
    assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-5)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_the_interval_is_students(n):
    values = np.random.default_rng(n).normal(8, 2, n).tolist()
    mean, low, high, std, count = mean_interval(values)
    expected = stats.t.interval(0.95, n - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (low, high) == pytest.approx(expected, rel=1e-6)
    assert mean == pytest.approx(np.mean(values)) and std == pytest.approx(np.std(values, ddof=1))
    assert count == n


def test_it_holds_the_true_mean_in_95_of_100_experiments():
    """Of three sets each, where the normal quantile would reach 81 %."""
    draws = np.random.default_rng(0).normal(5, 1, (4000, 3)).tolist()
    inside = np.mean([one.low <= 5 <= one.high for one in map(mean_interval, draws)])
    assert 0.94 < inside < 0.96


def test_one_value_has_no_interval():
    assert mean_interval([3.5]) == (3.5, None, None, None, 1)


def test_equal_values_have_an_interval_of_no_width():
    assert mean_interval([2.0, 2.0, 2.0]) == (2, 2, 2, 0, 3)


@pytest.mark.parametrize(
    "values, sentence", [([], "at least one value"), ([1.0, float("nan")], "NaN or infinity")]
)
def test_what_has_no_mean_is_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        mean_interval(values)
