"""`sample`: a model, a sampler and a seed to samples; and the replay of a stored run under other weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..checks import flag, sample_range
from ..errors import UsageError
from ..models.base import Model
from ..public import public
from ..registry.plugin import NoiseSource, Sampler, Spacing
from .loop import Callback, Flag
from .prepared import PreparedRun, as_start, prepare
from .recipe import Recipe
from .request import Conduct, Request, batches
from .result import Result


@public
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
    request = Request(
        sampler, steps, nfe, spacing, spacing_options, times, sigmas, coordinates, noise, noise_options, final,
        start_time, options,
    )  # fmt: skip
    conduct = Conduct(guidance_scale, callback, cancel, trajectory, log_probs, check_finite, gradients, dtype)
    prepared = prepare(model, request, conduct, seed)
    model = prepared.model
    if start is not None:
        start = as_start(start, check_finite)
    num_samples = num_samples if num_samples is not None else 1 if start is None else len(start)
    flag("progress", progress)
    num_samples, first_index = sample_range(num_samples, first_index)
    if start is not None and tuple(start.shape) != (num_samples, *model.shape):
        raise UsageError(f"start must have shape {(num_samples, *model.shape)}, not {tuple(start.shape)}")
    indices, spread = range(first_index, first_index + num_samples), model.condition_for(condition, num_samples)
    number_of_batches = len([*batches(num_samples, batch_size)])
    with _progress(progress, prepared, number_of_batches) as advance:
        parts = prepared.run_all(indices, spread, start, batch_size, advance)
    return prepared.result(parts, indices, spread)


def _progress(show: bool, prepared: PreparedRun, number_of_batches: int) -> Any:
    if not show:
        return nullcontext(None)
    from ..io.terminal import evaluation_bar  # and rich, which only a bar needs

    planned = prepared.evaluations
    total = None if planned is None else planned * number_of_batches
    return evaluation_bar(f"{prepared.spec.name} on {prepared.model.name}", total)
