"""Intervals, against scipy and by their coverage."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from sdesamplers.comparison.cell import Cell
from sdesamplers.comparison.statistics import (
    chances_of_least,
    draws_of_error,
    is_undecided,
)
from sdesamplers.metrics.intervals import draws_over_repeats, draws_over_samples, interval

RANDOM = np.random.default_rng(5)


def test_the_bootstrap_t_is_that_of_scipys_resamples() -> None:
    """scipy has no bootstrap-t of its own, but resamples any statistic: here the studentised mean."""
    values = RANDOM.gamma(2.0, size=40)
    mean, error = values.mean(), scipy.stats.sem(values)

    def studentised(each: np.ndarray, axis: int = -1) -> np.ndarray:
        return (each.mean(axis) - mean) / scipy.stats.sem(each, axis=axis)

    ratios = scipy.stats.bootstrap((values,), studentised, method="percentile", n_resamples=20_000, rng=1)
    low, high = ratios.confidence_interval
    width = error * (high - low)
    expected = (mean - error * high, mean - error * low)
    assert interval(draws_over_samples(values)) == pytest.approx(expected, abs=0.04 * width)  # quantiles of 4,000 draws


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_interval_of_a_mean_of_fewer_than_five_samples_is_students(count: int, sign: int) -> None:
    """It extends to both sides of the samples, of which there are too few to contain the mean."""
    values = sign * np.array([0.1, 0.4, 0.2, 0.7])[:count]
    half = scipy.stats.t.ppf(0.975, count - 1) * scipy.stats.sem(values)
    expected = (values.mean() - half, values.mean() + half)
    assert interval(draws_over_samples(values)) == pytest.approx(expected, abs=(0.6 if count == 2 else 0.1) * half)
    low, high = interval(draws_over_samples(values, squares=True))
    assert 0 <= low < np.sqrt(np.square(values).mean()) < high


DISTRIBUTIONS = {
    "log-normal": (lambda shape: np.exp(0.5 * RANDOM.standard_normal(shape)), np.exp(0.125), np.exp(0.25)),
    "chi-square": (lambda shape: RANDOM.chisquare(4, shape), 4.0, np.sqrt(24.0)),
}
"""Errors of single samples with the mean and the root mean square of their distribution."""


@pytest.mark.parametrize("squares", [False, True], ids=["mean", "rms"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(
    ("count", "sets", "least"),
    [
        (16, 400, 0.91),
        pytest.param(64, 400, 0.92, marks=pytest.mark.slow),
        pytest.param(256, 200, 0.93, marks=pytest.mark.slow),
    ],
)
def test_intervals_of_few_skewed_errors_cover(count: int, sets: int, least: float, name: str, squares: bool) -> None:
    """Coverage of 95 % intervals within three standard errors of the documented one.

    A percentile bootstrap of 16 has 84 % for the root mean square, below every bound here.
    """
    draw, mean, rms = DISTRIBUTIONS[name]
    truth, inside = rms if squares else mean, 0
    for _ in range(sets):
        low, high = interval(draws_over_samples(draw(count), squares=squares))
        inside += low <= truth <= high
    assert inside / sets >= least - 3 * np.sqrt(least * (1 - least) / sets)
    assert inside / sets <= 0.95 + 3 * np.sqrt(0.95 * 0.05 / sets)


@pytest.mark.parametrize("count", [2, 4, 5, 16])
def test_outliers_equal_values_and_shares_have_finite_intervals(count: int) -> None:
    assert interval(draws_over_samples(np.full(count, 0.3), squares=True)) == pytest.approx((0.3, 0.3))
    one = np.zeros(count)
    one[0] = 1.0
    low, high = interval(draws_over_samples(one))
    assert np.isfinite(low)
    assert low <= 1 / count < high
    if count >= 5:  # the values of a share bound it
        assert low >= 0
        assert high <= 1
    lowest, highest = interval(draws_over_samples(one, squares=True))
    assert 0 <= lowest < np.sqrt(1 / count) < highest < np.inf
    assert np.isinf(draws_over_samples(np.array([1.0] * (count - 1) + [np.inf]))).all()


def test_draws_scale_with_the_values_and_keep_pairs_together() -> None:
    values = RANDOM.gamma(4.0, 0.025, 16)
    draws = draws_over_samples(values, squares=True)
    assert np.allclose(draws_over_samples(3 * values, squares=True), 3 * draws)
    ratios = draws_over_samples(values * np.exp(0.05 * RANDOM.standard_normal(16)), squares=True) / draws
    low, high = interval(ratios)
    assert 0.9 < low < 1 < high < 1.1  # although the interval of each value alone is far wider
    assert interval(draws)[1] / interval(draws)[0] > 1.3


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
    """200 sets of 50 normal values: 0.95 within four standard errors."""
    inside = 0
    for _ in range(200):
        low, high = interval(draws_over_samples(RANDOM.normal(1.0, 2.0, 50)))
        inside += low <= 1.0 <= high
    assert 0.95 - 4 * np.sqrt(0.95 * 0.05 / 200) <= inside / 200 <= 1.0


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
