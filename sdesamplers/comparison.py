"""`compare`: samplers side by side, from the same starting noise, at the same numbers of evaluations."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import Cancelled, SdesamplersError, UsageError
from .files import make_folder, write
from .metrics import Score, Scorer
from .models.base import Model
from .recipe import make_recipe
from .registry import default_registry
from .result import Result
from .sampling import as_model, sample

if TYPE_CHECKING:
    from PIL.Image import Image

REFERENCE_TOLERANCE = 1e-5
GRID_WORDS = ("spacing", "spacing_options", "coordinates", "final", "noise", "noise_options")


@dataclass(frozen=True)
class Cell:
    """One sampler at one budget.

    Attributes:
        sampler, budget: as asked for.
        nfe, steps: what was run.
        seconds: wall time of sampling `count` samples.
        error: root-mean-square difference from the ODE reference, in data units; None for stochastic samplers.
        frechet, sliced_wasserstein: sample quality, None without metrics.
        problem: why nothing was run, where nothing was.
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


@dataclass
class Comparison:
    """The cells of a comparison, what they are measured against, and the samples of each."""

    model_name: str
    num_samples: int
    seed: int
    cells: list[Cell]
    samples: dict[tuple[str, int], Tensor] = field(repr=False)
    data_range: tuple[float, float] | None = None
    floor: Score | None = None
    metrics: str = ""
    reference_count: int = 0
    reference_nfe: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; samples are left out."""
        facts = {k: v for k, v in vars(self).items() if k not in ("samples", "cells", "floor", "data_range")}
        floor = None if self.floor is None else asdict(self.floor)
        return {**facts, "floor": floor, "cells": [asdict(cell) for cell in self.cells]}

    def as_csv(self) -> str:
        """The cells as CSV with a header."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(asdict(self.cells[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(cell) for cell in self.cells)
        return text.getvalue()

    def picture(self, each: int = 4) -> Image:
        """Rows of samplers, columns of budgets, `each` samples a cell (a scatter plot for vectors)."""
        from .pictures import comparison_picture

        return comparison_picture(self, each)

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write compare.png, compare.json and compare.csv, each whole or not at all."""
        out = make_folder(folder)
        picture = self.picture()
        return {
            "png": write(out / "compare.png", lambda path: picture.save(path, format="PNG")),
            "json": write(out / "compare.json", json.dumps(self.as_dict(), indent=2) + "\n"),
            "csv": write(out / "compare.csv", self.as_csv()),
        }


def compare(
    model: Model | str,
    samplers: str | Sequence[str],
    nfe: int | Sequence[int] = (5, 10, 20, 50),
    *,
    num_samples: int = 64,
    seed: int = 0,
    batch_size: int | None = 64,
    reference_samples: int = 16,
    scorer: Scorer | None = None,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Comparison:
    """Run samplers side by side.

    Args:
        model: a `Model`, or what `load` takes.
        samplers: names of samplers, recipes or aliases, or one.
        nfe: budgets of model evaluations a sample, or one.
        num_samples: how many; distances need hundreds, and their floor is given for the same number.
        reference_samples: on how many of them the deterministic samplers' error is measured, against rk45 at
            rtol = atol = 1e-5 with a float64 state from the same noise; 0 for none.
        scorer: metrics; the registry's for this model by default.
        progress: called with a line before each run.
        **options: more options of `sample` (spacing, coordinates, condition, ...), for all samplers.

    Raises:
        UsageError: an unknown name, before anything is run.
    """
    model = as_model(model)
    samplers, nfe = [samplers] if isinstance(samplers, str) else samplers, [nfe] if isinstance(nfe, int) else nfe
    if {"times", "sigmas", "steps"} & set(options):
        raise UsageError("compare runs every sampler at budgets of evaluations; a grid of your own is for sample")
    if not samplers or not nfe:
        raise UsageError("compare needs at least one sampler and one number of evaluations")
    for name in samplers:
        spec = default_registry().resolve(name).sampler
        known = {k: v for k, v in options.items() if k in spec.options}
        words = {k: options[k] for k in GRID_WORDS if k in options}
        make_recipe(name, process=model.process, steps=2, options=known, **words)
    for budget in nfe:
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise UsageError(f"nfe must be whole numbers of 1 or more, not {budget!r}")
    say = progress or (lambda line: None)
    scorer = scorer or find_scorer(model.name)
    common = {"seed": seed, "num_samples": num_samples, "batch_size": batch_size, **options}
    reference, reference_nfe = None, 0
    count = min(reference_samples, num_samples)
    if count and any(not default_registry().resolve(name).sampler.stochastic for name in samplers):
        say(f"reference: rk45 at tolerance {REFERENCE_TOLERANCE:g} for {count} samples")
        truth = ode_reference(model, count, seed, batch_size, options)
        reference, reference_nfe = truth.samples, truth.nfe
    cells, pictures = [], {}
    for name in samplers:
        for budget in nfe:
            say(f"{name}, {budget} evaluations")
            cell, samples = _run(model, name, budget, common, reference, scorer)
            cells.append(cell)
            if samples is not None:
                pictures[name, budget] = samples
    return Comparison(
        model_name=model.name,
        num_samples=num_samples,
        seed=seed,
        cells=cells,
        samples=pictures,
        data_range=model.decoded_range,
        floor=scorer.floor(num_samples) if scorer is not None and num_samples >= 2 else None,
        metrics="" if scorer is None else scorer.description,
        reference_count=count if reference is not None else 0,
        reference_nfe=reference_nfe,
    )


def find_scorer(model_name: str) -> Scorer | None:
    """The metrics that the registry names for a model."""
    entry = default_registry().catalogue.models.get(model_name, {})
    return Scorer(Path(entry["base"]) / entry["metrics"]) if "metrics" in entry else None


def ode_reference(model: Model, count: int, seed: int, batch_size: int | None, options: dict[str, Any]) -> Result:
    """The probability-flow ODE solved to `REFERENCE_TOLERANCE` from the seed's starting noise, in float64."""
    words = ("condition", "guidance_scale", "final", "first_index", "start_time")
    kept = {k: v for k, v in options.items() if k in words}
    if options.get("start") is not None:
        kept["start"] = options["start"][:count]
    common: dict[str, Any] = {"rtol": REFERENCE_TOLERANCE, "atol": REFERENCE_TOLERANCE, "max_nfe": 100_000}
    size = None if batch_size is None else min(batch_size, count)
    return sample(
        model,
        "rk45",
        coordinates="angle",
        dtype=torch.float64,
        num_samples=count,
        seed=seed,
        batch_size=size,
        **common,
        **kept,
    )


def _run(
    model: Model, name: str, budget: int, common: dict[str, Any], reference: Tensor | None, scorer: Scorer | None
) -> tuple[Cell, Tensor | None]:
    began = time.perf_counter()
    try:
        result = sample(model, name, nfe=budget, **common)
    except Cancelled:
        raise
    except SdesamplersError as refusal:
        return Cell(name, budget, problem=str(refusal)), None
    seconds = time.perf_counter() - began
    error = None
    if reference is not None and not result.drew_noise:
        residual = result.samples[: len(reference)].double() - reference
        error = float(residual.square().mean().sqrt())
    score = scorer.score(result.decoded) if scorer is not None and len(result.samples) >= 2 else None
    cell = Cell(
        sampler=name,
        budget=budget,
        nfe=result.nfe,
        steps=result.recipe.steps,
        seconds=seconds,
        error=error,
        frechet=None if score is None else score.frechet,
        sliced_wasserstein=None if score is None else score.sliced_wasserstein,
    )
    return cell, result.decoded
