"""A call that is checked, with all that its batches share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import flag, function, number, shown
from ..errors import PluginError, UsageError
from ..models.base import Model
from ..models.running import running
from ..path.noise import START, Noise, NormalSource, check_seed, shortest_step
from ..path.path import Path
from ..path.points import model_state
from ..pretrained.loading import as_model
from ..processes.scalars import expand, scaled
from ..processes.sde import GaussianProcess
from ..registry.plugin import NoiseSource, Sampler, Spacing
from .arguments import make_recipe
from .loop import Callback, Evaluator, Flag, drive
from .parts import Part, Recorder, join, join_trajectories
from .recipe import Recipe, noise_of
from .result import Result, process_ends
from .runs import draw_clocks, evaluations, make_path, start_run


def prepare(
    model: Model | str,
    sampler: str | Sampler | Recipe | Mapping[str, Any] = "quality",
    *,
    steps: int | None = None,
    nfe: int | None = None,
    spacing: str | Spacing | None = None,
    spacing_options: dict[str, Any] | None = None,
    times: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    coordinates: str | None = None,
    seed: int = 0,
    noise: str | NoiseSource | None = None,
    noise_options: dict[str, Any] | None = None,
    final: str | None = None,
    start_time: float | None = None,
    guidance_scale: float = 1.0,
    callback: Callback | None = None,
    cancel: Flag | None = None,
    trajectory: bool = False,
    log_probs: bool = False,
    check_finite: bool = True,
    gradients: bool = False,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> PreparedRun:
    """Check a call of `sample` (see there for the words) without yet saying which samples.

    Raises:
        UsageError: words that do not fit.
    """
    model = as_model(model)
    guidance_scale = number("guidance_scale", guidance_scale)
    check_run_words(callback=callback, cancel=cancel, dtype=dtype)
    trajectory, log_probs = flag("trajectory", trajectory), flag("log_probs", log_probs)
    check_finite, gradients = flag("check_finite", check_finite), flag("gradients", gradients)
    recipe, spec = make_recipe(
        sampler,
        process=model.process,
        steps=steps,
        nfe=nfe,
        spacing=spacing,
        spacing_options=spacing_options,
        times=times,
        sigmas=sigmas,
        coordinates=coordinates,
        noise=noise,
        noise_options=noise_options,
        final=final,
        start_time=start_time,
        options=options,
        shape=model.shape,
    )
    limits = noise_of(recipe).limits
    if log_probs and limits:
        raise UsageError(f"log_probs are those of independent normal noise, and noise={recipe.noise!r} is coloured")
    path = make_path(model.process, recipe)
    return PreparedRun(
        model=model,
        recipe=recipe,
        spec=spec,
        path=path,
        seed=check_seed(seed),
        dtype=dtype or (torch.float64 if model.dtype == torch.float64 else torch.float32),
        shortest=shortest_draw(path, recipe, spec, model.shape),
        guidance_scale=guidance_scale,
        callback=callback,
        cancel=cancel,
        trajectory=trajectory,
        log_probs=log_probs,
        check_finite=check_finite,
        gradients=gradients,
    )


def check_run_words(*, callback: Any = None, cancel: Any = None, dtype: Any = None) -> None:
    """Raise UsageError unless these are what every run takes under their names."""
    function("callback", callback, "an Event")
    if cancel is not None and (isinstance(cancel, type) or not callable(getattr(cancel, "is_set", None))):
        raise UsageError(f"cancel must be a threading.Event, or have its is_set(), not {shown(cancel)}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in (torch.float32, torch.float64)):
        raise UsageError(f"dtype is that of the state and must be torch.float32 or torch.float64, not {shown(dtype)}")


def as_start(start: Any, check_finite: bool) -> Tensor:
    """First states as a tensor (N, ...), checked."""
    try:
        start = torch.as_tensor(start)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"start must be a tensor (N, ...), not {type(start).__name__}") from None
    if not start.is_floating_point() or not start.dim():
        raise UsageError(
            f"start must hold floating-point numbers (N, ...) in the model's data range, not {start.dtype} of shape "
            f"{tuple(start.shape)}"
        )
    if check_finite and start.is_cpu and not bool(start.isfinite().all()):
        raise UsageError("start holds NaN or infinity")
    return start


@dataclass(eq=False)
class PreparedRun:
    """A checked call of `sample` that lacks only which samples; see `sample` for the attributes.

    Attributes:
        spec: the sampler.
        path: of the recipe, without noise; each batch runs on one of its own with the same points.
        shortest: the shortest stretch of time that it draws noise for.
    """

    model: Model
    recipe: Recipe
    spec: Sampler
    path: Path
    seed: int
    dtype: torch.dtype
    shortest: float
    guidance_scale: float = 1.0
    callback: Callback | None = None
    cancel: Flag | None = None
    trajectory: bool = False
    log_probs: bool = False
    check_finite: bool = True
    gradients: bool = False

    @property
    def evaluations(self) -> int | None:
        """Model evaluations of a batch, where they are known beforehand."""
        recipe = self.recipe
        planned = self.spec.evaluations is not None and (recipe.steps or recipe.times or recipe.sigmas)
        return evaluations(self.model.process, recipe, self.spec, self.model.shape) if planned else None

    def run(
        self,
        indices: Sequence[int],
        condition: Any = None,
        start: Tensor | None = None,
        advance: Callback | None = None,
    ) -> Part:
        """One batch.

        Args:
            indices: which samples.
            condition: theirs, as `Model.condition_for` gives it.
            start: their first states (N, *shape) in the model's coordinates; from the prior by default.
            advance: called with an `Event` before each evaluation, beside `callback`.
        """
        model, recipe, spec = self.model, self.recipe, self.spec
        if start is None and recipe.start_time is not None:
            raise UsageError("start_time says where start stands in time; give start as well")
        source = NormalSource(self.seed, list(indices), model.shape)
        path = self.path.again()
        path.ledger.noise = make_noise(recipe, source, self.shortest)
        path.ledger.log_probs = [] if self.log_probs else None
        recorder = Recorder(len(indices)) if self.trajectory else None
        evaluator = Evaluator(
            model,
            len(indices),
            f"{spec.name} on {model.name}",
            condition=condition,
            guidance_scale=self.guidance_scale,
            check_finite=self.check_finite,
            both="unguided" in spec.needs,
            callback=_both(self.callback, advance),
            cancel=self.cancel,
            record=recorder,
            clip=model.clip,
            shape=torch.Size(model.shape),
        )
        with running(model, key=(self.seed, indices[0]), gradients=self.gradients):
            x = start_state(model, path, source, start, self.dtype)
            final_state = drive(start_run(spec, x, path, recipe.options), evaluator)
            if final_state.shape != x.shape or final_state.dtype is not x.dtype:
                raise PluginError(
                    f"{spec.name} returned {final_state.dtype} of shape {tuple(final_state.shape)} for a state that "
                    f"was {x.dtype} of shape {tuple(x.shape)}; a sampler must keep both"
                )
            clean = model_state(final_state, path.points[-1])
        return Part.of(clean, evaluator.nfe, path, recorder, x)

    def result(self, parts: Sequence[Part], indices: Sequence[int], condition: Any = None) -> Result:
        """Batches, one behind the other, as what `sample` returns."""
        samples = torch.cat([part.samples for part in parts])
        warn_if_far(samples, self.model, self.recipe)
        return Result(
            samples=samples,
            nfe_per_sample=np.concatenate([part.nfe for part in parts]),
            recipe=self.recipe,
            seed=self.seed,
            indices=list(indices),
            model_name=self.model.name,
            revision=self.model.revision,
            data_range=self.model.data_range,
            condition=condition,
            guidance_scale=self.guidance_scale,
            sampler=self.spec,
            ends=process_ends(self.model.process),
            trajectory=join_trajectories(parts) if self.trajectory else None,
            drew_noise=any(part.drew_noise for part in parts),
            decoder=None if type(self.model).decode is Model.decode else self.model.decode,
            decoded_range=self.model.decoded_range,
            **{word: join([getattr(part, word) for part in parts]) for word in Part.OPTIONAL},
        )


FAR = 2.0
"""RMS of a run's samples, in half widths of the data range, that no picture has (a constant extreme one has 1)."""


def warn_if_far(samples: Tensor, model: Model, recipe: Recipe) -> None:
    """Warn where samples lie far outside the model's data, which too few steps for a method of high order can do."""
    if model.data_range is None:
        return
    low, high = model.data_range
    spread = float((samples.detach().double() - (low + high) / 2).square().mean().sqrt()) / ((high - low) / 2)
    if spread > FAR:
        warnings.warn(
            f"{recipe.sampler}'s samples lie far outside the data range [{low:g}, {high:g}], with an RMS of "
            f"{spread:.3g} of its half width: the method is unstable on this grid (take more steps, another spacing or "
            "coordinates, or a lower order), or the model is not trained",
            stacklevel=4,
        )


def shortest_draw(path: Path, recipe: Recipe, spec: Sampler, shape: Sequence[int]) -> float:
    """The shortest stretch of `Path.clock` that a run draws noise for; infinite where its noise does not ask."""
    if recipe.noise == "independent":
        return math.inf
    clocks = [path.clock(point) for point in path.points]
    if not path.is_free:
        clocks += draw_clocks(spec, path, recipe.options, shape)
    return shortest_step(sorted(clocks))


def make_noise(recipe: Recipe, source: NormalSource, shortest: float) -> Noise:
    """The noise source that a recipe names, for steps that are `shortest` long at least."""
    kind = noise_of(recipe)
    try:
        return kind(source, shortest, **recipe.noise_options)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"noise {recipe.noise!r}: {error}") from None


def start_state(model: Model, path: Path, source: NormalSource, start: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The first state of a batch in path coordinates: `start`, or prior noise scaled to the first point."""
    first = path.points[0]
    if start is not None:
        x = start.to(device=model.device, dtype=dtype)
        return x * expand(first.scale, x)
    begin = getattr(path.ledger.noise, "start_noise", None)
    normal = (source.draw(START) if begin is None else begin()).to(device=model.device, dtype=dtype, non_blocking=True)
    if isinstance(model.process, GaussianProcess):
        if first.t == model.process.t_max:
            return scaled(model.process.prior.sample(normal), first.scale)
        noisiest = float(model.process.ratio(model.process.t_max))
        if first.ratio < min(3.0, 0.5 * noisiest):
            warnings.warn(
                f"the grid starts at t = {first.t:g}, where much of the signal should still be there, but from pure "
                "noise; give start= (a partly noised input), or begin nearer to t_max",
                stacklevel=4,
            )
        return scaled(normal, first.sigma)
    return model.process.prior.sample(normal)


def _both(callback: Callback | None, advance: Callback | None) -> Callback | None:
    if callback is None or advance is None:
        return callback or advance

    def call(event: Any) -> None:
        callback(event)
        advance(event)

    return call
