"""Intervals by resampling agree with closed forms, and with the spread over repeated draws."""

import numpy as np
import pytest

from sdesamplers.metrics import frechet_distance, gaussian_statistics
from sdesamplers.metrics.intervals import draws_over_samples, interval, jackknife_error


def test_the_bootstrap_agrees_with_the_delta_method():
    values = np.abs(np.random.default_rng(1).normal(2.0, 0.5, 400))
    rms = np.sqrt(np.square(values).mean())
    half = 1.96 * np.square(values).std(ddof=1) / np.sqrt(400) / (2 * rms)  # d sqrt(m) = dm / (2 sqrt(m))
    low, high = interval(draws_over_samples(values, squares=True))
    assert low == pytest.approx(rms - half, abs=0.1 * half)
    assert high == pytest.approx(rms + half, abs=0.1 * half)
    assert interval(draws_over_samples(values, squares=True)) == (low, high)


def test_the_jackknife_of_a_mean_is_the_spread_of_the_groups_means():
    rows = np.random.default_rng(2).normal(size=(64, 1))
    means = np.array([rows[np.arange(64) % 16 == group].mean() for group in range(16)])
    expected = means.std(ddof=1) / np.sqrt(16)
    assert jackknife_error(lambda chosen: float(chosen.mean()), rows) == pytest.approx(expected, rel=1e-12)
    assert jackknife_error(lambda chosen: float(chosen.mean()), rows[:3]) is None


def test_the_jackknife_of_a_frechet_distance_is_its_spread_over_draws():
    """200 draws know their standard deviation to 5%, and the jackknife of a distance is known to be a little wide."""
    draw = np.random.default_rng(3)
    reference = (np.zeros(4), np.eye(4))

    def distance(rows: np.ndarray) -> float:
        return frechet_distance(gaussian_statistics(rows), reference)

    draws = [draw.normal(0.3, 1.2, (256, 4)) for _ in range(200)]
    spread = np.std([distance(rows) for rows in draws], ddof=1)
    estimates = [jackknife_error(distance, rows) for rows in draws[:40]]
    assert 0.85 < np.mean(estimates) / spread < 1.3
