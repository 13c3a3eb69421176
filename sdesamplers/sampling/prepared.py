"""A checked call, with everything that its batches share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..categories import AccuracyWarning
from ..checks import warn
from ..errors import PluginError, UsageError
from ..models.base import Model
from ..models.conditions import take_rows
from ..models.guidance import effective_scale, interval_of
from ..models.running import running
from ..path.noise import START, Noise, NormalSource, check_seed, shortest_step
from ..path.path import Path
from ..path.points import model_state
from ..pretrained.loading import as_model
from ..processes.scalars import expand, scaled
from ..processes.sde import SDE, GaussianProcess
from ..registry.plugin import NoiseSource, Sampler
from .arguments import make_recipe, opened, table_for
from .loop import Callback, Evaluator, drive
from .parts import Part, Recorder, edits_of, join, join_trajectories, recording
from .recipe import Recipe, noise_of
from .request import Conduct, Request, batches
from .result import Result, process_ends
from .runs import draw_clocks, evaluations, make_path, start_run
from .start_check import warn_if_unscaled
from .table import SolverTable


def prepare(model: Model | str, request: Request, conduct: Conduct, seed: int = 0) -> PreparedRun:
    """Check a call of `sample`, before it is known which samples to draw.

    Raises:
        UsageError: invalid or conflicting arguments.
    """
    model = as_model(model)
    scale = effective_scale(model, conduct.guidance_scale)
    request = opened(request, scale)
    table = table_for(request, model.process, scale)
    if table is not None:
        table.check_model(model)
        compare_guidance(table, model, scale)
        request = replace(request, sampler=table)
    recipe, spec = make_recipe(request, process=model.process, shape=model.shape)
    noise = noise_of(recipe)
    if conduct.log_probs and noise.limits:
        raise UsageError(f"log_probs need independent normal noise, and noise={recipe.noise!r} is coloured")
    path = make_path(model.process, recipe)
    return PreparedRun(
        model=model,
        recipe=recipe,
        spec=spec,
        path=path,
        conduct=conduct,
        seed=check_seed(seed),
        shortest=shortest_draw(path, recipe, spec, model.shape),
        noise=noise,
    )


def compare_guidance(table: SolverTable, model: Model, scale: float) -> None:
    """Warn if a run's guidance is not that for which its table was computed."""
    own, interval = table.facts.get("guidance_interval"), interval_of(model)
    own = None if own is None else [str(float(bound)) for bound in own]
    if table.guidance_scale not in (None, scale):
        asked, found = f"guidance_scale={table.guidance_scale:g}", f"{scale:g}"
    elif table.guidance_scale is not None and own != interval:
        asked, found = (
            f"at sigma/alpha of {each[0]} to {each[1]}" if each else "at all times" for each in (own, interval)
        )
        asked, found = f"guidance {asked}", f"it {found}"
    else:
        return
    warn(
        f"this solver table was computed for {asked}, and this run has {found}; its errors are not known here",
        AccuracyWarning,
    )


def as_start(start: Any, check_finite: bool) -> Tensor:
    """Initial states as a checked tensor (N, ...)."""
    try:
        start = torch.as_tensor(start)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"start must be a tensor (N, ...), not {type(start).__name__}") from None
    if not start.is_floating_point() or not start.dim():
        raise UsageError(
            f"start must be a floating-point tensor (N, ...) in the model's coordinates, not {start.dtype} of shape "
            f"{tuple(start.shape)}"
        )
    if check_finite and start.is_cpu and not bool(start.isfinite().all()):
        raise UsageError("start contains NaN or infinity")
    return start


@dataclass(eq=False)
class PreparedRun:
    """A checked call, except for the choice of samples; contains the loop over batches.

    `sample` uses this class directly, from noise to data; functions that follow a model's ODE use a subclass that
    defines how a batch begins and ends.

    Attributes:
        spec: the sampler.
        path: the recipe's path, without noise; each batch runs on its own path with the same points.
        shortest: the shortest interval, on `Path.clock`, for which the run draws noise.
        noise: the recipe's noise source; looked up by its name if None.
        clips: False to ignore the model's clipping, for runs of the ODE, which the unclipped predictions define.
    """

    model: Model
    recipe: Recipe
    spec: Sampler
    path: Path
    conduct: Conduct = field(default_factory=Conduct)
    seed: int = 0
    shortest: float = math.inf
    noise: NoiseSource | None = None
    clips: bool = True

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the state."""
        return self.conduct.dtype or (torch.float64 if self.model.dtype == torch.float64 else torch.float32)

    @property
    def evaluated(self) -> tuple[Model, ...]:
        """The models that are evaluated."""
        return (self.model,)

    @property
    def evaluations(self) -> int | None:
        """Model evaluations of a batch; None if they are not known beforehand."""
        recipe = self.recipe
        planned = self.spec.evaluations is not None and (recipe.steps or recipe.times or recipe.sigmas)
        return evaluations(self.model.process, recipe, self.spec, self.model.shape) if planned else None

    def run_all(
        self,
        indices: Sequence[int],
        condition: Any = None,
        start: Tensor | None = None,
        batch_size: int | None = None,
        advance: Callback | None = None,
    ) -> list[Part]:
        """Run all samples, batch by batch; arguments as in `run`."""
        if start is not None:
            self.check_start(start)
        parts = []
        for rows in batches(len(indices), batch_size):
            first = None if start is None else start[rows]
            parts.append(self.run(indices[rows], take_rows(condition, rows), first, advance))
        return parts

    def run(
        self,
        indices: Sequence[int],
        condition: Any = None,
        start: Tensor | None = None,
        advance: Callback | None = None,
    ) -> Part:
        """Run one batch.

        Args:
            indices: indices of the samples.
            condition: their condition, as returned by `Model.condition_for`.
            start: their initial states (N, *shape) in the model's coordinates; drawn from the prior by default.
            advance: called with an `Event` before each evaluation, after the conduct's `callback`.
        """
        if start is None and self.recipe.start_time is not None:
            raise UsageError("start_time is the time of start; pass start as well")
        spec, conduct = self.spec, self.conduct
        path = self.new_path()
        path.ledger.log_probs = [] if conduct.log_probs else None
        recorder = Recorder(len(indices)) if conduct.trajectory else None
        evaluator = self.evaluator(len(indices), condition, advance)
        if conduct.log_probs:
            evaluator.edited = []
        if recorder is not None or conduct.log_probs:
            evaluator.record = recording(recorder, path.ledger if conduct.log_probs else None)
        with running(*self.evaluated, key=(self.seed, indices[0]), gradients=conduct.gradients):
            x = self.begin(path, indices, start)
            end = drive(start_run(spec, x, path, self.recipe.options), evaluator)
            if end.shape != x.shape or end.dtype is not x.dtype:
                raise PluginError(
                    f"{spec.name} returned {end.dtype} of shape {tuple(end.shape)} for a state of "
                    f"{x.dtype} and shape {tuple(x.shape)}; a sampler must keep both"
                )
            end = self.end(path, end)
        return Part.of(end, evaluator, path, recorder, x)

    def new_path(self) -> Path:
        """A path with the same points for one batch."""
        return self.path.again()

    def evaluator(self, count: int, condition: Any = None, advance: Callback | None = None) -> Evaluator:
        """The evaluator of one batch."""
        conduct = self.conduct.with_progress(advance)
        return Evaluator(
            self.model,
            count,
            f"{self.spec.name} on {self.model.name}",
            condition=condition,
            guidance_scale=conduct.guidance_scale,
            check_finite=conduct.check_finite,
            both="unguided" in self.spec.needs,
            callback=conduct.callback,
            cancel=conduct.cancel,
            clip=self.model.clip if self.clips else None,
            shape=torch.Size(self.model.shape),
        )

    def begin(self, path: Path, indices: Sequence[int], start: Tensor | None) -> Tensor:
        """A batch's initial state in path coordinates; sets the path's noise."""
        source = NormalSource(self.seed, list(indices), self.model.shape)
        path.ledger.noise = make_noise(self.recipe, source, self.shortest, self.noise)
        process = self.model.process
        return start_state(process, path, source, start, self.dtype, self.model.device, self.recipe.spacing)

    def check_start(self, start: Tensor) -> None:
        """Warn if the initial states of all samples have too little noise for the time of the first point."""
        warn_if_unscaled(start, self.model.process, self.path.points[0].t, "start")

    def end(self, path: Path, end: Tensor) -> Tensor:
        """A batch's final state in the model's coordinates."""
        return model_state(end, path.points[-1])

    def result(self, parts: Sequence[Part], indices: Sequence[int], condition: Any = None) -> Result:
        """The batches joined to the `Result` that `sample` returns."""
        facts = self.facts(parts, indices, condition)
        warn_if_far(facts["samples"], self.model, self.recipe)
        return Result(**facts)

    def facts(self, parts: Sequence[Part], indices: Sequence[int], condition: Any) -> dict[str, Any]:
        """The fields of a `Result`."""
        model = self.model
        return {
            "samples": torch.cat([part.samples for part in parts]),
            "nfe_per_sample": np.concatenate([part.nfe for part in parts]),
            "recipe": self.recipe,
            "seed": self.seed,
            "indices": list(indices),
            "model_name": model.name,
            "revision": model.revision,
            "data_range": model.data_range,
            "condition": condition,
            "guidance_scale": self.conduct.guidance_scale,
            "sampler": self.spec,
            "ends": process_ends(model.process),
            "trajectory": join_trajectories(parts) if self.conduct.trajectory else None,
            "drew_noise": any(part.drew_noise for part in parts),
            "decoder": None if type(model).decode is Model.decode else model.decode,
            "decoded_range": model.decoded_range,
            "transition_steps": parts[0].transition_steps if parts else None,
            **edits_of(parts),
            **{name: join([getattr(part, name) for part in parts]) for name in Part.OPTIONAL},
        }


FAR = 2.0
"""RMS of samples, in half widths of the data range, above which a run has failed (constant extreme images have 1)."""


def warn_if_far(samples: Tensor, model: Model, recipe: Recipe) -> None:
    """Warn if samples lie far outside the data range; a high-order method with too few steps can cause this."""
    if model.data_range is None:
        return
    low, high = model.data_range
    spread = float((samples.detach().double() - (low + high) / 2).square().mean().sqrt()) / ((high - low) / 2)
    if spread > FAR:
        warn(
            f"{recipe.sampler}'s samples lie far outside the data range [{low:g}, {high:g}], with an RMS of "
            f"{spread:.3g} of its half width: the method is unstable on this grid (take more steps, another spacing or "
            "coordinates, or a lower order), or the model is not trained",
            AccuracyWarning,
        )


def shortest_draw(path: Path, recipe: Recipe, spec: Sampler, shape: Sequence[int]) -> float:
    """The shortest interval, on `Path.clock`, for which a run draws noise; infinite for independent noise."""
    if recipe.noise == "independent":
        return math.inf
    clocks = [path.clock(point) for point in path.points]
    if not path.is_free:
        clocks += draw_clocks(spec, path, recipe.options, shape)
    return shortest_step(sorted(clocks))


def make_noise(recipe: Recipe, source: NormalSource, shortest: float, kind: NoiseSource | None = None) -> Noise:
    """The noise of a recipe, for steps no shorter than `shortest`; `kind` is its noise source, if already known."""
    try:
        return (kind or noise_of(recipe))(source, shortest, **recipe.noise_options)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"noise {recipe.noise!r}: {error}") from None


def start_state(
    process: SDE,
    path: Path,
    source: NormalSource,
    start: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
    spacing: str | None = None,
) -> Tensor:
    """The initial state of a batch in path coordinates: `start`, or prior noise scaled to the first point.

    `spacing` is the spacing that made the grid, for messages.
    """
    first = path.points[0]
    if start is not None:
        x = start.to(device=device, dtype=dtype)
        return x * expand(first.scale, x)
    begin = getattr(path.ledger.noise, "start_noise", None)
    normal = (source.draw(START) if begin is None else begin()).to(device=device, dtype=dtype, non_blocking=True)
    if isinstance(process, GaussianProcess):
        if first.t == process.t_max:
            return scaled(process.prior.sample(normal), first.scale)
        noisiest = float(process.ratio(process.t_max))
        if first.ratio < min(3.0, 0.5 * noisiest):
            warn(
                f"the grid starts from pure noise at t = {first.t:g}, where a state should still contain much of the "
                f"signal; {_cure_of_late_start(process, spacing)}",
                AccuracyWarning,
            )
        return scaled(normal, first.sigma)
    return process.prior.sample(normal)


def _cure_of_late_start(process: GaussianProcess, spacing: str | None) -> str:
    """The end of the message about a grid that begins too near to the data: its cause, and what to do."""
    own = process.own_grid
    if spacing == "own" and own is not None:
        kind = f"the spacing {own.spacing!r} of its configuration" if own.spacing else f"that of {own.kind}"
        cause = f"the model's own grid, {kind}, leaves out the noisiest times"
    elif spacing is not None:
        cause = f"the spacing {spacing!r} leaves out the noisiest times"
    else:
        return "pass start= (a partly noised input), or begin nearer to t_max"
    return f"{cause}; pass spacing='trailing' or 'linspace', or take more steps"
