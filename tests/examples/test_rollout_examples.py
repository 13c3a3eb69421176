"""The adapters for trainers against the formulas of their trainers, and the GRPO example against its optimum."""

import argparse
import itertools
import json
import math
import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.special import softmax
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


def best_of_gaussian_steps(steps: int, a: float, points: int = 141, reach: float = 7.0) -> tuple[float, float]:
    """(E r - KL, E r) of the best policy of GRPO's toy whose steps are Gaussians with Flow-GRPO's noise.

    Dynamic programming on a grid of states: V_k(x) = max over m of E V_{k+1}(m + s z) - |m - mean_k(x)|^2 / (2 s^2),
    where mean_k and s are those of the mixture's own step. The last step adds no noise and is the mixture's.
    """
    angles = np.arange(8) * math.pi / 4
    modes, axis = 1.5 * np.stack([np.cos(angles), np.sin(angles)], 1), np.linspace(-reach, reach, points)
    x, width = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1), axis[1] - axis[0]

    def velocity(t: float) -> Any:
        variance = (1 - t) ** 2 * 0.05 + t**2
        away = x[..., None, :] - (1 - t) * modes
        weights = softmax(-np.square(away).sum(-1) / (2 * variance), axis=-1)
        clean = (weights[..., None] * (modes + (1 - t) * 0.05 / variance * away)).sum(-2)
        return (x - clean) / t

    times = np.linspace(1, 0, steps + 1)
    value = reward = (x - times[-2] * velocity(times[-2]))[..., 0]
    for t, s in reversed(list(itertools.pairwise(times[:-1]))):
        mean, level = published_step(t, s, times[1], velocity(t), x, a)
        std = level * math.sqrt(t - s)
        value, reward = (gaussian_filter(each, std / width, mode="nearest", truncate=6) for each in (value, reward))
        for along in (0, 1):  # the maximum over the two elements of m, one after the other
            value, reward = (np.moveaxis(each, along, 0) for each in (value, reward))
            costs = np.square(axis[:, None] - axis) / (2 * std**2)
            objective = value[:, None, :] - costs[:, :, None]
            best = objective.argmax(0).clip(1, points - 2)
            y, other = np.indices(best.shape)
            low, middle, high = (objective[best + k, y, other] for k in (-1, 0, 1))  # a parabola between the points
            shift = ((high - low) / (2 * np.maximum(2 * middle - low - high, 1e-12))).clip(-1, 1)
            before, at, after = (reward[best + k, other] for k in (-1, 0, 1))
            moved = at + shift * (after - before) / 2 + shift**2 * (after + before - 2 * at) / 2
            value = np.moveaxis(middle + (high - low) * shift / 4, 0, along)
            reward = np.moveaxis(moved, 0, along)
        places = (np.moveaxis(mean, -1, 0) + reach) / width
        value, reward = (map_coordinates(each, places, order=3, mode="nearest") for each in (value, reward))
    start = np.exp(-np.square(x).sum(-1) / 2)
    return float((start * value).sum() / start.sum()), float((start * reward).sum() / start.sum())


@pytest.mark.slow
def test_grpo_attains_the_optimum_of_its_class(monkeypatch: Any, tmp_path: Path) -> None:
    """The objective is that of the best policy of 16 Gaussian steps, within 3 standard errors of its estimate."""
    monkeypatch.setattr(sys, "argv", ["grpo_toy.py", "--out", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "grpo_toy.py"), run_name="__main__")
    facts = json.loads((tmp_path / "grpo.json").read_text())
    value, reward = best_of_gaussian_steps(16, math.sqrt(2))
    assert (value, reward) == pytest.approx((0.483, 0.880), abs=1e-3)  # as in the guide
    assert abs(facts["value"] - value) < 3 * facts["value_error"] < 0.03
    assert 0.95 * reward < facts["reward"] < reward + 3 * facts["standard_error"]
    assert abs(facts["curve"][0]) < 4 * 1.1 / 32
    log_weights = torch.tensor([1.5 * math.cos(k * math.pi / 4) for k in range(8)], dtype=torch.float64)
    tilted = log_weights.softmax(0) @ log_weights + 0.05  # modes at 1.5 (cos, sin), variance 0.05, beta = 1
    assert facts["best_reward"] == pytest.approx(float(tilted), rel=1e-6)
    assert value < facts["best_value"] == pytest.approx(float(log_weights.logsumexp(0)) + 0.025 - math.log(8), rel=1e-6)


def test_the_policy_gradient_of_the_grpo_example_is_that_of_the_objective() -> None:
    """Against the pathwise gradient, through the states of the same runs, for the last layer's bias.

    Without the credit for later divergences the second element is off by 0.07.
    """
    toy, count, noise = loaded("grpo_toy"), 4000, math.sqrt(2)
    args = argparse.Namespace(noise_level=noise, steps=8, batch=count)
    torch.manual_seed(0)
    policy = toy["Policy"]()
    torch.nn.init.normal_(policy.net[4].weight, std=0.5)
    bias = policy.net[4].bias
    with torch.no_grad():
        rollout = toy["run"](policy, args, seed=3)
        reference = toy["run"](None, args, stored=rollout)
    kl, rewards = rollout.kl(reference), rollout.states[-1][:, 0].double()
    value = rewards[:, None] - (kl.flip(1).cumsum(1).flip(1) - kl)
    again = toy["run"](policy, args, stored=rollout, gradients=True)
    estimate = (again.log_probs * (value - toy["baseline"](rollout, value)) - again.kl(reference)).sum(1).mean()
    (found,) = torch.autograd.grad(estimate, bias)

    def objective(shift: Tensor) -> Tensor:
        """The objective with another bias, over the same noise: that of eq. 9 of Flow-GRPO."""
        x, cost = rollout.states[0].double(), torch.zeros(count, dtype=torch.float64)
        for k, t in enumerate(rollout.times):
            s, v = t - 1 / 8, toy["velocity"](x.float(), torch.full((count,), t))
            if k == 7:
                return (x[:, 0] - t * v.double()[:, 0] - cost).mean()
            with torch.no_grad():
                u = policy(x.float(), v, torch.full((count,), t)).double() + shift
            mean, level = published_step(t, s, 7 / 8, v.double() + u, x, noise)
            plain, _ = published_step(t, s, 7 / 8, v.double(), x, noise)
            std = level * math.sqrt(1 / 8)
            drawn = (rollout.states[k + 1] - rollout.steps[k].mean).double() / std
            cost = cost + (mean - plain).square().sum(1) / (2 * std**2)
            x = mean + std * drawn
        raise AssertionError

    steps = 1e-2 * torch.eye(2, dtype=torch.float64)
    expected = torch.stack([(objective(h) - objective(-h)) / 2e-2 for h in steps])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.04)
