"""`compare`: samplers from the same starting noise, at the same numbers of evaluations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import function, shown, warn, whole
from ..errors import Cancelled, SdesamplersError, UsageError, last_place
from ..generation.conditions import first_of
from ..generation.identity import environment, model_facts, plain
from ..metrics import FeatureScorer, Score, Scorer
from ..models.base import Model
from ..pretrained.loading import as_model
from ..processes.sde import GaussianProcess
from ..public import public
from ..registry.plugin import Sampler
from ..registry.registry import default_registry
from ..sampling.arguments import make_recipe, refers_to_table
from ..sampling.calls import sample
from ..sampling.recipe import Recipe
from ..sampling.request import Request
from ..sampling.result import Result
from ..sampling.runs import make_path
from ..sampling.sampler_files import recipe_or_name
from ..sampling.table import SolverTable, is_path
from .result import Cell, Comparison, finite_or_none

REFERENCE_TOLERANCE = 1e-5
GRID_ARGUMENTS = ("spacing", "spacing_options", "coordinates", "final", "noise", "noise_options")


Compared = str | Sampler | Recipe | SolverTable
"""The name of a sampler, recipe or alias, a `Sampler`, a solver table, or a `Recipe`, whose number of steps the budgets
replace; or the path or address on the Hub of a recipe or of tables."""


@public
def compare(
    model: Model | str,
    samplers: Compared | Sequence[Compared],
    nfe: int | Sequence[int] = (5, 10, 20, 50),
    *,
    num_samples: int = 64,
    seed: int = 0,
    batch_size: int | None = 64,
    reference_samples: int = 16,
    scorer: FeatureScorer | None = None,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Comparison:
    """Compare samplers at the same budgets of model evaluations.

    Args:
        model: a `Model`, or any argument of `load`.
        samplers: one or several names of samplers, recipes or aliases, `Sampler`, `Recipe` or `SolverTable` objects, or
            paths or addresses on the Hub of recipes and of folders of tables, of which each budget takes its own. The
            spacing, coordinates, noise and options of a `Recipe` are used; its number of steps follows from the
            budgets.
        nfe: one or several budgets of model evaluations per sample.
        num_samples: number of samples; distances need hundreds, and their floor is computed for the same number.
        reference_samples: number of samples on which the error of deterministic samplers is measured, against rk45 at
            rtol = atol = 1e-5 with a float64 state from the same noise; 0 for no error.
        scorer: metrics, a `FeatureScorer`; by default the registry's for this model. It is first tested on two noise
            images. Its optional method `floor(count)` returns the scores of `count` real images. If it fails later, the
            cell contains the reason and its other values.
        progress: called with a line of text before each run.
        **options: more arguments of `sample` (spacing, coordinates, condition, guidance_scale, ...) and options of the
            samplers, for all samplers.

    Returns:
        a `Comparison` with a cell for each sampler and budget.

    Raises:
        UsageError: before any run: an unknown name, an invalid option, or a scorer that does not work.
        Cancelled: a run was cancelled.
    """
    model = as_model(model)
    chosen = listed(samplers)
    budgets = [whole("nfe", budget) for budget in (nfe if isinstance(nfe, Sequence) else [nfe])]
    if {"times", "sigmas", "steps"} & set(options):
        raise UsageError("compare runs every sampler at budgets of evaluations (nfe=); for steps= or a grid use sample")
    if not chosen or not budgets:
        raise UsageError("compare needs at least one sampler and one number of evaluations")
    whole("num_samples", num_samples)
    if batch_size is not None:
        whole("batch_size", batch_size)
    whole("reference_samples", reference_samples, 0)
    specs = [checked(each, model, options) for each in chosen.values()]
    report = function("progress", progress) or (lambda line: None)
    scorer = scorer if scorer is not None else find_scorer(model.name)
    floor = None if scorer is None or num_samples < 2 else check_scorer(scorer, model, num_samples)
    common = {"seed": seed, "num_samples": num_samples, "batch_size": batch_size, **options}
    reference, reference_nfe = None, 0
    first = min(reference_samples, num_samples)
    if first and not all(spec.stochastic for spec in specs):
        report(f"reference: rk45 at tolerance {REFERENCE_TOLERANCE:g} for {first} samples")
        truth = ode_reference(model, first, seed, batch_size, options)
        reference, reference_nfe = truth.samples, truth.nfe
    cells, pictures = [], {}
    for name, each in chosen.items():
        for budget in budgets:
            report(f"{name}, {budget} evaluations")
            cell, samples = _run(model, name, each, budget, common, reference, scorer)
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
        floor=floor,
        metrics="" if scorer is None else str(scorer.description),
        reference_count=first if reference is not None else 0,
        reference_nfe=reference_nfe,
        facts=shared_facts(model, scorer, common),
    )


def listed(samplers: Compared | Sequence[Compared]) -> dict[str, Compared]:
    """Samplers by unique labels.

    Raises:
        UsageError: an object that is not a sampler, or a recipe with its own grid, to which no budget can be applied.
    """
    each = [samplers] if isinstance(samplers, str | Sampler | Recipe | SolverTable) else samplers
    if not isinstance(each, Iterable) or isinstance(each, Mapping | Tensor):
        raise UsageError(f"samplers must be a name, a Sampler, a Recipe or a list of them, not {shown(each)}")
    found: dict[str, Compared] = {}
    for item in each:
        if not isinstance(item, str | Sampler | Recipe | SolverTable):
            raise UsageError(f"samplers must be names, Samplers, Recipes or SolverTables, not {shown(item)}")
        label, item = label_of(item), recipe_or_name(item)
        if isinstance(item, Recipe) and (item.times is not None or item.sigmas is not None):
            raise UsageError("compare runs every sampler at budgets of evaluations, and this Recipe has its own grid")
        if label in found and item == found[label]:
            continue
        same = sum(known.partition(" #")[0] == label for known in found)
        found[f"{label} #{same + 1}" if same else label] = item
    return found


def label_of(item: Compared) -> str:
    """The name of a row."""
    if isinstance(item, str):
        return item
    return item.name if isinstance(item, Sampler) else item.sampler if isinstance(item, Recipe) else "table"


def checked(sampler: Compared, model: Model, options: Mapping[str, Any]) -> Sampler:
    """The `Sampler` of a compared item, after a check that it accepts the call's options.

    Raises:
        UsageError: it cannot run with them.
    """
    # Tables have their own grids, so that only some budgets exist.
    if refers_to_table(sampler) or (isinstance(sampler, str) and is_path(sampler)):
        return default_registry().samplers["table"]
    spec = make_recipe(Request(sampler, 2), process=model.process)[1]
    known = {k: v for k, v in options.items() if k in spec.options}
    arguments = {k: options[k] for k in GRID_ARGUMENTS if k in options}
    make_recipe(Request(sampler, 2, **arguments, options=known), process=model.process)
    return spec


def check_scorer(scorer: FeatureScorer, model: Model, num_samples: int) -> Score | None:
    """Test a scorer on noise; return the floor for `num_samples` real images, or None if it has no floor.

    Raises:
        UsageError: it does not work as a `FeatureScorer`.
    """
    for name in ("description", "features", "score_features"):
        if not hasattr(scorer, name):
            raise UsageError(f"scorer {type(scorer).__name__} lacks {name}; a FeatureScorer has description, features "
                             "and score_features")  # fmt: skip
    try:
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(2, *model.shape, generator=generator) * 2 - 1
        if type(model).decode is not Model.decode:
            noise = model.decode(noise.to(model.device)).cpu()
        features = np.asarray(scorer.features(noise))
        if features.ndim != 2 or len(features) != 2 or features.dtype.kind not in "fiu":
            raise UsageError(f"features of 2 images must be numbers of shape (2, D), not {shown(features)}")
        drawn = np.random.default_rng(0).standard_normal((num_samples, features.shape[1]))
        numbers_of(scorer.score_features(features.mean(0) + drawn))
        floor = getattr(scorer, "floor", None)
    except Exception as error:
        raise UsageError(
            f"scorer {type(scorer).__name__} does not work: {type(error).__name__}: {error}{last_place(error)}"
        ) from error
    if floor is None:
        return None
    try:
        score: Score = floor(num_samples)
    except UsageError as unknown:
        warn(f"the scores have no floor to compare with: {unknown}")
        return None
    return score


def numbers_of(score: Any) -> tuple[float, float | None]:
    """The Fréchet and sliced Wasserstein distances of a scorer's return value.

    Raises:
        UsageError: it is not a `Score`.
    """
    try:
        second = score.sliced_wasserstein
        return float(score.frechet), None if second is None else float(second)
    except (AttributeError, TypeError, ValueError):
        raise UsageError(
            f"score_features must return a Score (count, frechet, sliced_wasserstein), not {shown(score)}"
        ) from None


def shared_facts(model: Model, scorer: FeatureScorer | None, common: Mapping[str, Any]) -> dict[str, Any]:
    """The data shared by all cells of a comparison, as plain data: the model, the call's arguments, versions."""
    arguments = {key: plain(value) for key, value in common.items() if key not in ("seed", "num_samples")}
    arguments.setdefault("guidance_scale", 1.0)
    about = None if scorer is None else {"class": type(scorer).__name__, "description": str(scorer.description)}
    return {**arguments, "model": model_facts(model), "scorer": about, "environment": environment(model)}


def find_scorer(model_name: str) -> Scorer | None:
    """The registry's metrics for a model; None if it has no metrics."""
    entry = default_registry().catalogue.models.get(model_name, {})
    return Scorer(Path(entry["base"]) / entry["metrics"]) if "metrics" in entry else None


def ode_reference(model: Model, count: int, seed: int, batch_size: int | None, options: dict[str, Any]) -> Result:
    """The probability-flow ODE solved to `REFERENCE_TOLERANCE` from the seed's starting noise, in float64."""
    arguments = ("condition", "guidance_scale", "final", "first_index", "start_time")
    kept = {k: v for k, v in options.items() if k in arguments}
    if "condition" in kept:  # only the first `count` samples run here
        kept["condition"] = first_of(kept["condition"], count)
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
    model: Model,
    name: str,
    sampler: Compared,
    budget: int,
    common: dict[str, Any],
    reference: Tensor | None,
    scorer: FeatureScorer | None,
) -> tuple[Cell, Tensor | None]:
    began = time.perf_counter()
    try:
        result = sample(model, sampler, nfe=budget, **common)
    except Cancelled:
        raise
    except SdesamplersError as refusal:
        return Cell(name, budget, problem=str(refusal)), None
    seconds = time.perf_counter() - began
    error = None
    if reference is not None and not result.drew_noise:
        residual = result.samples[: len(reference)].double() - reference
        error = float(residual.square().mean().sqrt())
    frechet, sliced, scoring_problem = _scored(result, scorer)
    points = make_path(model.process, result.recipe).points
    gaussian = isinstance(model.process, GaussianProcess)
    cell = Cell(
        sampler=name,
        budget=budget,
        nfe=result.nfe,
        steps=result.recipe.steps,
        seconds=seconds,
        error=error,
        frechet=frechet,
        sliced_wasserstein=sliced,
        scoring_problem=scoring_problem,
        recipe=result.recipe.as_dict(),
        times=[float(point.t) for point in points],
        ratios=[finite_or_none(point.ratio) for point in points] if gaussian else None,
    )
    return cell, result.decoded


def _scored(result: Result, scorer: FeatureScorer | None) -> tuple[float | None, float | None, str | None]:
    """Both distances of a run's samples, and the reason if the scorer failed."""
    if scorer is None or len(result.samples) < 2:
        return None, None, None
    try:
        return *numbers_of(scorer.score_features(np.asarray(scorer.features(result.decoded)))), None
    except Exception as error:  # a scorer is the user's code, and its failure must not lose the samples
        return None, None, f"{type(error).__name__}: {error}{last_place(error)}"
