"""Arguments of a `Stepper`, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..checks import sample_range, shown, whole_numbers
from ..errors import UsageError

Clock = float | Callable[[Any], Any]
"""Maps the process's times, a float64 array, to the network's: a factor, or a function."""

START_TIME = "start_time is the time of start; pass start as well"


def checked_clock(clock: Any) -> Clock:
    """A clock; UsageError for anything else."""
    if isinstance(clock, bool) or not (isinstance(clock, int | float) or callable(clock)):
        raise UsageError(f"clock must be a factor, such as 1000, or a function of the time, not {shown(clock)}")
    return clock


def indices_of(indices: Sequence[int] | None, num_samples: Any, first_index: Any, start: Tensor | None) -> list[int]:
    """The indices of a run's samples, given as a list, or by their number and the first; UsageError if both are."""
    if indices is None:
        count = num_samples if num_samples is not None else 1 if start is None else len(start)
        count, first_index = sample_range(count, first_index)
        return list(range(first_index, first_index + count))
    if num_samples is not None or first_index:
        raise UsageError("pass indices, or num_samples and first_index, not both")
    found = whole_numbers("indices", indices)
    if not found:
        raise UsageError("indices is empty; a run has at least one sample")
    return found
