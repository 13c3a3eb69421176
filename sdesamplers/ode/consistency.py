"""How consistent a model's one-step predictions are along a trajectory of the probability-flow ODE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import whole
from ..errors import UsageError
from ..models.base import Model
from ..models.conditions import take_rows
from ..models.running import running
from ..path.noise import NormalSource, check_seed
from ..path.path import Path
from ..path.prediction import Prediction
from ..pretrained.loading import as_model
from ..public import public
from ..registry.plugin import Sampler
from ..sampling.loop import Evaluator, drive
from ..sampling.prepared import as_start, start_state
from ..sampling.recipe import Recipe
from ..sampling.request import Conduct, Request, batches
from ..sampling.runs import make_path, start_run
from .integration import from_path, ode_recipe


@public
@dataclass(eq=False, repr=False)
class Consistency:
    """The result of `consistency_error`.

    Attributes:
        times: (K,) native times, from noise to data.
        squared: (N, K) float64, |f(x_t, t) - x_0|^2 / D of each trajectory, in squared data units.
        samples: (N, *shape) the ends x_0 of the trajectories, on the CPU.
        recipe: the recipe of the trajectories.
    """

    times: np.ndarray
    squared: np.ndarray
    samples: Tensor
    recipe: Recipe

    @property
    def error(self) -> np.ndarray:
        """(K,) the root of the mean square over trajectories and dimensions, in data units."""
        return np.sqrt(self.squared.mean(0))

    @property
    def standard_error(self) -> np.ndarray:
        """(K,) the standard error of `error` over the trajectories, to first order; NaN for a single trajectory."""
        if len(self.squared) < 2:
            return np.full(len(self.times), np.nan)
        spread = self.squared.std(0, ddof=1) / np.sqrt(len(self.squared))
        return np.divide(spread, 2 * self.error, out=np.zeros_like(spread), where=self.error > 0)

    def __repr__(self) -> str:
        worst = int(self.error.argmax())
        return (
            f"<Consistency of {len(self.squared)} trajectories by {self.recipe.sampler!r}: "
            f"error at most {self.error[worst]:.4g} ({self.standard_error[worst]:.1g}), at t = {self.times[worst]:.4g}>"
        )


@public
def consistency_error(
    model: Model | str,
    sampler: str | Sampler | Recipe | Mapping[str, Any] = "heun",
    *,
    along: Model | str | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    times: Any = None,
    spacing: str | None = None,
    spacing_options: dict[str, Any] | None = None,
    coordinates: str | None = None,
    seed: int = 0,
    num_samples: int | None = None,
    batch_size: int | None = None,
    start: Tensor | None = None,
    condition: Any = None,
    guidance_scale: float = 1.0,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Consistency:
    """Distance of f(x_t, t), the model's x0 prediction, from the end of the ODE trajectory through x_t.

    A consistency model's f should equal the trajectory's end at every point of a trajectory of the probability-flow ODE
    (Song et al. 2023, definition 1). A diffusion model's f is E[x0 | x_t]; its distance is the error of a single step
    from there, a measure of the curvature of the trajectories.

    Args:
        model: a `Model`, or any argument of `load`.
        sampler: the solver of the ODE, a name or a `Sampler`; for a stochastic sampler, the options that turn its noise
            off are set. Its own error should be small compared with the distance to be measured.
        along: the model that defines the ODE, on the same process; by default `model`. For a consistency model pass
            the diffusion model from which it was distilled: its f is not E[x0 | x_t] and defines no ODE.
        steps, nfe, times, spacing, spacing_options, coordinates, seed, num_samples, batch_size, start, condition,
        guidance_scale, dtype, **options: as in `sample`; the errors are given at all times of the grid except the end.

    Returns:
        a `Consistency` with the errors at each time.

    Raises:
        UsageError: invalid or conflicting arguments, no grid, a sampler that does not follow the ODE, or models with
            different processes.
        ConversionError: x0 does not follow from the prediction at the grid's first time (epsilon at alpha = 0).
    """
    model = as_model(model)
    guide = model if along is None else as_model(along)
    _ = guide.gaussian, model.gaussian  # raises an error if there is no x0
    grid = Request(sampler, steps, nfe, spacing, spacing_options, times, coordinates=coordinates, options=options)
    recipe, spec = ode_recipe(guide, grid)
    recipe = replace(recipe, final="zero")
    if recipe.steps is None and recipe.times is None:
        raise UsageError(f"{spec.name} would choose its own steps; consistency_error needs a grid: steps= or times=")
    start = None if start is None else as_start(start, True)
    conduct = Conduct(guidance_scale, dtype=dtype)
    check_seed(seed)
    if start is not None and tuple(start.shape[1:]) != guide.shape:
        raise UsageError(f"start must have shape (N, {', '.join(map(str, guide.shape))}), not {tuple(start.shape)}")
    count = num_samples if num_samples is not None else 1 if start is None else len(start)
    whole("num_samples", count)
    all_rows = [*batches(count, batch_size)]
    if start is not None and len(start) != count:
        raise UsageError(f"start contains {len(start)} states, not num_samples={count}")
    state = dtype or (torch.float64 if guide.dtype == torch.float64 else torch.float32)
    if along is not None:
        check_same_process(model, guide, make_path(guide.process, recipe))
    spread = guide.condition_for(condition, count)
    clock, squared, ends = np.empty(0), list[np.ndarray](), list[Tensor]()
    for rows in all_rows:
        batch = TrajectoryBatch(guide, recipe, spec, take_rows(spread, rows), conduct.guidance_scale)
        source = NormalSource(seed, list(range(rows.start, rows.stop)), guide.shape)
        path = make_path(guide.process, recipe)
        with running(guide, model, key=(seed, rows.start)):
            x = start_state(guide, path, source, None if start is None else start[rows], state)
            end, kept = batch.run(path, x)
            found = batch.x0(kept, None if along is None else model)
            distances = [(f - end).double().square().flatten(1).mean(1) for f in found]
        clock = np.array([prediction.point.t for prediction in kept])
        squared.append(torch.stack(distances, 1).cpu().numpy())
        ends.append(end.cpu())
    return Consistency(clock, np.concatenate(squared), torch.cat(ends), recipe)


def check_same_process(model: Model, guide: Model, path: Path) -> None:
    """Raise unless the processes of two models agree at a path's points."""
    for point in path.points[:-1]:
        there: Any = model.gaussian.schedule(point.t)[:2]  # floats for a float, which the annotation does not state
        if not np.allclose(there, point.native[:2], rtol=1e-6, atol=1e-9):
            raise UsageError(
                f"{model.name!r} and {guide.name!r} have different processes (alpha and sigma differ at "
                f"t = {point.t:g}), so one cannot be evaluated at the other's states"
            )


class TrajectoryBatch:
    """The trajectories of one batch, and the predictions on them."""

    def __init__(self, model: Model, recipe: Recipe, spec: Sampler, condition: Any, guidance_scale: float) -> None:
        self.model, self.recipe, self.spec = model, recipe, spec
        self.condition, self.guidance_scale = condition, guidance_scale

    def run(self, path: Path, x: Tensor) -> tuple[Tensor, list[Prediction]]:
        """Solve the ODE from x; return its end (data) and the predictions at the grid's points before it."""
        kept: dict[float, Prediction] = {}

        def keep(prediction: Prediction) -> None:
            # Of several evaluations at one time only the last is at the trajectory's own state: Runge-Kutta methods
            # evaluate a trial state at the end of a step before the next step begins there.
            if prediction.point.rows is None:
                kept[prediction.point.t] = prediction

        evaluator = self.evaluator(self.model, len(x))
        evaluator.record = keep
        end = drive(start_run(self.spec, x, path, self.recipe.options), evaluator)
        on_grid = [kept[point.t] for point in path.points[:-1] if point.t in kept]
        return from_path(end, path.points[-1], data=True), on_grid

    def x0(self, kept: list[Prediction], other: Model | None) -> list[Tensor]:
        """x0 (N, *shape) as predicted on the trajectory, or as predicted by another model at the same states."""
        if other is None:
            return [prediction.x0 for prediction in kept]
        evaluate = self.evaluator(other, len(kept[0].x))
        return [evaluate(prediction.x, prediction.point).x0 for prediction in kept]

    def evaluator(self, model: Model, count: int) -> Evaluator:
        """An evaluator of a model under the batch's condition."""
        return Evaluator(
            model,
            count,
            f"consistency of {model.name} along {self.spec.name}",
            condition=self.condition,
            guidance_scale=self.guidance_scale,
            both="unguided" in self.spec.needs,
        )
