"""`sample`: draw samples from a model with a sampler and a seed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..checks import flag, sample_range, suggest_keywords
from ..errors import UsageError
from ..io.log import logger
from ..models.base import Model
from ..public import public
from ..registry.plugin import NoiseSource, Sampler, Spacing
from .loop import Callback, Flag
from .prepared import PreparedRun, as_start, prepare
from .recipe import Recipe
from .request import Conduct, Request, batches
from .result import Result
from .table import SolverTable, TableSet


@public
@suggest_keywords()
def sample(
    model: Model | str,
    sampler: str | Sampler | Recipe | SolverTable | TableSet | Mapping[str, Any] = "quality",
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
        model: a `Model`, or any argument of `load`.
        sampler: the name of a sampler, recipe or alias, a `Sampler`, or a `Recipe` (such as an earlier `result.recipe`
            or the dictionary from its `as_dict`), which is repeated except for the arguments passed here. Or a
            `SolverTable`, the result of `tune`, of which `nfe` picks the table, the path of a table or of a folder of
            them, or "tuned" for the model's own (docs/tuning.md). By default `quality`: Adams-Bashforth-Moulton
            in `flow` coordinates, 20 evaluations (docs/defaults.md).
        steps: number of grid intervals. Pass exactly one of `steps`, `nfe`, `times` and `sigmas`; without any of them,
            adaptive samplers choose their own steps.
        nfe: budget of model evaluations per sample: the run takes the largest number of steps that fits.
        spacing, spacing_options: the time grid and its options.
        times: an explicit grid of native times, used exactly as given.
        sigmas: an explicit grid of sigma/alpha (sigma itself if alpha = 1); a final 0 is the clean end.
        coordinates: "native", "ve", "flow" or "angle".
        seed, first_index: sample j depends only on (seed, first_index + j).
        num_samples: number of samples; by default the length of `start`, or 1.
        batch_size: samples per batch; by default all of them. It does not change the samples.
        noise, noise_options: "independent", or "brownian" for step noise from a Brownian path that does not change with
            the grid, or another noise source (`noises()` lists them, and which of them change the sampled
            distribution).
        final: "zero" ends at sigma = 0, "min" at the smallest sigma on which the model was trained.
        start: initial states (num_samples, *shape) in the model's coordinates, in place of draws from the prior.
        start_time: native time of `start`, at which the grid then begins. By default the grid's first time.
        condition: class labels or another condition of the model; one for all samples, or one per sample.
        guidance_scale: classifier-free guidance weight; 1 for no guidance.
        callback: called with an `Event` before each evaluation; may replace its `x`; may raise `Cancelled`.
        cancel: a `threading.Event`; when set, the run stops with `Cancelled`.
        trajectory: record the states of all evaluations.
        log_probs: record the exact log-probability of each stochastic transition, and the data that
            `replay_log_probs` needs.
        check_finite: raise an error if the model's output or the sample is NaN or infinite.
        gradients: run with autograd enabled and keep the graph in `samples` (for guidance that differentiates the
            model, or for training through the sampler). If False, everything runs under `torch.no_grad()`; a model or
            a callback may still differentiate inside `torch.enable_grad()`.
        dtype: dtype of the state: torch.float32 (default) or torch.float64.
        progress: show a progress bar.
        **options: the sampler's own options.

    Raises:
        UsageError: invalid or conflicting arguments.
        NonFiniteError: the model's output or the sample is not finite; the message has the sampler, and for an output
            the evaluation and time.
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
    if logger.isEnabledFor(logging.INFO):  # evaluations are counted by a dry run
        planned = prepared.evaluations
        cost = "adaptive steps" if planned is None else f"{planned} evaluations"
        name, spec = model.name, prepared.spec.name
        logger.info("sample: %d of %s by %s, %s, seed %d", num_samples, name, spec, cost, prepared.seed)
    with _progress(progress, prepared, number_of_batches) as advance:
        parts = prepared.run_all(indices, spread, start, batch_size, advance)
    return prepared.result(parts, indices, spread)


def _progress(show: bool, prepared: PreparedRun, number_of_batches: int) -> Any:
    if not show:
        return nullcontext(None)
    from ..io.terminal import evaluation_bar  # imports rich, which only a progress bar needs

    planned = prepared.evaluations
    total = None if planned is None else planned * number_of_batches
    return evaluation_bar(f"{prepared.spec.name} on {prepared.model.name}", total)
