"""`Scheduler.step` with log-probabilities: those of `Stepper`, of torch.distributions and of DDPO's formulas."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import sdesamplers as sds

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
DDIM = {"_class_name": "DDIMScheduler", "clip_sample": False}


def network(x: Tensor, t: Any) -> Tensor:
    return torch.tanh(x + float(t) / 1000)


def new(sampler: str, trained: dict[str, Any] = FLOW, steps: int = 6, **options: Any) -> sds.Scheduler:
    made = sds.Scheduler(sampler, trained=trained, seed=3, **options)
    made.set_timesteps(steps)
    return made


def start(count: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("sampler", ["flow-sde", "ddpm", "dpmpp-2m-sde", "dpmpp-sde", "predictor-corrector"])
def test_densities_are_those_of_stepper(sampler: str) -> None:
    scheduler, x = new(sampler), start()
    stepper = sds.Stepper(
        scheduler.convention.process, scheduler._run.layout.recipe, prediction="flow", clock=1000.0, seed=3, start=x
    )
    for t in scheduler.timesteps:
        out = scheduler.step(network(x, t), t, x, log_prob=True)
        step = stepper.step(network(stepper.x, t))
        assert torch.equal(out.prev_sample, step.sample)
        torch.testing.assert_close(out.mean, step.mean, rtol=0, atol=0)
        assert out.std == step.std
        assert torch.equal(out.log_prob, step.log_prob())
        x = out.prev_sample
    assert stepper.is_done


def test_the_result_has_only_what_was_requested() -> None:
    scheduler, x = new("ddpm"), start()
    t = scheduler.timesteps[0]
    plain = scheduler.step(network(x, t), t, x)
    assert plain.log_prob is plain.mean is plain.std is None
    assert list(plain.keys()) == ["prev_sample", "pred_original_sample"]
    scheduler = new("ddpm")
    state, log_prob, mean, std = scheduler.step(network(x, t), t, x, log_prob=True, return_dict=False)
    expected = Normal(mean.double(), std).log_prob(state.double()).flatten(1)
    torch.testing.assert_close(log_prob, expected.sum(1), rtol=1e-6, atol=1e-6)
    scheduler = new("ddpm")
    out = scheduler.step(network(x, t), t, x, log_prob=True, reduction="mean")
    torch.testing.assert_close(out.log_prob, expected.mean(1), rtol=1e-6, atol=1e-6)
    assert torch.equal(out.prev_sample, plain.prev_sample)


def test_steps_in_any_order_are_scored_from_stored_states() -> None:
    """As trainers do: the steps of a rollout in random order, in smaller batches; the ratio is exactly 1."""
    scheduler, states, old = new("flow-sde"), [start(4)], []
    for t in scheduler.timesteps:
        out = scheduler.step(network(states[-1], t), t, states[-1], log_prob=True)
        states.append(out.prev_sample)
        old.append(out.log_prob)
    for rows in (slice(0, 2), slice(2, 4)):
        scheduler.set_timesteps(6)
        for k in (3, 1, 5, 4, 0):
            t, x, outcome = scheduler.timesteps[k], states[k][rows].clone(), states[k + 1][rows]
            out = scheduler.step(network(x, t), t, x, prev_sample=outcome)
            assert torch.equal(out.log_prob, old[k][rows])
            assert torch.equal(out.prev_sample, outcome)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_densities_of_half_precision_states(dtype: torch.dtype) -> None:
    """The run is float32; the density is that of the state returned to the pipeline if it is passed back."""
    scheduler, x = new("flow-sde"), start(dtype=dtype)
    t = scheduler.timesteps[0]
    out = scheduler.step(network(x.float(), t).to(dtype), t, x, log_prob=True)
    assert out.prev_sample.dtype is dtype
    assert out.mean.dtype is torch.float32
    scheduler.set_timesteps(6)
    scored = scheduler.step(network(x.float(), t).to(dtype), t, x, prev_sample=out.prev_sample)
    assert torch.equal(scored.mean, out.mean)
    expected = Normal(out.mean.double(), out.std).log_prob(out.prev_sample.double()).flatten(1).sum(1)
    torch.testing.assert_close(scored.log_prob, expected, rtol=1e-6, atol=1e-6)


def test_gradients_reach_the_networks_output() -> None:
    scheduler, x = new("flow-sde"), start()
    t = scheduler.timesteps[0]
    output = network(x, t).requires_grad_()
    out = scheduler.step(output, t, x, log_prob=True)
    (found,) = torch.autograd.grad(out.log_prob.sum(), output)
    dt = float(scheduler.timesteps[1] - t) / 1000
    s = float(scheduler.timesteps[1]) / 1000
    slope = (1 + 0.49 / (1 - s) * (1 - 1) / 2) * dt  # d mean / d output of equation 9 at t = 1
    expected = (out.prev_sample - out.mean).double() / out.std**2 * slope
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_ddim_is_the_step_of_ddpo(eta: float) -> None:
    """The mean, deviation and log-probability of ddpo-pytorch's DDIM step, from diffusers' alphas_cumprod."""
    scheduler = new("ddim", DDIM, spacing="leading", eta=eta, final="min")
    table = sds.Scheduler("ddim", trained=DDIM).alphas_cumprod
    x, timesteps = start(), scheduler.timesteps
    for k in range(4):
        t, s = (round(float(timesteps[j])) for j in (k, k + 1))
        output = network(x, timesteps[k])
        out = scheduler.step(output, timesteps[k], x, log_prob=True, reduction="mean")
        now, then = (float(table[j]) for j in (t, s))
        std = eta * math.sqrt((1 - then) / (1 - now) * (1 - now / then))
        x0 = (x.double() - math.sqrt(1 - now) * output.double()) / math.sqrt(now)
        mean = math.sqrt(then) * x0 + math.sqrt(1 - then - std**2) * output.double()
        torch.testing.assert_close(out.mean.double(), mean, rtol=1e-5, atol=1e-5)
        assert out.std == pytest.approx(std, rel=1e-5)
        expected = Normal(mean, std).log_prob(out.prev_sample.double()).flatten(1).mean(1)
        torch.testing.assert_close(out.log_prob, expected, rtol=1e-5, atol=1e-5)
        x = out.prev_sample


def test_errors_leave_the_run_as_it_was() -> None:
    scheduler, x = new("ddpm"), start()
    t = scheduler.timesteps[0]
    with pytest.raises(sds.UsageError, match="prev_sample must be a floating-point tensor"):
        scheduler.step(network(x, t), t, x, prev_sample=x[:, :1])
    with pytest.raises(sds.UsageError, match="reduction"):
        scheduler.step(network(x, t), t, x, log_prob=True, reduction="average")
    out = scheduler.step(network(x, t), t, x)
    assert torch.equal(out.prev_sample, new("ddpm").step(network(x, t), t, x).prev_sample)
    with pytest.raises(sds.UsageError, match="stochastic-heun has no Gaussian density"):
        new("stochastic-heun").step(network(x, t), t, x, log_prob=True)


@pytest.mark.parametrize("options", [{}, {"noisy_steps": [2, 3]}, {"amounts": [0.7, 0.0, 0.5, 0.4, 0.0, 0.2]}])
def test_the_noise_of_mixed_is_at_the_same_steps_of_the_grid_wherever_a_run_starts(options: dict[str, Any]) -> None:
    scheduler, x, stored = new("mixed", **options), start(), list[Any]()
    for t in scheduler.timesteps:
        out = scheduler.step(network(x, t), t, x, log_prob=True)
        stored.append((t, x, out))
        x = out.prev_sample
    for t, x, out in stored:
        scored = new("mixed", **options).step(network(x, t), float(t), x, prev_sample=out.prev_sample)
        assert torch.equal(scored.log_prob, out.log_prob)
    scheduler = new("mixed", **options)
    for k, t in enumerate(scheduler.timesteps[2:], 2):
        out = scheduler.step(network(x, t), t, x, log_prob=True)
        assert out.std == stored[k][2].std
        x = out.prev_sample


def test_a_stored_step_of_a_multistep_method_is_not_scored_alone() -> None:
    scheduler, states, stored = new("dpmpp-2m-sde"), [start()], list[Tensor]()
    for t in scheduler.timesteps[2:]:
        out = scheduler.step(network(states[-1], t), t, states[-1], log_prob=True)
        states.append(out.prev_sample)
        stored.append(out.log_prob)
    scheduler = new("dpmpp-2m-sde")
    t, x = scheduler.timesteps[3], states[1]
    with pytest.raises(sds.UsageError, match="depends on the steps before it"):
        scheduler.step(network(x, t), t, x, prev_sample=states[2])
    for begins in (False, True):  # in order it is scored, from the step at which the run started
        scheduler = new("dpmpp-2m-sde")
        if begins:
            scheduler.set_begin_index(2)
        for k, t in enumerate(scheduler.timesteps[2:]):
            t = float(t) if begins else t
            out = scheduler.step(network(states[k], t), t, states[k], prev_sample=states[k + 1])
            assert torch.equal(out.log_prob, stored[k])


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("is_scored", [False, True])
@pytest.mark.parametrize("seed", [None, 3])
def test_a_larger_batch_in_the_same_run_has_noise_for_each_sample(k: int, is_scored: bool, seed: int | None) -> None:
    """With equal states, different samples can only come from different noise."""
    scheduler, x = sds.Scheduler("flow-sde", trained=FLOW, seed=seed), torch.zeros(3, 4)
    scheduler.set_timesteps(4)
    scored = {"prev_sample": x[:1]} if is_scored else {}
    scheduler.step(x[:1], scheduler.timesteps[0], x[:1], **scored)
    drawn = scheduler.step(x, scheduler.timesteps[k], x, log_prob=True).prev_sample
    assert len(drawn.unique(dim=0)) == 3


def test_a_multistep_run_refuses_another_batch() -> None:
    scheduler, x = new("dpmpp-2m-sde"), start()
    scheduler.step(x[:1], scheduler.timesteps[0], x[:1])
    with pytest.raises(sds.UsageError, match="this run has states of shape"):
        scheduler.step(x, scheduler.timesteps[1], x)


@pytest.mark.parametrize("sampler", ["flow-sde", "ddpm", "dpmpp-2m-sde", "euler-maruyama", "mixed"])
def test_a_rollout_with_gradients_has_the_gradient_of_its_scored_steps(sampler: str) -> None:
    """The policy gradient: every outcome is a constant, for the steps after it too."""
    weight, gradients, states = torch.tensor(0.4, requires_grad=True), list[Tensor](), [start()]
    for is_scored in (False, True):
        scheduler, total, x = new(sampler), torch.zeros(()), states[0]
        for k, t in enumerate(scheduler.timesteps):
            outcome = states[k + 1] if is_scored else None
            out = scheduler.step(weight * torch.tanh(x), t, x, log_prob=True, prev_sample=outcome)
            assert not (out.prev_sample.requires_grad and out.std)
            total = total + out.log_prob.sum()
            x = out.prev_sample.detach() if out.std == 0 else out.prev_sample  # the steps of the ODE are differentiable
            if not is_scored:
                states.append(x)
        gradients += torch.autograd.grad(total, weight)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=0)


def test_the_last_state_of_a_scored_run_is_not_the_stored_one() -> None:
    scheduler, x = new("flow-sde"), start()
    t, outcome = scheduler.timesteps[-1], start() + 1
    found = scheduler.step(network(x, t), t, x, prev_sample=outcome).prev_sample
    assert torch.equal(found, outcome)
    assert found.data_ptr() != outcome.data_ptr()


def test_scoring_does_not_add_up() -> None:
    """Each scored step begins a run; only draws that have used noise are counted."""
    scheduler, x = new("flow-sde"), start()
    t = scheduler.timesteps[2]
    first = scheduler.step(network(x, t), t, x).prev_sample
    for _ in range(20):
        scheduler.step(network(x, t), t, x, prev_sample=first)
    assert len(scheduler._run.history.run.steps) == 2
    assert not torch.equal(scheduler.step(network(x, t), t, x).prev_sample, first)


@pytest.mark.parametrize("steps", [range(2, 4), np.arange(2, 4), torch.arange(2, 4), [np.int64(2), 3], (2, 3)])
def test_sequences_of_steps_in_any_form(steps: Any) -> None:
    scheduler, x = new("mixed", noisy_steps=steps), start()
    expected = new("mixed", noisy_steps=[2, 3])
    for t in scheduler.timesteps:
        out = scheduler.step(network(x, t), t, x)
        assert torch.equal(out.prev_sample, expected.step(network(x, t), t, x).prev_sample)
        x = out.prev_sample
    assert json.loads(scheduler.to_json_string()) == json.loads(expected.to_json_string())
