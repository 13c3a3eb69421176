"""`Cell`: the values of one setting at one budget, with what is known about their precision."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..metrics.intervals import GROUPS, draws_over_repeats, draws_over_samples, interval
from .scoring import OWN
from .statistics import draws_of_error


@dataclass(frozen=True, repr=False)
class Cell:
    """One setting at one budget, for one model and guidance scale.

    Attributes:
        sampler, budget: the setting's label and the requested number of evaluations.
        nfe, steps: the evaluations per sample and grid intervals of the run.
        seconds: wall time of sampling.
        error: root-mean-square difference from the ODE reference, in data units; None for stochastic samplers.
        errors: the error of each sample of the reference, repeat after repeat; None for stochastic samplers.
        drew_noise: True if a step was stochastic.
        frechet, sliced_wasserstein: sample quality; None without metrics.
        frechet_error: standard error of `frechet` by the jackknife over groups of samples; None if the scorer has none.
        frechet_freedom: degrees of freedom of `frechet_error`, the number of its groups less one.
        problem: the reason if the sampler could not be run.
        scoring_problem: the reason if the scorer or a metric failed.
        recipe: the recipe of the run, which `sample` accepts.
        times, ratios: the grid, in native time and in sigma/alpha (None if the process has no alpha and sigma).
        model, guidance_scale: the model's label and the classifier-free guidance weight.
        metrics: values of the caller's metrics.
        per_sample: those of each sample, repeat after repeat, for metrics that have them.
        intervals: 95 % intervals by the name of a value; see `draws`.
        repeats: the values of each repeat, with its seed, if there are several. The values of the cell are their means;
            the error is the root mean square over the samples of all repeats.
    """

    sampler: str
    budget: int
    nfe: int | None = None
    steps: int | None = None
    seconds: float | None = None
    error: float | None = None
    frechet: float | None = None
    sliced_wasserstein: float | None = None
    problem: str | None = None
    scoring_problem: str | None = None
    recipe: dict[str, Any] | None = None
    times: list[float] | None = None
    ratios: list[float | None] | None = None
    errors: list[float] | None = None
    drew_noise: bool | None = None
    frechet_error: float | None = None
    frechet_freedom: int | None = None
    model: str = ""
    guidance_scale: float = 1.0
    metrics: dict[str, float] = field(default_factory=dict)
    per_sample: dict[str, list[float]] = field(default_factory=dict)
    intervals: dict[str, list[float]] = field(default_factory=dict)
    repeats: list[dict[str, Any]] = field(default_factory=list)

    def __repr__(self) -> str:
        names = {"error": "error", "frechet": "Fréchet", **{name: name for name in self.metrics}}
        values = [f"{label} {value:.3g}" for name, label in names.items() if (value := self.value(name)) is not None]
        found = self.problem or ", ".join([f"{self.nfe} NFE", *values])
        return f"<Cell {self.sampler} at {self.budget}: {found}>"

    def value(self, name: str) -> float | None:
        """A value by its name: "error", "frechet", "sliced_wasserstein", "seconds", "nfe", or one of `metrics`."""
        found = self.metrics.get(name) if name in self.metrics else getattr(self, name) if name in OWN else None
        return None if found is None else float(found)

    def is_per_sample(self, name: str) -> bool:
        """True if a value is a mean over samples, so that its interval follows from them."""
        return name in self.per_sample or (name == "error" and self.errors is not None)

    def draws(self, name: str) -> np.ndarray | None:
        """Draws (4000,) of a value as other samples or seeds would give it; None if they are unknown.

        The error and metrics of single samples are resampled over the samples (studentised bootstrap), in the same way
        for all settings. Other values vary over the repeats (Student's t), and without repeats the Fréchet distance by
        its `frechet_error` (Student's t).
        """
        values = self.errors if name == "error" else self.per_sample.get(name)
        if values is not None and len(values) > 1:
            return draws_over_samples(np.array(values), squares=name == "error")
        several = [found for each in self.repeats if (found := each.get(name)) is not None]
        if len(several) > 1:
            return draws_over_repeats(np.array(several))
        if name == "frechet" and self.frechet is not None and self.frechet_error is not None:
            return draws_of_error(self.frechet, self.frechet_error, self.frechet_freedom or GROUPS - 1)
        return None

    def interval(self, name: str) -> tuple[float, float] | None:
        """The 95 % interval of a value, also if the cell was read from a file without it; None if it is unknown."""
        if name in self.intervals:
            low, high = self.intervals[name]
            return low, high
        draws = None if self.value(name) is None else self.draws(name)
        return None if draws is None else interval(draws)

    def as_row(self) -> dict[str, Any]:
        """The cell as a row of a table, with nested values as JSON."""
        row = asdict(self)
        recipe = row.pop("recipe") or {}
        for name in ("per_sample", "repeats", "model"):
            del row[name]
        own, intervals = row.pop("metrics"), row.pop("intervals")
        for name in ("error", "frechet", *own):
            low, high = intervals.get(name, (None, None))
            row |= {f"{name}_low": low, f"{name}_high": high}
        grid_fields = {name: recipe.get(name) for name in ("spacing", "coordinates", "noise", "final")}
        nested = {"options": recipe.get("options"), "recipe": recipe or None, "times": row.pop("times")}
        nested |= {"ratios": row.pop("ratios"), "errors": row.pop("errors")}
        texts = {key: None if v is None else json.dumps(v) for key, v in nested.items()}
        return {**row, **own, **grid_fields, **texts}


def own_metrics(cells: Iterable[Cell]) -> list[str]:
    """The names of the caller's metrics."""
    return list(dict.fromkeys(name for cell in cells for name in cell.metrics))
