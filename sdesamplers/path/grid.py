"""The points of a path, from `steps` and `spacing`, or from `times` or `sigmas`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..categories import AccuracyWarning
from ..checks import warn
from ..errors import UsageError
from ..processes.coordinates import View, view
from ..processes.sde import SDE, GaussianProcess
from .points import Point, clean_point, make_points
from .span import SpacingLike, Span


def spaced_points(
    process: SDE, spacing: SpacingLike, options: dict[str, Any], steps: int, start: float | None, final: str
) -> list[Point]:
    """Return steps + 1 points of a spacing; the last is the clean end if `final` is "zero" and the process has one."""
    ends_clean = final == "zero" and isinstance(process, View)
    native = process.native if isinstance(process, View) else process
    count = steps if ends_clean else steps + 1
    times = divided(native, spacing, options, count, start, ends_clean=ends_clean)
    if times.shape != (count,):
        raise UsageError(f"spacing {spacing.name!r} returned times of shape {times.shape}, not ({count},)")
    check_falling(times, f"spacing {spacing.name!r} with {steps} steps")
    # What a spacing declares is true of its default options; others may move the end, as sigma_min of karras does.
    if count > 1 and all(np.array_equal(value, spacing.options[key].default) for key, value in options.items()):
        _check_end(times, native, spacing, steps, ends_clean=ends_clean)
    if start is not None and not starts_at(float(times[0]), start, native):
        raise UsageError(
            f"spacing {spacing.name!r} starts at {times[0]:g} here, but the run starts at start_time={start:g}; use a "
            "spacing that can start at any time (linspace, karras, angle, ...), another start_time, or times=[...]"
        )
    check_range(times, native, f"spacing {spacing.name!r}")
    return _with_end(make_points(process, times), process, ends_clean)


def _check_end(times: np.ndarray, process: SDE, spacing: SpacingLike, steps: int, *, ends_clean: bool) -> None:
    """Report a grid that ends above the smallest time although its spacing declares that it includes it.

    Such a grid is right if it is meant, and the run then steps to sigma = 0: there it gives a warning only.

    Raises:
        UsageError: the grid's last point is the end of the run, whose state would keep more noise than requested.
    """
    if spacing.reaches not in ("both", "end") or times[-1] <= process.t_min + 1e-6 * process_span(process):
        return
    message = (
        f"spacing {spacing.name!r} with {steps} steps ends at {times[-1]:.6g}, and the span at {process.t_min:.6g}: "
        'set times[-1] = span.end, or declare which ends it always includes, as in reaches="start"'
    )
    if not ends_clean:
        raise UsageError(message)
    warn(message, AccuracyWarning)


def starts_at(first: float, start: float, process: SDE) -> bool:
    """True if a grid starts at `start` or, if alpha = 0 there, at the noisiest point that the grid can contain."""
    noisiest = float(process.time_at_ratio(process.largest_ratio)) if isinstance(process, GaussianProcess) else start
    return min(abs(first - start), abs(first - min(start, noisiest))) <= 1e-9 * process_span(process)


def divided(
    process: SDE, spacing: SpacingLike, options: dict[str, Any], count: int, start: float | None, *, ends_clean: bool
) -> np.ndarray:
    """Return a spacing's times on the process's clock, divided on the clock that the model's authors use."""
    clock = process.grid_process if isinstance(process, GaussianProcess) else process
    if not isinstance(process, GaussianProcess) or clock is process:
        return spacing(Span(process, start, ends_clean=ends_clean), count, **options)
    assert isinstance(clock, GaussianProcess)
    begin = process.t_max if start is None else float(start)
    span = Span(clock, float(clock.time_at_ratio(process.ratio(begin))), ends_clean=ends_clean, model=process)
    times = spacing(span, count, **options)
    native = np.asarray(process.time_at_ratio(clock.ratio(times)), dtype=np.float64)
    for mine, theirs in ((begin, span.start), (process.t_min, span.end)):
        native[times == theirs] = mine  # the ends are exact
    return native


def _with_end(points: list[Point], process: SDE, ends_clean: bool) -> list[Point]:
    if ends_clean and not points[-1].is_clean:
        assert isinstance(process, View)
        points.append(clean_point(process))
    return points


def given_points(process: SDE, times: Sequence[float] | None, sigmas: Sequence[float] | None) -> list[Point]:
    """Return the points of a user's grid, unchanged: native times, or values of sigma/alpha (sigma if alpha = 1).

    A last sigma of 0, or a last time at which sigma is 0, is the clean end.

    Raises:
        UsageError: fewer than two values, not strictly decreasing, out of range or not finite.
    """
    name, values = ("times", times) if times is not None else ("sigmas", sigmas)
    try:
        grid = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be a list of numbers") from None
    if grid.ndim != 1 or len(grid) < 2 or not np.all(np.isfinite(grid)):
        raise UsageError(f"{name} must be a list of two or more finite numbers, from noise to data")
    check_falling(grid, name)
    if not isinstance(process, View):
        if name == "sigmas":
            raise UsageError(f"{type(process).__name__} has no sigma(t); give times=[...]")
        check_range(grid, process, name)
        return make_points(process, grid)
    if name == "times":
        last = float(grid[-1])
        clean = view(process.native).clean_time  # on the model's own clock, even if the path has another
        tail = 1 if last == clean or (last >= 0 and process.native.sigma(last) == 0) else 0
        body = grid[: len(grid) - tail]
        check_range(body, process.native, name)
        points = make_points(process, body)
    else:
        tail = 1 if grid[-1] == 0 else 0
        body = grid[: len(grid) - tail]
        largest = float(process.native.ratio(process.native.t_max))
        if grid[-1] < 0 or body[0] > largest * (1 + 1e-6):
            raise UsageError(f"sigmas must lie between 0 and the model's largest sigma/alpha, {largest:.6g}")
        body = np.minimum(body, largest)
        points = make_points(process, np.asarray(process.native.time_at_ratio(body)), body)
    return _with_end(points, process, bool(tail))


def process_span(process: SDE) -> float:
    """The length of a process's time axis."""
    return float(process.t_max - process.t_min)


def check_falling(grid: np.ndarray, what: str) -> None:
    """Raise UsageError unless the grid is finite and strictly decreasing, from noise to data."""
    bad = np.flatnonzero(~np.isfinite(grid))
    if len(bad):
        raise UsageError(
            f"{what}: the grid has values that are not finite: entry {bad[0]} is {grid[bad[0]]}; alpha or sigma may be "
            "0 at an end, where sigma/alpha and its logarithm are infinite"
        )
    rising = np.flatnonzero(np.diff(grid) >= 0)
    if len(rising):
        k = int(rising[0])
        reversal = ": it rises throughout, so reverse it (times[::-1])" if np.all(np.diff(grid) > 0) else ""
        raise UsageError(
            f"{what}: a grid must fall strictly from noise to data, but entry {k + 1} ({grid[k + 1]:.6g}) does not lie "
            f"below entry {k} ({grid[k]:.6g}){reversal}"
        )


def check_range(grid: np.ndarray, process: SDE, what: str) -> None:
    """Raise UsageError if times lie outside the process's range, min(t_min, 0) to t_max."""
    low = min(process.t_min, 0.0)
    if grid.max() > process.t_max * (1 + 1e-12) or grid.min() < low:
        raise UsageError(f"{what}: times must lie between {low:g} and {process.t_max:g} for this model")
