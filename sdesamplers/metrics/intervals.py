"""How far a number that was computed from samples would move with other samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

GROUPS = 16
"""Number of groups of the jackknife."""
RESAMPLES = 2000
"""Number of bootstrap resamples."""


def bootstrap_rms(
    values: Sequence[float] | np.ndarray, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """A percentile interval of a root mean square over samples (Efron 1979); None for fewer than 2 samples.

    Args:
        values: (N,) the root mean square of each sample. That of all is the root of the mean of their squares.
        level: probability of the interval.
        resamples: number of resamples, drawn with replacement from the samples.
        seed: of the draws, so that the same samples have the same interval.

    Returns:
        the lower and upper end, in the unit of the values.

    Example:
        >>> bootstrap_rms([0.1, 0.1, 0.1])
        (0.1, 0.1)
    """
    squares = np.square(np.asarray(values, dtype=np.float64))
    if len(squares) < 2:
        return None
    rows = np.random.default_rng(seed).integers(0, len(squares), (resamples, len(squares)))
    means = np.sqrt(squares[rows].mean(1))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
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
