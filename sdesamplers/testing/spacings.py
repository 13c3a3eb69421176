"""Checks of a spacing: the grids that it divides each process's time into.

Each check takes a `SpacingCase` and returns (measured, required, passed), or None if it does not apply.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..errors import SdesamplersError, raised_at, summary
from ..models.analytic import grid_mixture
from ..path.grid import starts_at
from ..path.span import Span
from ..processes.sde import GaussianProcess
from ..processes.table import DiscreteVP
from ..registry.plugin import Spacing
from ..sampling.calls import sample
from .case import processes
from .declared import candidates, declaration_of
from .randomness import global_state
from .report import Outcome

COUNTS = (1, 2, 3, 7, 20, 50)
"""Numbers of points; with 1 the run is a single step to sigma = 0."""


@dataclass(frozen=True)
class Grid:
    """One grid of the spacing: its process, span and number of points, and its times."""

    process: str
    span: Span
    count: int
    times: np.ndarray

    def __str__(self) -> str:
        end = "zero" if self.span.ends_clean else "min"
        return f'{self.count} point{"s" * (self.count > 1)} on {self.process} with final="{end}"'


@dataclass(frozen=True)
class SpacingCase:
    """A spacing, and the options with which it is checked."""

    spec: Spacing
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def failure(self) -> str | None:
        """The first error, if the spacing returns no grid at all."""
        return None if self.grids else self.refusals[0]

    @cached_property
    def grids(self) -> list[Grid]:
        """Grids of `COUNTS` points on one process of every type, to sigma = 0 and to the smallest sigma."""
        return [each for each in self._tried if isinstance(each, Grid)]

    @cached_property
    def refusals(self) -> list[str]:
        """The errors of the spans that the spacing refuses."""
        return [each for each in self._tried if isinstance(each, str)]

    @cached_property
    def _tried(self) -> list[Grid | str]:
        found: list[Grid | str] = []
        for (name, process), ends_clean, count in itertools.product(processes().items(), (True, False), COUNTS):
            span = Span(process, ends_clean=ends_clean)
            try:
                found.append(Grid(name, span, count, self.times(span, count)))
            except Exception as error:  # whatever a faulty spacing raises
                found.append(self.describe(error))
        return found

    def times(self, span: Span, count: int, **options: Any) -> np.ndarray:
        """The times of a span, without NumPy's warnings about singular ends."""
        with np.errstate(all="ignore"):
            return self.spec(span, count, **{**self.options, **options})

    def describe(self, error: Exception) -> str:
        """An error with its line in the spacing's file."""
        place = raised_at(error, self.spec.function.__code__.co_filename)
        return f"{summary(error)}{'' if place in str(error) else place}"


def declaration(case: SpacingCase) -> Outcome:
    """The spacing has a reference, and a docstring that names every option."""
    return declaration_of(case.spec)


def size(case: SpacingCase) -> Outcome:
    """The grid has the requested number of points, one point included, and the values are numbers."""
    wrong = [
        f"{grid}: shape {grid.times.shape}" if grid.times.shape != (grid.count,) else f"{grid}: not finite"
        for grid in case.grids
        if grid.times.shape != (grid.count,) or not np.all(np.isfinite(grid.times))
    ]
    return _first(wrong) or f"right in {len(case.grids)} grids", "as many finite times as points", not wrong


def falling(case: SpacingCase) -> Outcome:
    """Times fall strictly, from noise to data."""
    wrong = []
    for grid in case.grids:
        rises = np.flatnonzero(np.diff(grid.times) >= 0)
        if len(rises):
            k = int(rises[0])
            wrong.append(f"{grid}: entry {k + 1} ({grid.times[k + 1]:.6g}) after {grid.times[k]:.6g}")
    return _first(wrong) or f"in {len(case.grids)} grids", "strictly falling", not wrong


def in_range(case: SpacingCase) -> Outcome:
    """Times lie within the range of the process."""
    wrong = []
    for grid in case.grids:
        low, high = min(grid.span.end, 0.0), grid.span.start * (1 + 1e-12)
        if np.any(grid.times < low) or np.any(grid.times > high):
            wrong.append(f"{grid}: {grid.times.min():.6g} to {grid.times.max():.6g}")
    return _first(wrong) or f"in {len(case.grids)} grids", "from t_min (or 0) to t_max", not wrong


def ends(case: SpacingCase) -> Outcome:
    """The grids include the ends of the span that `reaches` declares, and no other end in all grids."""
    several = [grid for grid in case.grids if grid.count > 1]
    misses: dict[str, list[str]] = {"start": [], "end": []}
    for grid in several:
        tolerance = 1e-9 * (grid.span.start - grid.span.end)
        if not starts_at(float(grid.times[0]), grid.span.start, grid.span.process):
            misses["start"].append(f"{grid} starts at {grid.times[0]:.6g}, not {grid.span.start:.6g}")
        if abs(float(grid.times[-1]) - grid.span.end) > tolerance:
            misses["end"].append(f"{grid} ends at {grid.times[-1]:.6g}, not {grid.span.end:.6g}")
    reached = [end for end, missing in misses.items() if not missing]
    found = "both" if len(reached) == 2 else reached[0] if reached else "neither"
    declared = case.spec.reaches
    claimed = ("start", "end") if declared == "both" else (declared,)
    detail = _first([missing for end in claimed for missing in misses.get(end, [])])
    return detail or f"reaches {found}", f'as declared: reaches="{declared}"', found == declared


def start_times(case: SpacingCase) -> Outcome:
    """A grid of a run that starts in the middle (`start_time`) begins there."""
    if case.spec.reaches not in ("both", "start"):
        return None
    wrong, ran = [], 0
    for name, process in processes().items():
        middle = float(process.time_at_ratio(1.0))
        middle = round(middle) if isinstance(process, DiscreteVP) else middle
        for ends_clean in (True, False):
            span = Span(process, middle, ends_clean=ends_clean)
            try:
                times = case.times(span, 7)
            except ValueError:
                continue
            ran += 1
            inside = np.all(times <= middle * (1 + 1e-9)) and np.all(times >= min(span.end, 0.0))
            if not starts_at(float(times[0]), middle, process) or not inside:
                wrong.append(f"on {name} it starts at {times[0]:.6g}, not {middle:.6g}")
    return _first(wrong) or f"in {ran} grids", "starts at span.start, wherever that is", not wrong


def repeatable(case: SpacingCase) -> Outcome:
    """Equal calls return equal grids; nothing is kept, changed or drawn from a global generator."""
    wrong = []
    before = global_state()
    for grid in case.grids[:: max(len(case.grids) // 12, 1)]:
        first = case.times(grid.span, grid.count)
        kept = first.copy()
        first *= 0.5  # a spacing that returns an array of its own would return this one next time
        if not np.array_equal(kept, case.times(Span(grid.span.process, ends_clean=grid.span.ends_clean), grid.count)):
            wrong.append(f"{grid}: two calls differ")
    if global_state() != before:
        wrong.append("a global random generator was used")
    return _first(wrong) or "equal", "the same grid for the same span and number of points", not wrong


def refined(case: SpacingCase) -> Outcome:
    """With more points the longest step becomes shorter: with 20 times the points, by a tenth at least.

    Steps are measured in arctan(sigma/alpha), a clock that is finite on all processes.
    """
    wrong, worst = [], 0.0
    for name, process in processes().items():
        span = Span(process, ends_clean=True)
        try:
            coarse, fine = (_longest(process, case.times(span, count)) for count in (12, 240))
        except ValueError:
            continue
        worst = max(worst, fine / coarse)
        if fine > 0.9 * coarse:
            wrong.append(f"on {name} the longest step is {coarse:.3g} with 12 points and {fine:.3g} with 240")
    return _first(wrong) or f"at most {worst:.2f} times as long", "at most 0.9 with 20 times the points", not wrong


def _longest(process: GaussianProcess, times: np.ndarray) -> float:
    """The longest step of a grid, and of the one from its last point to sigma = 0, in arctan(sigma/alpha)."""
    angles = np.arctan(np.append(process.ratio(times), 0.0))
    return float(np.max(np.abs(np.diff(angles))))


def options_matter(case: SpacingCase) -> Outcome:
    """Every option changes a grid, or is refused with a ValueError."""
    free = [name for name in case.spec.options if name not in case.options]
    if not free:
        return None
    idle = [name for name in free if not _has_effect(case, name)]
    measured = f"no effect: {', '.join(idle)}" if idle else f"{len(free)} of {len(free)} do"
    return measured, "every option changes a grid", not idle


def _has_effect(case: SpacingCase, name: str) -> bool:
    tried = False
    for grid in case.grids:
        if grid.count not in (7, 20):
            continue
        for value in candidates(case.spec.options[name]):
            try:
                other = case.times(grid.span, grid.count, **{name: value})
            except ValueError:
                continue
            tried = True
            if not np.array_equal(other, grid.times):
                return True
    return not tried


def sampled(case: SpacingCase) -> Outcome:
    """A run on the grid succeeds: finite samples on each process, from one step on, or a UsageError."""
    wrong, ran = [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few steps on some processes end far from the data
        for (name, process), steps in itertools.product(processes().items(), (1, 5)):
            model = grid_mixture(process, prediction="v")
            arguments: dict[str, Any] = {"spacing": case.spec, "spacing_options": dict(case.options), "steps": steps}
            try:
                found = sample(model, "ddim", num_samples=2, **arguments).samples
            except ValueError:
                continue  # the spacing is not defined on this process; `failure` reports one that is never defined
            except (SdesamplersError, ArithmeticError, RuntimeError) as error:
                wrong.append(f"{name}, {steps} steps: {error}")
                continue
            ran += 1
            if not torch.isfinite(found).all():
                wrong.append(f"{name}, {steps} steps: not finite")
    if not ran and not wrong:
        wrong.append("every run is refused")
    return _first(wrong) or f"{ran} runs", "finite samples", not wrong


def _first(wrong: list[str]) -> str:
    """The first faults as one text; "" if there are none."""
    more = f"; and {len(wrong) - 2} more" if len(wrong) > 2 else ""
    return "; ".join(wrong[:2]) + more


SPACING_CHECKS: Mapping[str, Callable[[SpacingCase], Outcome]] = {
    "declaration": declaration,
    "size": size,
    "falling": falling,
    "range": in_range,
    "ends": ends,
    "start times": start_times,
    "repeatable": repeatable,
    "refined": refined,
    "options": options_matter,
    "sampled": sampled,
}
"""The checks of a spacing by name; the docstring of each describes what it checks."""
