"""The span of a run: the range of times that a spacing divides into steps."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ..checks import one_of_types
from ..errors import UsageError
from ..processes.sde import SDE, GaussianProcess
from ..public import public


@public
class Span:
    """The range of times that a spacing divides: from `start` (noise) down to `end`, on the clock of `process`.

    Attributes:
        ends_clean: True if the run takes a last step from `end` to sigma = 0.
        model: the model's process. `process` is the same, unless the model's authors divide another clock.
    """

    def __init__(
        self, process: SDE, start: float | None = None, *, ends_clean: bool = False, model: SDE | None = None
    ) -> None:
        one_of_types("process", process, SDE, "a process, such as VP()")
        self.process, self.end, self.ends_clean = process, float(process.t_min), ends_clean
        self.model = process if model is None else model
        self.start = float(process.t_max if start is None else start)
        if not self.end < self.start <= process.t_max:
            raise UsageError(
                f"the start time must lie above {self.end:g} and be at most {process.t_max:g}, not {self.start:g}"
            )

    @property
    def gaussian(self) -> GaussianProcess:
        """The process, for spacings that are defined by alpha and sigma; UsageError if it is not Gaussian."""
        if not isinstance(self.process, GaussianProcess):
            raise UsageError(
                f"this spacing is defined by sigma/alpha, but {type(self.process).__name__} has no closed-form "
                "marginals; use spacing='linspace' or times=[...]"
            )
        return self.process

    def ratios(self, *, finite: bool = True) -> tuple[float, float]:
        """Return sigma/alpha at start and end.

        Args:
            finite: limit the first one to the process's `largest_ratio`.

        Raises:
            UsageError: with `finite`, alpha = 0 at the start and `largest_ratio` is infinite.
        """
        first, last = float(self.gaussian.ratio(self.start)), float(self.gaussian.ratio(self.end))
        if finite:
            first = min(first, self.gaussian.largest_ratio)
        if finite and np.isinf(first):
            raise UsageError(
                "this spacing needs a finite sigma/alpha, but the model starts at alpha = 0, from pure noise; use "
                "'angle', 'linspace' or 'trailing', or for flow models 'flow-shift' with its option shift"
            )
        return first, last

    def at_ratios(self, ratios: np.ndarray) -> np.ndarray:
        """Return the times of sigma/alpha ratios; ratios of the span's ends give exactly `start` and `end`."""
        times = np.array(self.gaussian.time_at_ratio(ratios), dtype=np.float64)
        ends = self.ratios(finite=False)
        for value, time in zip(ends, (self.start, self.end), strict=True):
            times[np.isclose(ratios, value, rtol=1e-13, atol=0)] = time
        return times


class SpacingLike(Protocol):
    """The part of the `Spacing` interface that `grid` uses."""

    name: str
    reaches: Any
    options: Any

    def __call__(self, span: Span, count: int, **options: Any) -> np.ndarray:
        """Return `count` decreasing times within the span."""
        ...
