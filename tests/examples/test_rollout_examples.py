"""The adapters for trainers against the formulas of their trainers, and the GRPO example against its optimum."""

import json
import math
import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.distributions import Normal

import sdesamplers as sds

EXAMPLES = Path(__file__).parents[2] / "examples"


def loaded(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def published_step(sigma: float, after: float, first: float, v: Tensor, x: Tensor, a: float) -> tuple[Tensor, float]:
    """(mean, std) of equation 9 of Flow-GRPO, with its substitution at sigma = 1."""
    level, dt = a * math.sqrt(sigma / (1 - (first if sigma == 1 else sigma))), after - sigma
    mean = x * (1 + level**2 / (2 * sigma) * dt) + v * (1 + level**2 * (1 - sigma) / (2 * sigma)) * dt
    return mean, level


def test_the_flow_grpo_adapter_is_its_step() -> None:
    step = loaded("flow_grpo_adapter")["sde_step_with_logprob"]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(6)
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for k in range(5):  # the code's last step adds noise: noisy_end=True
        v, t = torch.tanh(x).requires_grad_(), scheduler.timesteps[k].expand(3)
        state, log_prob, mean, std, dt = step(scheduler, v, t, x, generator=generator, noise_level=0.8)
        expected, level = published_step(sigmas[k], sigmas[k + 1], sigmas[1], v.detach(), x, 0.8)
        torch.testing.assert_close(mean.detach(), expected, rtol=1e-5, atol=1e-5)
        assert float(std) == pytest.approx(level, rel=1e-6)
        assert dt == pytest.approx(sigmas[k + 1] - sigmas[k], rel=1e-6)
        density = Normal(expected.double(), level * math.sqrt(-dt)).log_prob(state.double()).flatten(1).mean(1)
        torch.testing.assert_close(log_prob.detach(), density, rtol=1e-5, atol=1e-5)
        scored = step(scheduler, v, t, x, prev_sample=state, noise_level=0.8)
        assert torch.equal(scored[1], log_prob)
        log_prob.sum().backward()
        assert v.grad is not None
        x = state
    mean = step(scheduler, v.detach(), scheduler.timesteps[5:], x, noise_level=0.8, noisy_end=True)[2]
    expected, _ = published_step(sigmas[5], 0.0, sigmas[1], v.detach(), x, 0.8)
    torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-5)


def test_the_flow_grpo_adapter_refuses_several_timesteps_and_draws_only_for_new_states() -> None:
    step = loaded("flow_grpo_adapter")["sde_step_with_logprob"]
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(6)
    x, generator = torch.ones(2, 4), torch.Generator().manual_seed(1)
    with pytest.raises(ValueError, match="pass the rows of each timestep in a call of their own"):
        step(scheduler, x, scheduler.timesteps[[2, 4]], x, prev_sample=x)
    before = generator.get_state()
    step(scheduler, x, scheduler.timesteps[2], x, prev_sample=x, generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_the_trl_adapter_scores_each_sample_at_its_own_timestep() -> None:
    trained = DDIMScheduler(clip_sample=False, timestep_spacing="leading", steps_offset=1)
    scheduler = sds.Scheduler.from_config(trained.config, "ddim", seed=2)
    step = partial(loaded("trl_adapter")["scheduler_step"], scheduler, 8)
    scheduler.set_timesteps(8)
    states, old = [torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))], []
    for t in scheduler.timesteps:
        made = step(torch.tanh(states[-1]), t, states[-1], eta=1.0)
        states.append(made.latents)
        old.append(made.log_probs)
    timesteps = scheduler.timesteps
    for order in ([0, 3, 1, 3], [6, 6, 2, 5], [4, 1, 0, 7]):
        x, after = (torch.stack([states[k + ahead][row] for row, k in enumerate(order)]) for ahead in (0, 1))
        output = torch.tanh(x).requires_grad_()
        made = step(output, timesteps[order], x, eta=1.0, prev_sample=after)
        assert torch.equal(made.latents, after)
        expected = torch.stack([old[k][row] for row, k in enumerate(order)])
        torch.testing.assert_close(made.log_probs.detach(), expected, rtol=1e-6, atol=1e-6)
        made.log_probs.sum().backward()
        assert [bool(row.any()) for row in output.grad] == [k < 7 for k in order]


@pytest.mark.slow
def test_grpo_approaches_the_best_model(monkeypatch: Any, tmp_path: Path) -> None:
    """The mean reward covers half the way to the optimum's in 25 batches (0.8 of it with the defaults)."""
    arguments = ["grpo_toy.py", "--epochs", "25", "--batch", "256", "--steps", "10", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(EXAMPLES / "grpo_toy.py"), run_name="__main__")
    facts = json.loads((tmp_path / "grpo.json").read_text())
    best = facts["best_reward"]
    assert abs(facts["curve"][0]) < 4 * 1.1 / 16
    assert 0.5 * best < facts["reward"] < best + 4 * facts["standard_error"]
    log_weights = torch.tensor([1.5 * math.cos(k * math.pi / 4) for k in range(8)], dtype=torch.float64)
    tilted = log_weights.softmax(0) @ log_weights + 0.05  # modes at 1.5 (cos, sin), variance 0.05, beta = 1
    assert best == pytest.approx(float(tilted), rel=1e-6)
