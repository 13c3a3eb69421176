"""Intervals, against scipy and by their coverage."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from sdesamplers.comparison.cell import Cell
from sdesamplers.comparison.statistics import (
    chances_of_least,
    draws_of_error,
    draws_over_repeats,
    is_undecided,
)
from sdesamplers.metrics.intervals import draws_over_samples, interval

RANDOM = np.random.default_rng(5)


def test_the_bootstrap_is_scipys() -> None:
    values = RANDOM.gamma(2.0, size=40)

    def rms(each: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.sqrt(np.square(each).mean(axis))

    ours = interval(draws_over_samples(values, squares=True))
    theirs = scipy.stats.bootstrap((values,), rms, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), rel=0.01)  # the quantiles of 4,000 draws: 0.6 %


def test_repeats_have_students_t_and_their_differences_the_paired_test() -> None:
    one = RANDOM.normal(3.0, 1.0, 5)
    other = one + RANDOM.normal(0.5, 0.1, 5)
    expected = scipy.stats.t.interval(0.95, 4, one.mean(), scipy.stats.sem(one))
    draws, others = draws_over_repeats(one), draws_over_repeats(other)
    width = expected[1] - expected[0]
    assert interval(draws) == pytest.approx(expected, abs=0.06 * width)
    paired = scipy.stats.ttest_rel(other, one).confidence_interval(0.95)
    difference = interval(others - draws)
    assert difference == pytest.approx((paired.low, paired.high), abs=0.06 * (paired.high - paired.low))
    assert not is_undecided(draws, others)  # although both intervals overlap
    assert interval(others)[0] < interval(draws)[1]


def test_intervals_cover_the_mean_as_often_as_stated() -> None:
    """200 sets of 50: 0.95 within four standard errors, less the few per cent that a percentile bootstrap lacks."""
    inside = 0
    for _ in range(200):
        low, high = interval(draws_over_samples(RANDOM.normal(1.0, 2.0, 50)))
        inside += low <= 1.0 <= high
    assert 0.87 <= inside / 200 <= 1.0


def test_standard_errors_of_different_values_are_independent() -> None:
    one, same, other = (draws_of_error(value, 0.5, 15) for value in (2.0, 2.0, 2.1))
    assert np.array_equal(one, same)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.07  # 4 / sqrt(4,000)
    assert interval(one) == pytest.approx(scipy.stats.t.interval(0.95, 15, 2.0, 0.5), abs=1e-5)


def test_equal_settings_share_the_chance_and_are_not_undecided() -> None:
    draws = draws_over_samples(RANDOM.gamma(2.0, size=20))
    assert chances_of_least(np.stack([draws, draws, draws + 1], 1)).tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert not is_undecided(draws, draws * 1.001)
    noisy = draws_over_samples(RANDOM.gamma(2.0, size=20))
    assert is_undecided(noisy, noisy[::-1].copy())


def test_few_samples_have_few_groups_and_a_wide_interval() -> None:
    cell = Cell("ddim", 5, frechet=2.0, frechet_error=0.5, frechet_freedom=3)
    assert cell.interval("frechet") == pytest.approx(scipy.stats.t.interval(0.95, 3, 2.0, 0.5), abs=1e-5)
    assert Cell("ddim", 5, errors=[1.0], error=1.0).interval("error") is None
