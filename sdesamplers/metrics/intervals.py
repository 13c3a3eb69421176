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


def draws_over_samples(values: np.ndarray, *, squares: bool = False) -> np.ndarray:
    """Bootstrap draws (DRAWS,) of the mean of values (N,), resampled with replacement (Efron 1979).

    Args:
        values: one number for each sample.
        squares: the root of the mean of the squares instead of the mean.
    """
    count = len(values)
    random, found = np.random.default_rng(0), []
    numbers = np.square(values) if squares else np.asarray(values, dtype=float)
    size = max(CHUNK // count, 1)
    for first in range(0, DRAWS, size):
        rows = random.integers(count, size=(min(size, DRAWS - first), count))
        found.append(numbers[rows].mean(1))
    means = np.concatenate(found)
    return np.asarray(np.sqrt(means) if squares else means)


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
