"""The result of a comparison: tables, files and an image."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..checks import warn
from ..errors import UsageError
from ..io.files import make_folder, write
from ..io.images import grid, to_images
from ..io.sheets import Sheet, Tile
from ..metrics import Score
from ..public import public
from ..sampling.result import Trajectory

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..report.view import View


SCHEMA_VERSION = 1
"""Version of `as_dict` and `as_csv`; it increases if a field is removed or changes its meaning."""


@dataclass(frozen=True)
class Cell:
    """One sampler at one budget.

    Attributes:
        sampler, budget: the sampler's label and the requested number of evaluations.
        nfe, steps: the evaluations per sample and grid intervals of the run.
        seconds: wall time of sampling.
        error: root-mean-square difference from the ODE reference, in data units; None for stochastic samplers.
        errors: the error of each sample of the reference; None for stochastic samplers.
        drew_noise: True if a step was stochastic.
        frechet, sliced_wasserstein: sample quality; None without metrics.
        frechet_error: standard error of `frechet` by the jackknife over groups of samples; None if the scorer has none.
        problem: the reason if the sampler could not be run.
        scoring_problem: the reason if the scorer failed.
        recipe: the recipe of the run, which `sample` accepts.
        times, ratios: the grid, in native time and in sigma/alpha (None if the process has no alpha and sigma).
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
    errors: list[float] | None = None
    drew_noise: bool | None = None
    frechet_error: float | None = None

    def as_row(self) -> dict[str, Any]:
        """The cell as a row of a table, with nested values as JSON."""
        row = asdict(self)
        recipe = row.pop("recipe") or {}
        grid_fields = {name: recipe.get(name) for name in ("spacing", "coordinates", "noise", "final")}
        nested = {"options": recipe.get("options"), "recipe": recipe or None, "times": row.pop("times")}
        nested |= {"ratios": row.pop("ratios"), "errors": row.pop("errors")}
        return {**row, **grid_fields, **{key: None if v is None else json.dumps(v) for key, v in nested.items()}}


@public
@dataclass
class Comparison:
    """The cells of a comparison, their reference values, and their samples.

    Attributes:
        model_name, num_samples, seed: of all runs.
        cells: a `Cell` for each sampler and budget.
        samples: (N, *shape), decoded if they are latents, by (sampler, budget).
        data_range: (low, high) of the samples; None if unbounded.
        floor: the `Score` of `num_samples` real images; None if unknown.
        metrics: the scorer's description.
        reference_count, reference_nfe: number of samples of the ODE reference, and its evaluations per sample.
        facts: data shared by all cells: the model with a hash of its weights, condition, guidance, batch size,
            versions.
        reference: the samples of the ODE reference, decoded if they are latents; None without a reference.
        trajectories: by (sampler, budget), the states of a few samples on the way, if they were kept.
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
    reference: Tensor | None = field(default=None, repr=False)
    trajectories: dict[tuple[str, int], Trajectory] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the samples."""
        omitted = ("samples", "cells", "floor", "data_range", "facts", "reference", "trajectories")
        simple = {key: value for key, value in vars(self).items() if key not in omitted}
        floor = None if self.floor is None else asdict(self.floor)
        cells = [asdict(cell) for cell in self.cells]
        return {"schema_version": SCHEMA_VERSION, **simple, **self.facts, "floor": floor, "cells": cells}

    def as_csv(self) -> str:
        """The cells as CSV with a header; shared values are repeated in each row."""
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
        """A table of images with rows of samplers, columns of budgets and `each` samples per cell.

        Vectors are shown as scatter plots.

        Raises:
            UsageError: samples of this shape cannot be shown, or matplotlib is missing for vectors.
        """

        return comparison_picture(self, each)

    def plot(self, figure: str = "work-precision", axes: Any = None, **options: Any) -> Any:
        """Draw a figure of the comparison with matplotlib.

        Args:
            figure: "work-precision" (options `x`: "evaluations" or "seconds"; `y`: "error", "frechet" or
                "sliced-wasserstein"), "samples" (`sampler`, `nfe`, `each`), "trajectories", "grids" or "errors" (`nfe`,
                one budget).
            axes: matplotlib axes to draw on, as many as the figure has panels; a new figure by default.
            **options: of the figure.

        Returns:
            the matplotlib `Figure`.

        Raises:
            UsageError: an unknown figure or option, the comparison lacks what is to be drawn, or matplotlib is missing.

        Example:
            >>> comparison.plot("work-precision", y="frechet").savefig("curves.pdf")
        """
        from ..report.plots import plot

        return plot(self, figure, axes, **options)

    def save_figures(self, folder: str | Path, formats: str | Sequence[str] = "png") -> list[Path]:
        """Write all figures that the comparison has data for, each atomically; return their paths.

        Args:
            folder: created if it does not exist.
            formats: one or several of "png", "svg" and "pdf".

        Raises:
            UsageError: an unknown format, or matplotlib is missing.
        """
        from ..report.plots import save_figures

        return save_figures(self, folder, formats)

    def report(self, path: str | Path) -> Path:
        """Write a page with all figures, samples and numbers: one HTML file that needs no network; return its path.

        Trajectories are shown if the comparison keeps them (`compare(..., trajectories=3)`).

        Args:
            path: the file, or a folder, in which it is named compare.html.

        Raises:
            UsageError: matplotlib or Jinja2 is missing.

        Example:
            >>> sds.compare(model, ["heun", "unipc"], [5, 10, 20], trajectories=3).report("compare.html")
        """
        from ..report.page import write_page

        return write_page(self, path)

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write compare.json, compare.csv and compare.png, each atomically; return their paths by type.

        compare.png is omitted, with a warning, if samples of this shape cannot be shown.
        """
        out = make_folder(folder)
        files = {
            "json": write(out / "compare.json", json.dumps(self.as_dict(), indent=2, default=str) + "\n"),
            "csv": write(out / "compare.csv", self.as_csv()),
        }
        try:
            picture = self.picture()
        except UsageError as reason:
            warn(f"compare.png is not written: {reason}")
            return files
        return {"png": write(out / "compare.png", lambda path: picture.save(path, format="PNG")), **files}


def finite_or_none(value: Any) -> Any:
    """A number for JSON, which has no infinity; None if it is not finite."""
    return float(value) if np.isfinite(value) else None


def comparison_picture(comparison: Comparison, each: int) -> Image:
    """The image of `Comparison.picture`."""
    from ..report.view import View

    view = View(comparison)
    if view.has_images:
        return image_table(view, each).image()
    if view.has_vectors:
        from PIL import Image  # only images need it

        content = io.BytesIO()
        comparison.plot("samples").savefig(content, format="png")
        content.seek(0)
        return Image.open(content).convert("RGB")
    raise UsageError(f"samples of shape {view.shape} cannot be shown")


def image_table(view: View, each: int) -> Sheet:
    """The samples as a sheet, with the ODE reference in the first row."""
    comparison = view.comparison

    def strip(samples: Tensor) -> Image:
        return grid(to_images(samples[:each], comparison.data_range), min(each, 4))

    rows = []
    if comparison.reference is not None:
        first = Tile(strip(comparison.reference), f"{comparison.reference_nfe} NFE")
        rows.append(("ODE reference", [first]))
    for name in view.samplers:
        tiles = []
        for budget in view.budgets:
            cell, samples = view.cell(name, budget), comparison.samples.get((name, budget))
            if samples is None or cell is None:
                tiles.append(Tile(reason=(None if cell is None else cell.problem) or "not run"))
            else:
                tiles.append(Tile(strip(samples), caption(cell, comparison.floor)))
        rows.append((name, tiles))
    note = [f"{view.size}; pictures at the same place start from the same noise."]
    if comparison.reference_count:
        note.append(
            f"error: RMS difference from the ODE reference over {comparison.reference_count} samples, data units."
        )
    if any(cell.frechet is not None for cell in comparison.cells):
        note.append("FD: Frechet distance, squared feature units.")  # Pillow's own font has no accents
    return Sheet(rows, [f"{budget} evaluations" for budget in view.budgets], note=" ".join(note))


def caption(cell: Cell, floor: Score | None) -> str:
    """A cell's cost and values in a line."""
    facts = [f"{cell.nfe} NFE"]
    if cell.error is not None:
        facts.append(f"error {cell.error:.2g}")
    if cell.frechet is not None:
        facts.append(f"FD {cell.frechet:.3g}" + ("" if floor is None else f" (real {floor.frechet:.3g})"))
    return ",  ".join(facts)
