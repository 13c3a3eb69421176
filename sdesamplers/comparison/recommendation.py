"""`Comparison.recommend`: the setting with the least value for a number of evaluations, and how certain that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UnknownNameError, UsageError
from ..metrics.intervals import LEVEL
from ..sampling.recipe import Recipe
from .cell import own_metrics
from .statistics import chances_of_least, is_undecided

if TYPE_CHECKING:
    from .cell import Cell


@dataclass(frozen=True)
class Recommendation:
    """The best of the compared settings for a number of evaluations.

    Attributes:
        sampler, budget, nfe: the setting's label, its budget and its evaluations per sample.
        recipe: the run, as `sample` takes it.
        metric, value: what was compared, and the setting's value.
        interval: the 95 % interval of the value; None if it is unknown.
        confidence: the probability that no other compared setting is better, as far as other samples or seeds decide
            it: the share of the draws in which this setting is the best. None if it is unknown.
        alternatives: the labels and budgets of the settings that cannot be distinguished from this one.
        left_out: the settings that have no value.
    """

    sampler: str
    budget: int
    nfe: int
    recipe: Recipe
    metric: str
    value: float
    interval: tuple[float, float] | None
    confidence: float | None
    alternatives: tuple[tuple[str, int], ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        around = "" if self.interval is None else f" [{self.interval[0]:.3g}, {self.interval[1]:.3g}]"
        sure = "unknown; it needs repeats=2 or more" if self.confidence is None else f"{self.confidence:.0%}"
        lines = [
            f"{self.sampler}, {self.nfe} evaluations: {self.metric} {self.value:.3g}{around}",
            f"confidence that it is the best: {sure}",
        ]
        if self.alternatives:
            listed = ", ".join(f"{label} ({budget})" for label, budget in self.alternatives)
            lines.append(f"not distinguished from it: {listed}")
        if self.left_out:
            lines.append(f"without a value of {self.metric}: {', '.join(self.left_out)}")
        return "\n".join(lines)


def recommend(cells: Sequence[Cell], nfe: int, metric: str | None, largest: bool) -> Recommendation:
    """The setting with the least (or largest) value among the cells with at most `nfe` evaluations.

    Of equal values, that with the fewest evaluations is taken, then the first.

    Raises:
        UsageError: there are no such cells, or none has the metric.
    """
    ran = [cell for cell in cells if cell.nfe is not None]
    within = [cell for cell in ran if cell.nfe is not None and cell.nfe <= nfe]
    if not within:
        counts = ", ".join(str(count) for count in sorted({cell.nfe for cell in ran if cell.nfe is not None}))
        raise UsageError(f"no setting was compared at {nfe} evaluations or fewer (compared: {counts or 'none'})")
    metric = usual_metric(within) if metric is None else known_metric(within, metric)
    valued = [cell for cell in within if isfinite(cell.value(metric))]
    if not valued:
        raise UsageError(f"no setting at {nfe} evaluations or fewer has a value of {metric!r}")
    sign = -1.0 if largest else 1.0
    best = min(valued, key=lambda cell: (sign * float(cell.value(metric) or 0.0), cell.nfe))
    drawn = [cell.draws(metric) for cell in valued]
    chosen = valued.index(best)
    known = [(cell, draws) for cell, draws in zip(valued, drawn, strict=True) if draws is not None]
    own, confidence, alternatives = drawn[chosen], None, list[tuple[str, int]]()
    if own is not None and len(known) == len(valued):
        confidence = float(chances_of_least(sign * np.stack([draws for _, draws in known], 1))[chosen])
    if own is not None:
        alternatives = [
            (cell.sampler, cell.budget)
            for cell, draws in known
            if cell is not best and cell.sampler != best.sampler and not _is_worse(sign * draws, sign * own)
        ]
    have = {cell.sampler for cell in valued}
    left_out = tuple(dict.fromkeys(cell.sampler for cell in within if cell.sampler not in have))
    value = best.value(metric)
    assert value is not None
    assert best.nfe is not None
    recipe = Recipe.from_dict(best.recipe or {})
    ends = best.intervals.get(metric)
    around = None if ends is None else (ends[0], ends[1])
    return Recommendation(
        best.sampler, best.budget, best.nfe, recipe, metric, value, around, confidence,
        tuple(alternatives), left_out,
    )  # fmt: skip


def isfinite(value: float | None) -> bool:
    """True for a number that is neither infinite nor NaN."""
    return value is not None and math.isfinite(value)


def _is_worse(other: np.ndarray, own: np.ndarray) -> bool:
    """True if draws are certainly larger than the best setting's, by an amount that matters or not."""
    return float(np.quantile(other - own, (1 - LEVEL) / 2)) > 0


def usual_metric(cells: Sequence[Cell]) -> str:
    """The error against the ODE if any cell has it, else the Fréchet distance, else the only metric of the caller.

    Raises:
        UsageError: there is none, or there are several.
    """
    names = metrics_of(cells)
    for name in ("error", "frechet"):
        if name in names:
            return name
    own = [name for name in names if name not in ("sliced_wasserstein", "seconds")]
    if len(own) != 1:
        listed = ", ".join(own) or "the cells have neither errors nor scores"
        raise UsageError(f"pass metric=, the value to compare ({listed})")
    return own[0]


def metrics_of(cells: Sequence[Cell]) -> list[str]:
    """The names of the values that some cell has."""
    names = dict.fromkeys(["error", "frechet", "sliced_wasserstein", *own_metrics(cells), "seconds"])
    return [name for name in names if any(cell.value(name) is not None for cell in cells)]


def known_metric(cells: Sequence[Cell], name: str) -> str:
    """The name of a metric.

    Raises:
        UnknownNameError: no cell has it.
    """
    names = [*metrics_of(cells), "nfe", "steps"]
    if name not in names:
        raise UnknownNameError("metric", str(name), names, f" (the comparison has {', '.join(names)})")
    return name


def undecided_pairs(cells: Sequence[Cell], metric: str) -> tuple[list[tuple[Cell, Cell]], int]:
    """The pairs of cells with the same model, guidance scale and budget whose order is not known; the number of all."""
    known = [(cell, draws) for cell in cells if (draws := cell.draws(metric)) is not None]
    found, count = [], 0
    for place, (one, own) in enumerate(known):
        for other, draws in known[place + 1 :]:
            if (one.model, one.guidance_scale, one.budget) == (other.model, other.guidance_scale, other.budget):
                count += 1
                if is_undecided(own, draws):
                    found.append((one, other))
    return found, count


NAMED = 3
"""The largest number of undecided pairs that are named."""


def remark(cells: Sequence[Cell], num_samples: int, repeats: int) -> str:
    """A line about the pairs of settings that cannot be distinguished, and what would help; empty if there are none."""
    parts = []
    for metric in metrics_of(cells):
        if metric == "seconds":
            continue
        pairs, count = undecided_pairs(cells, metric)
        if not pairs:
            continue
        listed = ", ".join(f"{one.sampler} and {other.sampler} at {one.budget}" for one, other in pairs)
        one = pairs[0][0]
        errors = one.errors if metric == "error" else one.per_sample.get(metric)
        number = num_samples if errors is None else len(errors)
        by = f"{repeats} repeats" if errors is None and repeats > 1 else f"{number} samples"
        which = listed if len(pairs) <= NAMED else f"{len(pairs)} of {count} pairs of settings"
        parts.append(f"{metric}: {by} cannot tell apart {which}")
    return "; ".join(parts)
