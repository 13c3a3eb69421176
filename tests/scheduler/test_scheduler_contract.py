"""What diffusers' common tests check of every scheduler, checked of ours with nine samplers.

The checks are written anew from what those tests are about: configurations that are saved and come back, the public
attributes, shapes, what `step` returns, timesteps in either order of calls, noising, trained betas, attributes.
"""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import warnings
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from lanes import mostly_slow
from torch import Tensor

import sdesamplers as sds

NINE = ["euler", "heun", "rk4", "dpmpp-2m", "dpmpp-2m-sde", "unipc", "er-sde", "ddim", "ddpm"]
CONFIG = {
    "num_train_timesteps": 1100,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": False,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"num_train_timesteps": 100},
    {"num_train_timesteps": 1000},
    {"beta_start": 0.001, "beta_end": 0.02},
    {"beta_schedule": "scaled_linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "sample"},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
]
STEPS = 10

pytestmark = pytest.mark.parametrize("sampler", NINE)


def made(sampler: str, **config: Any) -> Any:
    trained = diffusers.DDIMScheduler(**{**CONFIG, **config}).config
    return sds.Scheduler.from_config({**trained, "_class_name": "DDIMScheduler"}, sampler)


def sample() -> Tensor:
    count = 4 * 3 * 8 * 8
    return (torch.arange(count) / count).reshape(3, 8, 8, 4).permute(3, 0, 1, 2)


def model(x: Tensor, t: Any) -> Tensor:
    return x * t / (t + 1)


def loop(scheduler: Any, **words: Any) -> Tensor:
    scheduler.set_timesteps(STEPS)
    x, generator = sample() * scheduler.init_noise_sigma, torch.Generator().manual_seed(0)
    for t in scheduler.timesteps:
        output = 0.1 * model(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, generator=generator, **words).prev_sample
    return x


@pytest.mark.parametrize("variant", mostly_slow(VARIANTS, keep=[VARIANTS[0], VARIANTS[-1]]), ids=str)
def test_a_saved_configuration_is_the_same_scheduler(sampler, variant, tmp_path):
    scheduler = made(sampler, **variant)
    for save in (scheduler.save_config, scheduler.save_pretrained):
        save(tmp_path)
        loaded = sds.Scheduler.from_pretrained(tmp_path)
        visible = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
        assert {key: value for key, value in loaded.config.items() if not key.startswith("_")} == json.loads(
            json.dumps(visible)
        )
        assert torch.equal(loop(loaded), loop(scheduler))
    assert json.loads(scheduler.to_json_string())["_class_name"] == "Scheduler"


def test_a_whole_loop_ends_finite_and_is_repeatable(sampler):
    scheduler = made(sampler)
    first = loop(scheduler)
    assert first.shape == sample().shape
    assert torch.isfinite(first).all()
    assert torch.equal(loop(scheduler), first)
    assert torch.equal(loop(made(sampler)), first)


def test_the_public_attributes(sampler):
    scheduler = made(sampler)
    assert isinstance(scheduler, SchedulerMixin)
    assert float(scheduler.init_noise_sigma) == 1.0
    assert scheduler.scale_model_input(sample(), 0.0).shape == sample().shape  # before set_timesteps too
    assert {"generator", "return_dict"} <= set(inspect.signature(scheduler.step).parameters)
    assert {"device", "timesteps", "sigmas"} <= set(inspect.signature(scheduler.set_timesteps).parameters)
    assert len(scheduler) == len(scheduler.timesteps) == scheduler.config.num_train_timesteps
    assert scheduler.order >= 1
    scheduler.set_timesteps(STEPS)
    assert scheduler.num_inference_steps == STEPS
    assert torch.all(torch.diff(scheduler.timesteps + 0) <= 0)


def test_shapes_of_consecutive_steps(sampler):
    scheduler, x = made(sampler), sample()
    scheduler.set_timesteps(STEPS)
    first = scheduler.step(0.1 * x, scheduler.timesteps[5 * scheduler.order], x).prev_sample
    second = scheduler.step(0.1 * x, scheduler.timesteps[5 * scheduler.order + 1], x).prev_sample
    assert first.shape == second.shape == x.shape


def test_a_tuple_holds_what_the_output_holds(sampler):
    scheduler, x, outputs = made(sampler), sample(), []
    for return_dict in (True, False):
        scheduler.set_timesteps(STEPS)
        generator = torch.Generator().manual_seed(0)
        for t in scheduler.timesteps[:3]:
            outputs.append(scheduler.step(0.1 * x, t, x, generator=generator, return_dict=return_dict))
    for output, values in zip(outputs[:3], outputs[3:], strict=True):
        assert isinstance(output, SchedulerOutput)
        assert isinstance(values, tuple)
        assert torch.equal(output.prev_sample, values[0])
        assert torch.equal(output["prev_sample"], output[0])


def test_schedulers_that_were_copied_or_pickled_go_the_same_way(sampler):
    scheduler = made(sampler)
    expected = loop(scheduler)
    scheduler.set_timesteps(STEPS)
    for found in (copy.copy(scheduler), copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert torch.equal(found.timesteps + 0, scheduler.timesteps + 0)
        assert torch.equal(loop(found), expected)


def test_compatible_schedulers_and_back(sampler):
    scheduler = made(sampler)
    assert all(cls is not None for cls in scheduler.compatibles)
    for name in ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "DDPMScheduler"):
        theirs = getattr(diffusers, name).from_config(scheduler.config)
        assert theirs.config.num_train_timesteps == 1100
        back = sds.Scheduler.from_config(theirs.config)
        assert back.config.sampler == sampler
        assert torch.equal(loop(back), loop(scheduler))


def test_noise_is_added_on_any_device_and_by_any_timestep(sampler):
    scheduler, x, noise = made(sampler), sample(), torch.ones(4, 3, 8, 8)
    scheduler.set_timesteps(100)
    theirs = diffusers.DDIMScheduler(**CONFIG)
    for device in ("cpu", "meta"):
        t = scheduler.timesteps[5 * scheduler.order][None]
        assert scheduler.add_noise(x.to(device), noise.to(device), t).shape == x.shape
        whole = torch.tensor([3, 500, 1099, 0], device=device)
        found = scheduler.add_noise(x.to(device), noise.to(device), whole)
        assert found.device.type == device
        if device == "cpu":
            torch.testing.assert_close(found, theirs.add_noise(x, noise, whole), rtol=1e-5, atol=1e-6)


def test_trained_betas(sampler, tmp_path):
    for betas in (np.linspace(0.01, 0.3, 8), np.array([0.1, 0.3])):
        scheduler = made(sampler, trained_betas=betas)
        scheduler.save_pretrained(tmp_path)
        loaded = sds.Scheduler.from_pretrained(tmp_path)
        np.testing.assert_allclose(scheduler.betas.numpy(), betas, rtol=1e-4)
        assert scheduler.betas.tolist() == loaded.betas.tolist()
        np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), np.cumprod(1 - betas), rtol=1e-5)
        assert torch.isfinite(loop(loaded)).all()


def test_a_table_whose_products_vanish_in_float32(sampler, tmp_path):
    """beta up to 0.2 in 1,100 steps: alphas_cumprod is 0 near its end in diffusers, where float64 has 1e-56."""
    scheduler = made(sampler, beta_start=0.01, beta_end=0.2)
    theirs = diffusers.DDIMScheduler(**{**CONFIG, "beta_start": 0.01, "beta_end": 0.2})
    assert float(theirs.alphas_cumprod[-1]) == 0.0
    torch.testing.assert_close(scheduler.betas, theirs.betas, rtol=1e-4, atol=0)
    scheduler.save_pretrained(tmp_path)
    loaded = sds.Scheduler.from_pretrained(tmp_path)
    x, noise, ends = sample(), torch.ones(4, 3, 8, 8), []
    whole = torch.tensor([3, 300, 1099, 0])
    torch.testing.assert_close(loaded.add_noise(x, noise, whole), theirs.add_noise(x, noise, whole))
    for each in (scheduler, loaded):
        each.set_timesteps(timesteps=[300, 100, 20])
        state = x
        for t in each.timesteps:
            state = each.step(0.1 * state, t, state, generator=torch.Generator().manual_seed(0)).prev_sample
        ends.append(state)
    assert torch.isfinite(ends[0]).all()
    assert torch.equal(ends[0], ends[1])


def test_attributes_of_ones_own_and_attributes_that_are_not_there(sampler):
    scheduler = made(sampler)
    scheduler.dummy_attribute = 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scheduler.dummy_attribute == 5
        assert scheduler.save_pretrained == getattr(scheduler, "save_pretrained")  # noqa: B009
    with pytest.warns(FutureWarning, match="config"):
        assert scheduler.num_train_timesteps == 1100
    with pytest.raises(AttributeError, match="'Scheduler' object has no attribute 'does_not_exist'"):
        _ = scheduler.does_not_exist


@pytest.mark.parametrize("own", [[999, 700, 300, 10], [1099, 87, 1, 0], [800, 3]], ids=str)
def test_timesteps_of_ones_own(sampler, own):
    scheduler = made(sampler)
    scheduler.set_timesteps(timesteps=own)
    assert float(scheduler.timesteps[0]) == own[0]
    assert set(own) <= set(scheduler.timesteps.tolist())
    x = sample()
    for t in scheduler.timesteps:
        x = scheduler.step(0.1 * x, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
    assert torch.isfinite(x).all()
    for wrong in ([10, 300], [300, 300], [1100, 5]):
        with pytest.raises(ValueError, match=r"strictly|between 0 and 1099"):
            scheduler.set_timesteps(timesteps=wrong)


def test_a_loop_that_begins_in_the_middle_of_a_noised_sample(sampler):
    scheduler, noise = made(sampler), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(STEPS)
    begin = 6 * scheduler.order
    t_start, rest = scheduler.timesteps[begin], scheduler.timesteps[begin:]
    ends = []
    for timesteps in (rest, rest.tolist()):
        scheduler.set_timesteps(STEPS)
        x = scheduler.add_noise(sample(), noise, t_start[None])
        generator = torch.Generator().manual_seed(0)
        for t in timesteps:
            x = scheduler.step(0.1 * model(x, t), t, x, generator=generator).prev_sample
        ends.append(x)
    assert torch.equal(ends[0], ends[1])
    assert torch.isfinite(ends[0]).all()


def test_seeds(sampler):
    """A list of generators is one for each sample; batches do not matter."""
    scheduler, x = made(sampler), sample()

    def end(x: Tensor, generators: Any) -> Tensor:
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            x = scheduler.step(0.1 * model(x, t), t, x, generator=generators).prev_sample
        return x

    together = end(x, [torch.Generator().manual_seed(k) for k in range(4)])
    for k in range(4):
        torch.testing.assert_close(end(x[k : k + 1], [torch.Generator().manual_seed(k)])[0], together[k])


def test_set_timesteps_on_a_device_and_again(sampler):
    scheduler = made(sampler)
    scheduler.set_timesteps(STEPS, device="meta")
    assert scheduler.timesteps.device.type == "meta"
    scheduler.set_timesteps(STEPS, device=torch.device("cpu"))
    ten = len(scheduler.timesteps)
    scheduler.set_timesteps(2 * STEPS)
    assert len(scheduler.timesteps) > ten
    scheduler.set_timesteps(num_inference_steps=STEPS)
    assert len(scheduler.timesteps) == ten


def test_half_precision_samples_stay_so(sampler):
    scheduler = made(sampler)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        scheduler.set_timesteps(STEPS)
        x = sample().to(dtype)
        for t in scheduler.timesteps:
            x = scheduler.step(0.1 * x, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
            assert x.dtype == dtype
        assert torch.isfinite(x).all()
