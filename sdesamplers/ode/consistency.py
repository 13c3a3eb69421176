"""How consistent a model's one-step predictions are along a trajectory of the probability-flow ODE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import suggest_keywords, whole
from ..errors import UsageError
from ..models.base import Model
from ..path.noise import check_seed
from ..path.path import Path
from ..path.prediction import Prediction
from ..pretrained.loading import as_model
from ..public import public
from ..registry.plugin import Sampler
from ..sampling.loop import Callback, Evaluator
from ..sampling.prepared import PreparedRun, as_start
from ..sampling.recipe import Recipe
from ..sampling.request import Conduct, Request
from ..sampling.runs import make_path
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
@suggest_keywords()
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
        steps, nfe, times, spacing, spacing_options, coordinates, **options: as in `sample`; the errors are given at all
            times of the grid except the end.
        seed, num_samples, batch_size, start, condition, guidance_scale, dtype: as in `sample`.

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
    if start is not None and len(start) != count:
        raise UsageError(f"start contains {len(start)} states, not num_samples={count}")
    if along is not None:
        check_same_process(model, guide, make_path(guide.process, recipe))
    spread = guide.condition_for(condition, count)
    run = TrajectoryRun(guide, recipe, spec, conduct, seed, other=None if along is None else model)
    parts = run.run_all(range(count), spread, start, batch_size)
    return Consistency(run.times, np.concatenate(run.squared), torch.cat([part.samples for part in parts]), recipe)


def check_same_process(model: Model, guide: Model, path: Path) -> None:
    """Raise unless the processes of two models agree at a path's points."""
    for point in path.points[:-1]:
        there: Any = model.gaussian.schedule(point.t)[:2]  # floats for a float, which the annotation does not state
        if not np.allclose(there, point.native[:2], rtol=1e-6, atol=1e-9):
            raise UsageError(
                f"{model.name!r} and {guide.name!r} have different processes (alpha and sigma differ at "
                f"t = {point.t:g}), so one cannot be evaluated at the other's states"
            )


class TrajectoryRun(PreparedRun):
    """Trajectories of the ODE of one model, and the distances from their ends to the x0 predicted along them.

    Args:
        other: the model whose x0 is measured, if it is not the model that defines the ODE.

    Attributes:
        times: (K,) of the grid's points before its end.
        squared: by batch, (N, K).
    """

    def __init__(
        self, guide: Model, recipe: Recipe, spec: Sampler, conduct: Conduct, seed: int, *, other: Model | None
    ) -> None:
        super().__init__(guide, recipe, spec, make_path(guide.process, recipe), conduct, seed, clips=False)
        self.other = None if other is None else PreparedRun(other, recipe, spec, self.path, conduct, seed, clips=False)
        self.times, self.squared = np.empty(0), list[np.ndarray]()
        self.last: dict[float, Prediction] = {}
        self.evaluate_other: Evaluator | None = None

    @property
    def evaluated(self) -> tuple[Model, ...]:
        """The models that are evaluated."""
        return (self.model,) if self.other is None else (self.model, self.other.model)

    def evaluator(self, count: int, condition: Any = None, advance: Callback | None = None) -> Evaluator:
        """The evaluator of one batch, which keeps the last prediction at each time."""
        self.last, evaluator = {}, super().evaluator(count, condition, advance)
        evaluator.record = self.keep
        self.evaluate_other = None if self.other is None else self.other.evaluator(count, condition)
        return evaluator

    def keep(self, prediction: Prediction) -> None:
        """Keep a prediction as the last one at its time.

        Of several evaluations at one time only the last is at the trajectory's own state: Runge-Kutta methods evaluate
        a trial state at the end of a step before the next step begins there.
        """
        if prediction.point.rows is None:
            self.last[prediction.point.t] = prediction

    def end(self, path: Path, end: Tensor) -> Tensor:
        """A batch's data at the end of its trajectories; its distances are stored."""
        data = from_path(end, path.points[-1], data=True)
        on_grid = [self.last[point.t] for point in path.points[:-1] if point.t in self.last]
        evaluate = self.evaluate_other
        predicted = [(p if evaluate is None else evaluate(p.x, p.point)).x0 for p in on_grid]
        distances = [(x0 - data).double().square().flatten(1).mean(1) for x0 in predicted]
        self.times = np.array([prediction.point.t for prediction in on_grid])
        self.squared.append(torch.stack(distances, 1).cpu().numpy())
        return data
