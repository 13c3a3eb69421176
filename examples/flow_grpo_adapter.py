"""The step of Flow-GRPO-like trainers, with any one-step sampler of the library: next state, mean, std, dt, log-prob.

    state, log_prob, mean, std, dt = sde_step_with_logprob(scheduler, velocity, timestep, latents)           # rollout
    _, log_prob, mean, std, dt = sde_step_with_logprob(scheduler, velocity, timestep, latents, prev_sample=state)

`scheduler` is diffusers' FlowMatchEulerDiscreteScheduler, which has the grid. The noise is that of `generator`. The
rows of a batch are at one timestep; pass those of another in a call of their own, as trl_adapter.py does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import sdesamplers as sds


def sde_step_with_logprob(
    scheduler: Any,
    model_output: Tensor,
    timestep: Tensor,
    sample: Tensor,
    prev_sample: Tensor | None = None,
    generator: torch.Generator | None = None,
    sampler: str = "flow-sde",
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """(next state, log-probability (N,) averaged over elements, mean, std before the factor sqrt(-dt), dt)."""
    if len(timestep.unique()) > 1:
        raise ValueError(
            f"pass the rows of each timestep in a call of their own, not {timestep.unique().tolist()} at once"
        )
    index = scheduler.index_for_timestep(timestep.flatten()[0])
    times, seed = [float(sigma) for sigma in scheduler.sigmas[index : index + 2]], 0
    if prev_sample is None:
        device = "cpu" if generator is None else generator.device
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
    stepper = sds.Stepper(
        sds.RectifiedFlow(), sampler, prediction="flow", times=times, start=sample.detach().float(), seed=seed,
        gradients=model_output.requires_grad, **options,
    )  # fmt: skip
    step = stepper.step(model_output.float(), prev_sample=prev_sample)
    std = torch.as_tensor(step.std / (-step.dt) ** 0.5)
    return step.sample.detach(), step.log_prob("mean"), step.mean, std, step.dt
