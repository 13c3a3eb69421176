"""The same sampler in diffusers, in the same run, on the embedded model: the numbers must agree."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm

import sdesamplers as sds
from sdesamplers.path.noise import PATH, NormalSource

STEPS, COUNT, SEED = 20, 2, 11
LIMIT = 1e-4 * 2  # of the data range, which is 2 wide


@pytest.fixture(scope="module")
def model():
    return sds.load("fashion-mnist")


@pytest.fixture
def noise():
    return NormalSource(SEED, range(COUNT), (1, 28, 28))


def configuration(**changes):
    table = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    return {**table, "timestep_spacing": "leading", **changes}


def run(scheduler, model, x, **step):
    """The loop of a diffusers pipeline."""
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for k, t in enumerate(scheduler.timesteps):
            output = model.unet(scheduler.scale_model_input(x, t), t).sample
            extra = {name: value(k) for name, value in step.items()}
            x = scheduler.step(output, t, x, **extra).prev_sample
    return x


def compare(ours, theirs):
    difference = (ours.samples - theirs).abs().max().item()
    assert difference < LIMIT, difference


def ours(model, name, start, **words):
    return sds.sample(model, name, num_samples=COUNT, start=start, seed=SEED, **words)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_equals_diffusers_ddim(model, noise, eta):
    start = noise.draw(0)
    scheduler = diffusers.DDIMScheduler(**configuration(clip_sample=False))
    theirs = run(scheduler, model, start, eta=lambda k: eta, variance_noise=lambda k: noise.draw(PATH, k + 1))
    compare(ours(model, "ddim", start, steps=STEPS, spacing="leading", eta=eta), theirs)


@pytest.mark.parametrize(("kind", "variance"), [("fixed_small", "posterior"), ("fixed_large", "beta")])
def test_ddpm_equals_diffusers_ddpm(model, noise, monkeypatch, kind, variance):
    start = noise.draw(0)
    draws = iter(noise.draw(PATH, k + 1) for k in range(STEPS))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *a, **k: next(draws))
    scheduler = diffusers.DDPMScheduler(**configuration(clip_sample=False, variance_type=kind))
    theirs = run(scheduler, model, start)
    compare(ours(model, "ddpm", start, steps=STEPS, spacing="leading", variance=variance), theirs)


@pytest.mark.parametrize(
    ("name", "scheduler_class"),
    [("euler", diffusers.EulerDiscreteScheduler), ("heun", diffusers.HeunDiscreteScheduler)],
)
def test_euler_and_heun_in_ve_coordinates_equal_diffusers(model, noise, name, scheduler_class):
    """diffusers runs these on x / alpha: the state that it starts from is ours divided by alpha."""
    scheduler = scheduler_class(**configuration())
    scheduler.set_timesteps(STEPS)
    sigmas = list(dict.fromkeys(scheduler.sigmas.double().tolist()))
    assert len(sigmas) == STEPS + 1
    z = noise.draw(0)
    theirs = run(scheduler, model, z * sigmas[0])
    alpha = 1 / np.hypot(1.0, sigmas[0])
    result = ours(model, name, z * sigmas[0] * alpha, sigmas=sigmas, coordinates="ve")
    compare(result, theirs)


def test_the_parity_limit_can_fail(model, noise):
    """Another grid moves the sample by far more than the limit, so agreement is not for want of sensitivity."""
    start = noise.draw(0)
    leading = ours(model, "ddim", start, steps=STEPS, spacing="leading").samples
    trailing = ours(model, "ddim", start, steps=STEPS, spacing="trailing").samples
    assert (leading - trailing).abs().max() > 50 * LIMIT
