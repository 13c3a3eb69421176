"""The scheduler step of TRL-like trainers, such as DDPO's, with any one-step sampler of the library.

    pipeline.scheduler = sds.Scheduler.from_config(pipeline.scheduler.config, "ddim")
    pipeline.scheduler_step = partial(scheduler_step, pipeline.scheduler, 50)

In training each sample of a batch may have a timestep of its own: those with equal timesteps are scored together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import sdesamplers as sds


class StepResult(NamedTuple):
    """The next latents (N, ...), and their log-probabilities (N,), averaged over the elements."""

    latents: Tensor
    log_probs: Tensor


def scheduler_step(
    scheduler: sds.Scheduler,
    steps: int,
    output: Tensor,
    t: Tensor,
    x: Tensor,
    *,
    eta: float = 0.0,
    prev_sample: Any = None,
) -> StepResult:
    """A step of a run in progress, or of stored latents (`prev_sample`); `eta` is for samplers that have it."""
    times, found = t.flatten().expand(len(x)), []
    for rows in [(times == time).nonzero()[:, 0] for time in times.unique()]:
        given = None if prev_sample is None else prev_sample[rows]
        if given is not None:  # stored steps come in any order, so that each begins a run
            scheduler.set_timesteps(steps, device=x.device)
        scored: Any = {"log_prob": True, "prev_sample": given, "reduction": "mean", "return_dict": False}
        found.append((rows, *scheduler.step(output[rows], times[rows[0]], x[rows], eta=eta, **scored)))
    order, latents, log_probs = (torch.cat(parts) for parts in [*zip(*found, strict=True)][:3])
    return StepResult(latents[order.argsort()], log_probs[order.argsort()])
