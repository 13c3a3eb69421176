"""`compare`: samplers from the same starting noise, at the same numbers of evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..categories import OutputWarning
from ..checks import function, number, shown, warn, whole
from ..errors import Cancelled, SdesamplersError, UnknownNameError, UsageError, last_place
from ..generation.identity import Facts, environment, model_facts, plain
from ..metrics import FeatureScorer, Score
from ..metrics.intervals import jackknife_groups
from ..models.base import Model
from ..pretrained.loading import as_model
from ..public import public
from ..registry.plugin import Sampler
from ..sampling.arguments import tables_at_hand
from ..sampling.request import CONDUCT_FIELDS, REQUEST_FIELDS
from ..sampling.result import Trajectory
from ..sampling.table import budgets_by_scale
from .cache import Cache, scorer_identity
from .cell import Cell
from .recommendation import remark
from .result import Comparison
from .runs import Plan, Run, Runner, measured_by
from .scoring import Metric, check_metrics, check_scorer, find_scorer, noise_images
from .settings import Compared, Setting, as_settings, checked

CELLS = ".cells"
"""The folder of finished runs in the output folder of `sdesamplers compare`."""


@public
def compare(
    model: Model | str | Sequence[Model | str],
    samplers: Compared | Sequence[Compared] | Mapping[str, Compared],
    nfe: int | Sequence[int] = (5, 10, 20, 50),
    *,
    num_samples: int = 64,
    seed: int = 0,
    repeats: int = 1,
    guidance_scale: float | Sequence[float] = 1.0,
    batch_size: int | None = 64,
    reference_samples: int = 16,
    trajectories: int = 0,
    scorer: FeatureScorer | None = None,
    metrics: Mapping[str, Metric] | None = None,
    keep_samples: int | None = None,
    cache: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
    on_cell: Callable[[Cell], None] | None = None,
    **options: Any,
) -> Comparison:
    """Compare samplers at the same budgets of model evaluations, from the same starting noise.

    Args:
        model: a `Model` or any argument of `load`, or a list of them. All are loaded before the first run.
        samplers: one or several settings, or a dictionary of them by label. A setting is the name of a sampler, recipe
            or alias; a text NAME KEY=VALUE ... with its own grid and options, such as "dpmpp-2m spacing=karras" or
            "ddim eta=0.5 spacing=karras spacing.rho=5"; a `Sampler` or `SolverTable`; the result of `tune`; a `Recipe`
            or its dictionary; or the path or address on the Hub of a recipe or of tables. Of several tables each budget
            takes its own. The number of steps of a `Recipe` follows from the budgets.
        nfe: one or several budgets of model evaluations per sample.
        num_samples: number of samples; distances need hundreds, and their floor is computed for the same number.
        seed: the samples of all settings begin at the noise of this seed.
        repeats: number of runs of each setting, with the seeds seed, seed + 1, ...; two or more give intervals for all
            values.
        guidance_scale: one or several classifier-free guidance weights.
        reference_samples: number of samples on which the error of deterministic samplers is measured, against rk45 at
            rtol = atol = 1e-5 with a float64 state from the same noise; 0 for no error.
        trajectories: number of samples whose states on the way are kept, for figures. They are drawn again, in a run
            of their own that is not timed.
        scorer: metrics, a `FeatureScorer`; by default the registry's for the model. It is first tested on two noise
            images. Its optional methods `floor(count)` and `frechet_error(features)` return the scores of `count` real
            images and the standard error of a Fréchet distance. If it fails later, the cell contains the reason and
            its other values.
        metrics: your own measures by name: functions of the samples (N, *shape), decoded if they are latents, that
            return a number or N numbers. They are first tested on noise.
        keep_samples: number of samples of each cell in the result, the first ones of the first repeat. By default as
            many as have 2^20 numbers, at least 16.
        cache: a folder for finished runs. A comparison that is interrupted, or that gets another setting, budget,
            model, guidance scale or repeat, takes from it all runs that it has in common with earlier ones. A run is
            recognised by everything that determines its values: weights, recipe, code of the sampler, seed, condition,
            scorer, metrics, versions. Models, metrics and scorers whose state cannot be compared need an attribute
            `identity`, a text that changes with them; without it their runs are made again, with a warning.
        progress: called with a line of text before each run.
        on_cell: called with each `Cell` when it is finished.
        **options: more arguments of `sample` (spacing, coordinates, condition, ...) and options of the samplers, for
            all settings; a setting's own ones replace them.

    Returns:
        a `Comparison` with a cell for each setting and budget, of each model and guidance scale. A warning tells for
        how many pairs of settings the number of samples is too small to tell which is better.

    Raises:
        UsageError: before any run: an unknown name, an invalid option, or a scorer or metric that does not work.
        Cancelled: a run was cancelled.

    Example:
        >>> result = sds.compare("fashion-mnist", ["quality", "dpmpp-2m spacing=karras"], [5, 10], cache="runs")
        >>> print(result.recommend(nfe=10))
    """
    settings = as_settings(samplers)
    budgets = [whole("nfe", budget) for budget in (nfe if isinstance(nfe, Sequence) else [nfe])]
    if {"times", "sigmas", "steps"} & set(options):
        raise UsageError("compare runs every sampler at budgets of evaluations (nfe=); for steps= or a grid use sample")
    if not settings or not budgets:
        raise UsageError("compare needs at least one sampler and one number of evaluations")
    scales = as_scales(guidance_scale)
    report = function("progress", progress) or (lambda line: None)
    function("on_cell", on_cell, "a Cell")
    whole("seed", seed, 0)
    repeats, trajectories = whole("repeats", repeats), whole("trajectories", trajectories, 0)
    if cache is not None and not (isinstance(cache, str | Path) and str(cache)):
        raise UsageError(f"cache must be a folder, not {shown(cache)}")
    folder = None if cache is None else Path(cache)
    plan = Plan(
        whole("num_samples", num_samples),
        None if batch_size is None else whole("batch_size", batch_size),
        min(whole("reference_samples", reference_samples, 0), num_samples),
        None if keep_samples is None else whole("keep_samples", keep_samples),
        check_metrics(metrics),
        dict(options),
    )
    models = as_models(model)
    contests = [
        contest
        for label, each in models.items()
        for contest in contests_of(label, each, scales, settings, plan, scorer, folder)
    ]
    if cache is not None:
        warn_of_unknown(plan, [contest.scorer for contest in contests])
    groups = []
    for contest in contests:
        seeds = range(seed, seed + repeats)
        groups.append(contest.held(settings, budgets, seeds, min(trajectories, num_samples), report, on_cell))
    result = Comparison.of_groups(groups)
    line = remark(result.cells, num_samples, repeats)
    if line:
        warn(line)
    return result


def as_scales(guidance_scale: Any) -> list[float]:
    """Guidance scales as different numbers."""
    listed = isinstance(guidance_scale, list | tuple | range) or getattr(guidance_scale, "ndim", 0) == 1
    scales = [number("guidance_scale", scale) for scale in (guidance_scale if listed else [guidance_scale])]
    if not scales:
        raise UsageError("compare needs at least one guidance_scale")
    return list(dict.fromkeys(scales))


def as_models(model: Any) -> dict[str, Model]:
    """Models by unique labels, which are their names."""
    each = list(model) if isinstance(model, list | tuple) else [model]
    if not each:
        raise UsageError("compare needs at least one model")
    found: dict[str, Model] = {}
    for item in each:
        made = as_model(item)
        if any(made is known for known in found.values()):
            continue
        same = sum(label.partition(" #")[0] == made.name for label in found)
        found[f"{made.name} #{same + 1}" if same else made.name] = made
    return found


def contests_of(
    label: str,
    model: Model,
    scales: Sequence[float],
    settings: Sequence[Setting],
    plan: Plan,
    scorer: FeatureScorer | None,
    cache: Path | None,
) -> Iterator[Contest]:
    """A contest for each guidance scale, after all checks that concern the model."""
    specs = [checked(setting, model, plan.options) for setting in settings]
    check_option_names(plan.options, specs)
    scorer = scorer if scorer is not None else find_scorer(model.name)
    floor = None if scorer is None or plan.num_samples < 2 else check_scorer(scorer, model, plan.num_samples)
    try_metrics(plan, model)
    facts = model_facts(model)
    for scale in scales:
        yield Contest(
            label, facts, model, scale, plan, scorer, floor, not all(spec.stochastic for spec in specs), Cache(cache)
        )


def check_option_names(options: Mapping[str, Any], specs: Sequence[Sampler]) -> None:
    """Raise UnknownNameError for an option that neither `sample` nor any of the samplers has."""
    arguments = REQUEST_FIELDS | CONDUCT_FIELDS | {"condition", "start", "first_index", "progress"}
    known = [*arguments, *(name for spec in specs for name in spec.options)]
    for name in options:
        if name not in known:
            raise UnknownNameError("option", name, known, " (no compared sampler has it, nor has sample)")


def try_metrics(plan: Plan, model: Model) -> None:
    """Raise a UsageError if a metric does not work on noise."""
    if not plan.metrics:
        return
    shape = noise_images(model).shape[1:]
    noise = torch.rand(plan.num_samples, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name, each in plan.metrics.items():
        try:
            measured_by(name, each, noise)
        except Exception as error:
            raise UsageError(
                f"metric {name!r} does not work on noise: {type(error).__name__}: {error}{last_place(error)}"
            ) from error


def warn_of_unknown(plan: Plan, scorers: Sequence[FeatureScorer | None]) -> None:
    """Warn if finished runs cannot be recognised, so that the cache is of no use."""
    unknown = [f"metric {name!r}" for name, identity in plan.metric_identities.items() if identity is None]
    unknown += [
        f"scorer {type(each).__name__}" for each in scorers if each is not None and scorer_identity(each) is None
    ]
    unknown += ["a callback"] if plan.options.get("callback") is not None else []
    if unknown:
        warn(
            f"{', '.join(dict.fromkeys(unknown))} cannot be compared with that of earlier runs, which are made again; "
            "give it an attribute `identity`, a text that changes with what it computes"
        )


@dataclass
class Contest:
    """All settings of a comparison for one model at one guidance scale.

    Attributes:
        label, about: the model's label and facts.
        model, guidance_scale, plan, scorer, cache: see `Runner`.
        floor: the scores of real images.
        has_reference: True if a setting may be deterministic, so that an ODE reference is needed.
    """

    label: str
    about: Facts
    model: Model
    guidance_scale: float
    plan: Plan
    scorer: FeatureScorer | None
    floor: Score | None
    has_reference: bool
    cache: Cache

    def held(
        self,
        settings: Sequence[Setting],
        budgets: Sequence[int],
        seeds: Sequence[int],
        trajectories: int,
        report: Callable[[str], None],
        on_cell: Callable[[Cell], None] | None,
    ) -> Comparison:
        """Run all settings at all budgets."""
        model, plan = self.model, self.plan
        runner = Runner(model, self.guidance_scale, self.about, plan, self.scorer, self.cache, report)
        wanted = bool(plan.reference_samples) and self.has_reference
        truth = runner.reference(seeds[0]) if wanted else None
        cells, pictures, paths = list[Cell](), dict[tuple[str, int], Tensor](), dict[tuple[str, int], Trajectory]()
        for setting in settings:
            for budget in budgets:
                runs = [runner.run(setting, budget, seed)[0] for seed in seeds]
                cells.append(self.cell(setting, budget, runs))
                if runs[0].samples is not None:
                    pictures[setting.label, budget] = runs[0].samples
                    if trajectories:
                        self.keep_trajectory(paths, runner, setting, budget, seeds[0], trajectories)
                if on_cell is not None:
                    on_cell(cells[-1])
        return Comparison(
            model_name=self.label,
            num_samples=plan.num_samples,
            seed=seeds[0],
            cells=cells,
            samples=pictures,
            data_range=model.decoded_range,
            floor=self.floor,
            metrics="" if self.scorer is None else str(self.scorer.description),
            reference_count=0 if truth is None else plan.reference_samples,
            reference_nfe=0 if truth is None else truth.nfe,
            facts=self.facts(),
            reference=None if truth is None else runner.decoded_reference(seeds[0]),
            trajectories=paths,
            repeats=len(seeds),
        )

    def keep_trajectory(
        self,
        paths: dict[tuple[str, int], Trajectory],
        runner: Runner,
        setting: Setting,
        budget: int,
        seed: int,
        count: int,
    ) -> None:
        """Add the states of a few samples on the way; a failure only warns, since a figure is not worth the runs."""
        try:
            paths[setting.label, budget] = runner.trajectory(setting, budget, seed, count)
        except Cancelled:
            raise
        except SdesamplersError as refusal:
            warn(f"no trajectories of {setting.label} at {budget} evaluations: {refusal}", OutputWarning)

    def facts(self) -> dict[str, Any]:
        """The data shared by all cells, as plain data: the model, the call's arguments, versions."""
        plan, scorer = self.plan, self.scorer
        about = None if scorer is None else {"class": type(scorer).__name__, "description": str(scorer.description)}
        arguments = {key: plain(value) for key, value in plan.options.items()}
        if plan.options.get("dtype") is not None:
            arguments["dtype"] = str(plan.options["dtype"]).removeprefix("torch.")
        shared = {**arguments, "batch_size": plan.batch_size, "guidance_scale": self.guidance_scale}
        tables = budgets_by_scale(tables_at_hand(self.model.process))
        model = {**self.about, **({"solver_tables": tables} if tables else {})}
        return {**shared, "model": model, "scorer": about, "environment": environment(self.model)}

    def cell(self, setting: Setting, budget: int, runs: Sequence[Run]) -> Cell:
        """The cell of a setting's runs with different seeds."""
        place: dict[str, Any] = {"model": self.label, "guidance_scale": self.guidance_scale}
        refused = next((run for run in runs if run.problem is not None), None)
        if refused is not None:
            return Cell(setting.label, budget, problem=refused.problem, **place)
        first = runs[0]
        errors = [run.errors for run in runs if run.errors is not None]
        joined = [value for each in errors for value in each] if len(errors) == len(runs) else None
        names = [name for name in first.metrics if all(name in run.metrics for run in runs)]
        spreads = [run.frechet_error for run in runs if run.frechet_error is not None]
        made = Cell(
            setting.label,
            budget,
            nfe=max(run.nfe or 0 for run in runs),
            steps=first.steps,
            seconds=mean([run.seconds for run in runs]),
            error=None if joined is None else float(np.sqrt(np.square(joined).mean())),
            errors=joined,
            drew_noise=any(run.drew_noise for run in runs),
            frechet=mean([run.frechet for run in runs]),
            frechet_error=float(np.sqrt(np.square(spreads).sum()) / len(runs)) if len(spreads) == len(runs) else None,
            frechet_freedom=max(jackknife_groups(self.plan.num_samples) - 1, 1) if spreads else None,
            sliced_wasserstein=mean([run.sliced_wasserstein for run in runs]),
            scoring_problem=next((run.scoring_problem for run in runs if run.scoring_problem), None),
            recipe=first.recipe,
            times=first.times,
            ratios=first.ratios,
            metrics={name: float(np.mean([run.metrics[name] for run in runs])) for name in names},
            per_sample={name: [value for run in runs for value in run.per_sample[name]] for name in names
                        if all(name in run.per_sample for run in runs)},
            repeats=[repeat_of(run) for run in runs] if len(runs) > 1 else [],
            **place,
        )  # fmt: skip
        for name in ("error", "frechet", "sliced_wasserstein", *names, "seconds"):
            if (ends := made.interval(name)) is not None:
                made.intervals[name] = list(ends)
        return made


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values of all repeats; None if one has none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def repeat_of(run: Run) -> dict[str, Any]:
    """The values of one repeat, as plain data."""
    names = ("seed", "seconds", "error", "frechet", "sliced_wasserstein")
    return {**{name: getattr(run, name) for name in names}, **run.metrics}
