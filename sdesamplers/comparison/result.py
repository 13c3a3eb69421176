"""What a comparison found: tables, files and a picture."""

from __future__ import annotations

import csv
import io
import json
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..errors import UsageError
from ..io.files import make_folder, write
from ..metrics import Score
from ..public import public

if TYPE_CHECKING:
    from PIL.Image import Image


SCHEMA_VERSION = 1
"""Of `as_dict` and `as_csv`; another number where a field has changed its meaning or gone."""


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
        scoring_problem: why there is no score, where the scorer failed.
        recipe: what was run, as `sample` takes it again.
        times, ratios: the grid, on the model's clock and in sigma/alpha (None without); None for steps of its own.
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
    ratios: list[float] | None = None

    def as_row(self) -> dict[str, Any]:
        """The cell as a line of a table: what is nested as JSON."""
        row = asdict(self)
        recipe = row.pop("recipe") or {}
        words = {word: recipe.get(word) for word in ("spacing", "coordinates", "noise", "final")}
        nested = {"options": recipe.get("options"), "recipe": recipe or None, "times": row.pop("times")}
        nested["ratios"] = row.pop("ratios")
        return {**row, **words, **{key: None if v is None else json.dumps(v) for key, v in nested.items()}}


@public
@dataclass
class Comparison:
    """The cells of a comparison, what they are measured against, and the samples of each.

    Attributes:
        facts: what all cells share: the model with a hash of its weights, condition, guidance, batch size, versions.
    """

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
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; samples are left out."""
        left_out = ("samples", "cells", "floor", "data_range", "facts")
        words = {key: value for key, value in vars(self).items() if key not in left_out}
        floor = None if self.floor is None else asdict(self.floor)
        cells = [asdict(cell) for cell in self.cells]
        return {"schema_version": SCHEMA_VERSION, **words, **self.facts, "floor": floor, "cells": cells}

    def as_csv(self) -> str:
        """The cells as CSV with a header; what all share is repeated in each line."""
        text = io.StringIO()
        model = self.facts.get("model", {})
        versions = self.facts.get("environment", {})
        shared = {
            "model": self.model_name,
            "revision": model.get("revision"),
            "weights_sha256": model.get("weights_sha256"),
            "num_samples": self.num_samples,
            "seed": self.seed,
            "guidance_scale": self.facts.get("guidance_scale"),
            "versions": json.dumps(versions),
            "schema_version": SCHEMA_VERSION,
        }
        rows = [{**cell.as_row(), **shared} for cell in self.cells]
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def picture(self, each: int = 4) -> Image:
        """Rows of samplers, columns of budgets, `each` samples a cell (a scatter plot for vectors)."""
        from .pictures import comparison_picture

        return comparison_picture(self, each)

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write compare.json, compare.csv and compare.png, each whole or not at all."""
        out = make_folder(folder)
        files = {
            "json": write(out / "compare.json", json.dumps(self.as_dict(), indent=2, default=str) + "\n"),
            "csv": write(out / "compare.csv", self.as_csv()),
        }
        try:
            picture = self.picture()
        except UsageError as reason:
            warnings.warn(f"compare.png is not written: {reason}", stacklevel=2)
            return files
        return {"png": write(out / "compare.png", lambda path: picture.save(path, format="PNG")), **files}


def finite_or_none(value: Any) -> Any:
    """A number for JSON, which knows no infinity."""
    return float(value) if np.isfinite(value) else None
