"""From a recipe to a path and a started run; dry runs, which count evaluations and find the intervals of the noise."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import PluginError, SdesamplersError, UsageError, add_note
from ..path.grid import given_points, spaced_points
from ..path.noise import Noise
from ..path.path import Path
from ..path.points import path_process
from ..path.prediction import Prediction, ScorePrediction
from ..processes.sde import SDE, GaussianProcess
from ..registry.plugin import Sampler
from ..registry.registry import default_registry
from .diagnosis import diagnosed
from .loop import Run, well_formed
from .recent import Grid, RecentGrids
from .recipe import Recipe, spacing_of


def make_path(process: SDE, recipe: Recipe, noise: Noise | None = None) -> Path:
    """The path of a recipe on a model's process."""
    if recipe.times is not None or recipe.sigmas is not None:
        viewed = path_process(process, recipe.coordinates)
        return Path(viewed, given_points(viewed, recipe.times, recipe.sigmas), noise=noise)
    free = recipe.steps is None
    spacing = default_registry().spacing("linspace") if free else spacing_of(recipe)
    options = {} if free else recipe.spacing_options

    def compute() -> Grid:
        viewed, steps = path_process(process, recipe.coordinates), recipe.steps
        if steps is None:  # the two ends
            steps = 2 if recipe.final == "zero" and isinstance(process, GaussianProcess) else 1
        return viewed, spaced_points(viewed, spacing, options, steps, recipe.start_time, recipe.final)

    try:
        if spacing.is_built_in:
            key = spacing, repr((options, recipe.steps, recipe.start_time, recipe.final, recipe.coordinates))
            viewed, points = RECENT.get(process, key, compute)
        else:
            viewed, points = compute()
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"spacing {recipe.spacing or spacing.name!r}: {error}") from None
    return Path(viewed, points, is_free=free, noise=noise)


RECENT = RecentGrids()


def start_run(spec: Sampler, x: Tensor, path: Path, options: dict[str, Any]) -> Run:
    """Start a sampler's generator.

    A ValueError before the first evaluation, which concerns the options or the grid, becomes a UsageError. Errors of a
    third-party plugin become a PluginError that names the plugin, file, line, step and likely cause; those of the
    program's own samplers are raised as they are, with the step and the cause in a note.

    Raises:
        PluginError: by the generator, if it exceeds `evaluation_limit` evaluations.
    """

    generator: Any = spec(x, path, **options)  # created here, so that the run does not keep its initial state alive
    limit = evaluation_limit(spec, path, options)

    def run() -> Run:
        requested, request = 0, None
        try:
            request = next(generator)
            while True:
                requested += len(request) if request.__class__ is list else 1
                if requested > limit:
                    raise endless(spec, path, limit, generator.gi_frame.f_lineno)
                request = generator.send((yield request))
        except StopIteration as stop:
            end: Tensor = stop.value
            return end
        except UsageError as error:
            raise UsageError(f"{spec.name}: {error}") if type(error) is UsageError else error from None
        except Exception as error:
            if isinstance(error, SdesamplersError | MemoryError) or "memory" in str(error):
                raise  # callers handle out-of-memory errors by halving the batch
            where = diagnosed(error, path, request)
            if isinstance(error, ValueError) and not requested:
                raise UsageError(f"{spec.name}: {error}{f' {where}' if where.cause else ''}") from error
            if not spec.is_anothers:
                add_note(error, f"raised by the sampler {spec.name!r} {where}")
                raise
            raise spec.blamed(error, f" {where}") from error
        finally:
            generator.close()

    return run()


FREE_LIMIT = 100_000
"""Evaluation limit of a run that chooses its own steps; raised if the sampler's own `max_nfe` is larger."""


def evaluation_limit(spec: Sampler, path: Path, options: Mapping[str, Any]) -> int:
    """The number of evaluations after which a sampler is assumed never to end: 100 times the number it declares.

    Samplers that do not declare their evaluations may make 1000 per step.
    """
    if path.is_free:
        return max(FREE_LIMIT, int(options.get("max_nfe", 0)) + 100)
    declared = 10 if spec.evaluations is None else max(spec.evaluations, 1)
    numbers = [value for value in options.values() if type(value) is int and value > 1]
    return 1000 + 100 * declared * (len(path.points) - 1) * max([1, *numbers])


def endless(spec: Sampler, path: Path, limit: int, line: int) -> PluginError:
    """The error for a sampler that does not end."""
    place = f"{pathlib.Path(spec.function.__code__.co_filename).name}, line {line}"
    declared = "" if path.is_free else f" on a grid of {len(path.points) - 1} steps"
    of = f" of plugin {spec.plugin}" if spec.plugin else ""
    return PluginError(
        f"sampler {spec.name!r}{of} ({place}) requested more than {limit} evaluations{declared} and seems never to "
        "end; a sampler that needs more must declare evaluations="
    )


def evaluations(process: SDE, recipe: Recipe, spec: Sampler, shape: Sequence[int] = (1,)) -> int:
    """The number of model evaluations of a fixed-grid recipe for samples of `shape`, counted by a dry run on zeros."""
    zeros = torch.zeros(1, *shape)
    path = make_path(process, recipe, lambda start, end, rows=None: zeros)
    return count_evaluations(start_run(spec, zeros, path, recipe.options), spec.name)


def draw_clocks(spec: Sampler, path: Path, options: dict[str, Any], shape: Sequence[int]) -> list[float]:
    """The ends, on `Path.clock`, of all intervals for which a run draws noise, found by a dry run on zeros."""
    zeros, clocks = torch.zeros(1, *shape), list[float]()

    def record(start: float, end: float, rows: Any = None) -> Tensor:
        clocks.extend((start, end))
        return zeros

    count_evaluations(start_run(spec, zeros, Path(path.process, path.points, noise=record), options), spec.name)
    return clocks


def steps_for_budget(process: SDE, recipe: Recipe, spec: Sampler, nfe: int, shape: Sequence[int] = (1,)) -> int:
    """The largest number of steps whose evaluations fit in `nfe`.

    Raises:
        UsageError: not even one step fits, or the sampler's number of evaluations is not known in advance.
    """

    if spec.evaluations is None:
        raise UsageError(
            f"{spec.name}'s number of evaluations depends on the states, so nfe= cannot be planned; pass steps=..."
        )

    def cost(steps: int) -> float:
        try:
            return evaluations(process, replace(recipe, steps=steps), spec, shape)
        except UsageError:
            if steps == 1:
                raise
            return math.inf  # more steps than this spacing allows

    low = max(1, nfe // max(spec.evaluations, 1))
    while cost(low) > nfe:
        if low == 1:
            raise UsageError(f"{spec.name} needs {cost(1)} evaluations for its first step; nfe={nfe} is too few")
        low = max(1, low - max(1, low // 8))
    while low <= nfe and cost(low + 1) <= nfe:  # `low <= nfe`: a sampler's cost may not grow with its steps
        low += 1
    return low


def count_evaluations(run: Run, label: str = "") -> int:
    """The number of evaluations of a run, counted by sending it predictions of zeros; nothing is sampled.

    Raises:
        PluginError: the run requests something that is not (state, point); its message begins with `label`.
    """
    count = 0
    try:
        request = next(run)
        while True:
            requests = request if isinstance(request, list) else [request]
            predictions = []
            for x, point in (well_formed(each, label) for each in requests):
                gaussian = isinstance(point.process, GaussianProcess)
                make = Prediction if gaussian else ScorePrediction
                zeros = torch.zeros_like(x)
                prediction = make(x, point, zeros, "v")
                prediction.unguided, prediction.log_density = make(x, point, zeros, "v"), x.new_zeros(len(x))
                predictions.append(prediction)
            count += len(requests)
            request = run.send(predictions if isinstance(request, list) else predictions[0])
    except StopIteration:
        return count
