"""Intervals: how far the values of a comparison would differ with other samples or other seeds.

Settings are run from the same starting noise, so their differences are more certain than each value by itself. The
draws of two settings with the same number of values use the same random numbers: entry k of both belongs together, and
the draws of a difference or a quotient are those of the paired values.
"""

from __future__ import annotations

import numpy as np

from ..metrics.intervals import DRAWS, interval

EQUAL = 0.01
"""Settings whose values differ by less than this share, with probability `LEVEL`, are equal for every purpose."""


def draws_of_error(value: float, error: float, freedom: int) -> np.ndarray:
    """Draws (DRAWS,) of a value with a standard error, by Student's t; those of different values are independent.

    Args:
        value, error: the value and its standard error.
        freedom: the degrees of freedom, as of the groups of a jackknife less one.
    """
    from scipy.special import stdtrit  # scipy takes a second to import

    key = int(np.float64(value).view(np.uint64))
    shares = np.random.default_rng(key).permutation(DRAWS) / (DRAWS - 1)  # evenly spread, so quantiles are exact
    return np.asarray(value + error * stdtrit(freedom, shares.clip(0.5 / DRAWS, 1 - 0.5 / DRAWS)))


def is_undecided(one: np.ndarray, other: np.ndarray) -> bool:
    """True if draws (DRAWS,) of two settings do not determine which is smaller, although the difference may matter."""
    low, high = interval(one - other)
    size = EQUAL * min(abs(float(np.median(one))), abs(float(np.median(other))))
    return low <= 0 <= high and not (-size <= low and high <= size)


def chances_of_least(draws: np.ndarray) -> np.ndarray:
    """The share of the draws (DRAWS, K) in which each setting has the least value, (K,); equal values share it."""
    least = draws == draws.min(1, keepdims=True)
    return np.asarray((least / least.sum(1, keepdims=True)).mean(0))
