"""How far a number that was computed from samples would move with other samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

GROUPS = 16
"""Number of groups of the jackknife."""
DRAWS = 4000
LEVEL = 0.95
"""The probability of all intervals."""
CHUNK = 2**21
"""Numbers drawn at once."""
FEW = 5
"""Fewer values than this have too many resamples of one value for a bootstrap."""
LEAST = 0.25
"""The least standard error of a resample, relative to that of the samples: a resample without the few values that make
most of the spread has almost none, and would stand for any mean."""


def draws_over_samples(values: np.ndarray, *, squares: bool = False) -> np.ndarray:
    """Draws (DRAWS,) of the mean of values (N,), as other samples would give it, by the studentised bootstrap.

    The draws are mean - error * t, with the statistics t = (mean* - mean) / error* of samples resampled with
    replacement. Their quantiles are the bootstrap-t interval (Efron 1982, chapter 10.10; Hall 1988). Unlike the
    percentiles of mean*, it allows for the error of the error and for skewness, which matter for few samples. Fewer
    than `FEW` values have Student's t instead. The draws of two settings with as many values use the same resamples.

    Args:
        values: one number for each sample.
        squares: the root of the mean of the squares instead of the mean.

    Example:
        >>> interval(draws_over_samples(np.array([1.0, 1.0, 1.0])))
        (1.0, 1.0)
    """
    numbers = np.square(values) if squares else np.asarray(values, dtype=float)
    count, mean = len(numbers), float(np.mean(numbers))
    error = float(np.std(numbers, ddof=1)) / np.sqrt(count) if np.isfinite(numbers).all() else 0.0
    if error == 0:
        means = np.full(DRAWS, mean)
    elif count < FEW:  # their range says little about the mean
        means = draws_over_repeats(numbers).clip(0.0 if squares else -np.inf)
    else:  # a mean lies among its values; that of squares may be far above those of a few samples
        means = mean - error * _studentised(numbers, mean, error)
        means = means.clip(numbers.min(), None if squares else numbers.max())
    return np.asarray(np.sqrt(means) if squares else means)


def _studentised(numbers: np.ndarray, mean: float, error: float) -> np.ndarray:
    """The deviation of the mean of resamples of numbers (N,), divided by the standard error of each, (DRAWS,)."""
    count = len(numbers)
    random, found = np.random.default_rng(0), []
    size = max(CHUNK // count, 1)
    for first in range(0, DRAWS, size):
        drawn = numbers[random.integers(count, size=(min(size, DRAWS - first), count))]
        errors = drawn.std(1, ddof=1) / np.sqrt(count)
        found.append((drawn.mean(1) - mean) / np.maximum(errors, LEAST * error))
    return np.concatenate(found)


def draws_over_repeats(values: np.ndarray) -> np.ndarray:
    """Draws (DRAWS,) of the mean of values (R,) of R runs with different seeds.

    They have Student's t distribution with R - 1 degrees of freedom, and the draws of two settings have the covariance
    of their repeats: the interval of a difference is that of the paired t-test.
    """
    count = len(values)
    random = np.random.default_rng(0)
    centred = np.asarray(values, dtype=float) - np.mean(values)
    normal = random.standard_normal((DRAWS, count)) @ centred / np.sqrt(count * (count - 1))
    scale = np.sqrt(random.chisquare(count - 1, DRAWS) / (count - 1))
    return np.asarray(np.mean(values) + normal / scale)


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The central interval of probability `LEVEL` of draws (DRAWS,)."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def jackknife_groups(count: int) -> int:
    """The number of groups into which the jackknife divides `count` samples: `GROUPS`, or pairs of few samples."""
    return min(GROUPS, count // 2)


def jackknife_error(statistic: Callable[[np.ndarray], float], rows: np.ndarray) -> float | None:
    """The standard error of a statistic of samples, by the delete-a-group jackknife (Shao and Wu 1989).

    Unlike the bootstrap, whose repeated samples raise a Fréchet distance, it does not depend on the statistic's bias.

    Args:
        statistic: a function of rows (n, D).
        rows: (N, D), independent samples.

    Returns:
        the standard error; None for fewer than 4 samples.

    Example:
        >>> jackknife_error(lambda rows: float(rows.mean()), np.array([[0.0], [1.0], [2.0], [3.0]]))
        0.5
    """
    groups = jackknife_groups(len(rows))
    if groups < 2:
        return None
    labels = np.arange(len(rows)) % groups
    left_out = np.array([statistic(rows[labels != group]) for group in range(groups)])
    return float(np.sqrt((groups - 1) * np.square(left_out - left_out.mean()).mean()))
