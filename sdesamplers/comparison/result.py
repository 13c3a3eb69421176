"""The result of a comparison: tables, files and an image."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..checks import flag, warn, whole
from ..errors import UsageError
from ..io.files import make_folder, write
from ..io.images import grid, to_images
from ..io.text import printable, without_nan
from ..metrics import Score
from ..public import public
from ..sampling.result import Trajectory
from .cell import Cell as Cell
from .reading import FILE, SCHEMA_VERSION, read_comparison
from .recommendation import Recommendation, known_metric, recommend, undecided_pairs
from .rules import Check, Rule, check_cells

if TYPE_CHECKING:
    from PIL.Image import Image


OF_GROUPS = ("model", "scorer", "guidance_scale")
"""Facts that belong to a model and guidance scale; the others are shared by all cells."""


@public
@dataclass
class Comparison:
    """The cells of a comparison, their reference values, and their samples.

    Attributes:
        model_name, num_samples, seed: of all runs.
        cells: a `Cell` for each setting and budget, and for each model and guidance scale if there are several.
        samples: (N, *shape), decoded if they are latents, by (sampler, budget); the first `keep_samples` of the first
            repeat. Empty for a comparison that was read from a file.
        data_range: (low, high) of the samples; None if unbounded.
        floor: the `Score` of `num_samples` real images; None if unknown.
        metrics: the scorer's description.
        reference_count, reference_nfe: number of samples of the ODE reference, and its evaluations per sample.
        facts: data shared by all cells: the model with a hash of its weights, condition, guidance, batch size,
            versions.
        reference: the samples of the ODE reference, decoded if they are latents; None without a reference.
        trajectories: by (sampler, budget), the states of a few samples on the way, if they were kept.
        repeats: number of runs of each setting, with the seeds seed, seed + 1, ...
        groups: a comparison for each model and guidance scale if there are several; they have the samples, the
            reference values and the facts, of which the comparison of all has only the common ones.
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
    repeats: int = 1
    groups: tuple[Comparison, ...] = field(default=(), repr=False)

    @classmethod
    def of_groups(cls, groups: Sequence[Comparison]) -> Comparison:
        """The comparison of several models or guidance scales; the group itself if there is one."""
        if len(groups) == 1:
            return groups[0]
        first = groups[0]
        names = ", ".join(dict.fromkeys(group.model_name for group in groups))
        facts = {key: value for key, value in first.facts.items() if key not in OF_GROUPS}
        cells = [cell for group in groups for cell in group.cells]
        return cls(
            names, first.num_samples, first.seed, cells, {}, facts=facts, repeats=first.repeats, groups=tuple(groups)
        )

    @property
    def all_groups(self) -> tuple[Comparison, ...]:
        """The comparisons of each model and guidance scale; this one alone if there are not several."""
        return self.groups or (self,)

    @property
    def guidance_scale(self) -> float | None:
        """The guidance scale of all cells; None if there are several."""
        scales = {cell.guidance_scale for cell in self.cells}
        return scales.pop() if len(scales) == 1 else None

    def select(self, model: str | None = None, guidance_scale: float | None = None) -> Comparison:
        """The comparison of one model and guidance scale.

        Args:
            model: its label; not needed if there is one.
            guidance_scale: not needed if there is one.

        Raises:
            UsageError: there is no such group, or more than one.
        """
        found = [
            group
            for group in self.all_groups
            if model in (None, group.model_name) and guidance_scale in (None, group.guidance_scale)
        ]
        if len(found) == 1:
            return found[0]
        listed = ", ".join(f"{group.model_name!r} at {group.guidance_scale:g}" for group in self.all_groups)
        raise UsageError(f"choose one model and guidance scale by model= and guidance_scale=, out of: {listed}")

    def recommend(self, nfe: int, metric: str | None = None, *, largest: bool = False) -> Recommendation:
        """The best of the compared settings for a number of evaluations, as a recipe, and how certain it is.

        Args:
            nfe: the largest number of model evaluations per sample; settings with fewer take part.
            metric: "error", "frechet", "sliced_wasserstein", "seconds" or one of the caller's metrics. By default the
                error, for which stochastic settings have no value; without errors the Fréchet distance.
            largest: True if larger values of the metric are better.

        Raises:
            UsageError: nothing was compared at this number of evaluations, or an unknown metric; or there are several
                models or guidance scales, of which `select` chooses one.

        Example:
            >>> best = sds.compare("fashion-mnist", ["heun", "dpmpp-2m spacing=karras"], [4, 8]).recommend(nfe=8)
            >>> sds.sample("fashion-mnist", best.recipe, num_samples=16)
        """
        return recommend(self.select().cells, whole("nfe", nfe), metric, flag("largest", largest))

    def undecided(self, metric: str = "error") -> list[tuple[Cell, Cell]]:
        """The pairs of settings, at the same model, guidance scale and budget, whose order in a metric is not certain.

        Settings whose values differ by less than 1 %, with 95 % probability, are equal and not listed.

        Raises:
            UnknownNameError: no cell has the metric.
        """
        return undecided_pairs(self.cells, known_metric(self.cells, metric))[0]

    def check(self, *rules: str, baseline: Comparison | str | Path | None = None) -> list[Check]:
        """Apply rules to every cell, for continuous integration.

        Args:
            rules: each "METRIC OP NUMBER", such as "frechet>0.5", or "METRIC OP NUMBERx" for a multiple of the
                baseline's value, such as "error>1.1x". METRIC is a name as in `recommend`, or "nfe"; OP is >, >=, < or
                <=. A cell fails if its value fulfils the rule with its whole 95 % interval, if that is known.
            baseline: an earlier comparison, its compare.json or the folder with it. A cell that is missing, or that
                cannot be run any more, fails. Its settings, budgets, models and guidance scales are recognised by their
                labels.

        Returns:
            a `Check` for each rule and cell; `outcome` is "failed", "passed", "uncertain" or "skipped".

        Raises:
            UsageError: not a rule, an unknown metric, no baseline for a relative rule, or a baseline with another seed,
                number of samples, condition or model, whose values cannot be compared.
        """
        former = Comparison.load(baseline) if isinstance(baseline, str | Path) else baseline
        return check_cells(self, [Rule.parse(rule) for rule in rules], former)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the samples; sdesamplers/comparison/schema.json describes it."""
        facts = self.all_groups[0].facts
        return {
            "schema_version": SCHEMA_VERSION,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "repeats": self.repeats,
            "environment": facts.get("environment", {}),
            "arguments": {key: value for key, value in facts.items() if key not in (*OF_GROUPS, "environment")},
            "groups": [group._as_group() for group in self.all_groups],
            "cells": [asdict(cell) for cell in self.cells],
        }

    def _as_group(self) -> dict[str, Any]:
        """What belongs to one model and guidance scale."""
        return {
            "model_name": self.model_name,
            "guidance_scale": self.guidance_scale,
            "model": self.facts.get("model", {}),
            "scorer": self.facts.get("scorer"),
            "metrics": self.metrics,
            "floor": None if self.floor is None else asdict(self.floor),
            "reference_count": self.reference_count,
            "reference_nfe": self.reference_nfe,
            "data_range": None if self.data_range is None else list(self.data_range),
        }

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Read the compare.json that `save` or `sdesamplers compare` wrote, of this version or an earlier one.

        The samples and images are not part of the file.

        Args:
            path: the file, or the folder with compare.json.

        Raises:
            UsageError: no such file, not a comparison, or one of a newer release.
        """
        data = read_comparison(path)
        known = {entry.name for entry in fields(Cell)}
        cells = [Cell(**{key: value for key, value in cell.items() if key in known}) for cell in data["cells"]]
        groups = []
        for group in data["groups"]:
            name, scale, floor = group["model_name"], group["guidance_scale"], group.get("floor")
            of_group = {key: group[key] for key in OF_GROUPS if group.get(key) is not None}
            groups.append(
                cls(
                    model_name=name,
                    num_samples=data["num_samples"],
                    seed=data["seed"],
                    cells=[cell for cell in cells if (cell.model, cell.guidance_scale) == (name, scale)],
                    samples={},
                    data_range=None if group.get("data_range") is None else tuple(group["data_range"]),
                    floor=None
                    if floor is None
                    else Score(floor["count"], floor["frechet"], floor["sliced_wasserstein"]),
                    metrics=group.get("metrics", ""),
                    reference_count=group.get("reference_count", 0),
                    reference_nfe=group.get("reference_nfe", 0),
                    facts={**data["arguments"], "environment": data["environment"], **of_group},
                    repeats=data["repeats"],
                )
            )
        return cls.of_groups(groups)

    def as_csv(self) -> str:
        """The cells as CSV with a header; shared values are repeated in each row."""
        text = io.StringIO()
        rows = [row for group in self.all_groups for row in group._as_rows()]
        names = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(text, [*names], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def _as_rows(self) -> list[dict[str, Any]]:
        """The rows of one model and guidance scale."""
        model = self.facts.get("model", {})
        shared = {
            "model": self.model_name,
            "revision": model.get("revision"),
            "weights_sha256": model.get("weights_sha256"),
            "num_samples": self.num_samples,
            "seed": self.seed,
            "repeats": self.repeats,
            "versions": json.dumps(self.facts.get("environment", {})),
            "schema_version": SCHEMA_VERSION,
        }
        return [{**cell.as_row(), **shared} for cell in self.cells]

    def picture(self, each: int = 4) -> Image:
        """A table of images with rows of samplers, columns of budgets and `each` samples per cell.

        Vectors are shown as scatter plots. Several models and guidance scales are below each other.

        Raises:
            UsageError: samples of this shape cannot be shown, or matplotlib is missing for vectors.
        """
        if not self.groups:
            return comparison_picture(self, each)
        titles = [f"{group.model_name}, guidance scale {group.guidance_scale:g}" for group in self.groups]
        return stacked([comparison_picture(group, each) for group in self.groups], titles)

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

        return plot(self.select(), figure, axes, **options)

    def save_figures(self, folder: str | Path, formats: str | Sequence[str] = "png") -> list[Path]:
        """Write all figures that the comparison has data for, each atomically; return their paths.

        Args:
            folder: created if it does not exist.
            formats: one or several of "png", "svg" and "pdf".

        Raises:
            UsageError: an unknown format, or matplotlib is missing.
        """
        from ..report.plots import save_figures

        return save_figures(self.select(), folder, formats)

    def report(self, path: str | Path) -> Path:
        """Write a page with all figures, samples and numbers: one HTML file that needs no network; return its path.

        Trajectories are shown if the comparison keeps them (`compare(..., trajectories=3)`).

        Args:
            path: the file, or a folder, in which it is named compare.html.

        Raises:
            UsageError: matplotlib or Jinja2 is missing, or there are several models or guidance scales: write a page of
                each of `groups`.

        Example:
            >>> sds.compare(model, ["heun", "unipc"], [5, 10, 20], trajectories=3).report("compare.html")
        """
        from ..report.page import write_page

        return write_page(self.select(), path)

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write compare.json, compare.csv and compare.png, each atomically; return their paths by type.

        compare.png is omitted, with a warning, if samples of this shape cannot be shown.
        """
        out = make_folder(folder)
        files = {
            "json": write(
                out / FILE, json.dumps(without_nan(self.as_dict()), indent=2, default=str, allow_nan=False) + "\n"
            ),
            "csv": write(out / "compare.csv", self.as_csv()),
        }
        try:
            picture = self.picture()
        except UsageError as reason:
            warn(f"compare.png is not written: {reason}")
            return files
        return {"png": write(out / "compare.png", lambda path: picture.save(path, format="PNG")), **files}


def stacked(pictures: Sequence[Image], titles: Sequence[str]) -> Image:
    """Pictures below each other, each with a title."""
    from PIL import Image, ImageDraw, ImageFont  # only images need it

    font, line = ImageFont.load_default(20), 40
    width = max(*(picture.width for picture in pictures), *(int(font.getlength(title)) + 24 for title in titles))
    sheet = Image.new("RGB", (width, sum(picture.height + line for picture in pictures)), "white")
    draw, y = ImageDraw.Draw(sheet), 0
    for picture, title in zip(pictures, titles, strict=True):
        draw.text((12, y + line / 2), printable(title), "black", font, "lm")
        sheet.paste(picture, (0, y + line))
        y += line + picture.height
    return sheet


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
