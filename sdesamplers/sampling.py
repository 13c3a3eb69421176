"""`sample`: a model, a sampler and a seed to samples; and the replay of a stored run under other weights."""

from __future__ import annotations

import math
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import check_indices, flag, function, number, one_of_types, shown, whole
from .errors import PluginError, UsageError
from .loop import Callback, Evaluator, Flag, drive, model_state
from .models.base import Model
from .models.conditions import cut
from .models.running import running
from .noise import START, Noise, NormalSource, check_seed, shortest_step
from .path import Path
from .plugin import NoiseSource, Sampler, Spacing
from .recipe import Recipe, draw_clocks, evaluations, make_path, make_recipe, noise_of, start_run
from .registry import default_registry
from .result import Part, Recorder, Result, check_process, join, join_trajectories, process_ends, stack
from .sde import GaussianProcess, expand, scaled


def as_model(model: Model | str | pathlib.Path) -> Model:
    """A model as it is, or loaded with its defaults; a UsageError for anything else, such as a pipeline."""
    if isinstance(model, str | pathlib.Path):
        from .models.loading import load

        return load(model)
    if not hasattr(model, "process"):
        kind = type(model).__name__
        raise UsageError(
            f"model must be a Model or a name to load, not {kind}; wrap makes one of a network, from_pipeline of a "
            "pipeline, such as DDPMPipeline(unet, scheduler) around a network of diffusers"
        )
    return model


def sample(
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
    num_samples: int | None = None,
    batch_size: int | None = None,
    first_index: int = 0,
    noise: str | NoiseSource | None = None,
    noise_options: dict[str, Any] | None = None,
    final: str | None = None,
    start: Tensor | None = None,
    start_time: float | None = None,
    condition: Any = None,
    guidance_scale: float = 1.0,
    callback: Callback | None = None,
    cancel: Flag | None = None,
    trajectory: bool = False,
    log_probs: bool = False,
    check_finite: bool = True,
    gradients: bool = False,
    dtype: torch.dtype | None = None,
    progress: bool = False,
    **options: Any,
) -> Result:
    """Draw samples from a model.

    Args:
        model: a `Model`, or what `load` takes.
        sampler: the name of a sampler, recipe or alias, a `Sampler`, or a `Recipe`, such as an earlier `result.recipe`
            or what its `as_dict` gives, which is run again where the call does not say otherwise. By default `quality`:
            Adams-Bashforth where it is stable, DPM-Solver++(2M) elsewhere, 20 evaluations (docs/defaults.md).
        steps: grid intervals. Give exactly one of `steps`, `nfe`, `times` and `sigmas`; adaptive samplers may be
            given none and then choose their own steps.
        nfe: budget of model evaluations a sample: the largest step count that fits is taken.
        spacing, spacing_options: the time grid and its options.
        times: your own grid on the model's clock, run exactly as given.
        sigmas: your own grid of sigma/alpha (plain sigma where alpha = 1); a last 0 is the clean end.
        coordinates: "native", "ve", "flow" or "angle".
        seed, first_index: sample j depends on (seed, first_index + j) alone.
        num_samples: how many; 1 by default, or as many as `start` holds.
        batch_size: how many at once; all of them by default. It does not change the samples.
        noise, noise_options: "independent", or "brownian" for step noise that stays the same path when the grid
            changes, or another noise source (`noises()` lists them and says which change the distribution sampled).
        final: "zero" ends at sigma = 0, "min" at the smallest sigma that the model was trained at.
        start: begin from these states (num_samples, *shape) in the model's coordinates instead of from the prior.
        start_time: the model's time of `start`; the grid then runs from there. Default: the grid's first time.
        condition: class labels or what the model takes; one for all or one a sample.
        guidance_scale: classifier-free guidance weight, 1 for none.
        callback: called with an `Event` before each evaluation; may replace its `x`; may raise `Cancelled`.
        cancel: a `threading.Event`; when set, the run stops with `Cancelled`.
        trajectory: record the states at all evaluations.
        log_probs: record the exact log-probability of each stochastic transition, and what `replay_log_probs` needs.
        check_finite: raise where the model's output or the sample is NaN or infinite.
        gradients: run with autograd on and keep the graph in `samples` (for guidance that differentiates the model, or
            for training through the sampler). Off, everything runs under `torch.no_grad()`, inside of which a model or
            a callback may still differentiate under `torch.enable_grad()`.
        dtype: of the state; float32 by default, float64 on request, never below float32.
        progress: show a progress bar.
        **options: the sampler's own options.

    Raises:
        UsageError: words that do not fit; its message says what would.
        NonFiniteError: the model or solver broke down, with sampler, evaluation and time.
        Cancelled: the run was stopped.
    """
    prepared = prepare(
        model,
        sampler,
        steps=steps,
        nfe=nfe,
        spacing=spacing,
        spacing_options=spacing_options,
        times=times,
        sigmas=sigmas,
        coordinates=coordinates,
        seed=seed,
        noise=noise,
        noise_options=noise_options,
        final=final,
        start_time=start_time,
        guidance_scale=guidance_scale,
        callback=callback,
        cancel=cancel,
        trajectory=trajectory,
        log_probs=log_probs,
        check_finite=check_finite,
        gradients=gradients,
        dtype=dtype,
        **options,
    )
    model = prepared.model
    if start is not None:
        start = as_start(start, check_finite)
    num_samples = num_samples if num_samples is not None else 1 if start is None else len(start)
    flag("progress", progress)
    whole("num_samples", num_samples)
    whole("batch_size", num_samples if batch_size is None else batch_size)
    whole("first_index", first_index, 0)
    check_indices(first_index, num_samples)
    if start is not None and tuple(start.shape) != (num_samples, *model.shape):
        raise UsageError(f"start must have shape {(num_samples, *model.shape)}, not {tuple(start.shape)}")
    spread = model.condition_for(condition, num_samples)
    batch_size = min(batch_size or num_samples, num_samples)
    parts = []
    with _progress(progress, prepared, num_samples, batch_size) as advance:
        for first in range(0, num_samples, batch_size):
            rows = slice(first, min(first + batch_size, num_samples))
            part = prepared.run(
                range(first_index + rows.start, first_index + rows.stop),
                cut(spread, rows),
                None if start is None else start[rows],
                advance,
            )
            parts.append(part)
    return prepared.result(parts, range(first_index, first_index + num_samples), spread)


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
    return PreparedRun(
        model=model,
        recipe=recipe,
        spec=spec,
        seed=check_seed(seed),
        dtype=dtype or (torch.float64 if model.dtype == torch.float64 else torch.float32),
        shortest=shortest_draw(make_path(model.process, recipe), recipe, spec, model.shape),
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
        shortest: the shortest stretch of time that it draws noise for.
    """

    model: Model
    recipe: Recipe
    spec: Sampler
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
        path = make_path(model.process, recipe)
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


def _progress(show: bool, prepared: PreparedRun, count: int, batch_size: int) -> Any:
    if not show:
        return nullcontext(None)
    from .terminal import evaluation_bar

    planned = prepared.evaluations
    total = None if planned is None else planned * -(-count // batch_size)
    return evaluation_bar(f"{prepared.spec.name} on {prepared.model.name}", total)


def replay_log_probs(model: Model, result: Result, rows: slice = slice(None)) -> Tensor:
    """Log-probabilities of a stored run's transitions under a model's present weights.

    The sampler is run again over the states that were drawn, not over new ones; gradients flow to the model's
    parameters where they are enabled, which is what policy-gradient fine-tuning needs (DDPO, Black et al. 2024). The
    network is evaluated as in the run, in evaluation mode, so that under the same weights the ratio to the run is 1.

    Args:
        model: the model, with the same or other weights.
        result: of `sample(..., log_probs=True)`.
        rows: of its samples, so that gradients can be gathered a part at a time where memory is short; all by default.

    Returns:
        (N, transitions), float64, in nats.

    Raises:
        UsageError: the result was stored without its transitions, or `rows` has none of its samples.
    """
    one_of_types("result", result, Result, "a Result of sample")
    one_of_types("rows", rows, slice, "a slice, such as slice(0, 16)")
    if result.draws is None or result.start is None:
        raise UsageError("this result was stored without its transitions; sample with log_probs=True")
    model = as_model(model)
    shape = tuple(result.start.shape[1:])
    if shape != model.shape:
        raise UsageError(f"{model.name!r} has samples of shape {model.shape}, and this result of shape {shape}")
    check_process(result, model)
    start, draws, condition = result.start[rows], result.draws[rows], result.condition
    if not len(start):
        raise UsageError(f"{rows} has none of the {len(result.start)} samples of this result")
    recipe = result.recipe
    spec = result.sampler or default_registry().resolve(recipe.sampler).sampler
    path = make_path(model.process, recipe)
    path.ledger.log_probs, path.ledger.replayed = [], list(draws.unbind(1))
    evaluator = Evaluator(
        model,
        len(start),
        f"replay of {spec.name} on {model.name}",
        condition=cut(condition, rows),
        guidance_scale=result.guidance_scale,
        both="unguided" in spec.needs,
        clip=model.clip,
    )
    with running(model, key=(result.seed,), gradients=torch.is_grad_enabled()):
        drive(start_run(spec, start.to(model.device), path, recipe.options), evaluator)
    return stack(path.ledger.log_probs, len(start))
