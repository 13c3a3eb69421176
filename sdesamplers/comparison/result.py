"""The result of a comparison: tables, files and an image."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..checks import warn
from ..errors import UsageError
from ..hub.upload import Destination
from ..io.files import make_folder, write
from ..io.images import grid, to_images
from ..io.text import printable
from ..metrics import Score
from ..public import public
from .card import TASK, make_card
from .sharing import FOLDER, push_folder

if TYPE_CHECKING:
    from huggingface_hub import ModelCard
    from PIL.Image import Image


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
        frechet, sliced_wasserstein: sample quality; None without metrics.
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

    def as_row(self) -> dict[str, Any]:
        """The cell as a row of a table, with nested values as JSON."""
        row = asdict(self)
        recipe = row.pop("recipe") or {}
        grid_fields = {name: recipe.get(name) for name in ("spacing", "coordinates", "noise", "final")}
        nested = {"options": recipe.get("options"), "recipe": recipe or None, "times": row.pop("times")}
        nested["ratios"] = row.pop("ratios")
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
        """Plain data for JSON, without the samples."""
        omitted = ("samples", "cells", "floor", "data_range", "facts")
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

    def card(
        self,
        *,
        files: Mapping[str, str] | None = None,
        task: str = TASK,
        dataset: tuple[str, str] | None = None,
    ) -> ModelCard:
        """The results as a card for a model's README.md: a table, the picture, and the numbers as a model index.

        The Hub shows a model's results from the metadata at the head of its README.md, the *model index*. Every finite
        error and distance of the comparison is an entry there, with its sampler and number of evaluations.

        Args:
            files: address of each file beside the card, by type ("png", "json", "csv", "html"), such as
                {"png": "compare/compare.png"}.
            task: the model's task, by its name on the Hub.
            dataset: type (an id on the Hub) and name of the real data that the distances refer to.

        Returns:
            a `huggingface_hub.ModelCard`: `str(card)` is its text, `card.save(file)` writes it.

        Example:
            >>> comparison = sds.compare("fashion-mnist", ["heun", "unipc"], nfe=10)
            >>> comparison.card(dataset=("zalando-datasets/fashion_mnist", "Fashion-MNIST")).save("README.md")
        """
        return make_card(self.as_dict(), files=files, task=task, dataset=dataset)

    def push_to_hub(
        self,
        repo: str,
        path: str = FOLDER,
        *,
        revision: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        task: str = TASK,
        dataset: tuple[str, str] | None = None,
    ) -> str:
        """Upload the files that `save` writes, and the card, to a Hub repository in one commit.

        The card is README.md, or that of the folder if the repository has another README.md, which is left as it is.

        Args:
            repo: "owner/name"; created if it does not exist.
            path: the folder in the repository.
            revision, private, token, commit_message, create_pr: as of `Recipe.push_to_hub`.
            task, dataset: as of `card`.

        Returns:
            The address of the commit, or of the pull request.

        Raises:
            ModelError: no connection or no permission; in one line.
            UsageError: `repo` is not an id, or `path` is not a folder.
        """
        to = Destination(repo, revision, token)
        about = {"task": task, "dataset": dataset}
        with TemporaryDirectory() as folder:
            self.save(folder)
            return push_folder(
                Path(folder),
                to,
                path,
                private=private,
                commit_message=commit_message,
                create_pr=create_pr,
                about=about,
            )


def finite_or_none(value: Any) -> Any:
    """A number for JSON, which has no infinity; None if it is not finite."""
    return float(value) if np.isfinite(value) else None


def comparison_picture(comparison: Comparison, each: int) -> Image:
    """The image of `Comparison.picture`."""
    shape = next(iter(comparison.samples.values())).shape[1:] if comparison.samples else ()
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return _image_table(comparison, each)
    if len(shape) == 1 and shape[0] >= 2:
        return _scatter_table(comparison)
    raise UsageError(f"samples of shape {tuple(shape)} cannot be shown")


def _axes(comparison: Comparison) -> tuple[list[str], list[int], dict[tuple[str, int], Cell]]:
    cells = {(cell.sampler, cell.budget): cell for cell in comparison.cells}
    return list(dict.fromkeys(s for s, _ in cells)), list(dict.fromkeys(b for _, b in cells)), cells


def _image_table(comparison: Comparison, each: int) -> Image:
    from PIL import Image, ImageDraw, ImageFont  # only images need it

    samplers, budgets, cells = _axes(comparison)
    font, small = ImageFont.load_default(18), ImageFont.load_default(13)
    strips = {k: grid(to_images(v[:each], comparison.data_range), min(each, 4)) for k, v in comparison.samples.items()}
    width, height = next(iter(strips.values())).size
    left = 24 + int(max(font.getlength(name) for name in samplers))
    top, line = 36, 20
    sheet = Image.new("RGB", (left + len(budgets) * (width + 16), top + len(samplers) * (height + line + 8)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, budget in enumerate(budgets):
        draw.text((left + column * (width + 16) + width / 2, 18), f"{budget} evaluations", "black", font, "mm")
    for row, name in enumerate(samplers):
        y = top + row * (height + line + 8)
        draw.text((12, y + height / 2), name, "black", font, "lm")
        for column, budget in enumerate(budgets):
            x, cell = left + column * (width + 16), cells[name, budget]
            if (name, budget) not in strips:
                reason = wrapped(cell.problem or "not run", small, width, height)
                draw.multiline_text((x + width / 2, y + height / 2), reason, "grey", small, "mm", align="center")
                continue
            sheet.paste(strips[name, budget], (x, y))
            facts = [f"{cell.nfe} NFE"]
            if cell.error is not None:
                facts.append(f"error {cell.error:.2g}")
            if cell.frechet is not None:
                floor = "" if comparison.floor is None else f" (real {comparison.floor.frechet:.3g})"
                facts.append(f"FD {cell.frechet:.3g}{floor}")  # Pillow's own font has no accents
            draw.text((x + width / 2, y + height + line / 2), ",  ".join(facts), (70, 70, 70), small, "mm")
    return sheet


def _scatter_table(comparison: Comparison) -> Image:
    try:
        from matplotlib.figure import Figure  # matplotlib takes seconds to import, and is optional
    except ImportError:
        raise UsageError("plots of vectors need matplotlib: pip install 'sdesamplers[report]'") from None
    from PIL import Image  # only images need it

    samplers, budgets, cells = _axes(comparison)
    figure = Figure(figsize=(2.4 * len(budgets) + 0.6, 2.5 * len(samplers) + 0.4), dpi=110, layout="constrained")
    plots = figure.subplots(len(samplers), len(budgets), squeeze=False, sharex=True, sharey=True)
    for row, name in enumerate(samplers):
        for column, budget in enumerate(budgets):
            plot, cell = plots[row][column], cells[name, budget]
            points = comparison.samples.get((name, budget))
            if points is not None:
                plot.scatter(points[:, 0], points[:, 1], s=4, alpha=0.5, linewidths=0)
            if points is None and cell.problem:
                reason = textwrap.fill(cell.problem, 34)
                plot.text(
                    0.5, 0.5, reason, ha="center", va="center", size=6, transform=plot.transAxes, parse_math=False
                )
            plot.set_title(
                f"{cell.nfe or budget} NFE" + ("" if cell.error is None else f", error {cell.error:.2g}"), size=9
            )
            if column == 0:
                plot.set_ylabel(printable(name), parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


def wrapped(text: str, font: Any, width: float, height: float) -> str:
    """A text wrapped to fit a box of this size, and cut off if it has too many lines."""
    across = max(int(width / font.getlength("n")), 8)
    lines = textwrap.wrap(text, across)
    most = max(int(height / 17), 1)
    return "\n".join(lines if len(lines) <= most else [*lines[: most - 1], "..."])
