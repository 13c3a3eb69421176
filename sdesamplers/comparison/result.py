"""`Comparison`: the cells of a comparison with everything that can be done with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..checks import flag, whole
from ..errors import UsageError
from ..hub.upload import Destination
from ..metrics import Score
from ..public import public
from ..sampling.result import Trajectory
from .card import TASK, make_card
from .cell import Cell as Cell
from .document import OF_GROUPS, as_csv, as_document, from_document
from .files import push_comparison, save_files
from .html import comparison_html, text_table
from .picture import comparison_picture, stacked
from .reading import FOLDER, read_comparison
from .recommendation import Recommendation, known_metric, recommend, undecided_pairs
from .rules import Check, Rule, check_cells

if TYPE_CHECKING:
    from huggingface_hub import ModelCard
    from PIL.Image import Image


@public
@dataclass(repr=False)
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
            baseline: an earlier comparison, its compare.json or the folder with it, or their address on the Hub. A cell
                that is missing, or that cannot be run any more, fails. Its settings, budgets, models and guidance
                scales are recognised by their labels.

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
        return as_document(self)

    @classmethod
    def load(cls, source: str | Path, *, token: str | bool | None = None, local_files_only: bool = False) -> Comparison:
        """Read the compare.json that `save` or `sdesamplers compare` wrote, of this version or an earlier one.

        The samples and images are not part of the file.

        Args:
            source: the file, or the folder with compare.json; or their address on the Hub, "hf://owner/name/folder",
                with "@revision" after the name for a branch, tag or commit. Without a path it is the folder compare.
            token: of the Hub; that of the login by default.
            local_files_only: do not connect to the Hub.

        Raises:
            ModelError: the repository cannot be read.
            UsageError: no such file, not a comparison, or one of a newer release.

        Example:
            >>> sds.Comparison.load("hf://owner/results").recommend(nfe=10)
        """
        data = read_comparison(source, token=token, local_files_only=local_files_only)
        return from_document(cls, data)

    def as_csv(self) -> str:
        """The cells as CSV with a header; shared values are repeated in each row."""
        return as_csv(self)

    def __repr__(self) -> str:
        settings = len({cell.sampler for cell in self.cells})
        budgets = ", ".join(str(budget) for budget in dict.fromkeys(cell.budget for cell in self.cells))
        about = f"{self.num_samples} samples of {settings} settings at {budgets} evaluations"
        return f"<Comparison on {self.model_name}: {about}>"

    def __str__(self) -> str:
        return text_table(self)

    def _repr_html_(self) -> str:
        """For notebooks: the table of cells and the picture; nothing is run for it."""
        return comparison_html(self)

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
            figure: "work-precision" (options `x`: "evaluations" or "seconds"; `y`: "error", "frechet",
                "sliced-wasserstein" or the name of one of your metrics), "samples" (`sampler`, `nfe`, `each`),
                "trajectories", "grids" or "errors" (`nfe`, one budget).
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
        return save_files(self, folder)

    def card(
        self,
        *,
        files: Mapping[str, str] | None = None,
        task: str = TASK,
        dataset: tuple[str, str] | None = None,
    ) -> ModelCard:
        """The results as a card for a model's README.md: a table, the picture, and the numbers as a model index.

        The Hub shows a model's results from the metadata at the head of its README.md, the *model index*. Every finite
        error, distance and value of your metrics is an entry there, with its sampler and number of evaluations.

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
        """Upload the files that `save` writes, the page of `report`, and the card, to a Hub repository in one commit.

        The card is README.md, or that of the folder if the repository has another README.md, which is left as it is.
        There is no page of a comparison without samples or of several models or guidance scales, nor, with a warning,
        if matplotlib or Jinja2 is missing.

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
        how: dict[str, Any] = {"private": private, "commit_message": commit_message, "create_pr": create_pr}
        about = {"task": task, "dataset": dataset}
        return push_comparison(self, Destination(repo, revision, token), path, about, **how)
